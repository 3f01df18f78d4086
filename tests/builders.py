"""What tests are made of: prepared data, params, bundles and graphs, all tiny."""

import base64
import csv
import functools
import hashlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

# Before anything imports torch. One thread: nets this small lose time to more, and CI has few cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["GIT_CEILING_DIRECTORIES"] = "/"

import numpy as np
import pytest
from PIL import Image

from pipeline.core.params import PrepareParams
from pipeline.core.params_file import apply_overrides, apply_recipe, parse_params, read_default
from pipeline.core.stage_files import DatasetFile
from pipeline.inference.bundle import seal
from pipeline.prepare.catalogue import SPLITS
from pipeline.prepare.columns import Records
from pipeline.prepare.sources.open import Reading, open_source
from pipeline.prepare.sources.source import Item, Source

if TYPE_CHECKING:
    import onnx
    from torch import Tensor

    from pipeline.core.params import Params, TrainParams

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "data" / "sample.zip"
FOREIGN = (
    "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID",
    "MLFLOW_EXPERIMENT_NAME", "DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV",
)  # fmt: skip

# Small enough that a training takes a second: what differs from the default.
TINY_RECIPE = """\
prepare:
  source: data/tiny.zip
  img_size: 16
  face_margin: 0.05
train:
  backbone_args: {widths: [8, 8, 8], depths: [1, 1, 1], stem_width: 8, drop_rate: 0.1}
  stem: keep
  transforms:
    train:
      - RandomCrop: {size: auto, padding: 2}
      - RandomHorizontalFlip
  batch_size: 16
  epochs: 3
  optimizer: sgd
  lr: 0.4
  weight_decay: 0.0005
  schedule: {warmup: 0.33, decay: 0.67, decay_rate: 0.5}
  ema_decay: 0.9
  grad_clip_norm: 5.0
  device: cpu
evaluate: {batch_size: 7, worst: 4, corruptions: [], corrupted: null, quantiles: 2, explain: 0}
export: {formats: [pt2], int8_drop: null}
"""
TINY_PARAMS = apply_recipe(TINY_RECIPE, "tiny.yaml")
SPLIT_SIZES = {"train": 24, "val": 9, "test": 9}
CLASS_NAMES = ["angry", "happy", "sad"]
AUDIT = {"redundant": 3, "conflicting_groups": 1, "test_in_train": 2}


def write_arrays(
    folder: Path, splits: dict[str, tuple[np.ndarray, Sequence[int]]], class_names: list[str], **about: object
) -> Path:
    """Write images, uint8 (N, H, W, C), and class indices by split as the prepare stage does.

    Args:
        folder: Is made.
        splits: Images and targets by name.
        class_names: The classes.
        about: Keys of ``classes.json`` that take the place of its own.
    """
    folder.mkdir(parents=True)
    lines = ["file,label,split,row,sha256,flags,twins"]
    for split, (images, targets) in splits.items():
        np.save(folder / f"{split}.npy", images)
        lines += [f"{split}/{i}.png,{class_names[target]},{split},{i},,," for i, target in enumerate(targets)]
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    _, img_size, _, channels = images.shape
    meta = {"class_names": class_names, "img_size": img_size, "channels": channels, "digest": "d" * 64, "counts": {}}
    return seal_prepared(folder, **meta | about)


def seal_prepared(folder: Path, **about: object) -> Path:
    """Write the ``classes.json`` of what a folder holds; ``about`` are its keys, in place of those that it has."""
    path = folder / "classes.json"
    meta = (json.loads(path.read_text()) if path.exists() else {}) | about
    with (folder / "manifest.csv").open(encoding="utf-8", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["row"]))
    shape = [meta["img_size"], meta["img_size"], meta["channels"]]
    digests = {}
    for split in SPLITS:
        own = [row for row in rows if row["split"] == split and int(row["row"]) >= 0]
        digest = hashlib.sha256(json.dumps([split, meta["class_names"], shape, [row["label"] for row in own]]).encode())
        for name in (f"{split}.npy", f"{split}_soft.npy"):
            if (folder / name).exists():
                digest.update(np.load(folder / name).tobytes())
        if own and "weight" in own[0]:
            digest.update(np.float32([row["weight"] for row in own]).tobytes())
        digests[split] = digest.hexdigest()
    files = [folder / name for name in ("manifest.csv", "parity.zip") if (folder / name).exists()]
    meta["files"] = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    DatasetFile(**meta | {"split_digests": digests} | about).save(folder)
    return folder


