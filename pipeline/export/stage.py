"""STAGE 4: the trained classifier as a bundle that needs none of this code to run.

Reads ``models/train``, ``data/prepared``, ``reports/metrics.json`` and ``reports/per_class.csv``; writes
``models/bundle/``: ``weights.safetensors``, ``model.pt2``, ``model.onnx``, ``model.int8.onnx``, ``bundle.json`` and
``MODEL_CARD.md``; logs the served model to the MLflow run. Formats that disagree on real test pictures fail the stage;
the int8 one, which is an approximation, is left out where it costs accuracy. Run it with ``dvc repro export`` or
``python -m pipeline.export``.
"""

import csv
import hashlib
import json
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from pipeline.core.dataset import PREPARED, Prepared, load_prepared
from pipeline.core.errors import UserError
from pipeline.core.params import ExportParams
from pipeline.core.params_file import load_params
from pipeline.export import int8 as quantize
from pipeline.inference import faces, images, latency, predictor
from pipeline.models import costs, formats, model
from pipeline.reporting import card
from pipeline.tracking import runs
from pipeline.tracking.pyfunc import build_pyfunc, installed_versions

TRAINED = Path("models/train")
REPORTS = Path("reports")
BUNDLE = Path("models/bundle")
PARITY_BATCHES = (1, 7)


def main() -> None:
    """Run the stage on the project's folders."""
    export(load_params().export)


def export(
    params: ExportParams,
    prepared_dir: Path = PREPARED,
    train_dir: Path = TRAINED,
    reports_dir: Path = REPORTS,
    bundle_dir: Path = BUNDLE,
) -> dict[str, Any]:
    """Build the bundle, check that its formats agree, put it in place and log it.

    Args:
        params: The export section.
        prepared_dir: What prepare wrote.
        train_dir: What train wrote.
        reports_dir: What evaluate wrote.
        bundle_dir: Where the bundle goes; an old one stays until the new one is complete.

    Returns:
        What ``bundle.json`` holds.

    Raises:
        UserError: Missing inputs, formats that disagree, or not one format that can be exported.
    """
    prepared = load_prepared(prepared_dir)
    classifier = model.load_classifier(train_dir, "cpu")
    sidecar = model.load_sidecar(train_dir)
    run = _read_json(train_dir / "run.json", "dvc repro train")
    metrics = _read_json(reports_dir / "metrics.json", "dvc repro evaluate")
    trust = _read_json(reports_dir / "calibration.json", "dvc repro evaluate")
    classifier.temperature, classifier.views = (
        trust["temperature"],
        _views(trust),
    )  # from here on as it is served
    with _replacing(bundle_dir) as folder:
        state = {name: tensor.clone().contiguous() for name, tensor in classifier.model.state_dict().items()}
        safetensors.torch.save_file(state, folder / "weights.safetensors", {"format": "pt"})
        found = _write_formats(classifier, prepared, params, run["formats"], folder)
        there = [name for name, why in found.items() if not why]
        parity = check_parity(classifier, prepared, folder, there, params)
        int8 = offer_int8(prepared, folder, params.int8_drop)
        bundle = describe(sidecar, metrics, trust, found, prepared.split_digests["test"], int8)
        shape = (prepared.img_size, prepared.channels)
        size = {"size_bytes": predictor.served_file(folder)[1].stat().st_size}
        bundle |= {"parity": parity, "cost": costs.count(classifier, *shape) | size}
        _write_text(folder / "bundle.json", json.dumps(bundle, indent=2) + "\n")
        counts = _read_json(prepared_dir / "classes.json", "dvc repro prepare")["counts"]
        rows = _read_csv(reports_dir / "per_class.csv")
        _write_text(folder / "MODEL_CARD.md", card.render(bundle, counts, sidecar.get("params", {}), rows))
    with tempfile.TemporaryDirectory(prefix="hyojo-pyfunc-") as scratch:
        pyfunc_dir = Path(scratch) / "model"
        build_pyfunc(bundle_dir, pyfunc_dir)
        # A time is none of the bundle's: it differs from one measurement to the next.
        (latency_ms,) = latency.measure_ms([latency.open_model(bundle_dir, *shape)])
        runs.log_bundle(bundle["run_id"], bundle_dir, pyfunc_dir, {"cost/latency_ms": latency_ms})
    return bundle


