"""A search in MLflow: a run above its trials, and the curves of trials that are under way."""

from typing import TYPE_CHECKING

from pipeline.core.project import project_lock
from pipeline.tracking.families import KIND_TAG
from pipeline.tracking.inputs import EXPERIMENT_TAG, SOURCE_TAG
from pipeline.tracking.origin import origin_tags
from pipeline.tracking.store import RUN_ID_TAG, connect, experiment_id

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

NAME_TAG, PRUNED_TAG = "hyojo.search.name", "hyojo.search.pruned"


def open_parent(client: "MlflowClient", name: str, objective: str) -> str:
    """The id of the run above the trials of this search, made if there is none."""
    with project_lock("search"):
        asked = f"tags.`{KIND_TAG}` = 'search' AND tags.`{NAME_TAG}` = '{name}'"
        found = client.search_runs([experiment_id(client)], asked, max_results=1)
        if found:
            parent = found[0]
        else:
            tags = {KIND_TAG: "search", NAME_TAG: name, "hyojo.search.objective": objective}
            tags |= {"mlflow.source.name": "hyojo search", "mlflow.source.type": "PROJECT"}
            tags |= {tag: value for tag, value in origin_tags().items() if tag != SOURCE_TAG}
            parent = client.create_run(experiment_id(client), tags=tags, run_name=name)
            client.set_tag(parent.info.run_id, RUN_ID_TAG, parent.info.run_id)
        client.update_run(parent.info.run_id, "RUNNING")
        return str(parent.info.run_id)


def read_curve(experiment: str, metric: str, since_s: float) -> list[float]:
    """A metric of the run of an experiment, epoch by epoch; empty as long as there is none.

    An experiment of that name may have been there before: its run began before ``since_s``, since 1970.
    """
    client, run = _find_newest(experiment, since_s)
    if run is None:
        return []
    points = {point.step: point.value for point in client.get_metric_history(run.info.run_id, metric)}
    return [points[step] for step in sorted(points)]


def mark_pruned(experiment: str, since_s: float) -> None:
    """Say on the run of an experiment, as of ``read_curve``, that it was ended early, as it had fallen behind."""
    client, run = _find_newest(experiment, since_s)
    if run is not None:
        client.set_tag(run.info.run_id, PRUNED_TAG, "true")


def _find_newest(experiment: str, since_s: float) -> "tuple[MlflowClient, Run | None]":
    client = connect()
    asked = f"tags.`{EXPERIMENT_TAG}` = '{experiment}' AND attributes.start_time >= {int(1000 * since_s)}"
    found = client.search_runs([experiment_id(client)], asked, max_results=1, order_by=["attributes.start_time DESC"])
    return client, found[0] if found else None
