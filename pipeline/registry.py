"""The model registry: versions of the bundle, and which of them is ``champion``.

A version is a bundle by its digest: registering the same bundle again changes nothing. The alias ``champion``
moves only through the gate of ``promote``. mlflow is imported inside functions: it is slow.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.store import connect, find_run, project_lock
from pipeline.tracking import BUNDLE_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

MODEL = "hyojo"
CHAMPION = "champion"
BUNDLE = Path("models/bundle")
# On the registered model: the versions that were champion, oldest first, the present one last.
FORMER_TAG = "hyojo.champions"
DECISION_TAG = "hyojo.decision"


@dataclass(frozen=True)
class Outcome:
    """What a command did: the version concerned, whether anything changed, and a sentence for people."""

    version: int
    changed: bool
    message: str


def has_model(bundle_dir: Path = BUNDLE) -> bool:
    """Whether the bundle's MLflow run is in this store and holds the model; if not, ``hyojo sync`` puts it there."""
    return _run_with_model(connect(), _read_bundle(bundle_dir)) is not None


def register(bundle_dir: Path = BUNDLE) -> Outcome:
    """Make a version of a bundle, unless there is one; the first version ever becomes champion.

    Args:
        bundle_dir: What export wrote.

    Raises:
        UserError: No bundle, or its run has no model (``hyojo sync`` puts it there).
    """
    bundle = _read_bundle(bundle_dir)
    client = connect()
    with project_lock("registry"):
        registered = versions(client)
        same = [version for version in registered if version.tags.get("hyojo.digest") == bundle["digest"]]
        if same:
            number = max(int(version.version) for version in same)
            return Outcome(number, False, f"This bundle is version {number} of {MODEL} already.")
        run = _run_with_model(client, bundle)
        if run is None:
            raise UserError(
                "the bundle's MLflow run is not in this store, or lacks the model. Run `hyojo sync` first."
            )
        if not registered:
            _create_model(client)
        tags = {
            "hyojo.digest": bundle["digest"],
            "hyojo.test_digest": bundle["test_digest"],
            "hyojo.data_digest": bundle["data_digest"],
            "hyojo.weights_sha256": bundle["weights_sha256"],
            "hyojo.backbone": bundle["backbone"],
            "test.accuracy": repr(bundle["metrics"]["test"]["accuracy"]),
            "test.macro_f1": repr(bundle["metrics"]["test"]["macro_f1"]),
        }
        created = client.create_model_version(
            MODEL,
            source=f"{run.info.artifact_uri}/model",
            run_id=run.info.run_id,
            tags=tags,
            description=f"{bundle['backbone']}, test accuracy {bundle['metrics']['test']['accuracy']:.4f}",
        )
        number = int(created.version)
        if version_with_alias(client, CHAMPION) is not None:
            message = f"Registered version {number} of {MODEL}. `hyojo promote {number}` makes it champion."
            return Outcome(number, True, message)
        _crown(client, number, [])
        client.set_model_version_tag(MODEL, str(number), DECISION_TAG, "champion: the first version")
        return Outcome(number, True, f"Registered version {number} of {MODEL}; the first, so it is champion.")


def promote(version: int | None = None) -> Outcome:
    """Make a version champion if its test accuracy on the same test data is not lower than the champion's.

    Args:
        version: The latest if None.

    Returns:
        The outcome; ``changed`` is False if the gate refused or the version is champion already.

    Raises:
        UserError: No such version.
    """
    client = connect()
    with project_lock("registry"):
        known = {int(item.version): item for item in versions(client)}
        if not known:
            raise UserError("no version is registered. Run `hyojo register` first.")
        number = max(known) if version is None else version
        if number not in known:
            raise UserError(f"{MODEL} has no version {number}; it has {', '.join(map(str, sorted(known)))}.")
        champion = version_with_alias(client, CHAMPION)
        if champion is not None and int(champion.version) == number:
            return Outcome(number, False, f"Version {number} is champion already.")
        refusal = _refusal(known[number], champion) if champion is not None else None
        if refusal:
            client.set_model_version_tag(MODEL, str(number), DECISION_TAG, f"refused: {refusal}")
            return Outcome(number, False, f"Refused: {refusal}.")
        reason = _comparison(known[number], champion) if champion is not None else "there was no champion"
        _crown(client, number, _history(client))
        client.set_model_version_tag(MODEL, str(number), DECISION_TAG, f"champion: {reason}")
        return Outcome(number, True, f"Version {number} is champion: {reason}. Restart servers to load it.")


