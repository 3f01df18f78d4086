"""Bring MLflow in line with DVC's files."""

import argparse


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--relocate", action="store_true", help="after the project's folder was moved: mend locations")


def run(arguments: argparse.Namespace) -> None:
    from pipeline.core.project import project_root
    from pipeline.tracking import store

    if arguments.relocate:
        print(f"{store.relocate(project_root())} locations changed.")
        return
    from pipeline.tracking.sync import sync

    for line in sync():
        print(f"in place: {line}")
