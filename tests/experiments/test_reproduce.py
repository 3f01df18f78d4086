"""Running anew: the exit status by what differs and why, whatever part of the history is here, and what CI accepts."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from builders import ROOT, run_git

from pipeline.core.machine import describe_machine
from pipeline.experiments import reproduce
from pipeline.experiments.reproduce import Target

OTHER = describe_machine() | {"threads": "999"}
FOUND = {"arrays": "a", "weights": "w", "predictions": "p", "bundle": "b"}
INPUTS = {"pipeline/train": "1", "params of train": "2"}


@pytest.mark.parametrize(
    "about, status, said",
    [
        ({"digests": FOUND}, 0, "is reproduced"),
        ({"digests": FOUND | {"weights": "other"}}, 4, "Nobody recorded on which machine"),
        ({"digests": FOUND | {"weights": "other"}, "machine": OTHER}, 4, "threads: 999 then"),
        ({"digests": FOUND | {"weights": "other"}, "machine": describe_machine()}, 3, "please report it"),
        ({"digests": FOUND | {"arrays": "other", "weights": "other"}, "machine": OTHER}, 3, "differs is prepare"),
        ({"digests": {"weights": "other"}, "machine": OTHER}, 3, "not known of the original"),
        ({"digests": {"arrays": "a", "predictions": "other"}, "inputs": INPUTS}, 4, "differs is evaluate"),
        (
            {"digests": {"arrays": "a", "predictions": "other"}, "inputs": INPUTS | {"pipeline/train": "9"}},
            3,
            "other inputs than the commit has: pipeline/train. `dvc repro`",
        ),
    ],
)
def test_the_status_tells_another_machine_from_another_result(
    about: dict[str, Any], status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce.tell(Target("run x", "c" * 40, **about), FOUND, INPUTS) == status
    assert said in capsys.readouterr().out


def test_a_commit_is_put_into_a_folder_whatever_part_of_the_history_is_here(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a shallow clone with its head detached; and a commit that no branch has, as DVC's experiments are."""
    run_git("init", "-q")
    Path(".dvc").mkdir()
    Path(".dvc/config").touch()
    for text in ("first", "second"):
        Path("params.yaml").write_text(text)
        run_git("add", ".")
        run_git("commit", "-qm", text)
    commit = run_git("rev-parse", "HEAD")
    run_git("clone", "-q", "--depth", "1", f"file://{home}", str(tmp_path / "shallow"))
    monkeypatch.chdir(tmp_path / "shallow")
    run_git("checkout", "-q", "--detach", "HEAD")
    lone = run_git("commit-tree", "-m", "lone", "-p", "HEAD", "HEAD^{tree}")
    for number, asked in enumerate((commit, lone)):
        folder = tmp_path / "again" / str(number)
        reproduce.check_out(Path.cwd(), Target("x", asked, {}), folder)
        assert (folder / "params.yaml").read_text() == "second"
        monkeypatch.chdir(folder)
        assert run_git("rev-parse", "HEAD") == asked
        monkeypatch.chdir(tmp_path / "shallow")


@pytest.mark.parametrize("status, accepted", [(0, 0), (1, 1), (3, 3), (4, 0)])
def test_ci_accepts_another_machine_and_nothing_else(tmp_path: Path, status: int, accepted: int) -> None:
    stubs = {
        "bin/make": "exit 0", "bin/mktemp": 'mkdir "$STUB/scratch" && echo "$STUB/scratch"',
        ".venv/bin/hyojo": f'echo "$@" > "$STUB/asked"; exit {status}', ".ci/run": (ROOT / ".ci" / "run").read_text(),
    }  # fmt: skip
    for name, text in stubs.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if text.startswith("#!") else f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    for _ in range(2):  # again in the same clone
        done = subprocess.run(
            [tmp_path / ".ci" / "run"],
            env={"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "STUB": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == accepted, done.stderr
        assert ("accepted" in done.stdout) == (status == 4)
        assert (tmp_path / "asked").read_text() == f"reproduce HEAD --into {tmp_path / 'scratch'}\n"
        assert not (tmp_path / "scratch").exists()
