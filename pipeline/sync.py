"""Rebuild the MLflow side of a pipeline from DVC's files, whatever was skipped, restored or lost.

Reads ``models/train``, ``reports`` and ``models/bundle``; brings the run, its figures and its artifacts in line
with them. Doing it twice changes nothing.
"""

import json
import tempfile
from pathlib import Path

from pipeline import tracking
from pipeline.data import PREPARED
from pipeline.errors import UserError
from pipeline.evaluate import evaluation_key, log_reports
from pipeline.model import load_sidecar
from pipeline.params import load_params
from pipeline.pyfunc import build_pyfunc
from pipeline.store import connect, find_run

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
        log_reports(_evaluation_key(), TRAINED, REPORTS)
        run_id = json.loads((REPORTS / "metrics.json").read_text())["run_id"]
        done.append(f"evaluation on run {find_run(client, run_id).info.run_id}")
    if (BUNDLE / "bundle.json").exists():
        run_id = json.loads((BUNDLE / "bundle.json").read_text())["run_id"]
        with tempfile.TemporaryDirectory(prefix="hyojo-sync-") as scratch:
            build_pyfunc(BUNDLE, Path(scratch) / "model")
            tracking.log_bundle(run_id, BUNDLE, Path(scratch) / "model")
        done.append(f"bundle on run {find_run(client, run_id).info.run_id}")
    return done


def _evaluation_key() -> str:
    """The key of the evaluation in the work tree; the prepared data need not be there."""
    sidecar = load_sidecar(TRAINED)
    classes = PREPARED / "classes.json"
    digest = json.loads(classes.read_text())["digest"] if classes.exists() else sidecar["data_digest"]
    return evaluation_key(sidecar["weights_sha256"], load_params().evaluate, digest)


def _sync_training() -> str:
    """The training's run: made if missing, completed if cut short."""
    client = connect()
    own = json.loads((TRAINED / "run.json").read_text())["run_id"]
    run = find_run(client, own)
    if run is None:
        return f"training rebuilt as run {tracking.rebuild(client, TRAINED).info.run_id}"
    tracking.log_epochs(client, run.info.run_id, tracking.read_history(TRAINED))
    if not client.list_artifacts(run.info.run_id, "train"):
        client.log_artifacts(run.info.run_id, str(TRAINED), "train")
    if run.info.status != "FINISHED":
        client.set_terminated(run.info.run_id, "FINISHED")
    return f"training on run {run.info.run_id}"
