"""Train several seeds of one setting: mean, spread and interval of each score.

Trains and evaluates params.yaml under N seeds, each a DVC experiment and an MLflow run below a common parent
run. Interrupted and run again, it goes on.
"""

import argparse


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("count", type=int, metavar="N", help="how many seeds")
    command.add_argument("--start", type=int, default=0, metavar="S", help="the first seed (%(default)s)")
    pairs = command.add_argument("--set", dest="overrides", action="extend", nargs="+", default=[], metavar="key=value")
    pairs.help = "on top of params.yaml, such as train.epochs=10"
    command.add_argument("--name", help="of the family and, with -SEED, of its experiments (from the params)")


def run(arguments: argparse.Namespace) -> int:
    from pipeline.experiments.seeds import train_seeds

    return train_seeds(arguments.count, arguments.start, arguments.overrides, arguments.name)
