"""What a run started from, on MLflow's pages: its name, its params, its data by the digests that DVC knows."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT_TAG = "hyojo.dvc.exp_name"
EVALUATION_TAG = "hyojo.evaluation"
JOB_TAG = "hyojo.job"
DIGEST_TAG = "hyojo.data_digest"
# DVC's sum of the source, as it stands in dvc.lock and in the source's .dvc file.
SOURCE_TAG = "hyojo.dvc.source"
CONTEXTS = {"train": "training", "val": "validation", "test": "testing"}


def name_run(params: dict[str, str], tags: dict[str, str]) -> str:
    """Return a run's name; what tells it from others comes first, as MLflow's tables cut the end off."""
    own = tags.get(EXPERIMENT_TAG) or tags.get(EVALUATION_TAG, "")[:7] or tags.get(JOB_TAG, "")[:7]
    return " ".join(filter(None, (own, params.get("train.backbone"))))


def log_params(client: "MlflowClient", run: "Run", params: dict[str, str]) -> None:
    """Log the params that a run lacks; one that it has stays what it is, as MLflow wants it."""
    from mlflow.entities import Param

    if lacking := [Param(key, value) for key, value in params.items() if key not in run.data.params]:
        client.log_batch(run.info.run_id, params=lacking)


def log_data(client: "MlflowClient", run: "Run", source: str | None) -> None:
    """Name the splits of a run's source in the UI's column for data sets, unless they are there."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    digest = run.data.tags.get(SOURCE_TAG) or run.data.tags.get(DIGEST_TAG, "")
    if not source or not digest or (run.inputs and run.inputs.dataset_inputs):  # sidecars of old lack the source
        return
    inputs = []
    for split, context in CONTEXTS.items():
        # MLflow wants a digest of at most 36 characters.
        dataset = Dataset(f"{split} {Path(source).name}", digest[:36], "local", json.dumps({"uri": source}))
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
    client.log_inputs(run.info.run_id, inputs)
