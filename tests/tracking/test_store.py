"""The MLflow store: one a project, found from wherever DVC runs a stage, safe to open at once, and movable."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from builders import forget_store

from pipeline.core.errors import UserError
from pipeline.core.project import project_root
from pipeline.tracking import store, ui
from pipeline.tracking.trouble import TrackingError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "given, found",
    [
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("sqlite:////elsewhere/runs.db", "sqlite:////elsewhere/runs.db"),
        ("sqlite:///own.db", "sqlite:///{root}/own.db"),
        ("sqlite:///sub/own.db", "sqlite:///{root}/sub/own.db"),
        ("", "sqlite:///{root}/mlflow.db"),
    ],
)
def test_an_address_that_is_set_wins_and_a_relative_file_lies_in_the_root(
    project: Path, temporary_copy: Path, given: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    monkeypatch.chdir(temporary_copy)
    assert store.tracking_uri(project_root()) == found.format(root=project)


def test_from_a_temporary_copy_everything_goes_into_the_project(
    project: Path, temporary_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(temporary_copy)
    client = store.connect()
    assert Path.cwd() == temporary_copy
    run = client.create_run(store.experiment_id(client))
    client.log_text(run.info.run_id, "hello", "note.txt")
    assert run.info.artifact_uri.startswith((project / "mlruns" / "hyojo").as_uri())
    (note,) = (project / "mlruns").rglob("note.txt")
    assert note.read_text() == "hello"
    assert [path.name for path in temporary_copy.iterdir()] == [".dvc"]


def test_a_shared_database_keeps_artifacts_beside_itself(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the first clone's folder; and each project has an experiment and a model of its own name."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shutil.copy(project / "mlflow.db", shared / "x.db")
    other = shutil.copytree(project, tmp_path / "other")
    (other / "params.yaml").write_text((project / "params.yaml").read_text().replace("name: hyojo", "name: cats"))
    for root, name, variable in ((project, "hyojo", ""), (other, "cats", ""), (other, "team/dogs", "team/dogs")):
        forget_store()
        monkeypatch.chdir(root)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shared / 'x.db'}")
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", variable)
        client = store.connect()
        place = (shared / "mlruns" / name.replace("/", "_")).as_uri()
        assert client.get_experiment(store.experiment_id(client)).name == name
        assert client.get_experiment_by_name(name).artifact_location == place
        assert store.project_name() == ("hyojo" if root == project else "cats")
        run_id = client.create_run(store.experiment_id(client)).info.run_id
        client.log_text(run_id, "hello", "note.txt")
    assert len(list(shared.rglob("note.txt"))) == 3
    assert not (project / "mlruns").exists()


@pytest.mark.parametrize(
    ("text", "found"),
    [(None, "hyojo"), ("train: {}\n", "hyojo"), ("project: {name: cats}\n", "cats"), ("project: {name: a b}\n", None)],
)
def test_a_project_s_name(project: Path, text: str | None, found: str | None) -> None:
    """The default's where the file is older than the key, or missing."""
    path = project / "params.yaml"
    path.unlink() if text is None else path.write_text(text)
    store.project_name.cache_clear()
    if found is None:
        with pytest.raises(UserError, match="must be letters, digits"):
            store.project_name()
    else:
        assert store.project_name() == found


def test_a_deleted_experiment_is_taken_back(project: Path) -> None:
    client = store.connect()
    number = store.experiment_id(client)
    client.delete_experiment(number)
    forget_store()
    client = store.connect()
    assert client.get_experiment(number).lifecycle_stage == "active"


def test_two_processes_open_a_fresh_store_at_once(project: Path) -> None:
    (project / "mlflow.db").unlink()
    code = "from pipeline.tracking import store; print(store.experiment_id(store.connect()))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    given = {"env": environment, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen([sys.executable, "-c", code], **given) for _ in range(2)]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert len({number for number, _ in outputs}) == 1
    client = store.connect()
    experiment = client.get_experiment_by_name("hyojo")
    assert experiment.experiment_id == outputs[0][0].strip()
    assert experiment.artifact_location == (project / "mlruns" / "hyojo").as_uri()


