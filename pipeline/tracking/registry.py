"""The model registry: versions of the bundle, and which of them is ``champion``.

A version is a bundle by its digest: registering the same bundle again makes no other. The alias ``champion`` moves
only through the gate of ``promotion``, and back; ``decisions`` keeps the record. mlflow is imported inside functions:
it is slow.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.errors import UserError
from pipeline.core.project import project_lock
from pipeline.core.stage_files import BundleFile
from pipeline.metrics.table import HEADLINES
from pipeline.tracking import decisions
from pipeline.tracking.bundles import bundle_costs, find_model, link_version, read_bundle
from pipeline.tracking.decisions import FIRST, ROLLED_BACK, Decision, MovedError
from pipeline.tracking.descriptions import describe_version
from pipeline.tracking.evaluations import TEST_DIGEST_TAG
from pipeline.tracking.origin import find_author
from pipeline.tracking.runs import fetch
from pipeline.tracking.store import PREFIX, connect, find_run, project_name
from pipeline.tracking.trouble import TrackingError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

PARITY_TAG = "hyojo.parity"
PROJECT_TAG = "hyojo.project"
CLASSES_TAG = "hyojo.classes"
AUTHOR_TAG = "hyojo.by"


@dataclass(frozen=True)
class Outcome:
    """What a command did: the version concerned, whether anything changed, a sentence for people, and if it refused."""

    version: int
    changed: bool
    message: str
    refused: bool = False


def has_model(bundle_dir: Path | None = None) -> bool:
    """Whether the bundle's MLflow run is in this store and holds the model; if not, ``hyojo sync`` puts it there."""
    return _find_logged(connect(), read_bundle(bundle_dir))[1] is not None


def register(bundle_dir: Path | None = None) -> Outcome:
    """Make a version of a bundle, unless there is one; the first version ever becomes champion.

    Raises:
        UserError: No bundle, or its run has no model (``hyojo sync`` puts it there).
    """
    bundle = read_bundle(bundle_dir)
    client, model = connect(), project_name()
    with project_lock("registry"):
        registered, run, logged = versions(client), *_find_logged(client, bundle)
        same = [version for version in registered if version.tags.get("hyojo.digest") == bundle.digest]
        if same:
            known = max(same, key=lambda version: int(version.version))
            # What an older version of this program did not record yet.
            for name, value in _tags(bundle, run).items():
                if name not in known.tags:
                    client.set_model_version_tag(model, known.version, name, value)
            number, said = int(known.version), f"This bundle is version {known.version} of {model} already"
        elif run is None or logged is None:
            raise UserError("the bundle's MLflow run is not in this store, or lacks the model. Run `hyojo sync` first.")
        else:
            if not registered:
                decisions.create_model(client, model, "Facial expressions: see each version's MODEL_CARD.md")
            author = find_author()
            created = client.create_model_version(
                model,
                source=logged.artifact_location,
                run_id=run.info.run_id,
                model_id=logged.model_id,
                tags=_tags(bundle, run) | {AUTHOR_TAG: author},
                description=describe_version(client, bundle, run, author),
            )
            # Which a server does itself, and a database does not.
            link_version(client, logged, created)
            number, said = int(created.version), f"Registered version {created.version} of {model}"
        first = min([number, *(int(version.version) for version in registered)])
        made = _crown_first(client, first)
        if made and first == number:
            said += "; the first, so it is champion"
        elif made:
            said += f". Version {first}, the first, is champion; that had been cut short"
        elif not same:
            said += f". `hyojo promote {number}` makes it champion"
        others = {version.tags[CLASSES_TAG] for version in registered if CLASSES_TAG in version.tags}
        if others and json.dumps(bundle.class_names) not in others:
            said += ". Its classes are others than those of all earlier versions; of another project set project.name"
        return Outcome(number, made or not same, f"{said}.")


def _crown_first(client: "MlflowClient", number: int) -> bool:
    """Make the first version champion, if none has ever been; whether that was done, now or by settling it."""
    history, finished = decisions.settle(client)
    if history.ever:
        return finished is not None and finished.kind == FIRST
    try:
        decisions.move(client, Decision(FIRST, number, None, "the first version"))
    except MovedError:
        return False
    return True


