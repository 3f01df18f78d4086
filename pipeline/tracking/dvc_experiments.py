"""DVC's experiments as a program needs them: run one in a temporary copy, read its files, put its run back.

Files are read from git's refs, where DVC keeps an experiment's commit: no checkout, no change to the work tree.
"""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from pipeline.core.dvc_file import LOCK, find_source_digest, parse_lock
from pipeline.core.errors import UserError
from pipeline.core.files import write_text
from pipeline.core.paths import REPORTS
from pipeline.core.signals import StopRequest, die_with_parent
from pipeline.core.stage_files import EvaluationFile
from pipeline.tracking.origin import git

# Longest wait, after Ctrl-C, for DVC and the stage to end by themselves: a checkpoint is written meanwhile.
GRACE_S = 20.0
# What a run is rebuilt from: the outs of these.
STAGES = ("train", "evaluate")
EVALUATION = str(REPORTS / EvaluationFile.FILE)  # names the run


@dataclass(frozen=True)
class Experiment:
    """A finished experiment: its name and the commit that DVC keeps it in."""

    name: str
    commit: str
    root: Path

    def text(self, path: str) -> str:
        """What a file of the experiment holds that git has, such as ``dvc.lock``; empty if it has none."""
        # From the project on, which need not be the top of the repository.
        return git(self.root, "show", f"{self.commit}:./{path}") or ""

    def read(self, path: str) -> str:
        """What a file of the experiment holds that git, DVC's cache or its remote has; empty if it has none.

        Raises:
            UserError: DVC cannot give it.
        """
        text = self.text(path)
        if text or path not in self.outs():
            return text
        with tempfile.TemporaryDirectory(prefix="hyojo-out-") as folder:
            _get_out(self, path, Path(folder))
            return (Path(folder) / path).read_text(encoding="utf-8")

    def outs(self) -> list[str]:
        """What its training and evaluation wrote, enough to rebuild its run from."""
        return [out["path"] for stage in STAGES for out in self.lock().get(stage, {}).get("outs", [])]

    def lock(self) -> dict[str, Any]:
        """Stages of its ``dvc.lock``."""
        return parse_lock(self.text(str(LOCK)))

    def matches(self, paths: list[str]) -> bool:
        """Whether these are in its commit what they are in the work tree, untracked files aside.

        Raises:
            UserError: Git does not say; a result that might be current must not be thrown away for that.
        """
        changed = git(self.root, *("diff", "--name-only", self.commit, "--"), *paths)
        if changed is None:
            raise UserError(f"git cannot compare {self.name} with the work tree: `git diff {self.commit}` tells why.")
        return not changed

    def source_digest(self) -> str | None:
        """The digest by which DVC knows what it was prepared from."""
        return find_source_digest(self.lock())


def check_repository(root: Path) -> None:
    """Refuse a project that DVC can make no experiments in.

    Raises:
        UserError: It is no git repository, or one without a commit.
    """
    if git(root, "rev-parse", "HEAD") is None:
        raise UserError(
            f"{root} is no git repository with a commit, and DVC keeps experiments in git. "
            'Run `git init && git add -A && git commit -m "Project"` there first.'
        )


def find_experiments(root: Path) -> dict[str, Experiment]:
    """All experiments of the repository by name, oldest first; of two of one name the one on the current commit.

    Raises:
        UserError: Git does not list them, though this is a repository.
    """
    head = (git(root, "rev-parse", "HEAD") or "").strip()
    found: dict[str, Experiment] = {}
    listed = git(root, "for-each-ref", "--sort=committerdate", "--format=%(objectname) %(refname)", "refs/exps")
    if head and listed is None:
        raise UserError(f"git cannot list the experiments of {root}: `git for-each-ref refs/exps` tells why.")
    for line in (listed or "").splitlines():
        commit, ref = line.split(" ", 1)
        parts = ref.split("/")  # refs/exps/<2 digits>/<38 digits>/<name>
        if len(parts) != 5 or len(parts[2]) != 2 or len(parts[3]) != 38:
            continue
        if parts[4] not in found or parts[2] + parts[3] == head:
            found[parts[4]] = Experiment(parts[4], commit, root)
    return found


def remove_experiment(root: Path, name: str) -> None:
    """Forget an experiment, on whatever commit; what it computed stays in DVC's cache."""
    for line in (git(root, "for-each-ref", "--format=%(refname)", "refs/exps") or "").splitlines():
        if line.split("/")[-1] == name and len(line.split("/")) == 5:
            git(root, "update-ref", "-d", line)


