"""Contenders: whatever a model is called by, the same run with its own answers is found, or the names there are."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from builders import CLASS_NAMES, draw_noise, prepare_params, run_git, write_predictions, write_zip

from pipeline.core.errors import UserError
from pipeline.core.paths import CORRECTIONS
from pipeline.experiments import contenders, names
from pipeline.prepare.corrections import Correction, write_corrections
from pipeline.prepare.stage import prepare
from pipeline.tracking.runs import INPUTS, log_files
from pipeline.tracking.store import connect, experiment_id

TARGETS = np.array([0, 1, 2, 0, 1, 2])
PREDS = np.array([0, 1, 2, 0, 0, 1])


def make_run(name: str = "", preds: np.ndarray = PREDS, evaluated: bool = True, **tags: str) -> str:
    """Make an MLflow run as the pipeline does; the keys of ``tags`` have _ for a dot."""
    client = connect()
    made = {key.replace("_", "."): value for key, value in tags.items()}
    run_id = client.create_run(experiment_id(client), run_name=name, tags=made).info.run_id
    if evaluated:
        table = write_predictions(Path("scratch/predictions.csv"), TARGETS, preds)
        client.log_artifact(run_id, str(table), "evaluation")
        client.set_tag(run_id, "hyojo.evaluation", "k")
        client.set_tag(run_id, "hyojo.test_digest", "7" * 64)
    client.log_param(run_id, "train.lr", "0.1")
    client.log_metric(run_id, "test/accuracy", float((preds == TARGETS).mean()))
    return run_id


def register(run_id: str, test_digest: str = "7" * 64) -> None:
    client = connect()
    if not client.search_registered_models("name = 'hyojo'"):
        client.create_registered_model("hyojo")
    client.create_model_version("hyojo", "runs:/x", run_id, tags={"hyojo.test_digest": test_digest})


def refusal(name: str) -> str:
    with pytest.raises(UserError) as caught:
        names.find_contender(name)
    return str(caught.value)


@pytest.mark.usefixtures("project")
def test_a_run_comes_with_all_that_is_compared() -> None:
    run_id = make_run("face_resnet_s wide")
    found = names.find_contender(run_id)
    assert (found.run_id, found.params, found.test_digest) == (run_id, {"train.lr": "0.1"}, "7" * 64)
    assert found.class_names == CLASS_NAMES
    assert found.metrics["test/accuracy"] == pytest.approx(4 / 6)
    for values, wanted in ((found.targets, TARGETS), (found.preds, PREDS), (found.probs.argmax(axis=1), PREDS)):
        assert values.tolist() == wanted.tolist()
    assert found.right.tolist() == [True] * 4 + [False] * 2
    assert (found.version, found.seed_sd) == (None, None)


@pytest.mark.usefixtures("project")
def test_every_kind_of_name_finds_its_own_run() -> None:
    first = make_run("face_resnet_s", hyojo_dvc_exp_name="x")
    second = make_run("face_resnet_s wide")
    client = connect()
    client.set_tag(first, "hyojo.dvc.exp_name", "odd-exp")
    register(first)
    register(second, "8" * 64)
    client.set_registered_model_alias("hyojo", "champion", "2")
    for name in (first, first[:9], "odd-exp", "1", "v1", "models:/hyojo/1", "face_resnet_s"):
        assert names.find_contender(name).run_id == first, name
    for name in ("face_resnet_s wide", "2", "champion", "@champion", "models:/hyojo@champion"):
        assert names.find_contender(name).run_id == second, name
    assert names.find_contender("v2").version == 2
    assert names.find_contender("v2").test_digest == "8" * 64  # what the version says of itself
    assert "odd-exp" in names.find_contender(first).name


@pytest.mark.usefixtures("project")
def test_ambiguous_names_are_refused_with_the_ids() -> None:
    first, second = make_run("twin"), make_run("twin")
    message = refusal("twin")
    assert first in message
    assert second in message
    # One that was never evaluated does not make a name ambiguous.
    only = make_run("lone")
    bare = make_run("lone", evaluated=False)
    assert names.find_contender("lone").run_id == only
    assert "hyojo sync" in refusal(bare)  # the remedy


@pytest.mark.usefixtures("project")
def test_unknown_names_are_answered_with_those_there_are() -> None:
    register(make_run())
    for name in ("nothing", "9", "@nobody", "v9", "it's", "0000000000", "-x", "models:/hyojo@nobody"):
        message = refusal(name)
        assert "there is no version" in message
        assert "Versions: 1." in message
    assert "models:/hyojo@ALIAS" in refusal("models:/other/1")


def test_decisions_on_labels_are_those_of_the_audit(project: Path, tmp_path: Path) -> None:
    """Of a run as prepare and train left it, and of the workspace; none is known where there is no audit."""
    assert names.find_contender(make_run()).corrections is None
    files = [f"{split}/{label}/{i}.png" for split in ("train", "val", "test") for label in (1, 2) for i in range(4)]
    source = write_zip(tmp_path / "s.zip", {name: draw_noise(seed) for seed, name in enumerate(files)})
    prepare(prepare_params(source))
    table = pd.read_csv("data/prepared/manifest.csv", dtype=str).set_index("file")
    decided = {"train/1/0.png": "2", "train/1/1.png": "2", "train/2/0.png": "", "test/1/0.png": "2", "val/1/0.png": "1"}
    rows = [(table.loc[name, "sha256"], name, table.loc[name, "label"], new) for name, new in decided.items()]
    write_corrections(CORRECTIONS, [Correction(*row, who="Ann", when="2026-01-02") for row in rows])
    prepare(prepare_params(source, corrections="all"))
    run_id = make_run()
    log_files(connect(), run_id, {"": INPUTS})
    told = {"confirmed": 1, "dropped_train": 1, "relabelled_test": 1, "relabelled_train": 2}
    assert names.find_contender(run_id).corrections == told
    write_predictions(project / "reports" / "predictions.csv", TARGETS, TARGETS)
    evaluation = {"run_id": "f" * 32, "val": {}, "test": {"accuracy": 1.0}, "test_clean": {"images": 6}}
    (project / "reports" / "evaluation.json").write_text(json.dumps(evaluation))
    assert names.find_contender(".").corrections == told


def test_the_workspace(project: Path) -> None:
    assert "dvc repro evaluate" in refusal(".")
    run_id = make_run()
    write_predictions(project / "reports" / "predictions.csv", TARGETS, TARGETS)
    path = project / "reports" / "evaluation.json"
    metrics = {"run_id": run_id, "val": {}, "test": {"accuracy": 1.0}, "test_clean": {"images": 6}}
    path.write_text(json.dumps(metrics))
    found = names.find_contender(".")
    assert (found.name, found.run_id, found.test_digest) == ("workspace", run_id, "7" * 64)
    assert found.right.all()  # the files are the truth, whatever the run has
    assert found.metrics["test/accuracy"] == 1.0
    # Of a run that this store lacks, the files are still there.
    path.write_text(json.dumps(metrics | {"run_id": "f" * 32}))
    assert names.find_contender(".").right.all()


def test_dvc_experiments_and_revisions_name_the_run_of_their_metrics(project: Path) -> None:
    run_id = make_run("some name")

    run_git("init", "-q")
    (project / "reports").mkdir()
    (project / "reports" / "evaluation.json").write_text(json.dumps({"run_id": run_id}))
    run_git("add", "reports")
    run_git("commit", "-qm", "one")
    commit = run_git("rev-parse", "HEAD")
    run_git("update-ref", f"refs/exps/{commit[:2]}/{commit[2:]}/broad-bets", commit)
    for name in ("broad-bets", "HEAD", commit):
        assert names.find_contender(name).run_id == run_id, name
    assert "Experiments: broad-bets." in refusal("broad-bet")
    (project / "reports" / "evaluation.json").write_text(json.dumps({"run_id": "f" * 32}))
    run_git("commit", "-qam", "two")
    assert "which this store lacks" in refusal("HEAD")


@pytest.mark.usefixtures("project")
def test_the_spread_over_seeds_comes_from_the_parent_of_the_seeds() -> None:
    client = connect()
    parent = client.create_run(experiment_id(client), tags={"hyojo.kind": "seeds"}).info.run_id
    client.log_metric(parent, "seeds/test_accuracy_sd", 0.007)
    seeds = [make_run(mlflow_parentRunId=parent) for _ in range(3)]
    for run_id in seeds:
        client.set_tag(run_id, "mlflow.parentRunId", parent)
    # An evaluation of its own, with other params, of one of these trainings.
    child = make_run()
    client.set_tag(child, "mlflow.parentRunId", seeds[0])
    for run_id in (seeds[1], child):
        found = names.find_contender(run_id)
        assert (found.seed_sd, found.seed_runs) == (0.007, 3)
    client.delete_tag(parent, "hyojo.kind")
    assert names.find_contender(child).seed_sd is None


def test_names_of_classes_stay_text_and_odd_tables_are_refused() -> None:
    odd = pd.DataFrame({"file": ["1", "NA"], "label": ["1", "NA"], "predicted": ["NA", "NA"]})
    table = odd.assign(prob_1=[0.1, 0.2], prob_NA=[0.9, 0.8])
    read = contenders.read_predictions(table.to_csv(index=False).encode(), "x")
    assert read["label"].tolist() == ["1", "NA"]
    for wrong in (odd, table.drop(columns="file"), table.iloc[:0], table.drop(columns="prob_NA")):
        with pytest.raises(UserError, match="predictions of run 7"):
            contenders.read_predictions(wrong.to_csv(index=False).encode(), "run 7")
    with pytest.raises(UserError, match="cannot be read"):
        contenders.read_predictions(b"", "x")