def check_parity(
    classifier: torch.nn.Module, prepared: Prepared, folder: Path, names: list[str], params: ExportParams
) -> dict[str, Any]:
    """Compare every format with the classifier, from a picture's bytes to probabilities, at batch 1 and 7.

    Args:
        classifier: The reference, on the CPU.
        prepared: Its ``parity.zip`` holds untouched pictures of the test split.
        folder: Holds the exported files.
        names: The formats to compare.
        params: The export section; ``tolerance`` is the largest difference allowed, in probability.

    Returns:
        What was found to agree: ``formats``, ``pictures`` (how many), ``tolerance``.

    Raises:
        UserError: If a picture decodes to other pixels than prepare's, or a format disagrees.
    """
    pictures = load_probe(prepared)
    runners = {name: formats.LOADERS[name](folder / f"model.{name}") for name in names}
    for size in PARITY_BATCHES:
        for start in range(0, len(pictures), size):
            batch = np.take(pictures, range(start, start + size), axis=0, mode="wrap")
            with torch.inference_mode():
                expected = classifier(torch.from_numpy(batch)).numpy()
            for name, run in runners.items():
                probs = run(batch)
                same = probs.shape == expected.shape
                difference = float(np.abs(probs - expected).max()) if same else float("inf")
                if not difference <= params.tolerance:  # NaN must fail too
                    raise UserError(
                        f"model.{name} disagrees with the trained model: {difference:.2g} in probability at batch "
                        f"{size}, and export.tolerance is {params.tolerance:g}. No bundle was written. Leave "
                        f"{name} out of export.formats, or try another export.opset."
                    )
    return {"formats": names, "pictures": len(pictures), "tolerance": params.tolerance}


def offer_int8(prepared: Prepared, folder: Path, most: float | None) -> dict[str, Any]:
    """Quantize ``model.onnx``, and keep the result where it costs little accuracy on the val split.

    Args:
        prepared: Its train split calibrates, its val split judges.
        folder: Holds ``model.onnx``; ``model.int8.onnx`` is put beside it.
        most: The accuracy that it may cost, a part of 1; None: none is made.

    Returns:
        ``absent`` (why, or None) and, where it was made, ``images`` of val, ``accuracy`` on them, ``float_accuracy``
        of ``model.onnx``, and ``size_bytes``.
    """
    source, dest = folder / "model.onnx", folder / predictor.RUNTIMES["int8"]
    if most is None:
        return {"absent": "export.int8_drop is null"}
    if not source.exists():
        return {"absent": "it is made of model.onnx, which is absent"}
    train, val = prepared.split("train").images, prepared.split("val")
    rows = quantize.sample(len(val.targets), quantize.CHECK_IMAGES)
    if not len(rows):
        return {"absent": "there are no val images to check it on"}
    try:
        quantize.quantize(source, dest, train[quantize.sample(len(train), quantize.CALIBRATION_IMAGES)])
        before, after = quantize.accuracies([source, dest], val.images[rows], val.targets[rows])
    except Exception as error:  # as with the other formats: whatever a graph makes the quantizer raise
        dest.unlink(missing_ok=True)
        return {"absent": formats.one_line(error)}
    found = {"images": len(rows), "accuracy": after, "float_accuracy": before}
    found["size_bytes"] = dest.stat().st_size
    if before - after <= most:
        return {"absent": None} | found
    dest.unlink()
    return {"absent": f"it costs {before - after:.4f} of accuracy, and export.int8_drop is {most:g}"} | found


def load_probe(prepared: Prepared) -> np.ndarray:
    """Decode the pictures of ``parity.zip`` as serving does, and hold them against prepare's pixels.

    Returns:
        uint8 (N, S, S, C).

    Raises:
        UserError: If there are none, or they differ.
    """
    path = prepared.path / "parity.zip"
    test = prepared.split("test").images
    pictures = []
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                picture = _as_served(archive.read(name), prepared)
                if not np.array_equal(picture, test[int(Path(name).stem)]):
                    raise UserError(
                        f"{path}: {name} decodes to other pixels than those in test.npy, so another version of "
                        "Pillow or of images.py prepared the data. Run `dvc repro -f prepare`."
                    )
                pictures.append(picture)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} can't be read ({error}). Run `dvc repro -f prepare`.") from None
    if not pictures:
        raise UserError(f"{path} holds no pictures to check the formats with. Run `dvc repro -f prepare`.")
    return np.stack(pictures)


