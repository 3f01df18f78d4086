"""STAGE 4: the trained classifier as a bundle that needs none of this code to run.

Reads ``models/train``, ``data/prepared``, and ``evaluation.json``, ``calibration.json``, ``per_class.csv`` and
``reference.json`` in ``reports``; writes ``models/bundle/``: ``weights.safetensors``, ``model.pt2``, ``model.onnx``,
``model.int8.onnx``, ``bundle.json``, ``MODEL_CARD.md`` and ``reference.json``, and ``reports/latency.json``; logs the
served model to the MLflow run. Formats that disagree on real test pictures fail the stage; the int8 one, which is an
approximation, is left out where it costs accuracy. Run it with ``dvc repro export`` or ``python -m pipeline.export``.
"""

import csv
import hashlib
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from pipeline.core.dataset import Prepared, load_prepared
from pipeline.core.errors import UserError
from pipeline.core.files import replacing, unescape_cell, write_text
from pipeline.core.params import ExportParams, flatten
from pipeline.core.params_file import load_params
from pipeline.core.paths import BUNDLE, REPORTS, TRAINED
from pipeline.core.stage_files import (
    BundleFile,
    CalibrationFile,
    EvaluationFile,
    LatencyFile,
    NetFile,
    ReferenceFile,
    RunFile,
    WeightsFile,
)
from pipeline.export.int8 import offer_int8
from pipeline.export.parity import check_parity
from pipeline.inference import latency
from pipeline.inference.bundle import seal
from pipeline.inference.graphs import served_file
from pipeline.inference.torch_graph import find_code
from pipeline.models import costs, formats, model
from pipeline.models.weights import load_classifier
from pipeline.reporting import card
from pipeline.tracking import bundles
from pipeline.tracking.pyfunc import build_pyfunc, hash_shipped_code, installed_versions


@dataclass(frozen=True)
class Inputs:
    """What earlier stages left.

    Attributes:
        classifier: On the CPU, with the temperature and the views with which it is served.
        per_class: Rows of ``reports/per_class.csv``.
    """

    prepared: Prepared
    classifier: model.Classifier
    run: RunFile
    weights: WeightsFile
    metrics: EvaluationFile
    calibration: CalibrationFile
    per_class: list[dict[str, str]]


def main() -> None:
    """Run the stage."""
    export(load_params().export)


def export(params: ExportParams) -> BundleFile:
    """Build the bundle, check that its formats agree, put it in place of an old one and log it.

    Raises:
        UserError: Missing inputs, formats that disagree, or not one format that can be exported.
    """
    inputs = read_inputs()
    with replacing(BUNDLE) as folder:
        folder.mkdir()
        state = inputs.classifier.model.state_dict()
        state = {name: tensor.clone().contiguous() for name, tensor in state.items()}
        # Not by save_file, whose file none but its owner can read, so that nobody else could check the bundle.
        (folder / "weights.safetensors").write_bytes(safetensors.torch.save(state, {"format": "pt"}))
        found = write_formats(inputs, params, folder)
        written = [name for name, why in found.items() if not why]
        checked = check_parity(inputs.classifier, inputs.prepared, folder, written, params.tolerance)
        int8 = offer_int8(inputs.prepared, folder, params.int8_drop)
        # A time of an answer is none of the bundle's: it varies.
        cost = costs.count_costs(inputs.classifier, inputs.prepared.img_size, inputs.prepared.channels)
        cost["size_bytes"] = served_file(folder)[1].stat().st_size
        bundle = bundle_record(inputs, formats=found, parity=checked, int8=int8, cost=cost)
        text = card.render(bundle.as_dict(), inputs.prepared.counts, inputs.weights.params, inputs.per_class)
        write_text(folder / "MODEL_CARD.md", text)
        ReferenceFile.load().save(folder)
        bundle = BundleFile(**seal(folder, bundle.as_dict()))
        bundle.save(folder)
    log_bundle(params)
    return bundle


