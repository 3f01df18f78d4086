"""STAGE 3: the test split, used here only, and what the trained classifier makes of it.

Reads ``data/prepared`` and ``models/train``; writes into ``reports/`` what ``dvc.yaml`` names: ``metrics.json`` for
DVC, ``evaluation.json`` with all that was counted, ``calibration.json`` (temperature and threshold, which export takes
up), tables, figures and, with all of it, ``report.html``, and logs them to the MLflow run of the weights. Run it with
``dvc repro evaluate`` or ``python -m pipeline.evaluate``.
"""

import sys
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.core.dataset import Prepared, load_prepared
from pipeline.core.errors import UserError
from pipeline.core.files import replacing_within, write_csv, write_json, write_text
from pipeline.core.params import EvaluateParams
from pipeline.core.params_file import load_params
from pipeline.core.paths import REPORTS, TRAINED
from pipeline.core.stage_files import CalibrationFile, EvaluationFile, RunFile, WeightsFile
from pipeline.evaluate import explanations, page, robustness, slices, summary, tables
from pipeline.evaluate.findings import Answers, Findings
from pipeline.evaluate.net import Net, answer_splits, load_net
from pipeline.evaluate.reference import make_reference
from pipeline.evaluate.scores import assess_trust, pick_metrics, score_beside, score_parts
from pipeline.metrics import suspects
from pipeline.metrics.intervals import bootstrap_intervals
from pipeline.models.devices import explain_full_memory
from pipeline.reporting import suspects as suspects_page
from pipeline.tracking import evaluations


def main() -> None:
    """Run the stage on the project's folders."""
    params = load_params()
    evaluate(params.evaluate, params.train.device)


@explain_full_memory("Lower evaluate.batch_size.")
def evaluate(params: EvaluateParams, device: str) -> dict[str, Any]:
    """Score a trained classifier on every sample of the val and test splits, write the reports and log them.

    Args:
        params: The evaluate section.
        device: A torch device, or ``auto``.

    Returns:
        What ``evaluation.json`` holds.

    Raises:
        UserError: Missing inputs, data that are not of the model's classes or shape (found before any
            work), or a classifier whose probabilities are not numbers.
    """
    prepared, sidecar = load_prepared(), WeightsFile.load()
    check_match(prepared, sidecar)
    splits = {name: prepared.split(name) for name in ("val", "test")}
    net = load_net(splits, params, device)
    answers = answer_splits(net, splits)
    found = _find_out(net, answers, prepared, params, sidecar)
    key = evaluations.evaluation_key(sidecar.weights_sha256, params, prepared.digest)
    evaluation, outs = _write_reports(found, key)
    evaluations.log_reports(evaluation, outs, params, key, prepared.split_digests["test"])
    print(summary.summarise(found))
    return evaluation.as_dict()


def check_match(prepared: Prepared, sidecar: WeightsFile) -> None:
    """Refuse data whose classes or shape are not those that the model was trained on.

    Raises:
        UserError: With both sides and the remedy.
    """
    pairs = {
        "class_names": (prepared.class_names, sidecar.class_names),
        "img_size": (prepared.img_size, sidecar.preprocessing["img_size"]),
        "channels": (prepared.channels, sidecar.preprocessing["channels"]),
    }
    if lines := [
        f"  {name}: {prepared.path} has {data}, the model was trained on {trained}"
        for name, (data, trained) in pairs.items()
        if data != trained
    ]:
        remedy = "Run `dvc repro train` to train on these data, or `dvc checkout` to restore the pair."
        raise UserError("the prepared data and the model do not belong together:\n" + "\n".join([*lines, remedy]))
    if sidecar.data_digest != prepared.digest:
        print(
            f"warning: {prepared.path} is not the data that the model was trained on; if its test split "
            "holds images that were trained on, the scores are too good",
            file=sys.stderr,
        )


def _find_out(net: Net, answers: Answers, prepared: Prepared, params: EvaluateParams, sidecar: WeightsFile) -> Findings:
    """All that the reports tell."""
    test, probs, names = answers.splits["test"], answers.probs["test"], prepared.class_names
    beside, views_ms = score_beside(net, answers, params)
    robust = robustness.measure(net, test, params.corruptions, params.corrupted, answers.temperature)
    robustness_part = {"robustness": robustness.headline(robust)} if len(robust) else {}
    method, explained = explanations.explain(net.classifier, test, probs, params.explain, net.device)
    return Findings(
        prepared=prepared,
        sidecar=sidecar,
        run=RunFile.load(),
        history=pd.read_csv(TRAINED / "history.csv"),
        answers=answers,
        result=score_parts(answers, prepared) | beside | robustness_part,
        intervals=bootstrap_intervals(test.targets, probs),
        trust=assess_trust(answers, params),
        robust=robust,
        slices=slices.tabulate(test, probs, names, params.quantiles, prepared.origins("test")),
        method=method,
        explanations=explained,
        suspects=suspects.tabulate(answers.splits, answers.probs, names),
        worst=params.worst,
        views_ms=views_ms,
    )


def _write_reports(found: Findings, key: str) -> tuple[EvaluationFile, list[Path]]:
    """Write all reports at one stroke; returns what ``evaluation.json`` holds, and the files and folders."""
    with replacing_within(REPORTS) as folder:
        tables.write_tables(folder, found)
        tables.draw_figures(folder / "figures", found)
        write_text(
            folder / "label_suspects.html", suspects_page.render(found.suspects, found.prepared, ["val", "test"])
        )
        doubted = pd.DataFrame(columns=suspects.COLUMNS) if found.suspects is None else found.suspects
        write_csv(folder / "label_suspects.csv", doubted)
        write_csv(folder / "robustness.csv", found.robust)
        write_csv(folder / "slices.csv", found.slices)
        write_json(folder / "intervals.json", found.intervals)
        CalibrationFile(**found.trust).save(folder)
        make_reference(found).save(folder)
        write_text(folder / "report.html", page.render(found))
        write_json(folder / "metrics.json", pick_metrics(found.result))
        evaluation = EvaluationFile(**found.result, run_id=evaluations.claim_run(key))  # now nothing can fail any more
        evaluation.save(folder)
        outs = [REPORTS / path.name for path in sorted(folder.iterdir())]
    return evaluation, outs
