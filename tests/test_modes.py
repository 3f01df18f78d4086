"""One pipeline is one MLflow run, in every way that DVC can run it: a tiny project, driven as a user drives it.

The project's folder has a space in its name. It is run once, and each test works on a
copy: a copied store is a moved one, which ``relocate`` mends.
"""

import contextlib
import csv
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from builders import FOREIGN, ROOT, TINY_PARAMS, encode, forget_store, write_zip
from PIL import Image, ImageDraw

from pipeline.metrics.table import METRICS
from pipeline.tracking import store, sync

COPIED = (
    *("pipeline", "dvc.yaml", "data/corrections.csv", "requirements.lock"),
    *(".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore"),
)
EPOCHS = 2
# What every run of a finished pipeline has, beside what its stages wrote.
FIGURES = ("confusion_matrix.png", "per_class.png", "worst_mistakes.png")
TABLES = (
    "metrics.json", "evaluation.json", "predictions.csv", "per_class.csv", "confusion.csv", "label_suspects.csv",
    "label_suspects.html",
)  # fmt: skip
RECORDS = ("models/train/run.json", "reports/evaluation.json", "models/bundle/bundle.json")
QUEUE_LIMIT_S = 900


@dataclass(frozen=True)
class Project:
    """A project's folder and the commands that are run in it."""

    root: Path

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the project; its output stands in the failure if it fails."""
        done = subprocess.run(command, cwd=self.root, env=environment(), capture_output=True, text=True, timeout=900)
        assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    def dvc(self, *arguments: str) -> str:
        """Run dvc; returns both outputs."""
        done = self.run("dvc", *arguments)
        return done.stdout + done.stderr

    def git(self, *arguments: str) -> str:
        return self.run("git", *arguments).stdout.strip()

    def commit(self, message: str) -> None:
        self.git("add", "-A")
        self.git("commit", "-qm", message)

    def hyojo(self, *arguments: str) -> str:
        return self.run("python", "-m", "pipeline.cli", *arguments).stdout

    def edit(self, old: str, new: str) -> None:
        """Change the one place of params.yaml that reads so."""
        path = self.root / "params.yaml"
        assert path.read_text().count(old) == 1
        path.write_text(path.read_text().replace(old, new))

    def json(self, path: str) -> dict[str, Any]:
        return json.loads((self.root / path).read_text())

    @property
    def client(self) -> Any:
        import mlflow

        forget_artifacts()
        mlflow.set_tracking_uri(f"sqlite:///{self.root / 'mlflow.db'}")  # by which it finds logged models
        os.environ.pop("MLFLOW_TRACKING_URI", None)  # where MLflow keeps that, and a user's choice would stand
        return mlflow.MlflowClient()

    def runs(self) -> list[Any]:
        """All runs of the store that are not deleted, of whatever experiment, oldest first."""
        experiments = [experiment.experiment_id for experiment in self.client.search_experiments()]
        return list(self.client.search_runs(experiments, order_by=["attributes.start_time"]))

    def run_named(self, run_id: str) -> Any:
        """The one run that DVC's files know by this id."""
        (run,) = [run for run in self.runs() if run.data.tags["hyojo.run_id"] == run_id]
        return run

    @property
    def present(self) -> Any:
        """The run of the evaluation that lies in the work tree."""
        return self.run_named(self.json("reports/evaluation.json")["run_id"])

    def artifacts(self, run: Any) -> dict[str, bytes]:
        """Every artifact of a run, downloaded."""
        asked = f"source_run_id = '{run.info.run_id}'"
        models = self.client.search_logged_models([run.info.experiment_id], asked)
        found, folders = {}, ["", *(model.name for model in models)]
        while folders:
            for item in self.client.list_artifacts(run.info.run_id, folders.pop() or None):
                if item.is_dir:
                    folders.append(item.path)
                else:
                    found[item.path] = Path(self.client.download_artifacts(run.info.run_id, item.path)).read_bytes()
        return found

    def points(self, run: Any, key: str) -> list[tuple[int, float]]:
        """All that was ever logged under a metric, as (step, value)."""
        history = self.client.get_metric_history(run.info.run_id, key)
        return sorted((point.step, point.value) for point in history)

    def snapshot(self) -> dict[str, Any]:
        """All that the store says of each run, for comparison."""
        found = {}
        for run in self.runs():
            points = {key: self.points(run, key) for key in run.data.metrics}
            found[run.info.run_id] = run.info.status, run.data.params, run.data.tags, self.artifacts(run), points
        return found


