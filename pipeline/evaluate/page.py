"""``reports/report.html``: all that evaluate knows of a model, on one page.

It shows faces: the page is a cached out of evaluate and an artifact of the run, and never goes into git.
"""

import importlib.metadata
from datetime import UTC, datetime
from typing import Any

import pandas as pd
from markupsafe import Markup

from pipeline.evaluate import robustness
from pipeline.evaluate.explanations import Explanation
from pipeline.evaluate.findings import Findings
from pipeline.evaluate.tables import reliabilities
from pipeline.metrics import by_class, calibration
from pipeline.metrics.intervals import accuracy_interval
from pipeline.metrics.table import HEADLINES, TITLES
from pipeline.reporting import card, evaluation_figures, html, plots, suspects, training_figures

AUDIT_TITLES = {
    "redundant": "copies of images, exact and near ones",
    "conflicting_groups": "sets of twins with different labels",
    "test_in_train": "test images with a twin in the source's training split",
    "relabelled": "labels that people changed",
    "relabelled_test": "of these in the test split",
}


def render(found: Findings) -> str:
    """Write the page, HTML, the same for the same findings of the same training: no times but its, and no places."""
    names, sidecar = found.class_names, found.sidecar
    table = by_class.per_class(found.test.targets, found.preds, names)
    about = {
        "backbone": sidecar.backbone,
        "class_names": names,
        "preprocessing": sidecar.preprocessing,
        "data_digest": found.prepared.digest,
        "audit": found.result["audit"],
        "metrics": {part: found.result[part] for part in ("val", "test", "test_clean")},
    }
    rows = [{key: str(value) for key, value in row.items()} for row in table.to_dict("records")]
    text = card.render(about, found.prepared.counts, sidecar.params, rows)
    return html.render(
        "report.html",
        title="Evaluation",
        titles=TITLES,
        headlines=HEADLINES,
        origin=_origin(found),
        doubts=suspects.describe(found.suspects, dict(found.answers.splits)),
        audit_titles=AUDIT_TITLES,
        found=found,
        names=names,
        per_class=_with_intervals(table),
        matrix=by_class.confusion(found.test.targets, found.preds, len(names)).tolist(),
        slices=[(by, rows.to_dict("records")) for by, rows in found.slices.groupby("by", sort=False)],
        worse=int(found.slices["worse"].sum()),
        corruptions=_corruptions(found.robust),
        clean=robustness.CLEAN,
        explained=[_explained(item, found, names) for item in found.explanations],
        mistakes=_mistakes(found, names),
        wrong=int((found.preds != found.test.targets).sum()),
        charts=_charts(found),
        card=html.from_markdown(text.split("\n", 1)[1], level=2),  # the page has a title of its own
    )


def _origin(found: Findings) -> list[tuple[str, str]]:
    """Which training this is of, as rows of what and which."""
    tags, ended_s = found.run.origin, found.run.ended_s
    commit = tags.get("mlflow.source.git.commit", "")[:12]
    changed = ", with changes" if tags.get("hyojo.git_dirty") == "true" else ""
    rows = {
        "run": found.run.run_id,
        "trained": datetime.fromtimestamp(ended_s, UTC).strftime("%Y-%m-%d %H:%M UTC") if ended_s else "",
        "by": tags.get("mlflow.user", ""),
        "experiment": tags.get("hyojo.dvc.exp_name", ""),
        "commit": f"{commit}{changed}" if commit else "",
        "data": found.sidecar.data_digest[:12],
        "weights": found.sidecar.weights_sha256[:12],
        "version": f"Hyojo {importlib.metadata.version('hyojo')}",
    }
    return [(name, value) for name, value in rows.items() if value]


def _with_intervals(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of the table by class, with the Wilson interval of the recall; none for a class without images."""
    rows = table.to_dict("records")
    for row in rows:
        right = round(row["recall"] * row["support"])
        row["interval"] = accuracy_interval(right, row["support"]) if row["support"] else None
    return rows


def _corruptions(table: pd.DataFrame) -> list[tuple[str, list[dict[str, Any]]]]:
    """The rows of each corruption, from the weakest to the strongest."""
    changed = table[table["level"] > 0]
    return [(name, rows.to_dict("records")) for name, rows in changed.groupby("corruption", sort=False)]


def _explained(item: Explanation, found: Findings, names: list[str]) -> dict[str, Any]:
    """A picture with its heat maps, each for a class."""
    return {
        "file": found.test.files[item.row],
        "actual": names[found.test.targets[item.row]],
        "right": len(item.maps) == 1,
        "picture": html.thumbnail(item.picture),
        "maps": [
            (names[label], float(found.probs[item.row, label]), html.overlay(item.picture, heat))
            for label, heat in item.maps.items()
        ],
    }


def _mistakes(found: Findings, names: list[str]) -> list[dict[str, Any]]:
    """The mistakes of which the model was surest."""
    shown = []
    for row in by_class.worst_mistakes(found.test.targets, found.probs, found.worst):
        pred, actual, probs = found.preds[row], found.test.targets[row], found.probs[row]
        about = {"picture": html.thumbnail(found.test.images[row]), "file": found.test.files[row]}
        about |= {"predicted": names[pred], "actual": names[actual]}
        shown.append(about | {"sure": float(probs[pred]), "doubt": float(probs[actual])})
    return shown


def _charts(found: Findings) -> dict[str, Markup]:
    """The drawings, by name; those that there is nothing for are missing."""
    trust = found.trust
    ece = trust["ece"]["test"]
    curve = calibration.risk_coverage(found.test.targets, found.probs)
    drawn = {
        "reliability": (
            evaluation_figures.reliability(reliabilities(found), trust["temperature"]),
            "Accuracy against confidence, before and after calibration; the calibration error falls from "
            f"{ece['before']:.3f} to {ece['after']:.3f}"
            if ece["after"] <= ece["before"]
            else "Accuracy against confidence, before and after calibration",
            4.2,
        ),
        "risk": (
            evaluation_figures.risk_coverage(curve, trust["abstain"].get("test")),
            f"Part answered wrongly against part answered; all answered, {curve['risk'].iloc[-1]:.1%} are wrong",
            3.2,
        ),
    }
    if len(found.robust):
        mean = robustness.headline(found.robust)["mean_corruption_accuracy"]
        label = f"Accuracy by corruption and strength, {mean:.3f} on average; the table has every number"
        drawn["robustness"] = (evaluation_figures.robustness(found.robust), label, 3.8)
    for name in ("loss", "accuracy") if len(found.history) else ():
        column = found.history[f"val/{name}"]
        best = int(found.history["epoch"][column.idxmin() if name == "loss" else column.idxmax()])
        value = column.min() if name == "loss" else column.max()
        label = f"Training and validation {name} by epoch; the best val {name} is {value:.3f}, in epoch {best}"
        drawn[name] = (training_figures.training_curves(found.history, None, [name]), label, 3.0)
    return {
        name: Markup(plots.to_svg(figure, name, label, height_in=height))
        for name, (figure, label, height) in drawn.items()
    }