def _as_served(data: bytes, prepared: Prepared) -> np.ndarray:
    """A picture's pixels, uint8 (S, S, C), by the code that serves; of a photo, its largest face's."""
    if not prepared.faces:
        return images.load(data, prepared.img_size, prepared.channels)
    _, largest = next(faces.cut_faces(data, prepared.channels, prepared.faces))
    return images.resize(largest, prepared.img_size)


def describe(
    sidecar: dict[str, Any],
    metrics: dict[str, Any],
    trust: dict[str, Any],
    found: dict[str, str | None],
    test_digest: str,
    int8: dict[str, Any],
) -> dict[str, Any]:
    """Put together ``bundle.json``; no times and no paths in it, so that equal models give equal files.

    Args:
        sidecar: What ``weights.json`` holds.
        metrics: What ``reports/metrics.json`` holds.
        trust: What ``reports/calibration.json`` holds.
        found: For each format None, or why it is absent.
        test_digest: Of the test split; figures on the same one can be compared.
        int8: From ``offer_int8``.

    Returns:
        ``digest`` is the sha256 of all that changes an answer: weights, architecture, preprocessing, class
        names, temperature, views that are averaged, the threshold below which the model abstains, the code that
        decodes pictures and finds faces, and whether there is an int8 version.
    """
    decisive = {key: sidecar[key] for key in ("backbone", "model_args", "class_names", "preprocessing")}
    decisive["stem"] = sidecar.get("stem", {})
    decisive["weights_sha256"] = sidecar["weights_sha256"]
    decisive["calibration"] = {"temperature": trust["temperature"], "ece": trust["ece"]["test"]}
    decisive["abstain"] = trust["abstain"]
    decisive["views"] = _views(trust)
    code = [Path(module.__file__).read_text(encoding="utf-8") for module in (images, faces)]
    decisive["decoder_sha256"] = hashlib.sha256("".join(code).encode()).hexdigest()
    decisive["int8"] = int8["absent"] is None
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    return decisive | {
        "digest": digest,
        "formats": found,
        "int8": int8,
        "data_digest": sidecar["data_digest"],
        "test_digest": test_digest,
        "run_id": metrics["run_id"],
        "metrics": {part: metrics[part] for part in ("val", "test", "test_clean") if part in metrics},
        "audit": metrics.get("audit", {}),
        "versions": installed_versions("torch", "timm", "onnx", "onnxruntime"),
    }


def _views(trust: dict[str, Any]) -> list[str]:
    """Views of a picture over which the served answer is the mean, beside the picture itself."""
    tta = trust.get("tta", {})
    return tta["views"] if tta.get("served") else []


def _write_formats(
    classifier: torch.nn.Module,
    prepared: Prepared,
    params: ExportParams,
    known: dict[str, str | None],
    folder: Path,
) -> dict[str, str | None]:
    """Write every wanted format that can be exported; None for each that is there, else the reason."""
    size, channels = prepared.img_size, prepared.channels
    example = torch.zeros(2, size, size, channels, dtype=torch.uint8)
    found = {name: known.get(name) for name in sorted(params.formats, reverse=True)}
    program = None
    for name in [name for name, why in found.items() if not why]:
        path = folder / f"model.{name}"
        try:
            program = program or formats.trace(classifier, example)
            formats.write(name, classifier, example, path, params.opset, program)
        except Exception as error:  # exporters raise almost anything; another format may still work
            path.unlink(missing_ok=True)
            found[name] = formats.one_line(error)
            print(f"warning: no model.{name}: {found[name]}", file=sys.stderr)
    if all(found.values()):
        reasons = "\n".join(f"  {name}: {why}" for name, why in found.items())
        raise UserError(
            f"the model can be exported to none of export.formats:\n{reasons}\nChoose another backbone."
        )
    return found


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``target`` when all went well, and vanishes when not."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(target, ignore_errors=True)
        temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Read a file of an earlier stage."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} not found. Run `{remedy}` first.") from None


def _read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a csv file; none if it is missing."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _write_text(path: Path, text: str) -> None:
    """Write UTF-8 with Unix line ends everywhere, as DVC hashes bytes."""
    path.write_text(text, encoding="utf-8", newline="\n")