def forget_artifacts() -> None:
    """Have mlflow look up anew where a run's artifacts are: it remembers them by id, and copies share their ids."""
    from mlflow.tracking._tracking_service import utils

    utils._artifact_repos_cache.clear()


def environment() -> dict[str, str]:
    """A user's environment: this Python first, no DVC or MLflow variables from outside, a git identity."""
    own = {key: value for key, value in os.environ.items() if key not in FOREIGN and not key.startswith("GIT_")}
    return own | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "DVC_NO_ANALYTICS": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        **{f"GIT_{role}_{name}": "test@example.org" for role in ("AUTHOR", "COMMITTER") for name in ("NAME", "EMAIL")},
        "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "0.1",
        "MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING": "1",
    }


def draw_shapes(path: Path) -> None:
    """Write a zip of class folders with white shapes on noise, so that none are twins; every other one in colour."""
    rng = np.random.default_rng(0)
    files = {}
    for index in range(72):
        picture = Image.fromarray(rng.integers(0, 160, (18, 20, 3), dtype=np.uint8))
        draw = ImageDraw.Draw(picture)
        x, y = (int(value) for value in rng.integers(1, 6, 2))
        box, name = (x, y, x + 11, y + 11), ("circle", "line", "square")[index % 3]
        draws = {"circle": draw.ellipse, "line": draw.line, "square": draw.rectangle}
        draws[name](box, fill="white", width=3)
        files[f"{name}/{index:02}.png"] = encode(picture.convert("RGB" if index % 2 else "L"))
    write_zip(path, files)


def make_project(root: Path) -> Project:
    """Write and commit a project that has not run yet and has no store."""
    for name in COPIED:
        source, target = ROOT / name, root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)
    draw_shapes(root / "data" / "sample.zip")
    text = TINY_PARAMS.replace("data/tiny.zip", "data/sample.zip").replace("epochs: 3\n", f"epochs: {EPOCHS}\n")
    (root / "params.yaml").write_text(text)
    project = Project(root)
    project.git("init", "-q")
    project.commit("A project")
    return project


@pytest.fixture(scope="module", autouse=True)
def _fresh_connections(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No pooled connection to a database that was deleted; DVC's index outside the user's folders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
        patch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path_factory.mktemp("dvc-site")))
        yield


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Project:
    """A project after ``dvc repro``, its results committed; tests leave it as it is."""
    project = make_project(tmp_path_factory.mktemp("modes") / "my faces")
    shutil.copy2(empty_store, project.root / "mlflow.db")
    project.dvc("repro")
    project.commit("Results")
    return project


@pytest.fixture
def project(original: Project, tmp_path: Path) -> Project:
    """A copy of the original that may be changed, with its store pointed at the copy."""
    copy = Path(shutil.copytree(original.root, tmp_path / "my copy", symlinks=True))
    store.relocate(copy)
    return Project(copy)


