"""Look for better parameters on the val split; the test split is never read.

search.yaml has a range for each parameter. The first trial is params.yaml as it is. Each trial is a DVC experiment and
an MLflow run below one parent; trials that fall behind are ended early. Killed and run again, the same command goes on;
several machines may share --storage.
The best is confirmed under fresh seeds: the score that won a search is too good.
"""

import argparse
from pathlib import Path


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("space", nargs="?", default="search.yaml", metavar="FILE", help="what is tried (%(default)s)")
    command.add_argument("--trials", type=int, default=20, metavar="N", help="finished ones in all (%(default)s)")
    command.add_argument("--minutes", type=float, metavar="M", help="begin none after so long (no limit)")
    command.add_argument("--name", default="search", help="of the study and its experiments (%(default)s)")
    command.add_argument("--confirm", type=int, default=3, metavar="N", help="fresh seeds for the best (%(default)s)")
    command.add_argument("--no-prune", dest="prune", action="store_false", help="train every trial to its end")
    command.add_argument(
        "--sampler", choices=("tpe", "random"), default="tpe", help="how they are chosen (%(default)s)"
    )
    command.add_argument("--storage", metavar="URL", help="the study's database (one below .hyojo/)")


def run(arguments: argparse.Namespace) -> int:
    from pipeline.core.errors import UserError
    from pipeline.experiments.search import search
    from pipeline.experiments.search_space import read_space
    from pipeline.experiments.seed_setting import check_name

    check_name(arguments.name)
    if arguments.trials < 1 or arguments.confirm < 0 or (arguments.minutes is not None and arguments.minutes <= 0):
        raise UserError("search wants 1 or more --trials, 0 or more fresh seeds, and --minutes above 0.")
    return search(
        read_space(Path(arguments.space)),
        arguments.name,
        trials=arguments.trials,
        minutes=arguments.minutes,
        confirm=arguments.confirm,
        storage=arguments.storage,
        prune=arguments.prune,
        sampler=arguments.sampler,
    )