def rollback() -> Outcome:
    """Make the former champion champion again; one that was cut short is finished and none other begun.

    Raises:
        UserError: There was none before.
    """
    client = connect()
    with project_lock("registry"):
        history, decision = decisions.settle(client)
        if decision is None or decision.kind != ROLLED_BACK:
            existing = {int(item.version): item.creation_timestamp for item in versions(client)}
            known = {each.version: each.made for each in history.decisions if each.made}
            present, line = history.champion, history.line
            if present in line:
                line = line[: len(line) - 1 - line[::-1].index(present)]
            # A registered model that was deleted left its numbers to other versions, which were never champion.
            there = [number for number in line if number in existing and known.get(number) in (None, existing[number])]
            former = [number for number in there if number != present]
            if not former:
                raise UserError("there is no former champion to go back to.")
            decision = Decision(ROLLED_BACK, former[-1], present, "the former champion")
            try:
                decisions.move(client, decision)
            except MovedError as moved:
                raise UserError(f"version {moved.champion} became champion meanwhile; nothing was changed.") from None
        text = f"Version {decision.version} is champion again, in place of {decision.former}."
        return Outcome(
            int(decision.version or 0),
            True,
            f"{text} Restart servers that do not --follow.",
        )


def _tags(bundle: BundleFile, run: "Run | None") -> dict[str, str]:
    """What a version says of itself."""
    test = bundle.metrics["test"]
    tags = {
        "hyojo.digest": bundle.digest,
        "hyojo.data_digest": bundle.data_digest,
        "hyojo.weights_sha256": bundle.weights_sha256,
        "hyojo.backbone": bundle.backbone,
        CLASSES_TAG: json.dumps(bundle.class_names),
        PROJECT_TAG: project_name(),
    }
    tags |= {f"test.{name}": repr(test[name]) for name in HEADLINES}
    if bundle.test_digest:
        tags[TEST_DIGEST_TAG] = bundle.test_digest
    if bundle.parity:
        tags[PARITY_TAG] = "passed"
    recorded = {k: v for k, v in run.data.metrics.items() if k.startswith("cost/")} if run else {}
    costs = recorded | bundle_costs(bundle)
    return tags | {k.replace("/", "."): repr(v) for k, v in costs.items()}


def _find_logged(client: "MlflowClient", bundle: BundleFile) -> "tuple[Run | None, LoggedModel | None]":
    """The bundle's run, and this very bundle on it."""
    run = find_run(client, bundle.run_id)
    return run, find_model(client, run, bundle.digest) if run else None


def fetch_bundle(version: "ModelVersion", dest: Path) -> Path:
    """Copy a version's bundle into ``dest``.

    Raises:
        FileNotFoundError: Its files are gone.
        TrackingError: The store of the artifacts does not answer.
    """
    folder = fetch(f"{version.source}/artifacts/bundle", dest)
    if folder is None:
        raise FileNotFoundError(f"the files of version {version.version} are gone")
    return folder


def find_version(client: "MlflowClient", name: str) -> "ModelVersion | None":
    """Find the registered version that a name stands for, if there is one.

    A number (``3``, ``v3``), an alias (``champion``, ``@champion``), or a URI (``models:/hyojo/3``,
    ``models:/hyojo@champion``), which may be of another model.

    Raises:
        TrackingError: The store does not answer.
    """
    model, at = project_name(), ""
    if name.startswith(PREFIX):
        path = name.removeprefix(PREFIX)
        model, at, name = path.partition("@") if "@" in path else path.partition("/")
    number: str | int | None = name.removeprefix("v")
    if not str(number).isdecimal() or at == "@":
        alias = name.removeprefix("@")
        number = (decisions.read_aliases(client, model) or {}).get(alias)
        if alias == "latest":  # MLflow's own
            number = max((int(version.version) for version in versions(client, model)), default=None)
    if number is None or len(str(number)) >= 8:  # a long one begins the id of a run
        return None
    try:
        return client.get_model_version(model, str(int(number)))
    except TrackingError as error:
        if error.is_missing:
            return None
        raise


def versions(client: "MlflowClient", model: str | None = None) -> "list[ModelVersion]":
    """List all versions that there are of a registered model; None: the project's."""
    return list(client.search_model_versions(f"name = '{model or project_name()}'"))