def read_inputs() -> Inputs:
    """Read what earlier stages left; raises ``UserError`` for what is missing, with the remedy."""
    inputs = Inputs(
        prepared=load_prepared(),
        classifier=load_classifier(TRAINED, "cpu"),
        run=RunFile.load(),
        weights=WeightsFile.load(),
        metrics=EvaluationFile.load(),
        calibration=CalibrationFile.load(),
        per_class=_read_csv(REPORTS / "per_class.csv"),
    )
    inputs.classifier.temperature = inputs.calibration.temperature
    inputs.classifier.views = inputs.calibration.served_views
    return inputs


def write_formats(inputs: Inputs, params: ExportParams, folder: Path) -> dict[str, str | None]:
    """Write every wanted format that can be exported.

    Returns:
        By format None if it is there, else the reason.

    Raises:
        UserError: None is there.
    """
    size, channels = inputs.prepared.img_size, inputs.prepared.channels
    example = torch.zeros(2, size, size, channels, dtype=torch.uint8)
    found: dict[str, str | None] = {name: inputs.run.formats.get(name) for name in sorted(params.formats, reverse=True)}
    program = None
    for name in [name for name, why in found.items() if not why]:
        path = folder / f"model.{name}"
        try:
            program = program or formats.trace(inputs.classifier, example)
            formats.write(program, path, params.opset)
            if path.suffix == ".pt2" and (code := find_code(path.read_bytes())):
                print(f"warning: model.pt2 is opened only with --trust, as it has {code}", file=sys.stderr)
        except Exception as error:  # exporters raise almost anything; another format may still work
            path.unlink(missing_ok=True)
            found[name] = formats.one_line(error)
            print(f"warning: no model.{name}: {found[name]}", file=sys.stderr)
    if all(found.values()):
        reasons = "\n".join(f"  {name}: {why}" for name, why in found.items())
        raise UserError(f"the model can be exported to none of export.formats:\n{reasons}\nChoose another backbone.")
    return found


def bundle_record(inputs: Inputs, *, int8: dict[str, Any], **made: Any) -> BundleFile:
    """Put together ``bundle.json``; no times and no paths in it, so that equal models give equal files.

    Args:
        inputs: What earlier stages left.
        int8: From ``offer_int8``.
        made: ``formats`` by name None or why one is absent, ``parity`` and ``cost``.

    Returns:
        The record. Its ``digest`` is the sha256 of all that changes an answer: weights, architecture, preprocessing,
        class names, temperature, views that are averaged, the threshold below which the model abstains, the code that
        ships, and whether there is an int8 version.
    """
    weights, trust, metrics = inputs.weights, inputs.calibration, inputs.metrics
    decisive = {name: getattr(weights, name) for name in NetFile.model_fields} | {
        "calibration": {"temperature": trust.temperature, "ece": trust.ece["test"]},
        "abstain": trust.abstain,
        "views": trust.served_views,
        "code_sha256": hash_shipped_code(),
        "int8": int8["absent"] is None,
    }
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    scores = {"val": metrics.val, "test": metrics.test}
    if metrics.test_clean:
        scores["test_clean"] = metrics.test_clean
    return BundleFile(
        **decisive | {"int8": int8},
        **made,
        digest=digest,
        data_digest=weights.data_digest,
        test_digest=inputs.prepared.split_digests["test"],
        run_id=metrics.run_id,
        metrics=scores,
        audit=metrics.audit,
        versions=installed_versions("torch", "timm", "onnx", "onnxruntime"),
    )


def log_bundle(params: ExportParams) -> None:
    """Put the served model and the time of an answer onto the MLflow run."""
    with tempfile.TemporaryDirectory(prefix="hyojo-pyfunc-") as scratch:
        pyfunc_dir = Path(scratch) / "model"
        build_pyfunc(BUNDLE, pyfunc_dir)
        (latency_ms,) = latency.measure_ms([latency.open_model(BUNDLE)])
        measured = LatencyFile(latency_ms=latency_ms)
        measured.save()
        bundles.log_bundle(BUNDLE, pyfunc_dir, measured.metrics, flatten(params, "export"))


def _read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a table of evaluate's."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [{name: unescape_cell(cell) for name, cell in row.items()} for row in csv.DictReader(file)]
    except FileNotFoundError:
        raise UserError(f"{path} not found. Run `dvc repro evaluate` first.") from None