def check_run(project: Project, bundle: bool = False) -> Any:
    """Hold all that the run of the work tree's evaluation has against its files, also of the bundle; returns it."""
    run, text = project.present, (project.root / "params.yaml").read_text()
    assert run.info.status == "FINISHED"
    params = yaml.safe_load(text)
    assert run.data.params["train.lr"] == str(params["train"]["lr"])
    assert run.data.params["train.seed"] == str(params["train"]["seed"])
    assert run.data.params["prepare.source"] == "data/sample.zip"
    assert run.data.params["train.schedule.name"] == "onecycle"
    assert run.data.params["evaluate.worst"] == str(params["evaluate"]["worst"])
    with (project.root / "models/train/history.csv").open() as file:
        history = list(csv.DictReader(file))
    assert len(history) == EPOCHS
    for key in history[0].keys() - {"epoch"}:
        assert project.points(run, key) == [(int(row["epoch"]), float(row[key])) for row in history], key
    result = project.json("reports/evaluation.json")
    assert set(result["test"]) == set(METRICS)
    for part in ("test", "test_clean"):
        for key in result[part].keys() & METRICS:
            assert project.points(run, f"{part}/{key}") == [(0, result[part][key])]
    tags = run.data.tags
    assert tags["hyojo.data_digest"] == project.json("data/prepared/classes.json")["digest"]
    assert tags["hyojo.weights_sha256"] == project.json("models/train/weights.json")["weights_sha256"]
    artifacts = project.artifacts(run)
    assert artifacts["params.yaml"].decode() == text
    for local, path in {
        "reports/audit.json": "audit.json",
        "reports/audit.html": "audit.html",
        **{f"models/train/{n}": f"train/{n}" for n in ("weights.pt", "weights.json", "history.csv", "curves.png")},
        **{f"reports/{name}": f"evaluation/{name}" for name in TABLES},
        **{f"reports/figures/{name}": f"evaluation/figures/{name}" for name in FIGURES},
    }.items():
        assert artifacts[path] == (project.root / local).read_bytes(), path
    assert run.info.artifact_uri.startswith(project.root.as_uri())
    if bundle:
        record = project.json("models/bundle/bundle.json")
        model = f"model-{record['digest'][:12]}"
        shipped, sums = json.loads(artifacts[f"{model}/artifacts/bundle/bundle.json"]), {"files", "sha256"}
        assert {k: v for k, v in shipped.items() if k not in sums} == {k: v for k, v in record.items() if k not in sums}
        assert shipped["files"].items() < record["files"].items()  # a registered version holds what it is served from
        assert artifacts["MODEL_CARD.md"] == (project.root / "models/bundle/MODEL_CARD.md").read_bytes()
        assert "python_function" in yaml.safe_load(artifacts[f"{model}/MLmodel"])["flavors"]
    return run


def no_stray_stores(project: Project) -> None:
    """One store at the root, and nothing of it anywhere else in the project."""
    for name in ("mlflow.db", "mlruns"):
        assert [path for path in project.root.rglob(name)] == [project.root / name]


def test_repro_leaves_one_finished_run(original: Project) -> None:
    (run,) = original.runs()
    check_run(original, bundle=True)
    no_stray_stores(original)
    run_id = run.info.run_id
    assert [original.json(path)["run_id"] for path in RECORDS] == [run_id] * 3
    assert run.data.tags["mlflow.source.git.commit"] == original.git("rev-parse", "HEAD~1")
    assert run.data.tags["hyojo.git_dirty"] == "false"
    assert run_id not in original.dvc("exp", "show", "--csv")
    system = [key for key in run.data.metrics if key.startswith("system/")]
    assert "system/cpu_utilization_percentage" in system


def test_repro_again_does_nothing(original: Project) -> None:
    before = (original.root / "mlflow.db").read_bytes()
    assert "Data and pipelines are up to date." in original.dvc("repro")
    assert (original.root / "mlflow.db").read_bytes() == before


def test_changed_evaluation_gets_a_child_run(project: Project) -> None:
    (first,) = project.runs()
    before = project.snapshot()[first.info.run_id]
    project.edit("worst: 4", "worst: 2")
    said = project.dvc("repro", "evaluate")
    assert "Stage 'train' didn't change" in said
    child = check_run(project)
    assert child.info.run_id != first.info.run_id
    assert child.data.tags["mlflow.parentRunId"] == first.info.run_id
    assert project.snapshot()[first.info.run_id] == before

    project.edit("worst: 2", "worst: 4")
    assert "cached" in project.dvc("repro", "evaluate")
    assert project.json("reports/evaluation.json")["run_id"] == first.info.run_id
    assert len(project.runs()) == 2


def test_experiment_in_a_temporary_copy_applied_and_undone(project: Project) -> None:
    (first,) = project.runs()
    before = project.snapshot()[first.info.run_id]
    head = project.git("rev-parse", "HEAD")
    project.dvc("exp", "run", "--temp", "-n", "warm", "-S", "train.lr=0.2", "evaluate")
    runs = project.runs()
    assert len(runs) == 2
    no_stray_stores(project)
    assert project.json("reports/evaluation.json")["run_id"] == first.info.run_id  # the work tree is untouched
    second = next(run for run in runs if run.info.run_id != first.info.run_id)
    assert second.data.tags["hyojo.dvc.exp_name"] == "warm"
    assert second.data.tags["hyojo.dvc.exp_baseline"] == head
    assert second.data.tags["mlflow.source.git.commit"] == head
    assert second.info.run_name == "warm face_resnet_s"

    project.dvc("exp", "apply", "warm")
    assert project.json("reports/evaluation.json")["run_id"] == second.info.run_id
    check_run(project)

    project.edit("lr: 0.2", "lr: 0.4")
    check_restored(project, first, before)
    assert len(project.runs()) == 2


