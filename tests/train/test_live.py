"""Curves while a training runs, where DVC and editors look for them."""

import csv
import json
import os
from pathlib import Path

import pytest
from builders import ROOT, run_git

from pipeline.train import live

HISTORY = [
    {"epoch": 1, "lr": 0.1, "train/loss": 2.0, "val/loss": 2.5},
    {"epoch": 2, "lr": 0.2, "train/loss": 1.0, "val/loss": 1.5},
]


def test_show_writes_what_dvclive_does_and_hide_removes_it(project: Path) -> None:
    for count in (1, 2):
        live.show(HISTORY[:count])
    for name in ("train/loss", "val/loss", "lr"):
        with Path(f"dvclive/plots/metrics/{name}.tsv").open(newline="") as file:
            rows = [list(map(float, row)) for row in list(csv.reader(file, delimiter="\t"))[1:]]
        assert rows == [[row["epoch"], row[name]] for row in HISTORY]
    assert json.loads(Path("dvclive/metrics.json").read_text()) == {
        "step": 2, "lr": 0.2, "train": {"loss": 1.0}, "val": {"loss": 1.5}
    }  # fmt: skip
    signal = project / ".dvc/tmp/exps/run/DVCLIVE_STEP_COMPLETED"
    assert json.loads(signal.read_text()) == {"pid": os.getpid(), "step": 2}
    # DVC looks for dvc.yaml where git does not ignore it; the rest git must not see.
    (project / ".gitignore").write_text((ROOT / ".gitignore").read_text())
    run_git("init", "-q")
    assert run_git("status", "--porcelain", "-uall", "dvclive") == "?? dvclive/dvc.yaml"
    live.hide()
    assert not signal.exists()
    assert not Path("dvclive").exists()


def test_trouble_with_curves_ends_no_training(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "dvclive").write_text("a file")
    live.show(HISTORY)
    live.hide()
    assert (project / "dvclive").read_text() == "a file"
