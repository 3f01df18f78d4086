"""Classify pictures."""

import argparse

from pipeline.cli import options


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "paths", nargs="+", metavar="PATH", help="a picture, or a folder, archive or table of pictures"
    )
    options.add_model(command)
    options.add_column(command)
    options.add_faces(command)
    form = command.add_mutually_exclusive_group()
    form.add_argument("--json", dest="form", action="store_const", const="json", help="print JSON")
    form.add_argument("--csv", dest="form", action="store_const", const="csv", help="print CSV")
    command.set_defaults(form="table")


def run(arguments: argparse.Namespace) -> int:
    import json

    from pipeline.serve import files

    given = arguments.trust, arguments.require_signature
    rows = list(files.predict_paths(arguments.paths, arguments.model, arguments.faces, arguments.column, given))
    if arguments.form == "json":
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        print(files.format_csv(rows) if arguments.form == "csv" else files.format_table(rows))
    return int(all(row["error"] for row in rows))