def invert_block(path: Path) -> None:
    """Invert the last bytes of a file, whose size and time stay as they were."""
    content, times = path.read_bytes(), path.stat()
    path.write_bytes(content[:-4] + bytes(255 - byte for byte in content[-4:]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def write_prepared(folder: Path, channels: int = 1, img_size: int = 16, seed: int = 0) -> Path:
    """Write a learnable data set as the prepare stage does: stripes this way, that way, or none."""
    rng = np.random.default_rng(seed)
    splits, digest = {}, hashlib.sha256(f"{channels},{seed}".encode())
    stripes = np.where(np.arange(img_size) % 4 < 2, 70, 0).astype(np.uint8)
    for split, each in SPLIT_SIZES.items():
        targets = np.repeat(np.arange(len(CLASS_NAMES)), each)
        rng.shuffle(targets)
        images = rng.integers(0, 150, (len(targets), img_size, img_size, channels), dtype=np.uint8)
        for image, target in zip(images, targets):
            image += (stripes[:, None, None], stripes[None, :, None], np.uint8(35))[target]
        digest.update(images.tobytes())
        splits[split] = (images, targets)
    return write_arrays(folder, splits, CLASS_NAMES, digest=digest.hexdigest(), audit=AUDIT)


def load_script(path: str) -> ModuleType:
    """A script of the project as a module; those of one folder import one another by name."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def drawn_faces(count: int = 140) -> np.ndarray:
    """Different drawn faces of all classes, uint8 (count, 48, 48, 1)."""
    with zipfile.ZipFile(SAMPLE) as archive:
        names = archive.namelist()
        chosen = names[:: len(names) // count][:count]
        return np.stack([np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in chosen])[..., None]


def prepare_params(source: Path | str, **changes: Any) -> PrepareParams:
    """What the prepare stage gets: the default, but small pictures, larger cuts, and all twins kept."""
    usual = {"img_size": 12, "val_fraction": 0.2, "max_bad_fraction": 0.2, "face_margin": 0.05}
    usual |= {"duplicates": "keep", "conflicts": "keep", "source": str(source)}
    default = parse_params(read_default()).prepare.model_dump()
    return PrepareParams(**(default | usual | changes))


def draw_noise(seed: int, size: int = 12) -> bytes:
    """A grey picture of its own noise as a PNG file."""
    return encode(np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8))


def write_zip(path: Path, tree: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    """Write a zip of files by their names."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in tree.items():
            archive.writestr(name, data)
    return path


def write_files(folder: Path, *names: str, **tables: str) -> Path:
    """Write files by their paths, each with its path as content, and ``.csv`` files by their names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    for name, text in tables.items():
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.csv").write_text(text, encoding="utf-8", newline="")
    return folder


def list_items(path: Path, **reading: Any) -> list[Item]:
    """The items of a source, in order of name; ``reading`` as in ``Reading``."""
    with open_source(path, Reading(**reading)) as source:
        return sorted(source.items(), key=lambda item: item.file)


def read_contents(path: Path, **reading: Any) -> dict[str, bytes]:
    """The bytes of every file of a source by its name; of two with one name those of the later."""
    with open_source(path, Reading(**reading)) as source:
        items = {item.file: item for item in source.items()}
        names = sorted(items)
        return dict(zip(names, (fetch() for fetch in source.fetch(items[name].place for name in names))))


def write_tar(path: Path, files: Iterable[tuple[str, bytes]], compression: str = "") -> Path:
    """Write a tar of files by their names, and of folders, whose names end in a slash."""
    with tarfile.open(path, f"w:{compression}") as archive:
        for name, data in files:
            info = tarfile.TarInfo(name.rstrip("/"))
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


class Items(Source):
    """A source of items that a test gives."""

    form = "given"

    def __init__(self, items: Iterable[Item]) -> None:
        super().__init__(Path("given"))
        self._items = list(items)

    def items(self) -> Iterator[Item]:
        return iter(self._items)

    def fetch(self, places: Iterable[object]) -> Iterator[Callable[[], bytes]]:
        return ((lambda place=place: str(place).encode()) for place in places)


@dataclass
class Row:
    """An image as a test writes it down, for ``records_of``."""

    file: str
    label: str
    split: str
    sha256: str = ""
    twins: str = ""
    size: tuple[int, int] = (0, 0)
    marks: Iterable[str] = ()
    problem: str = ""
    dropped: str = ""


def records_of(rows: Sequence[Row], class_names: Sequence[str] = ()) -> Records:
    """Records of images written down by hand; digests and twins may be any texts."""
    names = list(class_names) or sorted({row.label for row in rows})
    labels = np.array([names.index(row.label) for row in rows], np.int16)
    splits = np.array([SPLITS.index(row.split) for row in rows], np.int8)
    records = Records(lambda numbers: [rows[i].file for i in numbers], names, labels, splits)
    sets = sorted({row.twins for row in rows if row.twins})
    for i, row in enumerate(rows):
        records.mark(i, *row.marks)
        records.sizes[i] = row.size
        if row.sha256:
            digest = bytes.fromhex(row.sha256) if len(row.sha256) == 64 else row.sha256.encode().ljust(32)
            records.digests[i] = np.frombuffer(digest, np.uint8)
        if row.twins:
            records.twins[i] = sets.index(row.twins)
        if row.problem:
            records.problems[i] = row.problem
            records.mark(i, "corrupt")
        if row.dropped:
            records.drops[i] = row.dropped
            records.mark(i, "dropped")
    return records


def train_params(backbone: str = "test_resnet", **changes: Any) -> "TrainParams":
    """A train section with no transforms and a stock net's defaults, but for the changes."""
    section = parse_params(TINY_PARAMS).train
    values = {"backbone": backbone, "backbone_args": {}, "transforms": {"train": [], "eval": []}} | changes
    return type(section).model_validate(section.model_dump() | values)


def params_with(*overrides: str) -> "Params":
    """The params of a training of a second, with overrides."""
    return parse_params(apply_overrides(TINY_PARAMS, list(overrides)))


def scramble(state: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """Weights of which none is at its initial value, as those of a trained net."""
    import torch

    torch.manual_seed(1)
    return {name: torch.rand_like(t) if t.is_floating_point() else t + 7 for name, t in state.items()}


def forget_store() -> None:
    """Have the next connection look for its store anew."""
    for name in FOREIGN:
        os.environ.pop(name, None)
    store = sys.modules.get("pipeline.tracking.store")
    if store is not None:
        store.connect.cache_clear()
        store.open_reader.cache_clear()
        store.project_name.cache_clear()


def make_project(root: Path, database: Path) -> Path:
    """Write a project: ``.dvc``, ``params.yaml``, prepared data and a copy of an MLflow database."""
    write_prepared(root / "data" / "prepared")
    (root / ".dvc").mkdir()
    (root / "params.yaml").write_text(TINY_PARAMS)
    shutil.copy(ROOT / "dvc.yaml", root)  # it says what a stage's code is
    (root / "mlflow.db").write_bytes(database.read_bytes())
    return root


def run_git(*arguments: str, stdin: str | None = None) -> str:
    """What git prints in the working folder, as somebody who has a name."""
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    command = ["git", *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, input=stdin).stdout.strip()


def run_hyojo(*arguments: str) -> int:
    """Run a command in this process; returns its exit status."""
    from pipeline import cli

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["hyojo", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return int(ended.value.code or 0)


def write_sidecars(folder: Path, run_id: str = "a" * 32, **changes: object) -> Path:
    """Write ``run.json`` and ``weights.json`` as train does; keys given take the place of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    sidecar = {
        "backbone": "face_resnet_s", "model_args": {}, "class_names": CLASS_NAMES, "preprocessing": {},
        "weights_sha256": "e" * 64, "data_digest": "d" * 64,
    }  # fmt: skip
    (folder / "weights.json").write_text(json.dumps(sidecar | changes))
    (folder / "run.json").write_text(json.dumps({"run_id": run_id}))
    return folder


def write_predictions(path: Path, targets: np.ndarray, preds: np.ndarray, probs: np.ndarray | None = None) -> Path:
    """Write answers as evaluate does, for classes ``CLASS_NAMES``; 0.6 for what is predicted if there are no probs."""
    import pandas as pd

    if probs is None:
        probs = np.full((len(preds), len(CLASS_NAMES)), 0.4 / (len(CLASS_NAMES) - 1))
        probs[np.arange(len(preds)), preds] = 0.6
    names = np.array(CLASS_NAMES, dtype=object)
    table = pd.DataFrame(probs, columns=[f"prob_{name}" for name in CLASS_NAMES])
    files = [f"test/{row}.png" for row in range(len(targets))]
    for place, (name, values) in enumerate({"file": files, "label": names[targets], "predicted": names[preds]}.items()):
        table.insert(place, name, values)
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False)
    return path


def brightness_graph() -> "onnx.ModelProto":
    """softmax([mean, 255 - mean] / 64) of uint8 images (B, 8, 8, 1)."""
    import onnx.parser

    return onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["": 18]>
        brightness (uint8[batch, 8, 8, 1] images) => (float[batch, 2] probabilities)
        <int64[3] axes = {1, 2, 3}, int64[1] last = {1}, float[1, 2] slope = {0.015625, -0.015625},
            float[1, 2] offset = {0.0, 3.984375}>
        {
            floats = Cast <to = 1> (images)
            mean = ReduceMean <keepdims = 0> (floats, axes)
            column = Unsqueeze (mean, last)
            sloped = Mul (column, slope)
            logits = Add (sloped, offset)
            probabilities = Softmax <axis = 1> (logits)
        }
    """)


def bundle_record(**changes: object) -> dict:
    """What ``bundle.json`` holds for ``brightness_graph``; keys given take the place of its own."""
    return {
        "backbone": "face_resnet_s", "model_args": {}, "class_names": ["bright", "dark"],
        "preprocessing": {"img_size": 8, "channels": 1}, "weights_sha256": "e" * 64, "calibration": {},
        "digest": "b" * 64, "formats": {"onnx": None}, "data_digest": "d" * 64, "test_digest": "7" * 64,
        "run_id": "a" * 32, "metrics": {"test": {"accuracy": 0.5, "macro_f1": 0.25}}, "versions": {},
    } | changes  # fmt: skip


def write_bundle(folder: Path, **changes: object) -> Path:
    """Write a bundle that tells bright pictures from dark ones; ``changes`` as in ``bundle_record``."""
    import onnx

    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(brightness_graph(), folder / "model.onnx")
    (folder / "MODEL_CARD.md").write_text("card")
    return seal_bundle(folder, **changes)


def seal_bundle(folder: Path, **changes: object) -> Path:
    """Write the ``bundle.json`` of what a folder holds; ``changes`` as in ``bundle_record``."""
    (folder / "bundle.json").write_text(json.dumps(seal(folder, bundle_record(**changes))))
    return folder


def write_exported(folder: Path, graph: Path | None = None, **changes: object) -> Path:
    """Write a bundle and, in ``pyfunc``, what is served of it; ``changes`` as in ``bundle_record``."""
    inner = folder / "pyfunc" / "artifacts" / "bundle"
    inner.mkdir(parents=True)
    (folder / "pyfunc" / "MLmodel").write_text("flavors: {}")
    for place in (inner, folder):  # the outer one has the inner one's files too
        (place / "MODEL_CARD.md").write_text("card")
        if graph is not None:
            shutil.copy(graph, place / "model.onnx")
        seal_bundle(place, **changes)
    return folder


def encode(picture: "Image.Image | np.ndarray", kind: str = "PNG", **options: object) -> bytes:
    """The bytes of a file of that format."""
    picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def grey_png(value: int = 200, size: tuple[int, int] = (20, 30)) -> bytes:
    """A PNG of one brightness."""
    return encode(Image.new("L", size, value))


def to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# Requests that cannot be answered: body, content type, and what ``hyojo serve`` says.
MALFORMED = [
    (b"", "application/json", 400),
    (b"{", "application/json", 400),
    (b"\xff\xfe", "application/json", 400),
    (b"[" * 50_000, "application/json", 400),
    (b"[1]", "application/json", 400),
    (b'{"foo": 1}', "application/json", 400),
    (b'{"inputs": [1], "instances": [1]}', "application/json", 400),
    (b'{"inputs": ["x"], "params": 5}', "application/json", 400),
    (b'{"inputs": ["x"], "params": {"faces": "perhaps"}}', "application/json", 400),
    (b'{"inputs": [' + b"9" * 5000 + b"]}", "application/json", 400),
    (b'{"dataframe_split": 5}', "application/json", 400),
    (b'{"dataframe_split": {"columns": ["image"]}}', "application/json", 400),
    (b'{"dataframe_records": 5}', "application/json", 400),
    (b"{}", "application/json; charset=latin-1", 415),
    (b"", "text/csv", 400),
    (b'image\n"a\n', "text/csv", 400),
    (b"\xff", "text/csv", 400),
    (b"PAR1", "application/vnd.apache.parquet", 415),
    (b"{}", "text/plain", 415),
    (b"{}", "", 415),
]


def right_answers(right: int) -> tuple[np.ndarray, np.ndarray]:
    """Targets of 300 samples, 100 a class, and predictions, right on so many of each class, the same ones first."""
    targets = np.repeat([0, 1, 2], 100)
    return targets, np.where(np.tile(np.arange(100) >= right, 3), (targets + 1) % 3, targets)


def log_version(right: int, digest: str, graph: Path | None = None) -> Path:
    """Leave a bundle with such answers and its run, as evaluate and export would; returns its folder."""
    from pipeline.tracking import bundles
    from pipeline.tracking.inputs import EVALUATION_TAG
    from pipeline.tracking.store import connect, experiment_id

    client = connect()
    run_id = client.create_run(experiment_id(client)).info.run_id
    targets, preds = right_answers(right)
    probs = np.full((300, 3), (1 - right / 100) / 2)
    probs[np.arange(300), preds] = right / 100
    table = write_predictions(Path("scratch/predictions.csv"), targets, preds, probs)
    client.log_artifact(run_id, str(table), "evaluation")
    client.set_tag(run_id, EVALUATION_TAG, "k")
    scores = {"accuracy": right / 100, "macro_f1": right / 100}
    about = {"parity": {"formats": ["onnx"]}, "cost": {"parameters": 5, "size_bytes": 1000}}
    about |= {"digest": digest, "run_id": run_id, "metrics": {"test": scores}}
    folder = write_exported(Path("models") / digest, graph, **about)
    bundles.log_bundle(folder, folder / "pyfunc", {"cost/latency_ms": 2.0})
    return folder


def add_version(right: int, digest: str, graph: Path | None = None) -> int:
    """Register such a version."""
    from pipeline.tracking import registry

    return registry.register(log_version(right, digest, graph)).version


def add_answering_version(digest: str) -> int:
    """Register a bundle that answers: the brighter a picture, the surer "bright"."""
    from pipeline.tracking import bundles, registry
    from pipeline.tracking.pyfunc import build_pyfunc
    from pipeline.tracking.store import connect, experiment_id

    run_id = connect().create_run(experiment_id(connect())).info.run_id
    folder = write_bundle(Path("models") / digest, digest=digest, run_id=run_id)
    build_pyfunc(folder, Path("scratch") / digest)
    bundles.log_bundle(folder, Path("scratch") / digest)
    return registry.register(folder).version


def read_champion() -> int | None:
    """The version that the alias points at, asked of MLflow itself."""
    from pipeline.tracking.store import connect

    found = connect().get_registered_model(sys.modules["pipeline.tracking.store"].project_name()).aliases
    return int(found["champion"]) if "champion" in found else None
