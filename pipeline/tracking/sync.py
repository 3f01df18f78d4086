"""Rebuild the MLflow side of a pipeline from DVC's files, whatever was skipped, restored or lost.

Reads ``models/train``, ``reports`` and ``models/bundle``; brings the run, its figures and its artifacts in line
with them. Doing it twice changes nothing.
"""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ruamel.yaml import YAML

from pipeline.core.dataset import PREPARED
from pipeline.core.errors import UserError
from pipeline.core.params import EvaluateParams
from pipeline.core.params_file import load_params
from pipeline.core.stage_files import WeightsFile
from pipeline.evaluate.stage import evaluation_key, log_reports
from pipeline.experiments import suspects
from pipeline.tracking import runs
from pipeline.tracking.pyfunc import build_pyfunc
from pipeline.tracking.store import connect, find_run

if TYPE_CHECKING:
    from mlflow import MlflowClient

TRAINED, REPORTS, BUNDLE = Path("models/train"), Path("reports"), Path("models/bundle")


def sync() -> list[str]:
    """Bring MLflow in line with the files of the work tree.

    Returns:
        A sentence for each thing that was looked after.

    Raises:
        UserError: There is nothing to go by.
    """
    if not (TRAINED / "run.json").exists():
        raise UserError(
            f"{TRAINED / 'run.json'} not found. Run `dvc repro`, or `dvc pull` or `dvc checkout`, first."
        )
    client = connect()
    done = [_sync_training()]
    if (REPORTS / "metrics.json").exists():
        log_reports(_evaluation_key(), _test_digest(), TRAINED, REPORTS)
        done.append(f"evaluation on run {_run_of(client, REPORTS / 'metrics.json')}")
    if (BUNDLE / "bundle.json").exists():
        run_id = json.loads((BUNDLE / "bundle.json").read_text())["run_id"]
        with tempfile.TemporaryDirectory(prefix="hyojo-sync-") as scratch:
            build_pyfunc(BUNDLE, Path(scratch) / "model")
            runs.log_bundle(run_id, BUNDLE, Path(scratch) / "model")
        done.append(f"bundle on run {_run_of(client, BUNDLE / 'bundle.json')}")
    if suspects.SUMMARY.exists():
        suspects.log_doubts()
        done.append(f"doubted training labels of {suspects.SUMMARY}")
    return done


def _run_of(client: "MlflowClient", path: Path) -> str:
    """This store's id of the run that a file names."""
    run_id = json.loads(path.read_text())["run_id"]
    run = find_run(client, run_id)
    if run is None:
        raise UserError(
            f"{path} belongs to run {run_id}, which this store lacks and these files cannot rebuild. "
            "`dvc repro`, or `dvc checkout`, makes them of one piece."
        )
    return run.info.run_id


def _evaluation_key() -> str:
    """The key of the evaluation in the work tree; the prepared data need not be there."""
    sidecar = WeightsFile.load(TRAINED).as_dict()
    classes = PREPARED / "classes.json"
    digest = json.loads(classes.read_text())["digest"] if classes.exists() else sidecar["data_digest"]
    return evaluation_key(sidecar["weights_sha256"], _evaluation_params(), digest)


def _test_digest() -> str | None:
    """Of the test split that the reports are about, as far as the files at hand tell."""
    classes, bundle = PREPARED / "classes.json", BUNDLE / "bundle.json"
    if classes.exists():
        return json.loads(classes.read_text())["split_digests"]["test"]
    return json.loads(bundle.read_text())["test_digest"] if bundle.exists() else None


def _evaluation_params() -> EvaluateParams:
    """What the reports were made with: by DVC's record, if it is of these reports; else by params.yaml."""
    made = hashlib.md5((REPORTS / "metrics.json").read_bytes(), usedforsecurity=False).hexdigest()
    lock = Path("dvc.lock")
    stages = YAML(typ="safe").load(lock.read_text()).get("stages", {}) if lock.exists() else {}
    stage = stages.get("evaluate", {})
    if made in [out.get("md5") for out in stage.get("outs", [])]:
        return EvaluateParams.model_validate(stage["params"]["params.yaml"]["evaluate"])
    return load_params().evaluate


def _sync_training() -> str:
    """The training's run: made if missing, completed if cut short."""
    client = connect()
    own = json.loads((TRAINED / "run.json").read_text())["run_id"]
    run = find_run(client, own)
    if run is None:
        return f"training rebuilt as run {runs.rebuild(client, TRAINED).info.run_id}"
    runs.log_epochs(client, run.info.run_id, runs.read_history(TRAINED))
    if not client.list_artifacts(run.info.run_id, "train"):
        client.log_artifacts(run.info.run_id, str(TRAINED), "train")
    if run.info.status != "FINISHED":
        client.set_terminated(run.info.run_id, "FINISHED")
    return f"training on run {run.info.run_id}"
