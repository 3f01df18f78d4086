"""What MLflow's pages of runs and versions say first: Markdown for people, who may go on writing in it."""

import json
from typing import TYPE_CHECKING

from pipeline.core.stage_files import BundleFile
from pipeline.metrics.table import HEADLINES, TITLES
from pipeline.tracking.inputs import DIGEST_TAG, EXPERIMENT_TAG, SOURCE_TAG
from pipeline.tracking.runs import read_artifact

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def describe_run(metrics: dict[str, float], tags: dict[str, str], audit: dict[str, int | float] | None = None) -> str:
    """Return a run's description: headline scores, data with what the audit counted, and how to have it again."""
    named = {f"test/{name}": title for name, title in HEADLINES.items()}
    named |= {f"test_clean/{name}": f"{title} without twins" for name, title in HEADLINES.items()}
    scores = ", ".join(f"{label} {metrics[name]:.3f}" for name, label in named.items() if name in metrics)
    lines = [f"Test: **{scores}**." if scores else "No test scores."]
    if digest := tags.get(DIGEST_TAG):
        counted = "".join(f", {count:,} {name.replace('_', ' ')}" for name, count in (audit or {}).items())
        lines.append(f"Data: `{digest[:12]}`{counted}.")
    if again := _tell_how(tags):
        lines.append(f"Again: {again}.")
    return "\n\n".join(lines)


def describe_version(client: "MlflowClient", bundle: BundleFile, run: "Run", author: str) -> str:
    """Return a version's description: classes, data, scores with their intervals, who and how, card and report."""
    tags, run_id = run.data.tags, run.info.run_id
    found = read_artifact(client, run_id, "evaluation/intervals.json")
    intervals = json.loads(found) if found else {}
    rows = []
    for name, value in bundle.metrics["test"].items():
        low, high = intervals.get(name, ("", ""))
        rows.append(f"| {TITLES.get(name, name)} | {value:.4f} | {f'{low:.4f} to {high:.4f}' if found else ''} |")
    source = run.data.params.get("prepare.source", "").rpartition("/")[2]
    known = tags.get(SOURCE_TAG) or bundle.data_digest
    page = f"#/experiments/{run.info.experiment_id}/runs/{run_id}/artifacts"
    return "\n".join([
        f"**{bundle.backbone}**, {len(bundle.class_names)} classes: {', '.join(bundle.class_names)}.",
        "",
        f"Data: {source} `{known[:12]}`. Trained by {tags.get('mlflow.user', 'somebody')}, registered by {author}."
        + (f" Again: {again}." if (again := _tell_how(tags)) else ""),
        "",
        f"[Model card]({page}/MODEL_CARD.md) · [Report]({page}/evaluation/report.html)",
        "",
        "| test | score | 95 % interval |",
        "|---|---|---|",
        *rows,
    ])  # fmt: skip


def _tell_how(tags: dict[str, str]) -> str:
    """How to have a run again."""
    experiment, commit = tags.get(EXPERIMENT_TAG), tags.get("mlflow.source.git.commit")
    if experiment:
        return f"`dvc exp apply {experiment}`"
    changed = " with the changes in `git.patch`" if tags.get("hyojo.git_dirty") == "true" else ""
    return f"`git checkout {commit[:12]}`{changed}, then `dvc repro`" if commit else ""
