"""Rebuild the MLflow side of a pipeline from DVC's files, whatever was skipped, restored or lost.

Reads ``models/train``, ``reports`` and ``models/bundle``; brings the run, its figures and its artifacts in line
with them. Doing it twice changes nothing.
"""

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.dvc_file import find_stage_outs, read_lock
from pipeline.core.errors import UserError, telling
from pipeline.core.params import EvaluateParams, Params, flatten
from pipeline.core.params_file import load_params
from pipeline.core.paths import BUNDLE, PARAMS, TRAINED
from pipeline.core.stage_files import (
    BundleFile,
    DatasetFile,
    EvaluationFile,
    LatencyFile,
    RunFile,
    StageFile,
    WeightsFile,
)
from pipeline.inference.bundle import BundleError
from pipeline.tracking import bundles, evaluations, runs, suspects
from pipeline.tracking.attempts import exacting
from pipeline.tracking.pyfunc import build_pyfunc
from pipeline.tracking.store import connect, find_run

if TYPE_CHECKING:
    from mlflow import MlflowClient


def sync() -> list[str]:
    """Bring MLflow in line with the files of the work tree.

    Returns:
        A sentence for each thing that was looked after.

    Raises:
        UserError: There is nothing to go by, or files that belong to a run that this store lacks.
        TrackingError: MLflow's store does not take it.
    """
    if not _is_there(RunFile):
        raise UserError(f"{TRAINED / RunFile.FILE} not found. Run `dvc repro`, or `dvc pull` or `dvc checkout`, first.")
    with exacting():
        return _sync(connect())


def _sync(client: "MlflowClient") -> list[str]:
    done = [_sync_training(client)]
    if _is_there(EvaluationFile):
        found, outs = EvaluationFile.load(), find_stage_outs("evaluate")
        there, params = [out for out in outs if out.exists()], _params_of("evaluate", EvaluationFile).evaluate
        evaluations.log_reports(found, there, params, _evaluation_key(params), _test_digest())
        done.append(f"evaluation on run {_run_of(client, found.run_id, EvaluationFile)}")
    if _is_there(BundleFile):
        run_id = _run_of(client, BundleFile.load().run_id, BundleFile)
        with tempfile.TemporaryDirectory(prefix="hyojo-sync-") as scratch, telling(BundleError):
            build_pyfunc(BUNDLE, Path(scratch) / "model")
            measured = LatencyFile.load().metrics if _is_there(LatencyFile) else {}
            exported = flatten(_params_of("export", LatencyFile).export, "export")
            bundles.log_bundle(BUNDLE, Path(scratch) / "model", measured, exported)
        done.append(f"bundle on run {run_id}")
    if suspects.SUMMARY.exists():
        suspects.log_suspects()
        done.append(f"suspects among training labels of {suspects.SUMMARY}")
    return done


def _is_there(kind: type[StageFile]) -> bool:
    """Whether a stage has left its file."""
    return (kind.FOLDER / kind.FILE).exists()


def _run_of(client: "MlflowClient", run_id: str, kind: type[StageFile]) -> str:
    """This store's id of the run that a file names."""
    run = find_run(client, run_id)
    if run is None:
        raise UserError(
            f"{kind.FOLDER / kind.FILE} belongs to run {run_id}, which this store lacks and these files cannot "
            "rebuild. `dvc repro`, or `dvc checkout`, makes them of one piece."
        )
    return run.info.run_id


def _evaluation_key(params: EvaluateParams) -> str:
    """The key of the evaluation in the work tree; the prepared data need not be there."""
    sidecar = WeightsFile.load()
    digest = DatasetFile.load().digest if _is_there(DatasetFile) else sidecar.data_digest
    return evaluations.evaluation_key(sidecar.weights_sha256, params, digest)


def _test_digest() -> str | None:
    """Of the test split that the reports are about, as far as the files at hand tell."""
    if _is_there(DatasetFile):
        return DatasetFile.load().split_digests["test"]
    return BundleFile.load().test_digest if _is_there(BundleFile) else None


def _params_of(stage: str, kind: type[StageFile]) -> Params:
    """What a stage's files were made with: by DVC's record, if it is of this very file; else by params.yaml."""
    path, found, present = kind.FOLDER / kind.FILE, read_lock().get(stage, {}), load_params()
    if path.exists():
        made = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        if made in [out.get("md5") for out in found.get("outs", [])]:
            section = type(getattr(present, stage)).model_validate(found["params"][PARAMS.name][stage])
            return present.model_copy(update={stage: section})
    return present


def _sync_training(client: "MlflowClient") -> str:
    """The training's run: made if missing, completed if cut short."""
    known = find_run(client, RunFile.load().run_id)
    run = known or runs.find_or_rebuild(client)
    if known is None:
        return f"training rebuilt as run {run.info.run_id}"
    runs.complete_run(client, run)
    if run.info.status != "FINISHED":
        runs.finish_run(client, run)
    return f"training on run {run.info.run_id}"
