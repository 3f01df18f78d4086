"""Export: a bundle whose formats agree with the trained model on real bytes, or none; and what goes to MLflow."""

import base64
import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import mlflow
import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from builders import encode, make_project, seal_prepared, write_arrays
from mlflow.artifacts import download_artifacts
from PIL import Image

from pipeline.core.code_hash import PACKAGE, hash_code
from pipeline.core.errors import UserError
from pipeline.core.params import ExportParams
from pipeline.core.paths import BUNDLE, PREPARED, REPORTS, TRAINED
from pipeline.core.stage_files import BundleFile
from pipeline.export import parity, stage
from pipeline.inference import images
from pipeline.inference.graphs import Graph, load_graph
from pipeline.inference.predictor import Predictor
from pipeline.models import costs, formats, model, weights
from pipeline.tracking import registry
from pipeline.tracking.bundles import read_bundle
from pipeline.tracking.pyfunc import hash_shipped_code
from pipeline.tracking.store import connect, experiment_id

INT8 = {"absent": "not asked for"}
SIZE, CLASSES = 32, ["angry", "happy", "sad|blue"]
COUNTS = {"train": {"angry": 5, "happy": 6, "sad|blue": 7}, "val": {"angry": 1}, "test": {"happy": 9}}


def write_prepared(folder: Path) -> None:
    """Nine test pictures of other sizes and modes than the prepared ones, and their bytes in parity.zip."""
    rng = np.random.default_rng(0)
    files = []
    for row in range(9):
        mode, fmt = [("L", "png"), ("RGB", "jpeg"), ("RGB", "webp")][row % 3]
        picture = Image.fromarray(rng.integers(0, 30 + 25 * row, (50, 40), dtype=np.uint8)).convert(mode)
        files.append((f"{row:06d}.{fmt}", encode(picture, fmt)))
    rows = np.stack([images.load(data, SIZE, 1) for _, data in files])
    write_arrays(folder, {"test": (rows, [1] * 9)}, CLASSES, counts=COUNTS)
    with zipfile.ZipFile(folder / "parity.zip", "w") as archive:
        for name, data in files:
            archive.writestr(name, data)
    seal_prepared(folder)


def write_trained(folder: Path) -> None:
    """A small net, untrained but with statistics of its own, as train writes it."""
    folder.mkdir(parents=True)
    transform = [
        {"ToDtype": {"dtype": "float32", "scale": True}},
        {"Resize": {"size": [28, 28]}},
        {"Normalize": {"mean": [0.5], "std": [0.25]}},
    ]
    preprocessing = {
        "img_size": SIZE, "channels": 1, "input_size": 28, "in_chans": 1, "mean": [0.5], "std": [0.25],
        "train": transform, "eval": transform,
    }  # fmt: skip
    arguments = {"num_classes": 3, "in_chans": 1, "widths": [8, 8], "depths": [1, 1], "stem_width": 8}
    spec = model.ModelSpec("face_resnet_s", arguments, CLASSES, preprocessing)
    torch.manual_seed(0)
    net = model.build_model(spec)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        net.fc.bias.zero_()
    flat = {"prepare.source": "/home/somebody/fer2013.zip", "train.backbone": "face_resnet_s", "train.lr": "0.1"}
    weights.save_weights(folder, net, spec, "d" * 64, params=flat)
    (folder / "run.json").write_text(json.dumps({"run_id": "r1", "formats": {"pt2": None, "onnx": None}}))


TRUST = {
    "temperature": 1.5,
    "ece": {"test": {"before": 0.1, "after": 0.02}},
    "abstain": {"risk": 0.2, "threshold": 0.4, "test": {"coverage": 0.6, "risk": 0.19}},
    "aurc": 0.1,
}


def write_reports(folder: Path) -> None:
    folder.mkdir()
    test = {"accuracy": 0.5, "macro_f1": 0.25, "balanced_accuracy": 0.4, "nll": 1.2345678}
    metrics = {"val": {"accuracy": 0.5, "macro_f1": 0.5}, "test": test, "run_id": "r2"}
    metrics["test_clean"] = {"images": 3300, "accuracy": 0.48765}
    metrics["audit"] = {"redundant": 1234, "conflicting_groups": 56, "test_in_train": 289}
    (folder / "evaluation.json").write_text(json.dumps(metrics))
    (folder / "calibration.json").write_text(json.dumps(TRUST))
    (folder / "reference.json").write_text(json.dumps({"images": 1, "accuracy": 1.0, "columns": {"label": ["a"]}}))
    (folder / "per_class.csv").write_text(
        "class,precision,recall,f1,support\nangry,0.123456,0.5,0.2,7\nsad|blue,1.0,1.0,1.0,2\n"
    )