def test_runs_are_found_by_id_and_by_the_id_that_files_know(project: Path) -> None:
    client = store.connect()
    experiment = store.experiment_id(client)
    run_id = client.create_run(experiment).info.run_id
    rebuilt = client.create_run(experiment, tags={store.RUN_ID_TAG: "a" * 32}).info.run_id
    assert store.find_run(client, run_id).info.run_id == run_id
    assert store.find_run(client, "a" * 32).info.run_id == rebuilt
    assert store.find_run(client, "b" * 32) is None
    for number in (run_id, rebuilt):
        client.delete_run(number)
    assert store.find_run(client, run_id) is None
    assert store.find_run(client, "a" * 32) is None


def test_a_moved_project_finds_its_artifacts_again(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client = store.connect()
    run_id = client.create_run(store.experiment_id(client)).info.run_id
    client.log_text(run_id, "hello", "train/note.txt")
    assert store.moved_from(project) is None
    assert store.relocate(project) == 0
    assert "was moved" not in capsys.readouterr().err

    target = tmp_path / "new % place_é"  # what a URI and a LIKE pattern both spell in their own way
    shutil.move(project, target)
    monkeypatch.chdir(target)
    forget_store()
    client = store.connect()
    assert "hyojo sync --relocate" in capsys.readouterr().err
    assert not client.list_artifacts(run_id)

    assert store.relocate(target) > 0
    assert [item.path for item in client.list_artifacts(run_id, "train")] == ["train/note.txt"]
    later = client.create_run(store.experiment_id(client)).info.run_id
    client.log_text(later, "hello", "note.txt")
    assert len(list((target / "mlruns").rglob("note.txt"))) == 2
    assert not project.exists()
    assert store.relocate(target) == 0

    # And back again, from a place with such a name.
    shutil.move(target, project)
    monkeypatch.chdir(project)
    forget_store()
    client = store.connect()
    assert store.relocate(project) > 0
    assert [item.path for item in client.list_artifacts(run_id, "train")] == ["train/note.txt"]
    capsys.readouterr()


def test_other_stores_are_never_relocated(project: Path, tmp_path: Path) -> None:
    assert store.relocate(tmp_path) == 0  # no database at all
    (tmp_path / "mlflow.db").write_bytes(b"")
    assert store.relocate(tmp_path) == 0  # one without tables
    assert store.relocate(project) == 0  # one without our experiment


def test_runs_page_shows_scores_where_the_store_takes_the_view(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = store.connect()
    own = store.experiment_id(client)
    plain = f"http://127.0.0.1:5000/#/experiments/{own}/runs?workflowType=machine_learning"

    def refuse(*_: object) -> None:
        raise TrackingError("PERMISSION_DENIED")

    with monkeypatch.context() as patch:
        patch.setattr(client._client, "set_experiment_tag", refuse)
        assert ui.runs_page(client, "http://127.0.0.1:5000/") == plain
    page = ui.runs_page(client, "http://127.0.0.1:5000/")
    assert page == f"{plain}&viewStateShareKey=hyojo"
    view = json.loads(client.get_experiment(own).tags["mlflow.sharedViewState.hyojo"])
    shown = [
        "metrics.`test/accuracy`",
        "params.`train.backbone`",
        "attributes.`User`",
        "duration",
        "attributes.`Dataset`",
    ]
    assert set(shown) <= set(view["selectedColumns"])
    with monkeypatch.context() as patch:  # who may only read sees what others have put there
        patch.setattr(client._client, "set_experiment_tag", refuse)
        patch.setattr(ui, "SECTIONS", [])
        assert ui.runs_page(client, "http://127.0.0.1:5000/") == page
