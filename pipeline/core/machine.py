"""What a result depends on beside code, data and params: packages, and how the processor computes."""

import importlib.metadata
import os
import platform
import re
from pathlib import Path

from pipeline.core import cores

# Instruction sets by which libraries choose kernels, and so the order in which they round.
_FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimd", "bf16", "sve")


def compare_packages(lock: str) -> tuple[list[str], list[str]]:
    """Compare what is installed with a lock file's text.

    Returns:
        The packages that are missing, and those of another version, each such as ``numpy 2.4 (lock: 2.3)``. Packages
        that are for some machines only do not count.
    """
    missing, other = [], []
    for name, pinned in re.findall(r"^([\w.-]+)==([^\s;]+)\s*$", lock, re.MULTILINE):
        try:
            found = importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
        else:
            other += [f"{name} {found} (lock: {pinned})"] if found != pinned else []
    return missing, other


def describe_machine() -> dict[str, str]:
    """What makes two machines differ bit for bit: Python, system, instruction sets, threads."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "instructions": " ".join(_read_features()),
        "threads": os.environ.get("OMP_NUM_THREADS") or str(cores.available()),
    }


def _read_features(info: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Those of ``_FEATURES`` that the processor has; none where Linux does not tell."""
    if not info.exists():
        return []
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", info.read_text(), re.MULTILINE)
    words = set(found[1].split()) if found else set()
    return [name for name in _FEATURES if name in words]