class Project:
    """The folders that the stage reads and writes, and what it logged."""

    def __init__(self, root: Path) -> None:
        self.root, self.bundle = root, root / BUNDLE
        self.prepared, self.trained, self.reports = root / PREPARED, root / TRAINED, root / REPORTS
        write_prepared(self.prepared)
        write_trained(self.trained)
        write_reports(self.reports)
        self.logged: list[tuple[str, set[str], dict[str, float]]] = []

    def log(self, bundle_dir: Path, pyfunc_dir: Path, metrics: dict[str, float], params: dict[str, str]) -> None:
        assert params["export.opset"] == "18"
        names = {path.name for path in pyfunc_dir.rglob("*")}
        self.logged.append((BundleFile.load(self.root / bundle_dir).run_id, names, metrics))

    def export(self, **changes: object) -> BundleFile:
        usual = {"formats": ["onnx", "pt2"], "opset": 18, "tolerance": 1e-4, "int8_drop": None}
        with contextlib.chdir(self.root):
            return stage.export(ExportParams(**usual | changes))

    def pictures(self) -> list[bytes]:
        with zipfile.ZipFile(self.prepared / "parity.zip") as archive:
            return [archive.read(name) for name in archive.namelist()]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("exported"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage.bundles, "log_bundle", project.log)
        project.export()
    return project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    project = Project(tmp_path)
    monkeypatch.setattr(stage.bundles, "log_bundle", project.log)
    return project


def test_every_format_answers_as_the_trained_net(exported: Project) -> None:
    """Held against the plain timm net with the arithmetic of the preprocessing written out here."""
    net, _ = weights.load_model(exported.trained)
    pixels = np.load(exported.prepared / "test.npy")
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    x = torch.nn.functional.interpolate(x, (28, 28), mode="bilinear", antialias=True)
    with torch.inference_mode():
        expected = (net((x - 0.5) / 0.25) / TRUST["temperature"]).softmax(1).numpy()
    assert np.ptp(expected, axis=0).max() > 0.02  # the pictures can be told apart
    for size in (1, 4, 9):
        for name in ("model.pt2", "model.onnx"):
            probs = load_graph(exported.bundle / name)(pixels[:size])
            np.testing.assert_allclose(probs, expected[:size], atol=1e-4)
    rows = Predictor(exported.bundle).predict_bytes(exported.pictures())
    served = np.array([[row["probabilities"][name] for name in CLASSES] for row in rows])
    np.testing.assert_allclose(served, expected, atol=1e-4)
    assert [row["label"] for row in rows] == [CLASSES[i] for i in expected.argmax(1)]
    assert [row["abstain"] for row in rows] == (served.max(1) < TRUST["abstain"]["threshold"]).tolist()


@pytest.mark.parametrize("views,count", [(["flip"], 2), (["flip", "shifts"], 10), (["flip", "sizes"], 6)])
def test_views_that_are_served_are_in_the_graph(project: Project, views: list[str], count: int) -> None:
    tta = {"views": views, "passes": count, "served": True}
    (project.reports / "calibration.json").write_text(json.dumps({**TRUST, "tta": tta}))
    plain = weights.load_classifier(project.trained)
    bundle = project.export()
    assert bundle.views == views
    assert f"other views of it: {', '.join(views)}" in (project.bundle / "MODEL_CARD.md").read_text()
    pixels = np.load(project.prepared / "test.npy")
    mirrored = np.ascontiguousarray(pixels[:, :, ::-1])
    for name in ("model.pt2", "model.onnx"):
        run = load_graph(project.bundle / name)
        probs = run(pixels)
        np.testing.assert_allclose(run(mirrored), probs, atol=1e-4)
        if views == ["flip"]:
            with torch.inference_mode():
                both = [plain(torch.from_numpy(each)).log() for each in (pixels, mirrored)]
            expected = (sum(both) / 2 / TRUST["temperature"]).softmax(1).numpy()
            np.testing.assert_allclose(probs, expected, atol=1e-4)
    assert bundle.cost["flops"] == count * costs.count_costs(plain, SIZE, 1)["flops"]
    assert bundle.cost["size_bytes"] < 1.2 * (project.bundle / "weights.safetensors").stat().st_size + 40_000
    tta["served"] = False
    (project.reports / "calibration.json").write_text(json.dumps({**TRUST, "tta": tta}))
    other = project.export()
    assert other.views == []
    assert other.digest != bundle.digest


