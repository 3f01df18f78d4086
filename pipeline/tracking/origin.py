"""Where a run came from: commit, changes of the work tree, DVC experiment, and who ran it."""

import getpass
import json
import os
import subprocess
from importlib import import_module
from pathlib import Path

from pipeline.core.dvc_file import find_source_digest, read_lock
from pipeline.core.machine import describe_machine
from pipeline.tracking.inputs import EXPERIMENT_TAG, SOURCE_TAG
from pipeline.tracking.trouble import told

PATCH, PATCH_LIMIT_BYTES = "git.patch", 1_000_000
MACHINE_TAG = "hyojo.machine"


def git(root: Path, *arguments: str) -> str | None:
    """Return what git prints; None where it fails or is missing."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, errors="replace", timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def origin_tags() -> dict[str, str]:
    """Return, as tags, who runs this and where, commit, state of the work tree, DVC experiment and source, if any."""
    tags, here = {"mlflow.user": find_user(), MACHINE_TAG: json.dumps(describe_machine())}, Path.cwd()
    commit = git(here, "rev-parse", "HEAD")
    if commit:
        tags["mlflow.source.git.commit"] = commit.strip()
        tags["hyojo.git_dirty"] = str(bool(git(here, "status", "--porcelain", "--untracked-files=no"))).lower()
    for tag, variable in ((EXPERIMENT_TAG, "DVC_EXP_NAME"), ("hyojo.dvc.exp_baseline", "DVC_EXP_BASELINE_REV")):
        if os.environ.get(variable):
            tags[tag] = os.environ[variable]
    if digest := find_source_digest(read_lock()):
        tags[SOURCE_TAG] = digest
    return tags


def read_patch() -> str:
    """Return what the commit does not hold, the work tree's changes; empty if they are huge."""
    patch = git(Path.cwd(), "diff", "--binary", "HEAD") or ""
    return patch if len(patch) <= PATCH_LIMIT_BYTES else ""


def find_user() -> str:
    """Return who runs this; a container's user may have no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def find_author() -> str:
    """Say who the server takes this for; where it knows no users, whom the system does."""
    import mlflow

    rest, uri = import_module("mlflow.utils.rest_utils"), mlflow.get_registry_uri()  # rest says nothing of types
    if not uri.startswith("http"):
        return find_user()
    with told(uri):
        creds = import_module("mlflow.utils.credentials").get_default_host_creds(uri)
        endpoint = "/api/2.0/mlflow/users/current"
        answer = rest.http_request(creds, endpoint, "GET")
        if answer.status_code == 404:  # no users, or a server too old to tell
            return creds.username or find_user()
        return str(rest.verify_rest_response(answer, endpoint).json()["user"]["username"])
