"""What goes onto MLflow runs: one run a training, no figure twice or over another, and trouble that costs nothing."""

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import bundle_record, forget_store, run_git, write_exported, write_sidecars
from mlflow.models import Model

from pipeline.tracking import runs as tracking
from pipeline.tracking import store
from pipeline.tracking.bundles import find_model, log_bundle
from pipeline.tracking.descriptions import describe_run
from pipeline.tracking.evaluations import claim_run, log_evaluation
from pipeline.tracking.inputs import EVALUATION_TAG
from pipeline.tracking.origin import origin_tags
from pipeline.tracking.runs import TrainingRun

PARAMS = {"prepare.source": "data/tiny.zip", "train.backbone": "face_resnet_s", "train.lr": "0.4"}
TAGS = {"hyojo.data_digest": "d" * 64, "hyojo.job": "j" * 32}
HISTORY = [
    {"epoch": epoch, "lr": 0.4 / epoch, "train/loss": 1.0 / epoch, "val/accuracy": epoch / 4}
    for epoch in (1, 2, 3)
]  # fmt: skip
TRAIN_FILES = {"train/history.csv", "train/run.json", "train/weights.json", "train/weights.pt"}
DEAD = "http://127.0.0.1:9"
DEAD_LIMIT_S = 30


@pytest.fixture
def train_dir(project: Path) -> Path:
    """What train leaves, without a run of this id in the store."""
    folder = project / "models" / "train"
    folder.mkdir(parents=True)
    (folder / "weights.pt").write_bytes(b"weights")
    write_sidecars(folder, params=PARAMS)
    header = list(HISTORY[0])
    lines = [",".join(header), *(",".join(str(row[key]) for key in header) for row in HISTORY)]
    (folder / "history.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def own(train_dir: Path) -> str:
    """The id of a finished run of that training."""
    run = TrainingRun(PARAMS, TAGS)
    (train_dir / "run.json").write_text(json.dumps({"run_id": run.run_id}))
    run.log_history(HISTORY)
    run.finish("FINISHED")
    return run.run_id


def runs() -> list[Any]:
    """All active runs of the project's store."""
    client = store.connect()
    return list(client.search_runs([store.experiment_id(client)]))


def points(run_id: str, metric: str) -> list[tuple[int, float]]:
    """Step and value of all points of a metric."""
    return [(point.step, point.value) for point in store.connect().get_metric_history(run_id, metric)]


def artifacts(run_id: str, folder: str | None = None) -> set[str]:
    """Paths of a run's files."""
    found = set()
    for item in store.connect().list_artifacts(run_id, folder):
        found |= artifacts(run_id, item.path) if item.is_dir else {item.path}
    return found


def check_whole(run: Any) -> None:
    """A run by itself has all that its training's own run has."""
    assert run.info.status == "FINISHED"
    assert run.data.params == PARAMS
    for key in ("lr", "train/loss", "val/accuracy"):
        assert points(run.info.run_id, key) == [(row["epoch"], row[key]) for row in HISTORY]
    assert artifacts(run.info.run_id) >= TRAIN_FILES | {"params.yaml"}
    assert run.data.tags["hyojo.data_digest"] == "d" * 64
    inputs = {item.tags[0].value: item.dataset for item in run.inputs.dataset_inputs}
    assert inputs.keys() == {"training", "validation", "testing"}
    assert inputs["testing"].name == "test tiny.zip"
    # What DVC calls the source, if it recorded that, as `grep` finds it in dvc.lock.
    assert {item.digest for item in inputs.values()} == {run.data.tags.get("hyojo.dvc.source", ("d" * 36))}


def test_a_training_is_one_run_with_params_tags_and_history(
    project: Path, train_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "brisk-ibex")
    deps = [{"path": "pipeline/prepare", "md5": "c" * 32 + ".dir"}, {"path": "data/tiny.zip", "md5": "5" * 32}]
    prepared = {"deps": deps, "params": {"params.yaml": {"prepare": {"source": "data/tiny.zip"}}}}
    (project / "dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": {"prepare": prepared}}))
    run = TrainingRun(PARAMS, TAGS | origin_tags())
    assert runs()[0].info.status == "RUNNING"
    for count in (1, 2, 3, 3):
        run.log_history(HISTORY[:count])
    (train_dir / "run.json").write_text(json.dumps({"run_id": run.run_id, "figures": {"train/time_s": 12.5}}))
    run.finish("FINISHED")
    (found,) = runs()
    assert found.info.run_id == run.run_id
    assert found.info.end_time is not None
    assert found.info.run_name == "brisk-ibex face_resnet_s"
    assert found.data.metrics["train/time_s"] == 12.5
    wanted = TAGS | {"hyojo.run_id": run.run_id, "hyojo.dvc.exp_name": "brisk-ibex"}
    wanted |= {"hyojo.weights_sha256": "e" * 64, "mlflow.source.type": "PROJECT"}
    assert wanted.items() <= found.data.tags.items()
    assert found.data.tags["hyojo.dvc.source"] == "5" * 32
    check_whole(found)