def test_what_the_bundle_holds(exported: Project) -> None:
    names = {path.name for path in exported.bundle.iterdir()}
    assert names == {"weights.safetensors", "model.pt2", "model.onnx", "bundle.json", "MODEL_CARD.md", "reference.json"}
    assert not list(exported.bundle.parent.glob(".*"))
    net, sidecar = weights.load_model(exported.trained)
    tensors = safetensors.torch.load_file(exported.bundle / "weights.safetensors")
    assert tensors.keys() == net.state_dict().keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in net.state_dict().items())
    bundle = json.loads((exported.bundle / "bundle.json").read_text())
    assert bundle["class_names"] == CLASSES
    assert bundle["preprocessing"] == sidecar.preprocessing
    assert bundle["weights_sha256"] == hashlib.sha256((exported.trained / "weights.pt").read_bytes()).hexdigest()
    assert bundle["formats"] == {"pt2": None, "onnx": None}
    test_digest = json.loads((exported.prepared / "classes.json").read_text())["split_digests"]["test"]
    assert (bundle["run_id"], bundle["data_digest"], bundle["test_digest"]) == ("r2", "d" * 64, test_digest)
    read_bundle(exported.bundle)  # every file is as its sum says
    assert bundle["metrics"]["test"]["balanced_accuracy"] == 0.4
    assert bundle["metrics"]["test_clean"] == {"images": 3300, "accuracy": 0.48765}
    assert bundle["versions"]["onnx"] == onnx.__version__
    assert bundle["int8"] == {"absent": "export.int8_drop is null"}
    assert bundle["parity"] == {"formats": ["pt2", "onnx"], "pictures": 9, "tolerance": 1e-4}
    assert bundle["cost"]["parameters"] == sum(parameter.numel() for parameter in net.parameters())
    assert bundle["cost"]["size_bytes"] == (exported.bundle / "model.onnx").stat().st_size


def test_model_card(exported: Project) -> None:
    text = (exported.bundle / "MODEL_CARD.md").read_text()
    for expected in (
        "fer2013.zip", "no licence", "Article 5(1)(f)", "not felt emotion", "bias", "Intended use",
        "| happy | 6 | 0 | 9 |", "| **all** | 18 | 1 | 9 |", "| test | nll | 1.2346 |",
        "| angry | 0.123 | 0.500 | 0.200 | 7 |", "sad\\|blue", "| lr | `0.1` |",
        "| test_clean | images | 3300 |", "| test_clean | accuracy | 0.4876 |", "1234 redundant", "56 sets", "289 test",
        "| model.int8.onnx | absent: export.int8_drop is null |",
    ):  # fmt: skip
        assert expected in text
    assert "somebody" not in text


def test_equal_inputs_give_equal_bytes(exported: Project, project: Project) -> None:
    project.export()
    for path in exported.bundle.iterdir():
        assert path.read_bytes() == (project.bundle / path.name).read_bytes(), path.name


def test_what_goes_to_mlflow(exported: Project, tmp_path: Path) -> None:
    ((run_id, names, metrics),) = exported.logged
    assert run_id == "r2"
    assert {
        "predictor.py",
        "images.py",
        "model.onnx",
        "bundle.json",
        "MODEL_CARD.md",
        "reference.json",
        "MLmodel",
    } <= names
    assert not names & {"model.pt2", "weights.safetensors"}  # one copy of the weights
    assert 0 < metrics["cost/latency_ms"] < 1000


