"""Make the former champion champion again."""

import argparse


def run(_arguments: argparse.Namespace) -> None:
    from pipeline.tracking import registry

    print(registry.rollback().message)