def run_experiment(
    root: Path,
    name: str,
    overrides: list[str],
    variables: dict[str, str],
    stop: StopRequest,
    target: str = "evaluate",
    is_over: Callable[[], bool] | None = None,
) -> int:
    """Run the stages up to one as an experiment, in a temporary copy of the project; returns DVC's exit status.

    Args:
        root: The project's.
        name: Of the experiment.
        overrides: In Hydra's grammar, as ``dvc exp run -S`` takes them.
        variables: Added to the environment.
        stop: Once it is set, DVC is waited for, and ended if it takes long.
        target: The last stage.
        is_over: Asked again and again; once it says so, the stage that runs is ended, and DVC clears up after it.
    """
    command = [sys.executable, "-m", "dvc", "exp", "run", target, "--temp", "--name", name]
    for override in overrides:
        command += ["-S", override]
    print(f"$ dvc {shlex.join(command[3:])}", flush=True)
    environment = os.environ | variables
    # Stages are started by name: `python` must be this one.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    # If this process is killed, DVC ends too, and its stage with it: the next one would run beside them.
    process = subprocess.Popen(command, cwd=root, env=environment, preexec_fn=die_with_parent)
    waited_s, ended = 0.0, False
    while True:
        try:
            return process.wait(0.5)
        except subprocess.TimeoutExpired:
            if is_over and not ended and is_over():
                ended = _end_stage(process.pid)  # once: a second signal would not let it clear up
            if stop:
                # Ctrl-C has reached DVC too; a SIGTERM to this process alone has not, and DVC ends its stage with it.
                waited_s += 0.5
                if waited_s >= GRACE_S or stop.signal != signal.SIGINT:
                    process.terminate()


def _end_stage(pid: int) -> bool:
    """Ask the stage that a process of DVC runs to end: of DVC itself a half-run experiment would stay behind.

    Returns whether there is such a stage.
    """
    found = False
    with suppress(psutil.Error):
        for child in psutil.Process(pid).children(recursive=True):
            if any(word.startswith("pipeline.") for word in child.cmdline()):
                child.terminate()
                found = True
    return found


def check_source(root: Path, source: str) -> None:
    """Refuse a source that a temporary copy of the project would lack.

    Raises:
        UserError: Neither git nor DVC has it, or it leads out of the project by a relative path.
    """
    path = Path(source)
    if path.is_absolute():
        return
    by_dvc = any((root / f"{place}.dvc").is_file() for place in (path, *path.parents) if place.name)
    if ".." in path.parts or not (by_dvc or git(root, "ls-files", "--", source)):
        raise UserError(
            f"prepare.source: seeds are trained in a temporary copy of the project, which would lack {source}: neither "
            f"git nor DVC has it. Run `dvc add {source}`, or give its absolute path."
        )


def restore_run(experiment: Experiment) -> None:
    """Rebuild the MLflow run of an experiment that this store lacks, from DVC's cache and git.

    Its files are put into a scratch folder of the project, where ``hyojo sync`` reads them as it reads a work tree's.

    Raises:
        UserError: DVC's cache lacks them.
    """
    scratch_root = experiment.root / ".hyojo"
    scratch_root.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="restore-", dir=scratch_root) as folder:
        outs = experiment.outs()
        for path in ("params.yaml", "dvc.yaml", "dvc.lock", *outs):
            if text := experiment.text(path):  # git has it
                write_text(Path(folder) / path, text)
            elif path in outs:
                _get_out(experiment, path, Path(folder))
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", "sync"],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "DVC_EXP_NAME": experiment.name},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise UserError(f"{experiment.name}: its run could not be rebuilt: {done.stderr.strip()}")


def read_out(experiment: Experiment, out: str, file: str) -> str:
    """What a file of an out of an experiment holds; raises ``UserError`` if DVC's cache lacks it."""
    with tempfile.TemporaryDirectory(prefix="restore-", dir=experiment.root / ".hyojo") as folder:
        _get_out(experiment, out, Path(folder))
        return (Path(folder) / out / file).read_text(encoding="utf-8")


def _get_out(experiment: Experiment, out: str, folder: Path) -> None:
    """Have DVC put an out of an experiment into a folder."""
    command = ["dvc", "get", "-q", str(experiment.root), out, "--rev", experiment.commit, "-o", out]
    done = subprocess.run([sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(
            f"{experiment.name}: DVC cannot give {out} ({done.stderr.strip().splitlines()[-1:]}). "
            "Run `dvc pull` first, if a remote has it."
        )