def rollback() -> Outcome:
    """Make the former champion champion again.

    Raises:
        UserError: There was none before.
    """
    client = connect()
    with project_lock("registry"):
        existing = {int(item.version) for item in versions(client)}
        history = _history(client) if existing else []
        former = [number for number in history[:-1] if number in existing]
        if not former:
            raise UserError("there is no former champion to go back to.")
        _crown(client, former[-1], former[:-1])
        message = (
            f"Version {former[-1]} is champion again, in place of {history[-1]}. Restart servers to load it."
        )
        return Outcome(former[-1], True, message)


def _read_bundle(bundle_dir: Path) -> dict[str, Any]:
    try:
        return json.loads((bundle_dir / "bundle.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{bundle_dir / 'bundle.json'} not found. Run `dvc repro` first.") from None


def _run_with_model(client: "MlflowClient", bundle: dict[str, Any]) -> "Run | None":
    """The bundle's run, if it holds this very bundle."""
    run = find_run(client, bundle["run_id"])
    return run if run is not None and run.data.tags.get(BUNDLE_TAG) == bundle["digest"] else None


def _refusal(candidate: "ModelVersion", champion: "ModelVersion") -> str | None:
    """Why a candidate may not become champion; None if it may."""
    if candidate.tags.get("hyojo.test_digest") != champion.tags.get("hyojo.test_digest"):
        return (
            f"version {candidate.version} was tested on other data than champion {champion.version}, so their "
            "figures cannot be compared; evaluate both on the same test split"
        )
    if float(candidate.tags["test.accuracy"]) < float(champion.tags["test.accuracy"]):
        return _comparison(candidate, champion)
    return None


def _comparison(candidate: "ModelVersion", champion: "ModelVersion") -> str:
    """Both test accuracies, as a sentence."""
    ours, theirs = (float(version.tags["test.accuracy"]) for version in (candidate, champion))
    relation = "lower than" if ours < theirs else "not lower than"
    # As many places as it takes to tell the two apart.
    places = next((n for n in range(4, 17) if f"{ours:.{n}f}" != f"{theirs:.{n}f}"), 4)
    return (
        f"test accuracy {ours:.{places}f} of version {candidate.version} is {relation} "
        f"{theirs:.{places}f} of champion {champion.version}"
    )


def versions(client: "MlflowClient") -> "list[ModelVersion]":
    """All versions that there are."""
    return list(client.search_model_versions(f"name = '{MODEL}'"))


def version_with_alias(client: "MlflowClient", alias: str) -> "ModelVersion | None":
    """The version that has an alias, if one has."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(MODEL, alias)
    except MlflowException:
        return None


def _create_model(client: "MlflowClient") -> None:
    """Make the registered model, unless an earlier one has lost all its versions."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(
            MODEL, description="Facial expressions: see each version's MODEL_CARD.md"
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _history(client: "MlflowClient") -> list[int]:
    return json.loads(client.get_registered_model(MODEL).tags.get(FORMER_TAG, "[]"))


def _crown(client: "MlflowClient", number: int, history: list[int]) -> None:
    """Move the alias, and remember who had it."""
    client.set_registered_model_alias(MODEL, CHAMPION, str(number))
    client.set_registered_model_tag(MODEL, FORMER_TAG, json.dumps([*history, number]))
