"""Compare two models on the same test samples.

A and B are registry versions (3, v3), aliases (champion), models:/ URIs, MLflow runs by id, beginning of an
id or name, DVC experiments, git revisions, or . for what stands in reports/.
"""

import argparse

from pipeline.cli import options


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("a", metavar="A", help="what B is compared with, such as champion")
    command.add_argument("b", metavar="B", help="the newer one, such as .")
    command.add_argument("--html", metavar="FILE", help="page to write (reports/compare.html, and none with --json)")
    command.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> None:
    import json

    from pipeline.experiments import names, two_families
    from pipeline.experiments import page as compare_page
    from pipeline.experiments.two_models import compare

    if families := two_families.find_pair(arguments.a, arguments.b):
        found = two_families.compare(*families)
        text, page, shown = compare_page.families_text, compare_page.families_page, "as a page"
    else:
        found = compare(names.find_contender(arguments.a), names.find_contender(arguments.b))
        text, page, shown = compare_page.text, compare_page.page, "with pictures"
    print(json.dumps(found.as_dict(), indent=2) if arguments.json else text(found))
    if arguments.json and not arguments.html:
        return
    path = arguments.html or "reports/compare.html"
    options.write_page(path, page(found), "--html")
    if not arguments.json:
        print(f"\n{shown}: {path}")
