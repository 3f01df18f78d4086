"""``hyojo sync`` that is killed is finished by the next, and says that it failed when it did."""

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from builders import run_hyojo, write_exported, write_sidecars
from faulty_server import serve_mlflow
from killing import Killed, kill_after

from pipeline.core.params import flatten
from pipeline.core.params_file import load_params
from pipeline.core.stage_files import LatencyFile
from pipeline.tracking import bundles, sync
from pipeline.tracking.inputs import CONTEXTS
from pipeline.tracking.store import connect, experiment_id

PARAMS = {"prepare.source": "data/tiny.zip", "train.backbone": "face_resnet_s", "train.lr": "0.4"}
SCORES = {"accuracy": 0.5, "macro_f1": 0.4}


@pytest.fixture
def work_tree(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What all stages leave."""
    folder = write_sidecars(project / "models/train", params=PARAMS)
    (folder / "weights.pt").write_bytes(b"weights" * 1000)
    (folder / "history.csv").write_text("epoch,train/loss\n0,1.0\n1,0.5\n")
    (project / "reports").mkdir()
    (project / "reports/predictions.csv").write_text("file,label\n")
    LatencyFile(latency_ms=5.5).save()
    write_exported(project / "models/bundle", digest="b" * 64, run_id="a" * 32, metrics={"test": SCORES})
    monkeypatch.setattr(sync, "build_pyfunc", lambda bundle, dest: shutil.copytree(bundle / "pyfunc", dest))
    name_run(project, "a" * 32)
    return project


def name_run(root: Path, run_id: str) -> None:
    """Have all files belong to this run."""
    metrics = {"val": SCORES, "test": SCORES, "run_id": run_id}
    (root / "reports/evaluation.json").write_text(json.dumps(metrics))
    (root / "models/train/run.json").write_text(json.dumps({"run_id": run_id}))
    path = root / "models/bundle/bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"run_id": run_id}))


def check_whole(root: Path, run_id: str) -> None:
    """There is one run of this id, with all of it, once."""
    client = connect()
    (run,) = client.search_runs([experiment_id(client)], f"tags.`hyojo.run_id` = '{run_id}'")
    found = run.info.run_id
    assert run.info.status == "FINISHED"
    made_with = load_params()
    exact = {"evaluate": made_with.evaluate, "export": made_with.export}
    assert run.data.params == PARAMS | {k: v for name, part in exact.items() for k, v in flatten(part, name).items()}
    assert [(each.step, each.value) for each in client.get_metric_history(found, "train/loss")] == [(0, 1.0), (1, 0.5)]
    assert len(client.get_metric_history(found, "test/accuracy")) == 1
    (model,) = client.search_logged_models([experiment_id(client)], f"source_run_id = '{found}'")
    assert (str(model.status), model.tags[bundles.BUNDLE_TAG]) == ("READY", "b" * 64)
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    assert model.params == run.data.params
    scored = {point.key: point.value for point in model.metrics}
    assert scored == {f"test/{key}": score for key, score in SCORES.items()}
    assert [(each.dataset.name, each.tags[0].value) for each in run.inputs.dataset_inputs] == [
        (f"{split} tiny.zip", use) for split, use in CONTEXTS.items()
    ]
    assert run.data.metrics["cost/latency_ms"] == 5.5
    for folder, local in (("train", "models/train"), ("evaluation", "reports"), (model.name, "models/bundle/pyfunc")):
        there = {item.path.split("/")[1]: item.file_size for item in client.list_artifacts(found, folder)}
        wanted = {each.name: each.stat().st_size for each in (root / local).iterdir() if each.is_file()}
        wanted.pop("latency.json", None)  # a figure, and no report
        wanted.pop("MLmodel", None)  # it has the run's id now
        assert wanted.items() <= there.items()


def test_killed_after_any_write_it_is_finished_by_the_next(work_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for calls in range(1, 100):
        run_id = f"{calls:032x}"
        name_run(work_tree, run_id)
        with monkeypatch.context() as patch:
            kill_after(patch, calls)
            try:
                sync.sync()
            except Killed:
                finished = False
            else:
                finished = True
        if not finished:
            sync.sync()
        check_whole(work_tree, run_id)
        if finished:
            assert calls > 10
            return
    raise AssertionError("it never ended")


def test_half_an_upload_is_made_whole(work_tree: Path) -> None:
    sync.sync()
    client = connect()
    (run,) = client.search_runs([experiment_id(client)])
    place = work_tree / "mlruns/hyojo" / run.info.run_id / "artifacts/train"
    (place / "weights.pt").write_bytes(b"wei")
    (place / "history.csv").unlink()
    sync.sync()
    check_whole(work_tree, "a" * 32)


@pytest.mark.parametrize("failing", ["mlflow-artifacts/artifacts/1", "log-batch", "set-tag"])
def test_what_the_server_does_not_take_is_not_said_to_be_in_place(
    work_tree: Path, failing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve_mlflow(work_tree / "mlflow.db", work_tree / "artifacts") as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        server.fault = lambda method, path: ("500 No", "<html>") if failing in path and method != "GET" else None
        assert run_hyojo("sync") == 1
        printed = capsys.readouterr()
        assert printed.err.startswith(f"error: MLflow at {server.url}")
        assert "in place" not in printed.out
        server.fault = lambda method, path: None
        assert run_hyojo("sync") == 0
        check_whole(work_tree, "a" * 32)


def test_a_server_with_users_denies_what_is_not_there(work_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_mlflow(work_tree / "mlflow.db", work_tree / "artifacts") as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        denied = "403 Forbidden", '{"error_code": "PERMISSION_DENIED", "message": "Permission denied"}'

        def deny(method: str, path: str) -> tuple[str, str] | None:
            made = any("runs/create" in asked for asked in server.asked)
            return denied if path.endswith("runs/get") and not made else None

        server.fault = deny
        assert run_hyojo("sync") == 0
        check_whole(work_tree, "a" * 32)


@pytest.mark.slow
def test_killed_at_random_it_is_finished_by_the_next(work_tree: Path) -> None:
    code = """
import shutil
from pipeline.tracking import sync
sync.build_pyfunc = lambda bundle, dest: shutil.copytree(bundle / "pyfunc", dest)
sync.sync()
"""
    draw = random.Random(0)
    for number in range(8):
        run_id = f"{number:032x}"
        name_run(work_tree, run_id)
        for _ in range(3):
            process = subprocess.Popen([sys.executable, "-c", code])
            time.sleep(draw.uniform(1, 8))
            process.kill()
            process.wait()
        sync.sync()
        check_whole(work_tree, run_id)