def check_restored(project: Project, run: Any, before: tuple[Any, ...]) -> None:
    """A repro that has all of an earlier run's params takes its results from the cache and touches no run."""
    said = project.dvc("repro")
    assert "Running stage" not in said
    assert [project.json(path)["run_id"] for path in RECORDS] == [run.info.run_id] * 3
    assert project.snapshot()[run.info.run_id] == before


def synced(project: Project) -> list[str]:
    """Do what `hyojo sync` does, without the seconds that its start takes."""
    forget_store()
    forget_artifacts()
    with contextlib.chdir(project.root):
        done = sync.sync()
    forget_store()
    return done


def delete_store(project: Project) -> None:
    (project.root / "mlflow.db").unlink()
    shutil.rmtree(project.root / "mlruns")


def check_rebuilt(project: Project, lost: Any) -> None:
    """The project's one run stands for a lost one, under another id of MLflow's."""
    (run,) = project.runs()
    assert run.info.run_id != lost.info.run_id
    assert run.data.tags["hyojo.run_id"] == lost.info.run_id
    assert run.data.params == lost.data.params
    check_run(project, bundle=True)


def clone(project: Project, folder: Path) -> Project:
    """A fresh clone with its outs pulled from a remote, and no MLflow store."""
    remote = folder / "remote"
    project.dvc("remote", "add", "-q", "-d", "storage", str(remote))
    project.commit("A remote")
    project.dvc("push", "-q")
    project.git("clone", "-q", str(project.root), str(folder / "my clone"))
    cloned = Project(folder / "my clone")
    cloned.dvc("pull", "-q")
    assert not (cloned.root / "mlflow.db").exists()
    return cloned


@pytest.mark.parametrize("cloned", [False, True])
def test_sync_rebuilds_a_store_that_is_gone(project: Project, tmp_path: Path, empty_store: Path, cloned: bool) -> None:
    (lost,) = project.runs()
    if cloned:
        project = clone(project, tmp_path)
    else:
        delete_store(project)
    shutil.copy2(empty_store, project.root / "mlflow.db")
    synced(project)
    check_rebuilt(project, lost)
    before = project.snapshot()
    synced(project)
    assert project.snapshot() == before
    assert "Data and pipelines are up to date." in project.dvc("repro")


def test_sync_goes_by_what_was_evaluated_not_by_edits_since(project: Project) -> None:
    before = project.snapshot()
    project.edit("worst: 4", "worst: 3")
    synced(project)
    assert project.snapshot() == before


def test_sync_completes_a_run_that_was_cut_short(project: Project) -> None:
    (run,) = project.runs()
    whole = project.snapshot()[run.info.run_id]
    folder = project.root / "mlruns" / "hyojo" / run.info.run_id / "artifacts"
    for path in (folder / "train", folder / "evaluation", *(project.root / "mlruns/hyojo/models").iterdir()):
        shutil.rmtree(path)
    project.client.update_run(run.info.run_id, "KILLED")
    synced(project)
    status, params, tags, artifacts, points = project.snapshot()[run.info.run_id]
    assert (status, params, tags, points) == (*whole[:3], whole[4])
    assert artifacts.keys() == whole[3].keys()
    check_run(project, bundle=True)


def test_moved_project(original: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run,) = original.runs()
    whole = original.snapshot()[run.info.run_id]
    copy = Project(tmp_path / "else where")
    shutil.copytree(original.root, copy.root, symlinks=True)
    with contextlib.chdir(copy.root):
        store.connect()
    assert "hyojo sync --relocate" in capsys.readouterr().err
    assert "locations changed" in copy.hyojo("sync", "--relocate")
    assert copy.snapshot()[run.info.run_id] == whole
    assert copy.runs()[0].info.artifact_uri.startswith(copy.root.as_uri())
    for experiment in copy.client.search_experiments():
        assert str(copy.root.name) in experiment.artifact_location.replace("%20", " ")
    assert copy.hyojo("sync", "--relocate").startswith("0 ")
    forget_store()
    with contextlib.chdir(copy.root):
        store.connect()
    assert "relocate" not in capsys.readouterr().err


