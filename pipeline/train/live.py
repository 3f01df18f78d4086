"""A training's curves while it runs, by the file conventions of DVCLive, which DVC and editors follow.

``dvclive/plots/metrics/train/loss.tsv`` and its like have a row an epoch, ``dvclive/metrics.json`` the last one,
``dvclive/dvc.yaml`` names them to DVC, and a signal file tells an editor that there is something new
(https://dvc.org/doc/dvclive/how-it-works). Once the training is over, ``models/train/history.csv`` has it all.
"""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.core.project import project_root

FOLDER = Path("dvclive")
DECLARED = "metrics:\n- metrics.json\nplots:\n- plots/metrics:\n    x: step\n"
SIGNAL = Path(".dvc/tmp/exps/run/DVCLIVE_STEP_COMPLETED")


def show(history: list[dict[str, float]]) -> None:
    """Write the curves of a history, a row an epoch; trouble with these files ends no training."""
    step = int(history[-1]["epoch"])
    last: dict[str, Any] = {"step": step}
    with suppress(OSError):
        for name in history[-1].keys() - {"epoch"}:
            part, _, score = name.rpartition("/")
            rows = [f"{row['epoch']}\t{row[name]}" for row in history]
            _write(FOLDER / f"plots/metrics/{name}.tsv", "\n".join([f"step\t{score}", *rows, ""]))
            (last.setdefault(part, {}) if part else last)[score] = history[-1][name]
        _write(FOLDER / "metrics.json", json.dumps(last, indent=2))
        _write(FOLDER / "dvc.yaml", DECLARED)
        _write(project_root() / SIGNAL, json.dumps({"pid": os.getpid(), "step": step}))


def hide() -> None:
    """Remove the curves of a training that is over."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    with suppress(OSError):
        (project_root() / SIGNAL).unlink()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
