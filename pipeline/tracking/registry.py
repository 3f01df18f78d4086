"""The model registry: versions of the bundle, and which of them is ``champion``.

A version is a bundle by its digest: registering the same bundle again makes no other. The alias ``champion`` moves
only through the gate of ``promotion``, and back. mlflow is imported inside functions: it is slow.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.errors import UserError
from pipeline.core.project import project_lock
from pipeline.core.stage_files import BundleFile
from pipeline.metrics.table import HEADLINES
from pipeline.tracking.bundles import bundle_costs, find_model
from pipeline.tracking.evaluations import TEST_DIGEST_TAG
from pipeline.tracking.runs import fetch
from pipeline.tracking.store import PREFIX, SQLITE, connect, find_run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

MODEL = "hyojo"
CHAMPION = "champion"
# On the registered model: the versions that were champion, oldest first, the present one last.
FORMER_TAG = "hyojo.champions"
DECISION_TAG = "hyojo.decision"
PARITY_TAG = "hyojo.parity"
# The name of a registered model that stands for the right to move the alias, where a store serves several machines.
LOCK = "hyojo.promotion"
LOCK_STALE_S, LOCK_WAIT_S = 60.0, 90.0


@dataclass(frozen=True)
class Outcome:
    """What a command did: the version concerned, whether anything changed, a sentence for people, and if it refused."""

    version: int
    changed: bool
    message: str
    refused: bool = False


class MovedError(Exception):
    """The alias is not where it was when a decision was made; ``champion`` is the version that has it now."""

    def __init__(self, champion: int | None) -> None:
        super().__init__(champion)
        self.champion = champion


def has_model(bundle_dir: Path | None = None) -> bool:
    """Whether the bundle's MLflow run is in this store and holds the model; if not, ``hyojo sync`` puts it there."""
    return _run_with_model(connect(), BundleFile.load(bundle_dir)) is not None


def register(bundle_dir: Path | None = None) -> Outcome:
    """Make a version of a bundle, unless there is one; the first version ever becomes champion.

    Raises:
        UserError: No bundle, or its run has no model (``hyojo sync`` puts it there).
    """
    bundle = BundleFile.load(bundle_dir)
    client = connect()
    with project_lock("registry"):
        registered, run = versions(client), _run_with_model(client, bundle)
        same = [version for version in registered if version.tags.get("hyojo.digest") == bundle.digest]
        if same:
            known = max(same, key=lambda version: int(version.version))
            # What an older version of this program did not record yet.
            for name, value in _tags(bundle, run).items():
                if name not in known.tags:
                    client.set_model_version_tag(MODEL, known.version, name, value)
            return Outcome(int(known.version), False, f"This bundle is version {known.version} of {MODEL} already.")
        if run is None:
            raise UserError("the bundle's MLflow run is not in this store, or lacks the model. Run `hyojo sync` first.")
        if not registered:
            _create_model(client)
        created = client.create_model_version(
            MODEL,
            source=f"{run.info.artifact_uri}/{find_model(run, bundle.digest)}",
            run_id=run.info.run_id,
            tags=_tags(bundle, run),
            description=f"{bundle.backbone}, test accuracy {bundle.metrics['test']['accuracy']:.4f}",
        )
        number = int(created.version)
        said = f"Registered version {number} of {MODEL}"
        if version_with_alias(client, CHAMPION) is not None:
            return Outcome(number, True, f"{said}. `hyojo promote {number}` makes it champion.")
        crown(client, number, None)
        client.set_model_version_tag(MODEL, str(number), DECISION_TAG, "champion: the first version")
        return Outcome(number, True, f"{said}; the first, so it is champion.")


def rollback() -> Outcome:
    """Make the former champion champion again.

    Raises:
        UserError: There was none before.
    """
    client = connect()
    with project_lock("registry"):
        existing = {int(item.version) for item in versions(client)}
        present = champion_number(client) if existing else None
        history = _history(client) if existing else []
        if present in history:
            history = history[: len(history) - 1 - history[::-1].index(present)]
        former = [number for number in history if number in existing and number != present]
        if not former:
            raise UserError("there is no former champion to go back to.")
        try:
            crown(client, former[-1], present, former[:-1])
        except MovedError as moved:
            raise UserError(f"version {moved.champion} became champion meanwhile; nothing was changed.") from None
        message = f"Version {former[-1]} is champion again, in place of {present}. Restart servers to load it."
        return Outcome(former[-1], True, message)


def champion_number(client: "MlflowClient") -> int | None:
    """Which version is champion."""
    version = version_with_alias(client, CHAMPION)
    return None if version is None else int(version.version)


