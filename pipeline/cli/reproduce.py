"""Run anew what a run, a version or a commit came from, and compare digests.

The commit, with the changes that it did not hold, is put into a folder of its own; the data come from git, DVC's cache
or its remote; the environment is the present one if it is as requirements.lock of that commit says, else one is made.
Exit status 3 if something came out otherwise; 4 if that is only what training made (weights, predictions, bundle), the
arrays are equal, and it was made on another machine (instruction sets, threads, Python), or nobody recorded on which.
Nothing of the project or its MLflow store is touched.
"""

import argparse
from pathlib import Path


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("name", metavar="NAME", help="a version, alias, run (id or name), experiment or git revision")
    command.add_argument("--into", type=Path, metavar="FOLDER", help="where to work (one below .hyojo/reproduced)")
    command.add_argument("--check", action="store_true", help="only look whether everything that is needed is there")


def run(arguments: argparse.Namespace) -> int:
    from pipeline.experiments.reproduce import reproduce

    return reproduce(arguments.name, arguments.into, arguments.check)
