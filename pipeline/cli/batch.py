"""Classify very many pictures into a folder of Parquet parts.

Scores a folder, an archive or a table of pictures, in constant memory. Killed and run again, it goes on where
it was.
"""

import argparse
import sys

from pipeline.cli import options


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder or zip or tar archive of pictures, or a table (.parquet, .csv) with pictures or paths in it",
    )
    command.add_argument(
        "--out", required=True, metavar="FOLDER", help="to make, for parts, as pandas, pyarrow and Spark read them"
    )
    options.add_model(command)
    options.add_column(command)
    command.add_argument("--workers", type=int, help="threads (default: one a core)")
    command.add_argument(
        "--batch-size", type=int, default=64, help="pictures that a thread takes at a time (%(default)s)"
    )
    command.add_argument(
        "--chunk", type=int, default=8192, help="pictures between two points to go on from (%(default)s)"
    )
    options.add_faces(command)
    options.add_runtime(command)
    again = command.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on where a former run stopped (the default)")
    again.add_argument("--restart", action="store_true", help="throw away what is there, and begin anew")


def run(arguments: argparse.Namespace) -> int:
    from pipeline.serve.batch import Settings, score_pictures

    settings = Settings(*(getattr(arguments, name) for name in Settings._fields))
    try:
        found = score_pictures(arguments.source, arguments.out, arguments.model, settings)
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return 130
    how = f"{found.scored / found.seconds:,.0f} img/s" if found.scored else "finished before; --restart scores anew"
    others = f", {found.passed_over:,} other files passed over" * (found.passed_over > 0)
    rows = f"{found.pictures:,} pictures, {found.rows:,} rows, {found.errors:,} of them errors"
    print(f"{arguments.out}: {rows}{others} ({how})")
    for reason, count in found.reasons.most_common(3):
        print(f"  {count:,} x {reason}")
    return int(found.errors == found.rows)