def test_reopened_after_a_crash_only_new_epochs_are_added(train_dir: Path) -> None:
    first = TrainingRun(PARAMS, TAGS)
    first.log_history(HISTORY[:2])
    first.finish("KILLED")
    assert runs()[0].info.status == "KILLED"
    forget_store()  # as in another process
    again = TrainingRun(PARAMS, TAGS, first.run_id)
    assert again.run_id == first.run_id
    assert runs()[0].info.status == "RUNNING"
    again.log_history(HISTORY)
    again.finish("FINISHED")
    (run,) = runs()
    assert points(run.info.run_id, "train/loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert run.info.status == "FINISHED"


def test_a_run_that_is_gone_is_made_again_under_the_id_that_files_know(train_dir: Path) -> None:
    first = TrainingRun(PARAMS, TAGS)
    store.connect().delete_run(first.run_id)
    again = TrainingRun(PARAMS, TAGS, first.run_id)
    assert again.run_id == first.run_id
    again.log_history(HISTORY)
    (run,) = runs()
    assert run.info.run_id != first.run_id
    assert run.data.tags["hyojo.run_id"] == first.run_id
    assert len(points(run.info.run_id, "train/loss")) == 3
    assert TrainingRun(PARAMS, TAGS, first.run_id).run_id == first.run_id
    assert len(runs()) == 1


def test_a_run_that_was_made_but_not_written_down_is_replaced(project: Path) -> None:
    tags = TAGS | {tracking.ATTEMPT_TAG: "x" * 32}
    other = TrainingRun(PARAMS, TAGS | {tracking.ATTEMPT_TAG: "y" * 32}).run_id
    lost = TrainingRun(PARAMS, tags).run_id
    kept = TrainingRun(PARAMS, tags).run_id
    assert {run.info.run_id for run in runs()} == {other, kept}
    assert lost != kept


def test_the_commit_and_what_it_lacks_are_kept(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    run_git("init", "-q")
    run_git("add", "params.yaml")
    run_git("commit", "-qm", "First")
    clean = TrainingRun(PARAMS, TAGS | origin_tags()).run_id
    with (project / "params.yaml").open("a") as file:
        file.write("# a change\n")
    dirty = TrainingRun(PARAMS, TAGS | origin_tags()).run_id
    client = store.connect()
    for run_id, state in ((clean, "false"), (dirty, "true")):
        tags = client.get_run(run_id).data.tags
        assert tags["mlflow.source.git.commit"] == run_git("rev-parse", "HEAD")
        assert tags["hyojo.git_dirty"] == state
    assert "git.patch" not in artifacts(clean)
    assert "+# a change" in Path(client.download_artifacts(dirty, "git.patch")).read_text()


def test_an_evaluation_goes_onto_its_trainings_run_and_another_onto_a_child(train_dir: Path, own: str) -> None:
    assert claim_run("key 1") == own
    (run,) = runs()
    assert run.data.tags[EVALUATION_TAG] == "key 1"  # claimed at once
    assert claim_run("key 1") == own
    assert len(runs()) == 1

    child_id = claim_run("key 2")
    assert child_id != own
    (child,) = [run for run in runs() if run.info.run_id == child_id]
    assert child.data.tags["mlflow.parentRunId"] == own
    assert child.data.tags[EVALUATION_TAG] == "key 2"
    check_whole(child)

    forget_store()
    assert claim_run("key 2") == child_id
    assert claim_run("key 1") == own
    assert claim_run("key 3") not in (own, child_id)
    assert len(runs()) == 3
    assert store.find_run(store.connect(), own).data.tags[EVALUATION_TAG] == "key 1"


def test_a_run_that_this_store_lacks_is_rebuilt_from_the_files(train_dir: Path) -> None:
    assert claim_run("key 1") == "a" * 32
    (run,) = runs()
    assert run.info.run_id != "a" * 32
    assert run.data.tags["hyojo.run_id"] == "a" * 32
    assert run.data.tags[tracking.REBUILT_TAG] == "true"
    assert run.data.tags["hyojo.weights_sha256"] == "e" * 64
    check_whole(run)
    assert claim_run("key 1") == "a" * 32
    assert len(runs()) == 1
    child_id = claim_run("key 2")
    assert store.find_run(store.connect(), child_id).data.tags["mlflow.parentRunId"] == run.info.run_id


def test_find_or_rebuild_restores_who_when_and_what_it_took(train_dir: Path) -> None:
    """On a server that never saw the training, in another's clone, hours later."""
    origin = {"mlflow.user": "ada", "mlflow.source.git.commit": "c" * 40, "hyojo.dvc.exp_name": "brisk-ibex"}
    figures = {"train/time_s": 12.5, "train/kept_epoch": 2, "cost/flops": 3e7}
    own = {"run_id": "a" * 32, "job": "j" * 32, "origin": origin, "started_s": 1e9, "ended_s": 1e9 + 60.25}
    (train_dir / "run.json").write_text(json.dumps(own | {"figures": figures}))
    run = tracking.find_or_rebuild(store.connect())
    run = store.connect().get_run(run.info.run_id)
    assert (run.info.start_time, run.info.end_time, run.info.user_id) == (10**12, 10**12 + 60_250, "ada")
    tags = origin | {"hyojo.weights_sha256": "e" * 64, "hyojo.job": "j" * 32}
    assert tags.items() <= run.data.tags.items()
    assert figures.items() <= run.data.metrics.items()
    child = store.find_run(store.connect(), claim_run("key"))
    assert child.info.run_id == run.info.run_id
    check_whole(run)


def test_figures_and_files_of_an_evaluation_are_logged_once(train_dir: Path, own: str, tmp_path: Path) -> None:
    report, figure = tmp_path / "metrics.json", tmp_path / "matrix.png"
    report.write_text("{}")
    figure.write_bytes(b"png")
    files = {"": [report, tmp_path / "missing.csv"], "figures": [figure]}
    for _ in range(2):
        log_evaluation(own, {"test/accuracy": 0.5}, files, {EVALUATION_TAG: "key"}, {})
    (run,) = runs()
    assert points(own, "test/accuracy") == [(0, 0.5)]
    assert run.data.tags[EVALUATION_TAG] == "key"
    assert run.info.status == "FINISHED"
    assert artifacts(own) == TRAIN_FILES | {"params.yaml", "metrics.json", "figures/matrix.png"}


def test_a_child_that_this_store_lacks_is_made_again(train_dir: Path, own: str) -> None:
    log_evaluation("c" * 32, {"test/accuracy": 0.25}, {}, {EVALUATION_TAG: "key"}, {})
    (child,) = [run for run in runs() if run.info.run_id != own]
    assert child.data.tags["hyojo.run_id"] == "c" * 32
    assert child.data.tags["mlflow.parentRunId"] == own
    assert child.data.metrics["test/accuracy"] == 0.25
    check_whole(child)
    assert "test/accuracy" not in store.connect().get_run(own).data.metrics


@pytest.fixture
def bundle(tmp_path: Path) -> tuple[Path, Path]:
    """A bundle's folder and that of the served model."""
    folder = write_exported(tmp_path / "bundle", digest="1")
    return folder, folder / "pyfunc"


def test_a_bundle_is_logged_once_for_each_digest(
    own: str, bundle: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, model = bundle
    log_bundle(folder, model)  # of a run that is not there
    assert "hyojo sync" in capsys.readouterr().err
    (folder / "bundle.json").write_text(json.dumps(bundle_record(digest="1", run_id=own)))
    log_bundle(folder, model)
    client = store.connect()
    assert "MODEL_CARD.md" in artifacts(own)
    there = [path.relative_to(model) for path in model.rglob("*") if path.is_file()]
    assert artifacts(own, "model-1") == {f"model-1/{path}" for path in there}
    (model / "predictor.py").write_text("other code")
    log_bundle(folder, model)
    (folder / "bundle.json").write_text(json.dumps(bundle_record(digest="2", run_id=own)))
    log_bundle(folder, model)
    first, second, none = [find_model(client, client.get_run(own), digest) for digest in "123"]
    assert (first.name, second.name, none) == ("model-1", "model-2", None)
    assert "model-1/predictor.py" not in artifacts(own, "model-1")  # a version that was registered stays what it was
    assert "model-2/predictor.py" in artifacts(own, "model-2")
    about = Model.load(client.download_artifacts(own, "model-1/MLmodel"))
    assert (about.run_id, about.model_id) == (own, first.model_id)
    assert client.get_run(own).info.status == "FINISHED"


def test_a_dead_server_costs_warnings_and_little_time(
    train_dir: Path, bundle: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DEAD)
    start = time.monotonic()
    run = TrainingRun(PARAMS, TAGS)
    assert len(run.run_id) == 32
    for count in (1, 2, 3):
        run.log_history(HISTORY[:count])  # not asked again at once
    run.finish("FINISHED")
    assert time.monotonic() - start < DEAD_LIMIT_S
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")  # the rest need not wait as long
    assert claim_run("key") == "a" * 32
    log_evaluation("a" * 32, {"test/accuracy": 0.5}, {}, {}, {})
    log_bundle(*bundle)
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("warning: MLflow: ") and "hyojo sync" in line for line in lines) == 4


def test_a_server_that_hangs_costs_seconds_and_a_line(
    train_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes connections and says nothing, as a stopped process does; a pause of 0 s asks it every epoch."""
    import mlflow  # noqa: F401  (whose import takes seconds of its own)

    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        run = timed(lambda: TrainingRun(PARAMS, TAGS))
        timed(lambda: run.log_history(HISTORY[:1]))  # which is not asked, so soon
        monkeypatch.setattr(run._patience, "_until_s", 0.0)
        timed(lambda: run.log_history(HISTORY))
        timed(lambda: run.finish("FINISHED"))
    assert capsys.readouterr().err.count("warning: ") == 1
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ or os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] != "0"


def timed(action: Callable[[], Any]) -> Any:
    """What an action gives, in less than five seconds."""
    start = time.monotonic()
    result = action()
    assert time.monotonic() - start < 5
    return result


def test_a_server_that_comes_back_gets_the_whole_history(
    train_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tracking, "connect", lambda: 1 / 0)
        run = TrainingRun(PARAMS, TAGS)
        run.log_history(HISTORY[:1])
    known = run.run_id
    run.log_history(HISTORY[:2])
    assert runs() == []  # too soon after the last attempt
    monkeypatch.setattr(run._patience, "_until_s", 0.0)
    run.log_history(HISTORY)
    run.finish("FINISHED")
    (found,) = runs()
    assert run.run_id == known == found.data.tags["hyojo.run_id"]
    assert [step for step, _ in points(found.info.run_id, "train/loss")] == [1, 2, 3]
    assert found.info.status == "FINISHED"
    assert capsys.readouterr().err.count("warning: ") == 1


def test_a_run_says_how_it_did_and_how_to_have_it_again(project: Path, train_dir: Path, own: str) -> None:
    for accuracy in (0.5, 0.25):
        log_evaluation(own, {"test/accuracy": accuracy}, {}, {EVALUATION_TAG: "key"}, {})
    note = store.connect().get_run(own).data.tags["mlflow.note.content"]
    assert "accuracy 0.500" in note
    assert "`dddddddddddd`" in note
    tags = {"hyojo.dvc.exp_name": "brisk-ibex", "mlflow.source.git.commit": "c" * 40}
    assert "`dvc exp apply brisk-ibex`" in describe_run({}, tags)
    assert "`dddddddddddd`, 1,234 redundant" in describe_run({}, {"hyojo.data_digest": "d" * 64}, {"redundant": 1234})
    del tags["hyojo.dvc.exp_name"]
    assert "`git checkout cccccccccccc`, then `dvc repro`" in describe_run({}, tags)
    assert "git.patch" in describe_run({}, tags | {"hyojo.git_dirty": "true"})
