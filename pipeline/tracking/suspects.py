"""Suspects among the training labels, as ``hyojo suspects`` leaves them in ``reports/``, on an MLflow run."""

import json

from pipeline.core.params import flatten
from pipeline.core.params_file import load_params
from pipeline.core.paths import REPORTS, TRAINED
from pipeline.core.stage_files import WeightsFile
from pipeline.tracking.attempts import attempt
from pipeline.tracking.origin import origin_tags
from pipeline.tracking.runs import create_run, find_or_rebuild, find_tagged_runs, log_files, log_metrics
from pipeline.tracking.store import connect

TABLE = REPORTS / "label_suspects_train.csv"
SUMMARY, PAGE = TABLE.with_suffix(".json"), TABLE.with_suffix(".html")
# The data whose labels a run suspects, on a run that is about nothing else.
SUSPECTS_TAG = "hyojo.suspects"


def log_suspects() -> None:
    """Put the suspects beside the model: onto the run of its training, if it has learnt these data.

    Otherwise they go onto a run of their own, one for the same data.
    """
    figures = json.loads(SUMMARY.read_text(encoding="utf-8"))
    digest, params = figures.pop("data_digest"), load_params()

    def log() -> None:
        client = connect()
        sidecar = TRAINED / WeightsFile.FILE
        if sidecar.exists() and WeightsFile.load().data_digest == digest:
            run = find_or_rebuild(client)
        elif known := find_tagged_runs(client, SUSPECTS_TAG, digest):
            run = known[0]
        else:
            about = {"hyojo.data_digest": digest, SUSPECTS_TAG: digest, "mlflow.source.name": "hyojo suspects"}
            flat = flatten(params.prepare, "prepare") | flatten(params.train, "train")
            run = create_run(client, flat, origin_tags() | about)
            client.set_terminated(run.info.run_id, "FINISHED")
        log_files(client, run.info.run_id, {"suspects": [TABLE, PAGE, SUMMARY]})
        log_metrics(client, run.info.run_id, {f"suspects/{name}": value for name, value in figures.items()})

    attempt(log, "logging the suspects")
