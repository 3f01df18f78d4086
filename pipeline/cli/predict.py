"""Classify pictures."""

import argparse

from pipeline.cli import options


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    command.add_argument("paths", nargs="+", metavar="PATH", help="a picture, or a folder of pictures")
    command.add_argument(
        "--model",
        default="models/bundle",
        help=f"a bundle folder or a model URI such as {options.CHAMPION_URI} (%(default)s)",
    )
    options.add_faces(command)
    form = command.add_mutually_exclusive_group()
    form.add_argument("--json", dest="form", action="store_const", const="json", help="print JSON")
    form.add_argument("--csv", dest="form", action="store_const", const="csv", help="print CSV")
    command.set_defaults(form="table")


def run(arguments: argparse.Namespace) -> int:
    from pipeline.serve import files

    rows = list(files.predict_paths(arguments.paths, arguments.model, arguments.faces))
    show = {"json": files.format_json, "csv": files.format_csv, "table": files.format_table}
    print(show[arguments.form](rows))
    return int(all(row["error"] for row in rows))
