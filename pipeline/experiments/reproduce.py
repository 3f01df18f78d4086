"""Run anew what a run, a version or a commit came from, in a folder of its own, and compare digests.

A run knows its commit, the changes that the commit did not hold, and the digests of what its stages wrote; a commit has
those that ``dvc.lock`` says. Neither the project nor its store is touched.
"""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.dvc_file import parse_lock
from pipeline.core.errors import UserError
from pipeline.core.machine import compare_packages, describe_machine
from pipeline.core.params_file import parse_params
from pipeline.core.paths import BUNDLE, PARAMS, PREPARED, REPORTS, TRAINED
from pipeline.core.project import project_root
from pipeline.core.stage_files import BundleFile, DatasetFile, WeightsFile
from pipeline.experiments.contenders import PREDICTIONS, Contender
from pipeline.experiments.names import find_contender
from pipeline.tracking.bundles import find_digests
from pipeline.tracking.inputs import DIGEST_TAG
from pipeline.tracking.origin import MACHINE_TAG, PATCH, git
from pipeline.tracking.runs import read_artifact
from pipeline.tracking.store import connect, find_run, project_name

if TYPE_CHECKING:
    from mlflow import MlflowClient

# What is compared, in the order in which it is made, and the stage that makes it.
PRODUCTS = {"arrays": "prepare", "weights": "train", "predictions": "evaluate", "bundle": "export"}
_TAGS = {"arrays": DIGEST_TAG, "weights": "hyojo.weights_sha256"}
_LOCKED = {"arrays": str(PREPARED), "predictions": str(REPORTS / "predictions.csv")}
_FOLDER = Path(".hyojo/reproduced")
DIFFERS, OTHER_MACHINE = 3, 4


@dataclass(frozen=True)
class Target:
    """What is to be made again.

    Attributes:
        digests: Of ``PRODUCTS``, as far as they are known.
        inputs: Where the digests are those of ``dvc.lock``: the sums of what they were made from; else empty.
        patch: What the commit did not hold.
        machine: As ``describe_machine`` told when it was made; empty where nobody recorded it.
    """

    title: str
    commit: str
    digests: dict[str, str]
    inputs: dict[str, str] = field(default_factory=dict)
    patch: str = ""
    machine: dict[str, str] = field(default_factory=dict)


def reproduce(name: str, folder: Path | None, check: bool) -> int:
    """Make again what a name stands for, and say what is equal.

    Args:
        name: A version, alias or run as in ``find_contender``, or a revision of git.
        folder: To work in; None: one below ``.hyojo/reproduced``.
        check: Only look whether everything that is needed is there.

    Returns:
        0; ``DIFFERS`` if something came out otherwise, ``OTHER_MACHINE`` if that is only what training made, and the
        machine may be why; 1 if something that is needed is missing.

    Raises:
        UserError: There is nothing of that name, its commit is gone, or a stage fails.
    """
    root = project_root()
    target = find_target(root, name)
    folder = (folder or root / _FOLDER / target.commit[:12]).resolve()
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is there already. Remove it, or give another --into.")
    print(f"{target.title}: commit {target.commit[:12]}{' with changes' if target.patch else ''}")
    keep = False
    try:
        check_out(root, target, folder)
        missing, other = compare_packages((folder / "requirements.lock").read_text(encoding="utf-8"))
        named = _few([*missing, *other])
        environment = f"another is here ({named}), so one is made of" if named else "as in"
        print(f"environment: {environment} requirements.lock of that commit")
        problem = fetch_source(root, folder)
        print(f"data: {problem or 'there'}")
        if check:
            print(f"digests that are known: {', '.join(target.digests)}")
            return int(bool(problem))
        if problem:
            raise UserError(f"the data are missing: {problem}")
        keep = True
        python = make_environment(folder) if named else sys.executable
        run_stages(folder, python)
        return tell(target, *measure(folder, target))
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def find_target(root: Path, name: str) -> Target:
    """Find what a name stands for; raises ``UserError``."""
    commit = None if name.startswith("-") else git(root, "rev-parse", "--verify", "-q", f"{name}^{{commit}}")
    if commit and not name.isdecimal():
        digests, inputs = _read_lock(git(root, "show", f"{commit.strip()}:./dvc.lock") or "")
        if not digests:
            raise UserError(f"{name} has no dvc.lock that says what came out. Give a run or a version.")
        return Target(title=f"dvc.lock of {name}", commit=commit.strip(), digests=digests, inputs=inputs)
    found, client = find_contender(name), connect()
    commit = found.tags.get("mlflow.source.git.commit")
    if not commit or git(root, "cat-file", "-e", f"{commit}^{{commit}}") is None:
        raise UserError(
            f"{found.name} was made from {f'commit {commit[:12]}' if commit else 'no commit'}, which this repository "
            "does not have. Fetch it: git fetch --all, with --unshallow if only the newest commits were cloned."
        )
    patch = (read_artifact(client, found.run_id, PATCH) or b"").decode("utf-8", "replace")
    if found.tags.get("hyojo.git_dirty") == "true" and not patch:
        raise UserError(f"{found.name} was made from changes that were not kept: they were too large.")
    digests = {product: found.tags[tag] for product, tag in _TAGS.items() if tag in found.tags}
    if digest := _find_bundle(client, found):
        digests["bundle"] = digest
    if (predictions := read_artifact(client, found.run_id, PREDICTIONS)) is not None:
        digests["predictions"] = hashlib.sha256(predictions).hexdigest()
    machine = json.loads(found.tags.get(MACHINE_TAG, "{}"))
    return Target(title=found.name, commit=commit, digests=digests, patch=patch, machine=machine)


