"""STAGE 3: the test split, used here only, and what the trained classifier makes of it.

Reads ``data/prepared`` and ``models/train``; writes ``reports/metrics.json``, ``reports/per_class.csv``,
``reports/confusion.csv``, ``reports/predictions.csv``, ``reports/label_suspects.csv``,
``reports/label_suspects.html`` and ``reports/figures/``, and logs them to the MLflow run of the weights. Run it
with ``dvc repro evaluate`` or ``python -m pipeline.evaluate``.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import checkpoint, engine, metrics, model, plots, suspects, tracking
from pipeline.data import PREPARED, Prepared, Split, load_prepared
from pipeline.errors import UserError, stage_main
from pipeline.interrupt import die_with_parent
from pipeline.params import EvaluateParams, load_params
from pipeline.store import project_root
from pipeline.trainer import resolve_device

TRAINED = Path("models/train")
REPORTS = Path("reports")
# In the order in which they replace the old ones: metrics.json, which says that all is there, last.
OUTPUTS = (
    "figures", "label_suspects.html", "label_suspects.csv", "predictions.csv", "confusion.csv", "per_class.csv",
    "metrics.json",
)  # fmt: skip
TEST_SCORES = ("accuracy", "macro_f1", "balanced_accuracy", "nll")


def main() -> None:
    """Run the stage on the project's folders."""
    params = load_params()
    evaluate(params.evaluate, params.train.device)
    # From here on DVC has recorded the training, so nothing needs its checkpoint any more.
    job = json.loads((TRAINED / "run.json").read_text(encoding="utf-8")).get("job")
    if job:
        checkpoint.discard(project_root(), job)


