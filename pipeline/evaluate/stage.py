"""STAGE 3: the test split, used here only, and what the trained classifier makes of it.

Reads ``data/prepared`` and ``models/train``; writes ``reports/metrics.json``, ``reports/per_class.csv``,
``reports/confusion.csv``, ``reports/predictions.csv``, ``reports/label_suspects.csv``,
``reports/label_suspects.html``, ``reports/calibration.json`` (temperature and threshold, which export takes up),
``reports/intervals.json``, ``reports/robustness.csv``, ``reports/slices.csv``, ``reports/figures/`` and, with all of
it, ``reports/report.html``, and logs them to the MLflow run of the weights. Run it with ``dvc repro evaluate`` or
``python -m pipeline.evaluate``.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pipeline.core.dataset import PREPARED, Prepared, Split, load_prepared
from pipeline.core.errors import UserError
from pipeline.core.params import EvaluateParams
from pipeline.core.params_file import load_params
from pipeline.core.stage_files import WeightsFile
from pipeline.evaluate import explanations, page, robustness, slices, tables  # fmt: skip
from pipeline.metrics import calibration, suspects
from pipeline.metrics.intervals import bootstrap_intervals
from pipeline.metrics.table import HEADLINES, score
from pipeline.models import model, views
from pipeline.models.devices import resolve_device
from pipeline.models.predict import predict
from pipeline.models.weights import load_classifier
from pipeline.reporting import suspects as suspects_page
from pipeline.tracking import runs

TRAINED = Path("models/train")
REPORTS = Path("reports")
# In the order in which they replace the old ones: metrics.json, which says that all is there, last.
OUTPUTS = (
    "figures", "report.html", "label_suspects.html", "label_suspects.csv", "predictions.csv", "confusion.csv",
    "per_class.csv", "robustness.csv", "slices.csv", "calibration.json", "intervals.json", "metrics.json",
)  # fmt: skip


def main() -> None:
    """Run the stage on the project's folders."""
    params = load_params()
    evaluate(params.evaluate, params.train.device)


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
    prepared, sidecar = load_prepared(prepared_dir), WeightsFile.load(train_dir).as_dict()
    check_match(prepared, sidecar)
    splits = {name: prepared.split(name) for name in ("val", "test")}
    classifier, place = _load_classifier(splits, train_dir, device)
    classifier.views = params.tta if params.serve_tta else []
    plain = _predict(classifier, splits, params.batch_size, place)
    targets = {name: split.targets for name, split in splits.items()}
    temperature = calibration.fit_temperature(targets["val"], plain["val"])
    probs = {name: calibration.temper(values, temperature) for name, values in plain.items()}
    scores = {name: score(targets[name], probs[name]) for name in splits}
    trust = calibration.calibration_report(targets, plain, temperature, params.risk)
    intervals = bootstrap_intervals(targets["test"], probs["test"])
    key = evaluation_key(sidecar["weights_sha256"], params, prepared.digest)
    result: dict[str, Any] = {
        "val": {name: scores["val"][name] for name in HEADLINES},
        "test": scores["test"],
        "test_clean": clean_scores(targets["test"], probs["test"], prepared.leaks("test")),
        "audit": prepared.audit,
    }
    test = splits["test"]
    if params.tta:
        beside = "test_plain" if params.serve_tta else "test_tta"
        result[beside], seconds = _score_beside(classifier, test, params, place, temperature)
        trust["tta"] = {
            "views": params.tta, "passes": views.count_passes(params.tta), "served": params.serve_tta,
        }  # fmt: skip
    robust = robustness.measure(
        classifier, test, params.corruptions, params.corrupted, params.batch_size, place
    )
    if len(robust):
        result["robustness"] = robustness.headline(robust)
    parts = slices.tabulate(
        test, probs["test"], prepared.class_names, params.quantiles, prepared.origins("test")
    )
    method, explained = explanations.explain(classifier, test, probs["test"], params.explain, place)
    with _replacing(reports_dir) as folder:
        tables.write_tables(folder, splits["test"], probs["test"], prepared.class_names)
        doubted = suspects.tabulate(splits, probs, prepared.class_names)
        (folder / "label_suspects.html").write_text(suspects_page.render(doubted, splits), encoding="utf-8")
        tables.write_csv(folder / "label_suspects.csv", doubted)
        tables.draw_figures(
            folder / "figures", splits["test"], probs["test"], prepared.class_names, params.worst
        )
        tables.draw_trust(folder / "figures", targets["test"], plain["test"], probs["test"], trust)
        tables.write_robustness(folder, robust)
        tables.write_csv(folder / "slices.csv", parts)
        findings = page.Findings(
            prepared, sidecar, prepared.counts, pd.read_csv(train_dir / "history.csv"), test, plain["test"],
            probs["test"], result, intervals, trust, robust, parts, method, explained, len(doubted), params.worst,
        )  # fmt: skip
        (folder / "report.html").write_text(page.render(findings), encoding="utf-8", newline="\n")
        for name, content in (("calibration", trust), ("intervals", intervals)):
            tables.write_json(folder / f"{name}.json", content)
        result["run_id"] = runs.evaluation_run(train_dir, key)  # claimed when nothing can fail any more
        tables.write_json(folder / "metrics.json", result)
    log_reports(key, prepared.split_digests["test"], train_dir, reports_dir)
    print(tables.summary(splits["test"], probs["test"], scores["test"], intervals, prepared.class_names))
    print(tables.trust_text(trust))
    if params.tta:
        print(tables.views_text(trust["tta"], result[beside], 1e3 * seconds / len(test)))
    clean = result["test_clean"]
    if 0 < clean["images"] < len(splits["test"]):
        print(
            f"without twins of training images, {clean['images']:,} images: accuracy {clean['accuracy']:.4f}"
        )
    if len(robust):
        print(robustness.describe(robust))
    for line in slices.worse_slices(parts):
        print(f"worse than the rest, {line}")
    print(
        f"{len(doubted)} of the val and test labels are in doubt, see {reports_dir / 'label_suspects.html'}"
    )
    print(f"all of it on one page: {reports_dir / 'report.html'}")
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
        ``images``, how many are left, and the scores of ``METRICS``, which are missing when none is left.
    """
    found: dict[str, float] = {"images": int((~leaks).sum())}
    return found | (score(targets, probs, ~leaks) if found["images"] else {})


def _load_classifier(
    splits: dict[str, Split], train_dir: Path, device: str
) -> tuple[model.Classifier, torch.device]:
    """The trained net, where it is to run; refuses splits without images first."""
    if empty := [name for name, split in splits.items() if len(split) == 0]:
        raise UserError(f"the {empty[0]} split is empty: there is nothing to evaluate. Add images, or let "
                        f"prepare.{empty[0]}_fraction cut some from train.")  # fmt: skip
    place = resolve_device(device)
    return load_classifier(train_dir, place), place


def _predict(
    classifier: model.Classifier, splits: dict[str, Split], batch_size: int, place: torch.device
) -> dict[str, np.ndarray]:
    """Probabilities (N, K) of every sample of each split."""
    probs = {
        name: predict(classifier, split.images, batch_size, place, progress=name)
        for name, split in splits.items()
    }
    for name, values in probs.items():
        if bad := int((~np.isfinite(values)).any(axis=1).sum()):
            raise UserError(
                f"the model gives no number as probability for {bad} of {len(values)} {name} images: its "
                "training diverged. Lower train.lr, set train.grad_clip_norm, or use train.amp: none."
            )
    return probs


def _score_beside(
    classifier: model.Classifier, test: Split, params: EvaluateParams, place: torch.device, temperature: float
) -> tuple[dict[str, float], float]:
    """The scores of the mean over views, or of the image alone where that mean is what is served; and the seconds."""
    served = classifier.views
    classifier.views = [] if served else params.tta
    start = time.perf_counter()
    probs = predict(classifier, test.images, params.batch_size, place, progress="views")
    seconds = time.perf_counter() - start
    found = score(test.targets, calibration.temper(probs, temperature))
    passes = views.count_passes(classifier.views)
    classifier.views = served
    return {"passes": passes} | found, seconds


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


def log_reports(
    key: str, test_digest: str | None, train_dir: Path = TRAINED, reports_dir: Path = REPORTS
) -> None:
    """Mirror the reports on the MLflow run that ``metrics.json`` names, made if this store lacks it.

    Args:
        key: From ``evaluation_key``.
        test_digest: Of the test split, if it is known: answers to the same one can be compared.
        train_dir: What train wrote.
        reports_dir: What this stage wrote.
    """
    result = json.loads((reports_dir / "metrics.json").read_text(encoding="utf-8"))
    values = {
        f"{part}/{name}": value
        for part in ("test", "test_clean", "test_tta", "test_plain", "robustness", "audit")
        for name, value in result.get(part, {}).items()
    }
    files = {
        "evaluation": [reports_dir / name for name in OUTPUTS if name != "figures"],
        "evaluation/figures": sorted((reports_dir / "figures").glob("*.png")),
    }
    tags = {runs.EVALUATION_TAG: key}
    if test_digest:
        tags[runs.TEST_DIGEST_TAG] = test_digest
    runs.log_evaluation(train_dir, result["run_id"], values, files, tags)