def _find_bundle(client: "MlflowClient", found: Contender) -> str:
    """The digest of the bundle that a version is, or of the newest one of a run."""
    if found.version is not None:
        return str(client.get_model_version(project_name(), str(found.version)).tags.get("hyojo.digest", ""))
    run = find_run(client, found.run_id)
    return next(iter(find_digests(client, run)), "") if run else ""


def _read_lock(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """Of a ``dvc.lock``: the sums of ``PRODUCTS``, and those of what no stage wrote, with each stage's params."""
    stages = parse_lock(text)
    deps, outs = (
        {each["path"]: each.get("md5", "") for stage in stages.values() for each in stage.get(kind, [])}
        for kind in ("deps", "outs")
    )
    inputs = {path: md5 for path, md5 in deps.items() if path not in outs}
    inputs |= {f"params of {name}": str(stage.get("params")) for name, stage in stages.items()}
    return {product: outs[path] for product, path in _LOCKED.items() if path in outs}, inputs


def check_out(root: Path, target: Target, folder: Path) -> None:
    """Put the commit and its changes into a folder, a repository of that commit alone that shares DVC's cache."""
    top = (git(root, "rev-parse", "--show-toplevel") or str(root)).strip()
    if top != str(root):
        raise UserError(f"{root} lies in the repository {top}: only a project that is one by itself can be reproduced.")
    folder.mkdir(parents=True, exist_ok=True)
    _git(folder, "init -q")
    # Not a clone: that has branches alone, and nothing of a repository that was itself cloned in part.
    _git(folder, f"fetch -q --depth 1 {shlex.quote(str(root))} {target.commit}")
    _git(folder, "checkout -q --detach FETCH_HEAD")
    if target.patch:
        _git(folder, "apply --whitespace=nowarn -", stdin=target.patch)
    cache = _dvc(root, "cache dir").stdout.strip()
    local = root / ".dvc" / "config.local"
    if local.exists():  # addresses and credentials of remotes
        shutil.copy2(local, folder / ".dvc" / "config.local")
    _dvc(folder, f"cache dir --local {shlex.quote(cache)}")


def fetch_source(root: Path, folder: Path) -> str:
    """Put the data into the folder; returns what is wrong, if they cannot be had."""
    source = Path(parse_params((folder / PARAMS).read_text(encoding="utf-8")).prepare.source)
    if (folder / source).exists():
        return ""
    pointers = [place for place in (source, *source.parents) if (folder / f"{place}.dvc").is_file()]
    if not pointers:
        return f"{source} is neither in git nor known to DVC at that commit"
    for command in ("checkout", "pull"):
        done = _dvc(folder, f"{command} -q {shlex.quote(str(pointers[0]))}.dvc", check=False)
        if done.returncode == 0 and (folder / source).exists():
            return ""
    return f"DVC cannot give {source}: {(done.stderr.strip().splitlines() or ['no remote has it'])[-1]}"


def make_environment(folder: Path) -> str:
    """Install what the commit's lock pins; returns the path of its Python."""
    print("installing what requirements.lock pins, which takes some minutes ...", flush=True)
    if subprocess.run(["make", "-s", "install"], cwd=folder, env=_own_environment()).returncode:
        raise UserError(f"the environment could not be made: `make install` in {folder} says why.")
    return str(folder / ".venv" / "bin" / "python")


def run_stages(folder: Path, python: str) -> None:
    """Run every stage, whatever DVC's cache has; raises ``UserError`` where one fails."""
    if subprocess.run([python, "-m", "dvc", "repro", "-f"], cwd=folder, env=_own_environment(python)).returncode:
        raise UserError(f"a stage failed, see above; {folder} is as it left it.")


def measure(folder: Path, target: Target) -> tuple[dict[str, str], dict[str, str]]:
    """What a ``Target`` has, of what was made: digests and inputs."""
    if target.inputs:
        return _read_lock((folder / "dvc.lock").read_text(encoding="utf-8"))
    predictions = (folder / REPORTS / "predictions.csv").read_bytes()
    digests = {
        "arrays": DatasetFile.load(folder / PREPARED).digest,
        "weights": WeightsFile.load(folder / TRAINED).weights_sha256,
        "predictions": hashlib.sha256(predictions).hexdigest(),
        "bundle": BundleFile.load(folder / BUNDLE).digest,
    }
    return digests, {}


def tell(target: Target, found: dict[str, str], inputs: dict[str, str]) -> int:
    """Say what is equal, and of the first that is not what may be why; returns the exit status."""
    different = [name for name in PRODUCTS if name in target.digests and found.get(name) != target.digests[name]]
    for name in PRODUCTS:
        said = "differs" if name in different else "equal" if name in target.digests else "not known of the original"
        print(f"  {name:12} {said:8} {found.get(name, '')[:12]}")
    if not different:
        print(f"{target.title} is reproduced.")
        return 0
    print(f"The first stage that differs is {PRODUCTS[different[0]]}.")
    if former := [name for name, md5 in target.inputs.items() if inputs.get(name) != md5]:
        print(f"{target.title} was made from other inputs than the commit has: {_few(former)}. `dvc repro` renews it.")
        return DIFFERS
    print("Its code, params and packages are those of the commit.")
    here = describe_machine()
    reasons = [
        f"{name}: {was} then, {here.get(name)} here" for name, was in target.machine.items() if here.get(name) != was
    ]
    if reasons:
        print("What differs besides: " + "; ".join(reasons))
    elif target.machine:
        print("Python, instruction sets and threads are the same: this should not be; please report it.")
    else:
        print("Nobody recorded on which machine it was made; other instruction sets or threads round otherwise.")
    if "arrays" not in target.digests or different[0] == "arrays" or not (reasons or not target.machine):
        return DIFFERS
    print("Only what training made differs, and the machine may be why.")
    return OTHER_MACHINE


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _own_environment(python: str = sys.executable) -> dict[str, str]:
    """An environment in which stages keep to their folder: its store, its code, its Python."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "HYOJO_"))}
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "PYTHONPATH", "PYTHONSAFEPATH"):
        kept.pop(name, None)
    return kept | {"PATH": f"{Path(python).parent}{os.pathsep}{kept.get('PATH', '')}"}


def _dvc(folder: Path, words: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "dvc", *shlex.split(words)]
    done = subprocess.run(command, cwd=folder, env=_own_environment(), capture_output=True, text=True)
    if check and done.returncode:
        raise UserError(f"dvc {words} in {folder}: {done.stderr.strip()}")
    return done


def _git(folder: Path, words: str, stdin: str | None = None) -> None:
    done = subprocess.run(["git", *shlex.split(words)], cwd=folder, capture_output=True, text=True, input=stdin)
    if done.returncode:
        raise UserError(f"git {words}: {done.stderr.strip()}")
