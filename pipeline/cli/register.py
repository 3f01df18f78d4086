"""Register the bundle; the first version becomes champion."""

import argparse


def run(_arguments: argparse.Namespace) -> None:
    from pipeline.metrics.table import TITLES
    from pipeline.tracking import registry
    from pipeline.tracking.bundles import read_bundle

    if not registry.has_model():  # a fresh clone with pulled outs, or a store that was lost
        from pipeline.tracking.sync import sync

        sync()
    print(registry.register().message)
    bundle = read_bundle()
    scores = ", ".join(f"{TITLES[name]} {bundle.metrics['test'][name]:.3f}" for name in ("accuracy", "macro_f1"))
    print(f"{bundle.backbone}, on the test split: {scores}. Curves, tables and mistakes: reports/report.html")
