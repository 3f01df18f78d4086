"""Evaluations on MLflow runs: which run an evaluation belongs to, and all that it found on it.

mlflow is imported inside functions: it is slow.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from pipeline.core.params import EvaluateParams, flatten
from pipeline.core.project import project_lock
from pipeline.core.stage_files import EvaluationFile, RunFile
from pipeline.tracking import families
from pipeline.tracking.attempts import attempt
from pipeline.tracking.descriptions import describe_run
from pipeline.tracking.inputs import EVALUATION_TAG, log_params
from pipeline.tracking.runs import complete_run, find_or_rebuild, log_files, log_metrics, rebuild_run
from pipeline.tracking.store import RUN_ID_TAG, connect, experiment_id, find_run

TEST_DIGEST_TAG = "hyojo.test_digest"
# Of ``evaluation.json``: the training has logged val already, epoch by epoch, under the same names.
TRAINING_PART = "val"


def evaluation_key(weights_sha256: str, params: EvaluateParams, data_digest: str) -> str:
    """Return the sha256 of all that decides an evaluation: equal keys, equal reports."""
    parts = {"weights": weights_sha256, "evaluate": params.model_dump(), "data": data_digest}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def log_reports(
    found: EvaluationFile, outs: Sequence[Path], params: EvaluateParams, key: str, test_digest: str | None
) -> None:
    """Mirror the reports on the MLflow run that ``evaluation.json`` names, made if this store lacks it.

    The scores of each part but ``TRAINING_PART`` are logged as metrics; counts would be charts without a curve, and are
    told in the run's description. Answers to a split of the same ``test_digest`` can be compared.
    """
    values = {
        f"{part}/{name}": value
        for part, scores in found.as_dict().items()
        if isinstance(scores, dict) and part != TRAINING_PART
        for name, value in scores.items()
        if isinstance(value, float)
    }
    files = {"evaluation": [out for out in outs if not out.is_dir()]}
    files |= {f"evaluation/{out.name}": sorted(out.iterdir()) for out in outs if out.is_dir()}
    tags = {EVALUATION_TAG: key} | ({TEST_DIGEST_TAG: test_digest} if test_digest else {})
    log_evaluation(found.run_id, values, files, tags, flatten(params, "evaluate"), audit=found.audit)


def claim_run(key: str) -> str:
    """Find the run that an evaluation belongs to, by the id that files know it by; ``key`` from ``evaluation_key``.

    The training's own run, if it has no evaluation yet or this one; else a child run of its own, so that no
    figures are overwritten; a run missing from this store is rebuilt from the files. The run is claimed for this
    evaluation at once: another one of the same weights, at the same time, gets a run of its own.
    """
    own = RunFile.load().run_id

    def locate() -> str:
        client = connect()
        with project_lock("evaluation"):
            run = find_or_rebuild(client)
            claimed = run.data.tags.get(EVALUATION_TAG)
            if claimed is None:
                client.set_tag(run.info.run_id, EVALUATION_TAG, key)
            if claimed in (None, key):
                return own
            children = client.search_runs(
                [experiment_id(client)],
                f"tags.`{families.PARENT_TAG}` = '{run.info.run_id}' and tags.`{EVALUATION_TAG}` = '{key}'",
                max_results=1,
            )
            if children:
                complete_run(client, children[0])
                return children[0].data.tags.get(RUN_ID_TAG, children[0].info.run_id)
            child = rebuild_run(client, {families.PARENT_TAG: run.info.run_id, EVALUATION_TAG: key})
            return child.info.run_id

    return str(attempt(locate, "finding the run") or own)


def log_evaluation(
    run_id: str,
    metrics: dict[str, float],
    files: dict[str, list[Path]],
    tags: dict[str, str],
    params: dict[str, str],
    *,
    audit: dict[str, int | float] | None = None,
) -> None:
    """Put an evaluation onto its run, files by artifact folder; a child run that this store lacks is made again."""

    def log() -> None:
        client = connect()
        run = find_run(client, run_id)
        if run is None:
            run = parent = find_or_rebuild(client)
            if run_id != RunFile.load().run_id:
                run = rebuild_run(client, {families.PARENT_TAG: parent.info.run_id} | tags, logical_id=run_id)
        log_files(client, run.info.run_id, files)
        log_params(client, run, params)
        log_metrics(client, run.info.run_id, metrics)
        for name, value in tags.items():
            client.set_tag(run.info.run_id, name, value)
        if families.NOTE_TAG not in run.data.tags:  # people may have written one
            client.set_tag(run.info.run_id, families.NOTE_TAG, describe_run(metrics, run.data.tags, audit))

    attempt(log, "logging the evaluation")