def evaluate(
    params: EvaluateParams,
    device: str,
    prepared_dir: Path = PREPARED,
    train_dir: Path = TRAINED,
    reports_dir: Path = REPORTS,
) -> dict[str, Any]:
    """Score a trained classifier on every sample of the val and test splits, write the reports and log them.

    Args:
        params: The evaluate section.
        device: A torch device, or ``auto``.
        prepared_dir: What prepare wrote.
        train_dir: What train wrote.
        reports_dir: Where the reports go; files of other stages in it stay.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        UserError: Missing inputs, data that are not of the model's classes or shape (found before any
            work), or a classifier whose probabilities are not numbers.
    """
    prepared, sidecar = load_prepared(prepared_dir), model.load_sidecar(train_dir)
    check_match(prepared, sidecar)
    splits = {name: prepared.split(name) for name in ("val", "test")}
    probs = _predict(splits, train_dir, params.batch_size, device)
    scores = {name: metrics.classification_metrics(splits[name].targets, probs[name]) for name in splits}
    key = evaluation_key(sidecar["weights_sha256"], params, prepared.digest)
    result: dict[str, Any] = {
        "val": {name: scores["val"][name] for name in ("accuracy", "macro_f1")},
        "test": {name: scores["test"][name] for name in TEST_SCORES},
        "test_clean": clean_scores(splits["test"].targets, probs["test"], prepared.leaks("test")),
        "audit": prepared.audit,
    }
    with _replacing(reports_dir) as folder:
        _write_tables(folder, splits["test"], probs["test"], prepared.class_names)
        doubted = suspects.tabulate(splits, probs, prepared.class_names)
        (folder / "label_suspects.html").write_text(suspects.render(doubted, splits), encoding="utf-8")
        _write_csv(folder / "label_suspects.csv", doubted)
        _draw_figures(folder / "figures", splits["test"], probs["test"], prepared.class_names, params.worst)
        result["run_id"] = tracking.evaluation_run(train_dir, key)  # claimed when nothing can fail any more
        (folder / "metrics.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    log_reports(key, train_dir, reports_dir)
    print(summary(splits["test"], probs["test"], scores["test"], prepared.class_names))
    clean = result["test_clean"]
    if 0 < clean["images"] < len(splits["test"]):
        print(
            f"without twins of training images, {clean['images']:,} images: accuracy {clean['accuracy']:.4f}"
        )
    print(
        f"{len(doubted)} of the val and test labels are in doubt, see {reports_dir / 'label_suspects.html'}"
    )
    return result


def check_match(prepared: Prepared, sidecar: dict[str, Any]) -> None:
    """Refuse data whose classes or shape are not those that the model was trained on.

    Args:
        prepared: The data set.
        sidecar: What ``weights.json`` holds.

    Raises:
        UserError: With both sides and the remedy.
    """
    preprocessing = sidecar["preprocessing"]
    pairs = {
        "class_names": (prepared.class_names, sidecar["class_names"]),
        "img_size": (prepared.img_size, preprocessing["img_size"]),
        "channels": (prepared.channels, preprocessing["channels"]),
    }
    if lines := [
        f"  {name}: {prepared.path} has {data}, the model was trained on {trained}"
        for name, (data, trained) in pairs.items()
        if data != trained
    ]:
        remedy = "Run `dvc repro train` to train on these data, or `dvc checkout` to restore the pair."
        raise UserError(
            "the prepared data and the model do not belong together:\n" + "\n".join([*lines, remedy])
        )
    if sidecar.get("data_digest", prepared.digest) != prepared.digest:
        print(
            f"warning: {prepared.path} is not the data that the model was trained on; if its test split "
            "holds images that were trained on, the scores are too good",
            file=sys.stderr,
        )


def evaluation_key(weights_sha256: str, params: EvaluateParams, data_digest: str) -> str:
    """Return the sha256 of all that decides an evaluation: equal keys, equal reports."""
    parts = {"weights": weights_sha256, "evaluate": params.model_dump(), "data": data_digest}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def clean_scores(targets: np.ndarray, probs: np.ndarray, leaks: np.ndarray) -> dict[str, float]:
    """Return the scores on the test images that have no twin in what was trained on.

    Args:
        targets: Class indices, integers (N,).
        probs: Class probabilities, floats (N, K).
        leaks: Which images have one, bool (N,).

    Returns:
        ``images``, how many are left, and the scores of ``TEST_SCORES``, which are missing when none is left.
    """
    found: dict[str, float] = {"images": int((~leaks).sum())}
    if found["images"]:
        scores = metrics.classification_metrics(targets[~leaks], probs[~leaks])
        found |= {name: scores[name] for name in TEST_SCORES}
    return found


def summary(split: Split, probs: np.ndarray, scores: dict[str, float], class_names: list[str]) -> str:
    """Return the scores of the test split as a short table, with the recall of every class."""
    preds = probs.argmax(axis=1)
    low, high = metrics.accuracy_interval(int((preds == split.targets).sum()), len(split))
    table = metrics.per_class(split.targets, preds, class_names)
    width = max(17, *(len(name) for name in class_names))
    rows = [
        f"test split, {len(split):,} images",
        f"  {'accuracy':{width}}  {scores['accuracy']:.4f}  (95 % interval {low:.4f} to {high:.4f})",
        f"  {'balanced accuracy':{width}}  {scores['balanced_accuracy']:.4f}",
        f"  {'macro-F1':{width}}  {scores['macro_f1']:.4f}",
        f"  {'NLL':{width}}  {scores['nll']:.4f}",
        f"  {'class':{width}}  recall  images",
    ]
    rows += [
        f"  {name:{width}}  {recall:.4f}  {support:6,}"
        for name, recall, support in zip(table["class"], table["recall"], table["support"])
    ]
    return "\n".join(rows)


def _predict(
    splits: dict[str, Split], train_dir: Path, batch_size: int, device: str
) -> dict[str, np.ndarray]:
    """Probabilities (N, K) of every sample of each split."""
    if empty := [name for name, split in splits.items() if len(split) == 0]:
        raise UserError(f"the {empty[0]} split is empty: there is nothing to evaluate. Add images, or let "
                        f"prepare.{empty[0]}_fraction cut some from train.")  # fmt: skip
    place = resolve_device(device)
    classifier = model.load_classifier(train_dir, place)
    probs = {
        name: engine.predict(classifier, split.images, batch_size, place, progress=name)
        for name, split in splits.items()
    }
    for name, values in probs.items():
        if bad := int((~np.isfinite(values)).any(axis=1).sum()):
            raise UserError(
                f"the model gives no number as probability for {bad} of {len(values)} {name} images: its "
                "training diverged. Lower train.lr, set train.grad_clip_norm, or use train.amp: none."
            )
    return probs


def _write_tables(folder: Path, split: Split, probs: np.ndarray, class_names: list[str]) -> None:
    """Write the three csv files of the test split."""
    preds = probs.argmax(axis=1)
    names = np.array(class_names, dtype=object)
    actual, predicted = names[split.targets], names[preds]
    rows = pd.DataFrame({"file": split.files, "label": actual, "predicted": predicted})
    columns = pd.DataFrame(probs, columns=[f"prob_{name}" for name in class_names])
    tables = {
        "predictions": pd.concat([rows, columns], axis=1),
        # One row a sample, which is what DVC's confusion template counts.
        "confusion": pd.DataFrame({"actual": actual, "predicted": predicted}),
        "per_class": metrics.per_class(split.targets, preds, class_names),
    }
    for name, table in tables.items():
        _write_csv(folder / f"{name}.csv", table)


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    table.to_csv(path, index=False, lineterminator="\n", encoding="utf-8")


def _draw_figures(folder: Path, split: Split, probs: np.ndarray, class_names: list[str], worst: int) -> None:
    """Draw the three pictures of the test split."""
    preds = probs.argmax(axis=1)
    matrix = metrics.confusion(split.targets, preds, len(class_names))
    rows = metrics.worst_mistakes(split.targets, probs, worst)
    wrong = int((preds != split.targets).sum())
    counted = f"{wrong:,} of {len(split):,} test images are classified wrongly"
    title = f"{counted}; the model was surest of these {len(rows)}" if len(rows) > 1 else counted
    faces, files = split.images[rows], [split.files[row] for row in rows]
    figures = {
        "confusion_matrix": plots.confusion_matrix(matrix, class_names),
        "per_class": plots.per_class_bars(metrics.per_class(split.targets, preds, class_names)),
        "worst_mistakes": plots.worst_mistakes(
            faces, split.targets[rows], probs[rows], class_names, files, title
        ),
    }
    folder.mkdir()
    for name, figure in figures.items():
        plots.save(figure, folder / f"{name}.png")


@contextmanager
def _replacing(reports_dir: Path) -> Iterator[Path]:
    """Give a folder to write in; its files replace the old ones when all are written, and else none."""
    folder = reports_dir / ".evaluate.partial"  # beside the target: a rename must not cross file systems
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
        shutil.rmtree(reports_dir / "figures", ignore_errors=True)
        for name in OUTPUTS:
            os.replace(folder / name, reports_dir / name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def log_reports(key: str, train_dir: Path = TRAINED, reports_dir: Path = REPORTS) -> None:
    """Mirror the reports on the MLflow run that ``metrics.json`` names, made if this store lacks it.

    Args:
        key: From ``evaluation_key``.
        train_dir: What train wrote.
        reports_dir: What this stage wrote.
    """
    result = json.loads((reports_dir / "metrics.json").read_text(encoding="utf-8"))
    values = {
        f"{part}/{name}": value
        for part in ("test", "test_clean", "audit")
        for name, value in result.get(part, {}).items()
    }
    files = {
        "evaluation": [reports_dir / name for name in OUTPUTS if name != "figures"],
        "evaluation/figures": sorted((reports_dir / "figures").glob("*.png")),
    }
    tags = {tracking.EVALUATION_TAG: key}
    tracking.log_evaluation(train_dir, result["run_id"], values, files, tags)


if __name__ == "__main__":
    die_with_parent()
    stage_main(main)
