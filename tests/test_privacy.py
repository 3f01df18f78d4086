"""Nothing calls home: what runs under a fresh home leaves nothing there, and looks nothing up."""

import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest
from builders import ROOT, SAMPLE, grey_png

LOADED = "import sys, mlflow.pyfunc; print(mlflow.pyfunc.load_model(sys.argv[1]).predict([{'image': 'x'}]))"
# A look-up asks a name server, or the cache of them at a Unix socket.
LOOKED_UP = re.compile(r"connect\(\d+, \{sa_family=AF_INET6?|nscd|systemd\.resolve")


def at_home(home: Path, work: Path, shipped: bool = False) -> tuple[list[str], dict[str, str]]:
    """How Python is run with an empty home: the begin of the command, which writes a trace, and the environment."""
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_", "MLFLOW_"))}
    environment = kept | {"HOME": str(home), "PYTHONPATH": "" if shipped else str(ROOT)}
    environment |= {"MPLCONFIGDIR": str(work / "matplotlib"), "PYTHONDONTWRITEBYTECODE": "1"}
    strace = shutil.which("strace")
    traced = [strace, "-f", "-qq", "-e", "trace=connect", "-o", str(work / "trace.txt")] if strace else []
    return [*traced, sys.executable], environment


def read_trace(work: Path) -> str:
    """The calls that opened connections, where strace is there."""
    trace = work / "trace.txt"
    return trace.read_text() if trace.exists() else ""


def run_at_home(home: Path, work: Path, *arguments: str, shipped: bool = False) -> str:
    """Run Python with an empty home; as ``read_trace``."""
    command, environment = at_home(home, work, shipped)
    done = subprocess.run([*command, *arguments], env=environment, cwd=work, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return read_trace(work)


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


def test_a_server_calls_nobody(bright_bundle: Path, tmp_path: Path) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    work.mkdir()
    command, environment = at_home(home, work)
    command += ["-m", "pipeline.cli", "serve", "--model", str(bright_bundle), "--port", "0"]
    server = subprocess.Popen(command, env=environment, cwd=work, stdout=subprocess.PIPE, text=True)
    url = server.stdout.readline().split(" on ")[1].split()[0]
    for path in ("/", "/docs", "/metrics"):
        assert urllib.request.urlopen(url + path, timeout=20).status == 200
    asked = urllib.request.Request(f"{url}/predict?faces=true", grey_png(), {"Content-Type": "image/png"})
    assert urllib.request.urlopen(asked, timeout=20).status == 200
    process = psutil.Process(server.pid)
    (process.children()[0] if process.name() == "strace" else process).terminate()
    assert server.wait(40) == 0
    assert list(home.rglob("*")) == []
    assert [line for line in read_trace(work).splitlines() if LOOKED_UP.search(line)] == []