@pytest.mark.slow
def test_changed_evaluation_in_a_fresh_clone(project: Project, tmp_path: Path) -> None:
    (first,) = project.runs()
    cloned = clone(project, tmp_path)
    cloned.edit("worst: 4", "worst: 1")
    assert "Stage 'train' didn't change" in cloned.dvc("repro", "evaluate")
    (run,) = cloned.runs()
    assert run.data.tags["hyojo.run_id"] == first.info.run_id == cloned.json("reports/evaluation.json")["run_id"]
    check_run(cloned)
    cloned.edit("worst: 1", "worst: 2")
    cloned.dvc("repro", "evaluate")
    child = check_run(cloned)
    assert child.data.tags["mlflow.parentRunId"] == run.info.run_id
    assert len(cloned.runs()) == 2
    # The child is rebuilt too, with its parent, where the store is lost.
    delete_store(cloned)
    cloned.hyojo("sync")
    again = cloned.run_named(child.info.run_id)
    check_run(cloned)
    parent = cloned.run_named(first.info.run_id)
    assert again.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert len(cloned.runs()) == 2


@pytest.mark.slow
def test_restored_runs_are_not_run_again(project: Project) -> None:
    (first,) = project.runs()
    before = project.snapshot()[first.info.run_id]
    project.edit("lr: 0.4", "lr: 0.3")
    project.dvc("repro")
    second = check_run(project, bundle=True)
    assert second.info.run_id != first.info.run_id
    assert second.data.tags["hyojo.git_dirty"] == "true"
    assert "+  lr: 0.3" in project.artifacts(second)["git.patch"].decode()
    project.edit("lr: 0.3", "lr: 0.4")
    check_restored(project, first, before)
    project.git("checkout", "-q", "HEAD", "--", "dvc.lock", "reports")
    project.dvc("checkout", "-q")
    assert "up to date" in project.dvc("repro")
    assert len(project.runs()) == 2


