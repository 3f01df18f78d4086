"""Make a version champion, if the gate lets it through."""

import argparse


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("version", nargs="?", type=int, metavar="VERSION", help="the latest if left out")
    command.add_argument("--force", action="store_true", help="whatever the gate says; needs --reason")
    command.add_argument("--reason", metavar="TEXT", help="why the gate is overruled; recorded on the version")


def run(arguments: argparse.Namespace) -> int:
    from pipeline.experiments import promotion

    outcome = promotion.promote(arguments.version, arguments.force, arguments.reason)
    print(outcome.message)
    return int(outcome.refused)
