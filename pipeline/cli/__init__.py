"""The command line: ``hyojo --help`` lists the commands, each of which is a module of this room.

A command's docstring is its help, ``add_options`` adds its options, and ``run`` does it. Nothing heavy is imported
before a command runs, so that ``--help`` answers at once.
"""

import argparse
import sys
from importlib import import_module

from pipeline.core.errors import stage_main

# Commands by what they are for, in the order of the help; a module's name has an underscore where there is a hyphen.
JOBS = {
    "project": ("use", "doctor", "ui", "sync"),
    "data": ("suspects", "relabel"),
    "training": ("probe", "lr-range", "seeds", "search"),
    "judging": ("compare", "reproduce", "history"),
    "releasing": ("register", "promote", "rollback", "sign", "verify"),
    "answering": ("predict", "batch", "serve", "watch"),
}


def main() -> None:
    """Entry point of ``hyojo``."""
    arguments = build_parser().parse_args(sys.argv[1:] or ["--help"])
    stage_main(lambda: sys.exit(arguments.run(arguments) or 0))


def build_parser() -> argparse.ArgumentParser:
    """All commands with their help."""
    parser = argparse.ArgumentParser(
        prog="hyojo",
        usage="%(prog)s COMMAND [OPTION ...]",
        description="Labelled face images in, a tracked and served expression classifier out.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(prog="hyojo", required=True, metavar="COMMAND", help=argparse.SUPPRESS)
    listed = []
    for job, names in JOBS.items():
        listed.append(f"\n{job}:")
        for name in names:
            module = import_module(f"pipeline.cli.{name.replace('-', '_')}")
            about, _, more = (module.__doc__ or "").partition("\n\n")
            listed.append(f"  {name:10} {about.removesuffix('.')}")
            command = commands.add_parser(name, description=f"{about}\n\n{more}".strip(), formatter_class=_Formatter)
            if hasattr(module, "add_options"):
                module.add_options(command)
            command.set_defaults(run=module.run)
    listed.append(
        "\n`hyojo COMMAND --help` says more. `dvc repro` runs the pipeline; params.yaml is the one file to edit."
    )
    parser.epilog = "\n".join(listed).lstrip()
    return parser


class _Formatter(argparse.HelpFormatter):
    """Keeps the paragraphs of a description."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n\n".join(fill(paragraph, width, indent) for paragraph in text.split("\n\n"))