def crown(client: "MlflowClient", number: int, expected: int | None, history: list[int] | None = None) -> None:
    """Move the alias, if it is where it was when that was decided, and remember who had it.

    Args:
        client: Of the store; the caller holds the project's lock.
        number: The new champion.
        expected: The version that has the alias, as far as the caller knows.
        history: The champions before ``number``, oldest first; None: those there were, and ``expected``.

    Raises:
        MovedError: Another version has it, before or after; the alias is left as it is.
    """
    with _alone(client):
        if (present := champion_number(client)) != expected:
            raise MovedError(present)
        if history is None:
            history = _history(client)
            history += [expected] if expected is not None and history[-1:] != [expected] else []
        client.set_registered_model_alias(MODEL, CHAMPION, str(number))
        client.set_registered_model_tag(MODEL, FORMER_TAG, json.dumps([*history, number]))
        if (present := champion_number(client)) != number:  # moved by hand, or by who knows no lock
            raise MovedError(present)


@contextmanager
def _alone(client: "MlflowClient") -> Iterator[None]:
    """Exclude other machines from moving the alias; a store in a file needs no more than the project's lock.

    MLflow has no compare-and-set, but of two clients that make a model of one name only one succeeds.
    """
    if os.environ.get("MLFLOW_TRACKING_URI", SQLITE).startswith(SQLITE):
        yield
        return
    from mlflow.exceptions import MlflowException

    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            client.create_registered_model(LOCK, description="Somebody promotes a version; gone in a moment.")
            break
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or time.monotonic() > deadline:
                raise
        try:
            held_s = time.time() - client.get_registered_model(LOCK).creation_timestamp / 1000
            if held_s > LOCK_STALE_S:  # whoever held it was killed
                client.delete_registered_model(LOCK)
        except MlflowException:  # released meanwhile
            continue
        time.sleep(0.2)
    try:
        yield
    finally:
        client.delete_registered_model(LOCK)


def _tags(bundle: BundleFile, run: "Run | None") -> dict[str, str]:
    """What a version says of itself."""
    test = bundle.metrics["test"]
    tags = {
        "hyojo.digest": bundle.digest,
        "hyojo.data_digest": bundle.data_digest,
        "hyojo.weights_sha256": bundle.weights_sha256,
        "hyojo.backbone": bundle.backbone,
    }
    tags |= {f"test.{name}": repr(test[name]) for name in HEADLINES}
    if bundle.test_digest:
        tags[TEST_DIGEST_TAG] = bundle.test_digest
    if bundle.parity:
        tags[PARITY_TAG] = "passed"
    recorded = {k: v for k, v in run.data.metrics.items() if k.startswith("cost/")} if run else {}
    costs = recorded | bundle_costs(bundle)
    return tags | {k.replace("/", "."): repr(v) for k, v in costs.items()}


def _run_with_model(client: "MlflowClient", bundle: BundleFile) -> "Run | None":
    """The bundle's run, if it holds this very bundle."""
    run = find_run(client, bundle.run_id)
    return run if run is not None and find_model(run, bundle.digest) else None


def fetch_bundle(client: "MlflowClient", version: "ModelVersion", dest: Path) -> Path:
    """Copy a version's bundle into ``dest``; raises what MLflow or the file system raises."""
    run = find_run(client, version.run_id)
    return fetch(client, run.info.run_id, f"{version.source.rsplit('/', 1)[1]}/artifacts/bundle", dest)


def find_version(client: "MlflowClient", name: str) -> "ModelVersion | None":
    """Find the registered version that a name stands for, if there is one.

    A number (``3``, ``v3``), an alias (``champion``, ``@champion``), or a URI (``models:/hyojo/3``,
    ``models:/hyojo@champion``), which may be of another model.
    """
    from mlflow.exceptions import MlflowException

    model, at = MODEL, ""
    if name.startswith(PREFIX):
        path = name.removeprefix(PREFIX)
        model, at, name = path.partition("@") if "@" in path else path.partition("/")
    number = name.removeprefix("v")
    try:
        if number.isdecimal() and at != "@":
            # A long one begins the id of a run.
            return client.get_model_version(model, str(int(number))) if len(number) < 8 else None
        return client.get_model_version_by_alias(model, name.removeprefix("@"))
    except MlflowException:
        return None


def versions(client: "MlflowClient") -> "list[ModelVersion]":
    """List all versions that there are."""
    return list(client.search_model_versions(f"name = '{MODEL}'"))


def version_with_alias(client: "MlflowClient", alias: str) -> "ModelVersion | None":
    """The version that has an alias, if one has."""
    return find_version(client, f"{PREFIX}{MODEL}@{alias}")


def _create_model(client: "MlflowClient") -> None:
    """Make the registered model, unless an earlier one has lost all its versions."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(MODEL, description="Facial expressions: see each version's MODEL_CARD.md")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _history(client: "MlflowClient") -> list[int]:
    return list(json.loads(client.get_registered_model(MODEL).tags.get(FORMER_TAG, "[]")))
