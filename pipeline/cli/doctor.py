"""Look whether everything is here that the pipeline needs, and say what to mend.

Checks Python and packages, git, params.yaml, the data, DVC's remote, the MLflow store and the right to write to it,
device and compiler, and room on the disk. Nothing is changed, but a missing MLflow store is made. Exit status 1 only
for what would stop `make repro`.
"""

import argparse
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.core.machine import compare_packages

OK, NOTE, STOP = "ok", "note", "STOP"
REMOTE_S = 15.0  # in which a remote has to answer
GB = 2**30
LEAST_GB, ENOUGH_GB = 0.5, 5  # of the disk: less stops the sample's run; FER2013's takes about so much
Finding = tuple[str, str]


def run(arguments: argparse.Namespace) -> int:
    from pipeline.core.project import project_root

    root = project_root()
    os.chdir(root)
    checks: dict[str, Callable[[Path], Finding]] = {
        "Python": _check_python, "packages": _check_packages, "git": _check_git, "params.yaml": _check_params,
        "DVC remote": _check_remote, "MLflow store": _check_store, "device": _check_device, "disk": _check_disk,
    }  # fmt: skip
    levels = []
    for name, check in checks.items():
        try:
            level, text = check(root)
        except UserError as error:
            level, text = STOP, str(error)
        levels.append(level)
        print(f"{name:14}{level:6}{text}", flush=True)
    if STOP in levels:
        print("`make repro` cannot run yet: mend what is marked STOP.")
    return int(STOP in levels)


def _check_python(root: Path) -> Finding:
    version, own = ".".join(map(str, sys.version_info[:3])), Path(sys.prefix) == root / ".venv"
    return (OK, version) if own else (NOTE, f"{version} of {sys.prefix}; `make` uses that of .venv")


def _check_packages(root: Path) -> Finding:
    """Those that are installed, against the lock; packages of other machines are no matter."""
    missing, other = compare_packages((root / "requirements.lock").read_text())
    if missing:
        return STOP, f"not installed: {_few(missing)}. `make install` installs what requirements.lock pins."
    if other:
        return NOTE, f"others than in requirements.lock, so results may differ: {_few(other)}. `make install`."
    return OK, "as in requirements.lock"


def _check_git(root: Path) -> Finding:
    from pipeline.tracking.origin import git

    commit = git(root, "rev-parse", "--short", "HEAD")
    if commit is None:
        return STOP, "no commit here. DVC needs one: git init && git add . && git commit -m Start"
    name, mail = (git(root, "config", key) for key in ("user.name", "user.email"))
    if not (name and mail):
        return NOTE, (
            f"commit {commit.strip()}; DVC's experiments need a name: git config user.name NAME && "
            "git config user.email ADDRESS"
        )
    return OK, f"commit {commit.strip()}, as {name.strip()}"


def _check_params(root: Path) -> Finding:
    from pipeline.core.library_names import check_names
    from pipeline.core.params_file import load_params

    params = load_params()
    check_names(params.train)
    source = Path(params.prepare.source)
    if not source.exists():
        pulled = source.with_name(f"{source.name}.dvc").exists()
        raise UserError(
            f"prepare.source: {source} is not there. "
            + ("`dvc pull` fetches it." if pulled else "Put the data there, or set another source.")
        )
    return OK, f"{params.train.backbone} on {source}, {params.train.epochs} epochs"


def _check_remote(root: Path) -> Finding:
    """Whether DVC's default remote answers, within ``REMOTE_S``; a run needs none."""
    from dvc.config import NoRemoteError
    from dvc.repo import Repo

    found = [(NOTE, f"no answer within {REMOTE_S:g} s; `dvc push` and `dvc pull` will not work")]

    def ask() -> None:
        try:
            with Repo(str(root)) as repo:
                remote = repo.cloud.get_remote()
                remote.fs.exists(remote.path)
                found[0] = OK, f"{remote.name} ({remote.fs.unstrip_protocol(remote.path)})"
        except NoRemoteError:
            found[0] = NOTE, "none, so data and models stay on this machine. docs/team.md says how to add one."
        except Exception as error:  # whatever the file systems of DVC raise
            found[0] = NOTE, f"does not answer: {' '.join(str(error).split()) or type(error).__name__}"

    asking = threading.Thread(target=ask, daemon=True)  # which no end of this process waits for
    asking.start()
    asking.join(REMOTE_S)
    return found[0]


def _check_store(root: Path) -> Finding:
    from pipeline.tracking import store

    client = store.connect()
    client.set_experiment_tag(store.experiment_id(client), "hyojo.project", store.project_name())  # may one write?
    uri = store.tracking_uri(root)
    return OK, f"{uri}, experiment {store.experiment_name()}"


def _check_device(root: Path) -> Finding:
    from pipeline.core import cores
    from pipeline.core.params_file import load_params
    from pipeline.models.devices import check_compiler, describe_device, list_precisions, resolve_device

    params = load_params().train
    device = resolve_device(params.device)
    text = f"{describe_device(device)}, {cores.available()} cores, amp: {', '.join(list_precisions(device))}"
    try:
        check_compiler(device)
    except UserError as error:
        return (NOTE if params.compile == "none" else STOP), f"{text}. {error}"
    return OK, text


def _check_disk(root: Path) -> Finding:
    free = shutil.disk_usage(root).free / GB
    text = f"{free:,.1f} GB free"
    if free < LEAST_GB:
        return STOP, f"{text}. Make room: `dvc gc -w` removes results that no file here needs."
    return (OK, text) if free > ENOUGH_GB else (NOTE, f"{text}; FER2013 with its checkpoints takes up to {ENOUGH_GB}")


def _few(names: list[str]) -> str:
    """The first names of a list."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
