"""Register the bundle; the first version becomes champion."""

import argparse


def run(_arguments: argparse.Namespace) -> None:
    from pipeline.tracking import registry

    if not registry.has_model():  # a fresh clone with pulled outs, or a store that was lost
        from pipeline.tracking.sync import sync

        sync()
    print(registry.register().message)
