"""Take decisions about doubtful labels into data/corrections.csv.

The pages of doubtful labels, reports/label_suspects.html and label_suspects_train.html, save what you decided as
corrections.csv. This command merges such files into the project's; `dvc repro` then trains with them.
"""

import argparse


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("files", nargs="+", metavar="FILE", help="corrections.csv, as the page saved it")
    command.add_argument("--who", default="", help="who decided, where the file does not say (you)")


def run(arguments: argparse.Namespace) -> None:
    from pipeline.experiments.relabel import take_decisions
    from pipeline.tracking.origin import find_user

    print(take_decisions(arguments.files, arguments.who or find_user()))
