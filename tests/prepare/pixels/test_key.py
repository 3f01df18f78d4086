"""The cache of decoded pictures belongs to the code that decides pixels: another code, another cache."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from builders import TINY_PARAMS, draw_noise, write_zip

PACKAGE = Path(__file__).resolve().parents[3] / "pipeline"


@pytest.fixture
def home(home: Path, tmp_path: Path) -> Path:
    """A project with a few tiny pictures, beside a copy of the package in ``code``."""
    shutil.copytree(PACKAGE, tmp_path / "code" / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    (home / ".dvc").mkdir()
    (home / "data").mkdir()
    write_zip(home / "data" / "tiny.zip", {f"{'ab'[i % 2]}/{i:02}.png": draw_noise(i, 16) for i in range(40)})
    (home / "params.yaml").write_text(TINY_PARAMS)
    return home


def run(home: Path) -> tuple[np.ndarray, bool]:
    """Run the stage with the copied code; the training images, and whether any was taken from the cache."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.prepare"],
        cwd=home, env=os.environ | {"PYTHONPATH": str(home.parent / "code")}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return np.load(home / "data" / "prepared" / "train.npy"), "decoded before" in done.stdout


def edit(home: Path, old: str, new: str) -> None:
    """Change the one place in prepare's code where ``old`` stands."""
    files = (home.parent / "code" / "pipeline" / "prepare").rglob("*.py")
    (file,) = [file for file in files if old in file.read_text("utf-8")]
    file.write_text(file.read_text("utf-8").replace(old, new), "utf-8")


def test_stage_with_other_decoding_code_decodes_anew(home: Path) -> None:
    """A comment keeps the cache; what changes a pixel does not."""
    before, reused = run(home)
    assert not reused
    edit(home, "resize(image, ", "resize(  # smaller\n        image, ")
    same, reused = run(home)
    assert reused
    np.testing.assert_array_equal(same, before)
    edit(home, "resize(  # smaller", "255 - resize(")
    inverted, reused = run(home)
    assert not reused
    np.testing.assert_array_equal(inverted, 255 - before)


def test_key_covers_all_that_the_pixels_code_imports() -> None:
    """What lies outside the folder and is not in the key by its file must not decide a pixel: core, and no more."""
    known = (
        "pipeline.core.",
        "pipeline.inference.faces",
        "pipeline.inference.images",
        "pipeline.inference.limits",
        "pipeline.inference.apart",
        "pipeline.prepare.pixels.",
    )
    for file in (PACKAGE / "prepare" / "pixels").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("pipeline"):
                assert all(f"{node.module}.{name.name}".startswith(known) for name in node.names), file.name
    for name in ("faces", "images"):  # they import nothing local, so their own text is all that they are
        text = (PACKAGE / "inference" / f"{name}.py").read_text("utf-8")
        assert "pipeline" not in re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE)
