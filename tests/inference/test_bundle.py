"""A bundle that is not as it was exported is refused by name, and what is used is what was checked."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import onnx
import pytest
from builders import brightness_graph, grey_png, seal_bundle

from pipeline.core.errors import UserError
from pipeline.inference.bundle import Bundle, BundleError, seal
from pipeline.inference.predictor import Predictor
from pipeline.tracking.bundles import read_bundle

Damage = Callable[[Path], object]


def flip(name: str, place: int = -9) -> Damage:
    """Turn one bit of a file."""

    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[place] ^= 1
        (folder / name).write_bytes(content)

    return damage


def edit(**changes: object) -> Damage:
    """Set entries of bundle.json; None takes one away."""

    def damage(folder: Path) -> None:
        record = json.loads((folder / "bundle.json").read_text()) | changes
        (folder / "bundle.json").write_text(json.dumps({key: value for key, value in record.items() if value != ()}))

    return damage


DAMAGES = {
    "a bit of the graph": (flip("model.onnx"), "model.onnx is not the file that was exported"),
    "a bit of another file": (flip("MODEL_CARD.md", 0), "MODEL_CARD.md is not the file"),
    "classes reversed": (edit(class_names=["dark", "bright"]), "bundle.json was changed after the export"),
    "a threshold": (edit(abstain={"threshold": 0.1}), "bundle.json was changed after the export"),
    "an entry more": (edit(mood=3), "bundle.json was changed after the export"),
    "sums of other files": (edit(files={"model.onnx": "0" * 64}), "bundle.json was changed after the export"),
    "a file missing": (lambda folder: (folder / "MODEL_CARD.md").unlink(), "lacks MODEL_CARD.md"),
    "a file more": (lambda folder: (folder / "model.pt2").touch(), "holds model.pt2, which"),
    "no sums": (edit(files=()), "older version.*dvc repro -f export.*hyojo register"),
    "half a record": (lambda folder: (folder / "bundle.json").write_bytes(b'{"class_n'), "bundle.json cannot be read"),
    "a list": (lambda folder: (folder / "bundle.json").write_text("[]"), "bundle.json cannot be read"),
    "no record": (lambda folder: (folder / "bundle.json").unlink(), "bundle.json not found. Run `dvc repro export`"),
}


@pytest.fixture
def copy(bright_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bright_bundle, tmp_path / "bundle"))


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(copy: Path, damage: str) -> None:
    change, said = DAMAGES[damage]
    change(copy)
    with pytest.raises(BundleError, match=said):
        Predictor(copy)
    with pytest.raises(UserError, match=said):
        read_bundle(copy)


def test_no_byte_of_the_record_can_change_in_silence(copy: Path) -> None:
    """Every bit in turn: it is refused, or it says the same (a blank that became another)."""
    path, meant = copy / "bundle.json", Bundle(copy).record
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        try:
            assert Bundle(copy).record == meant
        except BundleError:
            continue


def test_hidden_files_do_not_count(copy: Path) -> None:
    (copy / ".DS_Store").touch()
    assert Predictor(copy).class_names == ["bright", "dark"]


def test_what_is_run_is_what_was_checked(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is exchanged between the look at it and its use: the answers are those of the file looked at."""
    other = brightness_graph()
    (slope,) = [item for item in other.graph.initializer if item.name == "slope"]
    slope.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(slope), "slope"))
    read = Bundle.read

    def exchange(self: Bundle, name: str) -> bytes:
        content = read(self, name)
        onnx.save(other, copy / "model.onnx")
        return content

    monkeypatch.setattr(Bundle, "read", exchange)
    assert Predictor(copy).predict_bytes([grey_png(250)])[0]["label"] == "bright"
    seal_bundle(copy)
    assert Predictor(copy).predict_bytes([grey_png(250)])[0]["label"] == "dark"


def test_seal_is_the_same_for_the_same_files(copy: Path) -> None:
    record = json.loads((copy / "bundle.json").read_text())
    assert seal(copy, record) == record


@pytest.mark.parametrize("damage", ["a bit of the graph", "classes reversed", "a file missing"])
def test_a_registered_model_looks_at_its_own_bundle(pyfunc_dir: Path, tmp_path: Path, damage: str) -> None:
    """With the code that ships, which MLflow runs: nothing of this package is asked."""
    model = Path(shutil.copytree(pyfunc_dir, tmp_path / "model"))
    change, said = DAMAGES[damage]
    change(model / "artifacts" / "bundle")
    with pytest.raises(ValueError, match=said) as caught:
        mlflow.pyfunc.load_model(str(model))
    assert not isinstance(caught.value, BundleError)
