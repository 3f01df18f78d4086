"""The embedded sample: its layout and size, and that its generator makes exactly it."""

import io
import json
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from builders import ROOT, SAMPLE, load_script
from PIL import Image

# Written down from EMFACS, not from the generator: the action units that make each expression.
EMFACS = {
    "angry": {4, 5, 7, 23},
    "disgust": {9, 15, 16},
    "fear": {1, 2, 4, 5, 7, 20, 26},
    "happy": {6, 12},
    "neutral": set(),
    "sad": {1, 4, 15},
    "surprise": {1, 2, 5, 26},
}


def _decode(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "L"
        return np.asarray(image)


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    return load_script("data/make_sample.py")


@pytest.fixture(scope="module")
def faces() -> dict[str, np.ndarray]:
    """Every member of the zip, decoded, by name."""
    with zipfile.ZipFile(SAMPLE) as archive:
        return {name: _decode(archive.read(name)) for name in archive.namelist()}


def test_zip_is_small_and_its_bytes_tell_no_time_or_place() -> None:
    assert SAMPLE.stat().st_size <= 3_000_000
    with zipfile.ZipFile(SAMPLE) as archive:
        infos = archive.infolist()
    assert [info.filename for info in infos] == sorted(info.filename for info in infos)
    assert {(i.date_time, i.create_system, i.compress_type) for i in infos} == {((1980, 1, 1, 0, 0, 0), 3, 0)}


def test_counts_per_split_and_class(faces: dict[str, np.ndarray]) -> None:
    counts = Counter(tuple(name.split("/")[:2]) for name in faces)
    assert {name for _, name in counts} == set(EMFACS)
    assert {split for split, _ in counts} == {"train", "val", "test"}
    for split, expected in (("train", 230), ("val", 45), ("test", 45)):
        assert {counts[split, name] for name in EMFACS} == {expected}
    assert len(faces) >= 2100


def test_faces_are_48_by_48_grey_and_not_flat(faces: dict[str, np.ndarray]) -> None:
    assert {(face.shape, face.dtype.name) for face in faces.values()} == {((48, 48), "uint8")}
    assert min(face.std() for face in faces.values()) > 8


def test_no_two_faces_are_alike(faces: dict[str, np.ndarray]) -> None:
    stack = np.stack(list(faces.values())).astype(np.float32).reshape(len(faces), -1)
    assert len(np.unique(stack, axis=0)) == len(stack)
    # Nor nearly alike, as a re-encoded copy would be: mean squared differences by one matrix product.
    norms = (stack**2).sum(axis=1)
    squared = (norms[:, None] + norms[None] - 2 * stack @ stack.T) / stack.shape[1]
    np.fill_diagonal(squared, np.inf)
    assert squared.min() > 8**2


def test_generator_makes_the_zip(
    generator: ModuleType, faces: dict[str, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A few faces drawn alone equal those drawn among 2,240: a face depends on nothing before it.

    Another Pillow may encode the same drawing to other bytes, and another processor may round a coordinate
    otherwise, so pixels are compared: on average within 1 grey level. Two different faces are 10 or more apart.
    """
    generator.write_sample(tmp_path / "few.zip", per_class=(2, 1, 1))
    with zipfile.ZipFile(tmp_path / "few.zip") as archive:
        few = {name: _decode(archive.read(name)).astype(float) for name in archive.namelist()}
    assert len(few) == 7 * 4
    assert few.keys() <= faces.keys()
    for name, face in few.items():
        assert np.abs(face - faces[name]).mean() < 1, name
    for name in EMFACS:
        other = faces[generator.member_name(name, "train", 2)]
        assert np.abs(few[generator.member_name(name, "train", 1)] - other).mean() > 10


def test_same_arguments_same_bytes_other_seed_other_faces(generator: ModuleType, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        generator.write_sample(tmp_path / name, per_class=(1, 1, 1), seed=seed)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b
    assert a != c


@pytest.mark.parametrize("name", sorted(EMFACS))
def test_expressions_are_those_of_emfacs(generator: ModuleType, name: str) -> None:
    assert set(generator.PROTOTYPES[name]) == EMFACS[name]
    rng = np.random.default_rng(5)
    draws = [generator.action_units(name, rng) for _ in range(300)]
    mean = {unit: np.mean([units[unit] for units in draws]) for unit in draws[0]}
    # Each unit of the expression is there, in every face; with none of them a face is at rest.
    for unit in EMFACS[name]:
        assert mean[unit] > 0.15
        assert min(units[unit] for units in draws) > 0.05
    if name == "neutral":
        assert max(max(units.values()) for units in draws) < 0.3


def test_command_line(tmp_path: Path) -> None:
    def run(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "data" / "make_sample.py"), *args], capture_output=True, text=True
        )

    out, sheet = tmp_path / "new" / "s.zip", tmp_path / "sheet.png"
    done = run("--out", str(out), "--per-class", "1", "1", "2", "--sheet", str(sheet))
    assert done.returncode == 0, done.stderr
    assert len(zipfile.ZipFile(out).namelist()) == 28
    assert [path.name for path in out.parent.iterdir()] == ["s.zip"]
    assert Image.open(sheet).size == (2 * 12 * 48, 2 * 7 * 48)
    refused = run("--per-class", "0", "1", "1")
    assert refused.returncode == 2
    assert "--per-class" in refused.stderr


def test_the_default_recipe_learns_it_but_not_wholly() -> None:
    """The committed scores are those of the sample: too easy or too hard a sample would tell nothing."""
    assert 0.80 <= json.loads((ROOT / "reports" / "metrics.json").read_text())["test"]["accuracy"] <= 0.97