def test_the_logged_model_answers_its_own_example(exported: Project, tmp_path: Path) -> None:
    stage.build_pyfunc(exported.bundle, tmp_path / "model")
    about = (tmp_path / "model" / "MLmodel").read_text()
    assert not re.search(r"(?<![\w.])/\w", about), about  # no paths of the machine that exported it
    assert mlflow.active_run() is None
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    example = loaded.input_example
    picture = Image.open(io.BytesIO(base64.b64decode(example["image"][0])))
    assert picture.size == (SIZE, SIZE)
    (row,) = loaded.predict(example)
    assert row["error"] is None
    assert row["label"] in CLASSES


def test_pt2_is_served_where_onnx_is_absent(project: Project, tmp_path: Path) -> None:
    run = {"run_id": "r1", "formats": {"pt2": None, "onnx": "no such operator"}}
    (project.trained / "run.json").write_text(json.dumps(run))
    assert project.export().formats == {"pt2": None, "onnx": "no such operator"}
    assert not (project.bundle / "model.onnx").exists()
    assert "absent: no such operator" in (project.bundle / "MODEL_CARD.md").read_text()
    assert "model.pt2" in project.logged[0][1]
    rows = Predictor(project.bundle).predict_bytes([*project.pictures(), b"junk"])
    assert [row["error"] is None for row in rows] == [True] * 9 + [False]
    stage.build_pyfunc(project.bundle, tmp_path / "model")
    assert "torch==" in (tmp_path / "model" / "requirements.txt").read_text()


