"""Make a version champion, if the gate lets it through."""

import argparse

from pipeline.cli import options


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("version", nargs="?", type=int, metavar="VERSION", help="the latest if left out")
    command.add_argument("--force", action="store_true", help="whatever the gate says; needs --reason")
    command.add_argument("--reason", metavar="TEXT", help="why the gate is overruled; recorded with the decision")
    command.add_argument(
        "--project",
        metavar="NAME",
        help="the version's project: lets --force pass a version of another project, other classes or other test data",
    )
    options.add_signature(command)


def run(arguments: argparse.Namespace) -> int:
    from pipeline.experiments import promotion

    given = arguments.version, arguments.force, arguments.reason, arguments.project
    outcome = promotion.promote(*given, arguments.require_signature)
    print(outcome.message)
    return int(outcome.refused)
