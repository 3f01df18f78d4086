"""How many cores this process may use: those of its affinity, and of the share that its control group has."""

import contextlib
import os
from pathlib import Path


def available(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Whole physical cores that this process may use, at least 1; ``root`` is where control groups are mounted."""
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return max(1, min(_physical(mine), int(_quota(root))))


def _physical(cpus: "set[int] | range", root: Path = Path("/sys/devices/system/cpu")) -> int:
    """Cores behind logical CPUs; two threads of one core count once, as both would do the same arithmetic."""
    found = set()
    for cpu in cpus:
        try:
            found.add((root / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip())
        except OSError:  # not Linux
            found.add(str(cpu))
    return len(found)


def _quota(root: Path) -> float:
    """CPUs that the control group may use, 2**20 if it has no limit; version 2, else version 1."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError):
            quota, period = " ".join((root / name).read_text() for name in names).split()
            return 2**20 if quota in ("max", "-1") else max(1.0, int(quota) / int(period))
    return 2**20
