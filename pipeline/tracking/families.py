"""A family of seeds in MLflow: a parent run whose children differ by ``stage.seed`` alone.

DVC's experiments are the truth; the parent names its members by the ids that files know them by, so that a run
rebuilt elsewhere finds back to it. mlflow is imported inside functions: it is slow.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.errors import UserError
from pipeline.core.project import project_lock
from pipeline.tracking.inputs import DIGEST_TAG, SOURCE_TAG, log_data, log_params
from pipeline.tracking.origin import origin_tags
from pipeline.tracking.store import RUN_ID_TAG, experiment_id, find_run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PARENT_TAG = "mlflow.parentRunId"
NOTE_TAG = "mlflow.note.content"
KIND_TAG = "hyojo.kind"
NAME_TAG = "hyojo.seeds.name"
KEY_TAG = "hyojo.seeds.key"
# JSON: seed -> the id that DVC's files know its run by.
MEMBERS_TAG = "hyojo.seeds.members"
# Environment of a stage: the parent of whatever run it opens.
PARENT_VARIABLE = "HYOJO_PARENT_RUN"


@dataclass
class Member:
    """A seed that was trained and evaluated, by DVC's name and its files' run id; figures such as ``test_accuracy``."""

    seed: int
    experiment: str
    run_id: str
    figures: dict[str, float] = field(default_factory=dict)


def environment_tags() -> dict[str, str]:
    """Tags of a run that a stage opens on behalf of a family; none otherwise."""
    parent = os.environ.get(PARENT_VARIABLE)
    return {PARENT_TAG: parent} if parent else {}


def parent_tags(client: "MlflowClient", run_id: str) -> dict[str, str]:
    """Tags that lead a rebuilt run back to the family that names it; none if no family does."""
    for parent in _families(client):
        if run_id in members(parent).values():
            return {PARENT_TAG: parent.info.run_id}
    return {}


def members(parent: "Run") -> dict[int, str]:
    """Seeds of a parent run with the ids that files know their runs by."""
    return {int(seed): run_id for seed, run_id in json.loads(parent.data.tags.get(MEMBERS_TAG, "{}")).items()}


def is_family(run: "Run") -> bool:
    """Whether a run is the parent of a family of seeds."""
    return run.data.tags.get(KIND_TAG) == "seeds"


def open_family(client: "MlflowClient", name: str, key: str, params: dict[str, str]) -> "Run":
    """The parent run of this name, made if there is none; ``key`` is the digest of the params that its seeds share.

    Raises:
        UserError: The name belongs to a family of other settings.
    """
    with project_lock("seeds"):
        parent = next((each for each in _families(client) if each.data.tags.get(NAME_TAG) == name), None)
        if parent is None:
            tags = {KIND_TAG: "seeds", NAME_TAG: name, KEY_TAG: key}
            tags |= {"mlflow.source.name": "hyojo seeds", "mlflow.source.type": "PROJECT"}
            tags |= {tag: value for tag, value in origin_tags().items() if tag != SOURCE_TAG}  # of the work tree's data
            parent = client.create_run(experiment_id(client), tags=tags, run_name=f"{name} {params['train.backbone']}")
        elif parent.data.tags.get(KEY_TAG) != key:
            raise UserError(f"--name {name}: seeds of that name were trained with other params. Choose another name.")
        # Also of one that was cut short.
        client.update_run(parent.info.run_id, "RUNNING")
        client.set_tag(parent.info.run_id, RUN_ID_TAG, parent.info.run_id)
        log_params(client, parent, params)
        return client.get_run(parent.info.run_id)


def tie(client: "MlflowClient", parent_id: str, run_id: str) -> None:
    """Make a run, or the training that it is an evaluation of, a child of the parent, if the store has it.

    A run has one parent: what is in another family already stays there, and is a member here by name alone.
    """
    top = above = find_run(client, run_id)
    while above is not None and not is_family(above):
        top, above = above, find_run(client, above.data.tags.get(PARENT_TAG, ""))
    if top is not None and above is None:
        client.set_tag(top.info.run_id, PARENT_TAG, parent_id)


def publish(client: "MlflowClient", parent_id: str, found: list[Member], files: list[Path], note: str) -> None:
    """Put a family's summary onto its parent run: files into ``seeds``, a note in Markdown; members are tied to it."""
    for member in found:
        tie(client, parent_id, member.run_id)
    if found and (run := find_run(client, found[0].run_id)) is not None:  # they have all seen the same data
        for tag in {SOURCE_TAG, DIGEST_TAG} & run.data.tags.keys():
            client.set_tag(parent_id, tag, run.data.tags[tag])
        log_data(client, client.get_run(parent_id), run.data.params.get("prepare.source"))
    client.set_tag(parent_id, MEMBERS_TAG, json.dumps({str(member.seed): member.run_id for member in found}))
    client.set_tag(parent_id, NOTE_TAG, note)
    for path in files:
        client.log_artifact(parent_id, str(path), "seeds")


def _families(client: "MlflowClient") -> "list[Run]":
    """All parents of seeds, newest first."""
    return list(client.search_runs([experiment_id(client)], f"tags.`{KIND_TAG}` = 'seeds'"))
