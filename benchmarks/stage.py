"""Run the prepare stage as DVC does, in a process of its own, for the other benchmarks."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
# The kernel's own high-water mark of this program: `ru_maxrss` would hold that of the benchmark, too.
_RUN = """
import atexit, runpy
def tell():
    with open("/proc/self/status") as status:
        print("peak_kb", *(line.split()[1] for line in status if line.startswith("VmHWM")))
atexit.register(tell)
runpy.run_module("pipeline.prepare", run_name="__main__")
"""


class Run(NamedTuple):
    """Time in s, peak memory in MB, and what the stage printed."""

    seconds: float
    peak_mb: float
    output: str


def run_prepare(home: Path, source: Path, **params: Any) -> Run:
    """Prepare a source in a folder, with the repository's parameters but for those given."""
    yaml = YAML(typ="safe")
    content = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    content["prepare"] |= {"source": str(source), **params}
    with (home / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(content, file)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _RUN],
        cwd=home,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    output, _, peak = done.stdout.rpartition("peak_kb")
    return Run(seconds, int(peak) / 1024, output)
