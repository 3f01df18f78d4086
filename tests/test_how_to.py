"""The pages of docs/how-to are followed step by step in a copy of the project: their changes, then their commands."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from builders import ROOT

# How many files a page changes or adds, besides tests and what is generated.
FILES = {"add-a-metric": 2, "add-a-parameter": 3, "add-a-source": 2, "add-a-backbone": 1, "add-a-transform": 2}
STEP = re.compile(
    r"(?:New file `(?P<new>[^`]+)`|At the end of `(?P<end>[^`]+)`|"
    r"(?P<where>Below|In place of) `(?P<anchor>[^`]+)` in `(?P<file>[^`]+)`):\n\n```\w+\n(?P<code>.*?)```",
    re.S,
)
GENERATED = ("docs/data.md", "params.yaml", "docs/params.md")


def run(*command: str, cwd: Path, **more: str) -> str:
    """A command's output; it must succeed."""
    env = {**os.environ, "PYTHONPATH": str(cwd), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **more}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the project's files, committed."""
    for name in run("git", "ls-files", "-z", "-co", "--exclude-standard", cwd=ROOT).split("\0"):
        if name and (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tmp_path / name)
    run("git", "init", "-q", cwd=tmp_path)
    run("git", "add", "-A", cwd=tmp_path)
    run("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "as it is", cwd=tmp_path)
    return tmp_path


def follow(page: str, root: Path) -> None:
    """Make the changes of a page."""
    for step in STEP.finditer(page):
        path, code = root / (step["new"] or step["end"] or step["file"]), step["code"]
        if step["new"]:
            assert not path.exists()
            path.write_text(code)
        elif step["end"]:
            path.write_text(path.read_text() + code)
        else:
            text, anchor = path.read_text(), step["anchor"] + "\n"
            assert text.count(anchor) == 1, f"{path} has no line {step['anchor']!r}, or several"
            path.write_text(text.replace(anchor, anchor + code if step["where"] == "Below" else code))


@pytest.mark.parametrize("name", FILES)
def test_page_works_as_it_stands(clone: Path, name: str) -> None:
    page = (ROOT / "docs" / "how-to" / f"{name}.md").read_text(encoding="utf-8")
    follow(page, clone)
    for command in re.findall(r"```bash\n(.*?)```", page, re.S)[-1].strip().splitlines():
        run("bash", "-c", command, cwd=clone)
    changed = [line[3:] for line in run("git", "status", "--porcelain", "-uall", cwd=clone).splitlines()]
    own = [path for path in changed if path.startswith("pipeline/")]
    assert len(own) == FILES[name], own
    assert all(path.startswith(("pipeline/", "tests/", *GENERATED)) for path in changed), changed
    run("ruff", "check", "pipeline", cwd=clone)


def test_every_page_is_followed() -> None:
    pages = {path.stem for path in (ROOT / "docs" / "how-to").glob("add-*.md")}
    assert pages == set(FILES)
