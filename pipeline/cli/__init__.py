"""The command line: ``hyojo --help`` lists the commands, each of which is a module of this room.

A command's docstring is its help, ``add_options`` adds its options, and ``run`` does it. Nothing heavy is imported
before a command runs, so that ``--help`` answers at once.
"""

import argparse
import sys
from importlib import import_module

from pipeline.core.errors import stage_main

# In the order of the help; a module's name has an underscore where the command has a hyphen.
COMMANDS = (
    "use", "seeds", "probe", "lr-range", "suspects", "predict", "batch", "register", "compare", "promote", "rollback",
    "history", "sign", "verify", "serve", "ui", "sync",
)  # fmt: skip


def main() -> None:
    """Entry point of ``hyojo``."""
    arguments = build_parser().parse_args()
    stage_main(lambda: sys.exit(arguments.run(arguments) or 0))


def build_parser() -> argparse.ArgumentParser:
    """All commands with their help."""
    parser = argparse.ArgumentParser(
        prog="hyojo",
        description="Labelled face images in, a tracked and served expression classifier out.",
        epilog="The pipeline itself runs by `dvc repro`; params.yaml is the one file to edit.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = import_module(f"pipeline.cli.{name.replace('-', '_')}")
        about, _, more = (module.__doc__ or "").partition("\n\n")
        command = commands.add_parser(name, help=about.removesuffix("."), description=more or about)
        if hasattr(module, "add_options"):
            module.add_options(command)
        command.set_defaults(run=module.run)
    return parser