def test_a_format_that_breaks_only_now_is_absent(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write = formats.write

    def fail(program: object, path: Path, opset: int) -> None:
        if path.suffix == ".pt2":
            return write(program, path, opset)
        path.write_bytes(b"half a file")
        raise RuntimeError("surprise")

    monkeypatch.setattr(formats, "write", fail)
    assert project.export().formats == {"pt2": None, "onnx": "RuntimeError: surprise"}
    assert not (project.bundle / "model.onnx").exists()
    assert "surprise" in capsys.readouterr().err
    with pytest.raises(UserError, match="none of"):
        project.export(formats=["onnx"])


@pytest.mark.parametrize("wrong_batch", [1, 7])
def test_a_disagreement_stops_the_stage(project: Project, monkeypatch: pytest.MonkeyPatch, wrong_batch: int) -> None:
    """A graph that is off by 2e-4 for one picture, at one batch size."""
    last = np.load(project.prepared / "test.npy")[-1]

    def load(path: Path, trust: bool) -> Graph:
        run = load_graph(path, trust=trust)

        def off(batch: np.ndarray) -> np.ndarray:
            probs = run(batch).copy()
            if len(batch) == wrong_batch:
                probs[[np.array_equal(image, last) for image in batch]] += 2e-4
            return probs

        return off

    monkeypatch.setattr(parity, "load_graph", load)
    project.bundle.mkdir()
    (project.bundle / "old").touch()
    with pytest.raises(UserError, match=rf"pt2 disagrees.*batch {wrong_batch}"):
        project.export(formats=["pt2"])
    assert [path.name for path in project.bundle.iterdir()] == ["old"]  # and nothing half-made beside it
    assert not list(project.bundle.parent.glob(".*"))
    assert project.logged == []
    project.export(formats=["pt2"], tolerance=1e-3)
    assert not (project.bundle / "old").exists()
    monkeypatch.setattr(parity, "load_graph", lambda path, trust: lambda batch: np.full((len(batch), 3), np.nan))
    with pytest.raises(UserError, match="disagrees"):
        project.export(formats=["pt2"])


def test_pixels_other_than_prepared_ones_stop_the_stage(project: Project) -> None:
    pixels = np.load(project.prepared / "test.npy")
    pixels[8, 0, 0, 0] ^= 1
    np.save(project.prepared / "test.npy", pixels)
    with pytest.raises(UserError, match=r"test\.npy.* not what was prepared"):
        project.export(formats=["pt2"])
    seal_prepared(project.prepared)
    with pytest.raises(UserError, match=r"000008\.webp decodes to other pixels"):
        project.export(formats=["pt2"])
    with zipfile.ZipFile(project.prepared / "parity.zip", "w"):
        pass
    with pytest.raises(UserError, match=r"parity\.zip is not what was prepared"):
        project.export(formats=["pt2"])
    seal_prepared(project.prepared)
    with pytest.raises(UserError, match="no pictures"):
        project.export(formats=["pt2"])
    (project.prepared / "parity.zip").unlink()
    with pytest.raises(UserError, match="prepare"):
        project.export(formats=["pt2"])


@pytest.mark.parametrize(
    ("missing", "remedy"),
    [
        ("models/train/weights.json", "train"),
        ("models/train/run.json", "train"),
        ("reports/evaluation.json", "evaluate"),
        ("reports/calibration.json", "evaluate"),
        ("reports/per_class.csv", "evaluate"),
        ("data/prepared/classes.json", "prepare"),
    ],
)
def test_missing_inputs_are_named(project: Project, missing: str, remedy: str) -> None:
    (project.root / missing).unlink()
    with pytest.raises(UserError, match=rf"{Path(missing).name}.*dvc repro {remedy}"):
        project.export()
    assert not project.bundle.exists()


def test_digest_follows_what_changes_an_answer(exported: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(exported.root)
    inputs = stage.read_inputs()

    def digest(part: str = "run", **changes: object) -> str:
        changed = getattr(inputs, part).model_copy(update=changes)
        rest = {"formats": {}, "parity": {}, "int8": INT8, "cost": {}}
        return stage.bundle_record(dataclasses.replace(inputs, **{part: changed}), **rest).digest

    first = digest()
    assert digest("run", run_id="s") == digest("weights", data_digest="3") == first
    assert digest("metrics", run_id="s", test={"accuracy": 1}) == first
    decisive = {"backbone": "b", "model_args": {"a": 1}, "class_names": ["x"], "weights_sha256": "1"}
    for name, value in (decisive | {"preprocessing": {"mean": [0.5]}}).items():
        assert digest("weights", **{name: value}) != first
    assert digest("calibration", temperature=2.0) != first
    monkeypatch.setattr(stage, "hash_shipped_code", lambda: "other")
    assert digest() != first


REGISTER = """
from pipeline.core.params import ExportParams
from pipeline.export import stage
from pipeline.tracking import registry
params = ExportParams(formats=["pt2"], opset=18, tolerance=1e-4, int8_drop=None)
stage.export(params)
print(registry.register().message)
"""


def test_another_served_code_is_another_version(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One error text is edited, and nothing learnt: the registry gets a version that says it, the first stays."""
    root = make_project(tmp_path / "root", empty_store)
    shutil.rmtree(root / "data")
    monkeypatch.chdir(root)
    client, project = connect(), Project(root)
    run_id = client.create_run(experiment_id(client)).info.run_id
    metrics = json.loads((project.reports / "evaluation.json").read_text())
    (project.reports / "evaluation.json").write_text(json.dumps(metrics | {"run_id": run_id}))
    project.export(formats=["pt2"])
    assert "version 1" in registry.register().message

    package = tmp_path / "edited" / "pipeline"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    predictor = package / "inference" / "predictor.py"
    predictor.write_text(predictor.read_text() + "# A comment.\n")
    assert hash_code([package / "inference"], package) == hash_shipped_code()
    predictor.write_text(predictor.read_text().replace("could not be decoded", "is beyond us"))
    env = os.environ | {"PYTHONPATH": str(package.parent)}
    done = subprocess.run([sys.executable, "-c", REGISTER], env=env, capture_output=True, text=True, check=False)
    assert "Registered version 2" in done.stdout, done.stderr
    for number, new in (("1", False), ("2", True)):
        held = Path(download_artifacts(client.get_model_version("hyojo", number).source)).rglob("predictor.py")
        assert ["is beyond us" in path.read_text() for path in held] == [new]


def test_the_bundle_tells_of_its_int8_version(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"absent": None, "images": 1234, "accuracy": 0.5, "float_accuracy": 0.5012, "size_bytes": 1}

    def offer(prepared: object, folder: Path, most: float | None) -> dict:
        assert most == 0.01
        (folder / "model.int8.onnx").write_bytes((folder / "model.onnx").read_bytes())
        return found

    monkeypatch.setattr(stage, "offer_int8", offer)
    assert project.export(formats=["onnx"], int8_drop=0.01).int8 == found
    card = (project.bundle / "MODEL_CARD.md").read_text()
    assert "| model.int8.onnx | present: accuracy 0.5000 on 1,234 val images, where model.onnx has 0.5012 |" in card
    assert "model.int8.onnx" in project.logged[0][1]
