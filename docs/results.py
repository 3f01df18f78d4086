"""Keep what a project that ran a recipe measured, for the tables of results.md, which docs/generate.py makes of it.

Run in the project, after `dvc repro`: python docs/results.py RECIPE [--into REPOSITORY] [--beside] [--note WORDS]
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.core.params_file import load_params
from pipeline.core.stage_files import RunFile

FOLDER = Path(__file__).parent / "results"
SCORES = {
    "val accuracy": ("val", "accuracy"),
    "test accuracy": ("test", "accuracy"),
    "of the image alone": ("test_plain", "accuracy"),
    "of clean images": ("test_clean", "accuracy"),
    "macro-F1": ("test", "macro_f1"),
    "of clean images, macro-F1": ("test_clean", "macro_f1"),
    "expected calibration error": ("test", "ece"),
    "mean accuracy on corrupted images": ("robustness", "mean_corruption_accuracy"),
}


def main() -> None:
    """Write ``docs/results/RECIPE-SEED.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="its name, such as fer2013-best")
    parser.add_argument("--into", type=Path, default=FOLDER.parents[1], help="where docs/results is")
    parser.add_argument("--beside", action="store_true", help="trained beside other work: its minutes say nothing")
    parser.add_argument("--note", default="", help="how this training differs from the recipe")
    given = parser.parse_args()
    params, run = load_params(), RunFile.load()
    table = pd.read_csv("reports/per_class.csv", index_col="class")
    record = {
        "recipe": given.recipe,
        "note": given.note,
        "seed": params.train.seed,
        "commit": run.origin["mlflow.source.git.commit"],
        "machine": json.loads(run.origin["hyojo.machine"]),
        "views": params.evaluate.tta if params.evaluate.serve_tta else [],
        "figures": {name: value for name, value in run.figures.items() if name != "train/time_s" or not given.beside},
        "metrics": json.loads(Path("reports/metrics.json").read_text(encoding="utf-8")),
        "recall": table["recall"].to_dict(),
    }
    name = "-".join(filter(None, (given.recipe, given.note.replace(" ", "-"), str(params.train.seed))))
    path = given.into / "docs/results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {path}")


def read_records() -> dict[str, list[dict[str, Any]]]:
    """The records of each recipe's seeds, by recipe and note, best first."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(FOLDER.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault(f"`{record['recipe']}.yaml`{record['note'] and ', ' + record['note']}", []).append(record)
    return dict(sorted(found.items(), key=lambda item: -_mean(item[1], lambda one: one["metrics"]["test"]["accuracy"])))


def render_leaderboard(*columns: str) -> str:
    """A row a recipe, as a Markdown table: all that was kept, or these columns of recipes trained as they are."""
    kept = [(name, records) for name, records in read_records().items() if not (columns and records[0]["note"])]
    rows = [_describe(name, records) for name, records in kept]
    columns = columns or tuple(rows[0])
    return _table([list(columns), ["---"] * len(columns), *([row[column] for column in columns] for row in rows)])


def _describe(name: str, records: list[dict[str, Any]]) -> dict[str, str]:
    """What is told of a recipe, by column."""
    return {
        "recipe": name,
        "parameters": f"{records[0]['figures']['cost/parameters'] / 1e6:.1f} M",
        "views": ", ".join(records[0]["views"]) or "the image alone",
        "seeds": ", ".join(str(record["seed"]) for record in records),
        "test": _score(records, *SCORES["test accuracy"]),
        "clean": _score(records, *SCORES["of clean images"]),
        "macro-F1": _score(records, *SCORES["macro-F1"]),
        "minutes": _spread(records, lambda one: one["figures"]["train/time_s"] / 60, "{:.3g}"),
        "PFLOP": _spread(records, lambda one: one["figures"]["train/pflop"], "{:.2g}"),
        "commit": ", ".join(dict.fromkeys(record["commit"][:7] for record in records)),
    }


def render_details() -> str:
    """A column a recipe, as a Markdown table."""
    found = read_records()
    rows = [["", *found], ["---"] * (len(found) + 1)]
    rows += [[title, *(_score(records, *where) for records in found.values())] for title, where in SCORES.items()]
    for name in next(iter(found.values()))[0]["recall"]:
        recalls = (f"{_mean(records, lambda one: one['recall'][name]):.3f}" for records in found.values())  # noqa: B023
        rows.append([f"recall: {name}", *recalls])
    return _table(rows)


def _table(rows: list[list[str]]) -> str:
    """Cells as Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _score(records: list[dict[str, Any]], part: str, name: str) -> str:
    """Mean and range of a score over seeds."""
    return _spread(records, lambda one: one["metrics"][part][name], "{:.3f}")


def _spread(records: list[dict[str, Any]], pick: Callable[[dict[str, Any]], float], form: str) -> str:
    """Mean and range of a figure over the seeds that have it."""
    values = []
    for record in records:
        try:
            values.append(pick(record))
        except KeyError:
            continue
    if not values:
        return ""
    low, mean, high = (form.format(value) for value in (min(values), sum(values) / len(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


def _mean(records: list[dict[str, Any]], pick: Callable[[dict[str, Any]], float]) -> float:
    """Mean over seeds."""
    return sum(map(pick, records)) / len(records)


if __name__ == "__main__":
    main()