@pytest.mark.slow
def test_a_family_of_seeds(project: Project) -> None:
    """Two seeds by DVC, in a copy of the work tree; asked again for three, only what is missing is trained."""
    (first,) = project.runs()
    before = project.git("status", "--porcelain"), (project.root / "reports/metrics.json").read_bytes()
    for count in (2, 3):
        project.hyojo("seeds", str(count), "--name", "pair")
        assert before == (project.git("status", "--porcelain"), (project.root / "reports/metrics.json").read_bytes())
        (parent,) = [run for run in project.runs() if run.data.tags.get("hyojo.kind") == "seeds"]
        children = [run for run in project.runs() if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        assert sorted(run.data.params["train.seed"] for run in children) == ["0", "1", "2"][:count]
        assert first.info.run_id in [run.info.run_id for run in children]  # seed 0 was trained before
        scores = [run.data.metrics["test/accuracy"] for run in children]
        assert parent.data.metrics["seeds/test_accuracy_mean"] == pytest.approx(np.mean(scores))
        assert parent.data.metrics["seeds/test_accuracy_sd"] == pytest.approx(np.std(scores, ddof=1))
        assert len(project.runs()) == 1 + count
        listed = project.dvc("exp", "list", "--name-only").split()
        assert sorted(listed) == [f"pair-{seed}" for seed in range(count)]
    project.hyojo("seeds", "2", "--name", "other", "--set", "train.lr=0.0001")
    said = project.hyojo("compare", "pair", "other")
    assert "3 seeds" in said
    assert "2 seeds" in said


@pytest.mark.slow
def test_seeds_that_are_killed_at_random_go_on(project: Project) -> None:
    (first,) = project.runs()
    draw = random.Random(0)
    command = [sys.executable, "-m", "pipeline.cli", "seeds", "2", "--name", "pair"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    for _ in range(6):
        process = subprocess.Popen(command, cwd=project.root, env=environment(), **quiet)
        time.sleep(draw.uniform(3, 60))
        process.kill()
        process.wait()
    project.hyojo("seeds", "2", "--name", "pair")
    (parent,) = [run for run in project.runs() if run.data.tags.get("hyojo.kind") == "seeds"]
    children = [run for run in project.runs() if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert sorted(run.data.params["train.seed"] for run in children) == ["0", "1"]
    assert first.info.run_id in [run.info.run_id for run in children]
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    assert parent.data.params["train.lr"] == children[0].data.params["train.lr"]
    for run in children:
        assert [step for step, _ in project.points(run, "train/loss")] == list(range(1, EPOCHS + 1))
    assert len(project.runs()) == 3
    assert sorted(project.dvc("exp", "list", "--name-only").split()) == ["pair-0", "pair-1"]
    assert not [one for one in psutil.process_iter(["cwd"]) if str(project.root) in str(one.info["cwd"])]


@pytest.mark.slow
def test_experiments_in_the_work_tree(project: Project) -> None:
    (first,) = project.runs()
    before = project.snapshot()[first.info.run_id]
    project.dvc("exp", "run", "-n", "one", "-S", "train.lr=0.1")
    second = check_run(project, bundle=True)
    assert second.data.tags["hyojo.dvc.exp_name"] == "one"
    project.dvc("exp", "run", "-n", "two", "-S", "train.lr=0.4", "-S", "evaluate.worst=1", "evaluate")
    child = check_run(project)
    assert child.data.tags["mlflow.parentRunId"] == first.info.run_id
    project.dvc("exp", "apply", "one")
    assert project.json("reports/evaluation.json")["run_id"] == second.info.run_id
    before_sync = project.snapshot()
    project.hyojo("sync")
    assert project.snapshot() == before_sync
    assert len(before_sync) == 3
    assert before_sync[first.info.run_id] == before
    no_stray_stores(project)


@pytest.mark.slow
def test_queue_of_experiments_on_a_store_that_does_not_exist(tmp_path: Path) -> None:
    project = make_project(tmp_path / "my queue")
    project.dvc("repro", "prepare")
    project.commit("Prepared")
    names = ("left", "right")
    for name, rate in zip(names, (0.1, 0.2), strict=True):
        project.dvc("exp", "run", "--queue", "-n", name, "-S", f"train.lr={rate}")
    assert not (project.root / "mlflow.db").exists()
    try:
        project.dvc("queue", "start", "-j", "2")
        end = time.monotonic() + QUEUE_LIMIT_S
        while (status := project.dvc("queue", "status")).count("Success") < len(names):
            assert "Failed" not in status, project.dvc("queue", "logs", names[0])
            assert time.monotonic() < end, status
            time.sleep(2)
    finally:
        project.run("dvc", "queue", "stop", "--kill", check=False)
    runs = {run.data.tags["hyojo.dvc.exp_name"]: run for run in project.runs()}
    assert sorted(runs) == sorted(names)
    assert len(project.runs()) == 2
    no_stray_stores(project)
    for name in names:
        project.dvc("exp", "apply", name)
        assert project.json("reports/evaluation.json")["run_id"] == runs[name].info.run_id
        check_run(project, bundle=True)


@pytest.mark.slow
def test_moved_project_goes_on(project: Project, tmp_path: Path) -> None:
    (first,) = project.runs()
    target = Project(tmp_path / "moved on")
    shutil.move(project.root, target.root)
    target.hyojo("sync", "--relocate")
    assert "up to date" in target.dvc("repro")
    target.edit("worst: 4", "worst: 2")
    target.dvc("repro", "evaluate")
    child = check_run(target)
    assert child.data.tags["mlflow.parentRunId"] == first.info.run_id
    assert not project.root.exists()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a child of its parent's end")
@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_dvc_that_is_killed_leaves_no_trainer(project: Project, shell: str, devices: int) -> None:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"no {shell} here")
    project.edit(f"\n  epochs: {EPOCHS}\n", "\n  epochs: 5000\n")
    project.edit("devices: 1 ", f"devices: {devices} ")
    log = project.root / "log"
    with log.open("w") as file:
        dvc = subprocess.Popen(
            ["dvc", "repro", "train"], cwd=project.root, env=environment() | {"SHELL": path}, stdout=file,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
    below: list[psutil.Process] = []
    try:
        end = time.monotonic() + QUEUE_LIMIT_S
        while "/5000  train loss" not in log.read_text():
            assert dvc.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        below = psutil.Process(dvc.pid).children(recursive=True)
        trainers = [each for each in below if "pipeline.train" in each.cmdline()]
        assert len(trainers) >= devices
        dvc.kill()
        dvc.wait()
        _, alive = psutil.wait_procs(trainers, 30)
        assert not alive
    finally:
        dvc.kill()
        dvc.wait()
        for each in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
    # They were asked to end, and have kept what they had done.
    assert "goes on from here" in log.read_text()
    assert list(project.root.glob(".hyojo/checkpoints/*/state.pt"))
    assert [run.info.status for run in project.runs()].count("KILLED") == 1


def test_what_a_run_came_from_is_there_or_told(project: Project) -> None:
    run_id = project.json("reports/evaluation.json")["run_id"]
    before = project.snapshot(), project.git("status", "--porcelain", "-uall")
    said = project.hyojo("reproduce", run_id, "--check")
    assert "data: there" in said
    assert "digests that are known: arrays, weights, bundle, predictions" in said
    (project.root / "data" / "sample.zip").unlink()
    project.commit("the data are gone")
    assert "data: there" in project.hyojo("reproduce", run_id, "--check")  # its commit has them
    done = project.run("python", "-m", "pipeline.cli", "reproduce", "HEAD", "--check", check=False)
    assert done.returncode == 1
    assert "data: data/sample.zip is neither in git nor known to DVC at that commit" in done.stdout
    assert project.snapshot() == before[0]
    assert not (project.root / ".hyojo" / "reproduced").exists() or not any(
        (project.root / ".hyojo" / "reproduced").iterdir()
    )
    tags = project.present.data.tags
    assert json.loads(tags["hyojo.machine"])["threads"] == "1"


@pytest.mark.slow
def test_a_run_is_reproduced_to_the_same_digests(project: Project, tmp_path: Path) -> None:
    """Also one of changes that were never committed; a digest that was tampered with is told by its stage."""
    project.edit("  seed: 0                   # of those cuts", "  seed: 1")
    project.dvc("repro")
    run = project.present
    assert "is reproduced." in (said := project.hyojo("reproduce", run.info.run_id, "--into", str(tmp_path / "again")))
    assert said.count(" equal ") == 4
    assert (tmp_path / "again" / "models" / "bundle" / "bundle.json").exists()
    project.client.set_tag(run.info.run_id, "hyojo.weights_sha256", "0" * 64)
    project.client.set_tag(run.info.run_id, "hyojo.machine", json.dumps({"threads": "64"}))
    done = project.run("python", "-m", "pipeline.cli", "reproduce", run.info.run_id, check=False)
    assert done.returncode == 4
    assert "The first stage that differs is train." in done.stdout
    assert "threads: 64 then, 1 here" in done.stdout


POISON = """
import sys
def watch(event, args):
    if event == "open" and str(args[0]).endswith("test.npy") and "pipeline.prepare" not in sys.orig_argv:
        open({mark!r}, "a").write(" ".join(sys.orig_argv))
sys.addaudithook(watch)
"""


@pytest.mark.slow
def test_a_search_reads_no_test_split(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials are experiments below one run; what fell behind is a run alone; no process but prepare opens test.npy."""
    mark = tmp_path / "opened"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(POISON.format(mark=str(mark)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    space = "objective: val/loss\nparams:\n  train.lr: {low: 0.001, high: 0.1, log: true}\n  train.epochs: [1, 2]\n"
    (project.root / "search.yaml").write_text(space)
    project.commit("search")
    said = project.hyojo("search", "--trials", "2", "--confirm", "1", "--no-prune")
    assert "search: 2 trials finished, 0 ended early, 0 failed" in said
    assert "under 1 fresh seeds" in said
    assert not mark.exists()
    parents = [run for run in project.runs() if run.data.tags.get("hyojo.kind") == "search"]
    children = [run for run in project.runs() if run.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    assert (len(parents), len(children)) == (1, 3)
    assert not any(name.startswith("test/") for run in children for name in run.data.metrics)
    names = {item.path for item in project.client.list_artifacts(parents[0].info.run_id, "search")}
    assert {"search/trials.csv", "search/optimization_history.png"} <= names
    assert project.git("status", "--porcelain", "--untracked-files=no") == ""
    again = project.hyojo("search", "--trials", "2", "--confirm", "0")  # goes on where it was: at its end
    assert "2 trials finished" in again
    project.dvc("exp", "apply", re.search(r"`dvc exp apply ([\w-]+)`", said)[1])
    project.dvc("repro", "evaluate")
    assert mark.exists()  # the hook sees evaluate, which reads it
