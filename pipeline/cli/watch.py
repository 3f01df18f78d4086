"""Compare what a model answers with what it answered before: shifts, and accuracy without labels.

SCORES is a folder of `hyojo batch` or a log of `hyojo serve --log-requests`. It is compared with the model's answers
to its own test split, or with earlier scores. Exit status 3 if anything is shifted beyond chance, and by --least or
more: for cron.
"""

import argparse

from pipeline.cli import options

SHIFTED = 3


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("scores", metavar="SCORES", help="a folder of `hyojo batch`, or a log of requests (.jsonl)")
    command.add_argument(
        "--against",
        default=options.CHAMPION,
        metavar="REFERENCE",
        help="a model, whose test split counts, or earlier scores (%(default)s)",
    )
    command.add_argument("--least", type=float, default=0.1, help="size of a shift that counts, 0 to 1 (%(default)s)")
    command.add_argument("--page", metavar="FILE", help="write a page with figures")
    command.add_argument("--log", action="store_true", help="put figures and page on an MLflow run of their own")
    command.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    import json

    from pipeline.serve import watch, watch_page

    found = watch.watch(arguments.scores, arguments.against, arguments.least)
    print(json.dumps(watch.summarise(found), indent=2) if arguments.json else watch.describe(found))
    if arguments.page:
        options.write_page(arguments.page, watch_page.render(found), "--page")
    if arguments.log:
        watch_page.log(found)
    return SHIFTED if found.shifted else 0
