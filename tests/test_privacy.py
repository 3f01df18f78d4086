"""Nothing calls home: what runs under a fresh home leaves nothing there, and looks nothing up."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from builders import ROOT, SAMPLE, grey_png

LOADED = "import sys, mlflow.pyfunc; print(mlflow.pyfunc.load_model(sys.argv[1]).predict([{'image': 'x'}]))"
# A look-up asks a name server, or the cache of them at a Unix socket.
LOOKED_UP = re.compile(r"connect\(\d+, \{sa_family=AF_INET6?|nscd|systemd\.resolve")


def run_at_home(home: Path, work: Path, *arguments: str, shipped: bool = False) -> str:
    """Run Python with an empty home; the calls that open connections, where strace is there."""
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_", "MLFLOW_"))}
    environment = kept | {"HOME": str(home), "PYTHONPATH": "" if shipped else str(ROOT)}
    environment |= {"MPLCONFIGDIR": str(work / "matplotlib"), "PYTHONDONTWRITEBYTECODE": "1"}
    trace = work / "trace.txt"
    strace = shutil.which("strace")
    traced = [strace, "-f", "-qq", "-e", "trace=connect", "-o", str(trace)] if strace else []
    done = subprocess.run(
        [*traced, sys.executable, *arguments], env=environment, cwd=work, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return trace.read_text() if strace else ""


@pytest.mark.parametrize("what", ["predict", "registered model", "prepare", "history"])
def test_nothing_calls_home(what: str, bright_bundle: Path, pyfunc_dir: Path, tmp_path: Path) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    work.mkdir()
    (work / "a.png").write_bytes(grey_png())
    if what == "predict":
        calls = run_at_home(home, work, "-m", "pipeline.cli", "predict", "--model", str(bright_bundle), "a.png")
    elif what == "registered model":
        calls = run_at_home(home, work, "-c", LOADED, str(pyfunc_dir), shipped=True)
    elif what == "history":  # MLflow's store is made, migrated and asked
        (work / ".dvc").mkdir()
        calls = run_at_home(home, work, "-m", "pipeline.cli", "history")
    else:
        (work / "dvc.yaml").write_bytes((ROOT / "dvc.yaml").read_bytes())
        (work / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
        (work / "data").mkdir()
        (work / "data" / SAMPLE.name).write_bytes(SAMPLE.read_bytes())
        calls = run_at_home(home, work, "-m", "pipeline.prepare")
    assert list(home.rglob("*")) == []
    assert [line for line in calls.splitlines() if LOOKED_UP.search(line)] == []
