"""Find training labels that are probably wrong, by cross-validation.

Trains params.yaml's net anew on all folds of the training split but one, in turn, has it judge that one, and
writes the labels that it doubts to reports/label_suspects_train.csv and .html.
"""

import argparse

from pipeline.core.errors import UserError


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--folds", type=int, default=4, help="parts, and so trainings (%(default)s)")
    command.add_argument("--epochs", type=int, help="of each training (train.epochs); fewer cost less and doubt more")


def run(arguments: argparse.Namespace) -> None:
    from pipeline.experiments.suspects import find_label_suspects

    if arguments.folds < 2:
        raise UserError(f"--folds {arguments.folds}: two at least")
    print(find_label_suspects(arguments.folds, arguments.epochs))
