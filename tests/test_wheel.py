"""A wheel holds every package and data file: it is built, unpacked elsewhere, and used without the source tree."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]


def test_wheel_works_without_the_source_tree(tmp_path: Path, bright_bundle: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT / "pipeline", source / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(source)]
    subprocess.run([*pip, *build], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    site, home = tmp_path / "site", tmp_path / "home"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True, capture_output=True)
    home.mkdir()
    Image.new("L", (20, 20), 250).save(home / "face.png")
    (home / "recipe.yaml").write_text("train: {epochs: 9}\n")

    def hyojo(*arguments: str) -> str:
        env = {**os.environ, "PYTHONPATH": str(site)}
        command = [sys.executable, "-m", "pipeline.cli", *arguments]
        return subprocess.run(command, cwd=home, env=env, capture_output=True, text=True, check=True).stdout

    assert "Wrote params.yaml" in hyojo("use", "recipe.yaml")  # the default is package data
    assert "epochs: 9" in (home / "params.yaml").read_text()
    assert "bright" in hyojo("predict", "--model", str(bright_bundle), "face.png")
    for name in ("reporting/templates/page.html", "serve/static/style.css"):
        assert (site / "pipeline" / name).exists()
