"""Doubting training labels: folds, what each net sees, and the command."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from builders import TINY_PARAMS, run_hyojo, seal_prepared, write_sidecars

from pipeline.core.dataset import Prepared, load_prepared
from pipeline.core.errors import UserError
from pipeline.core.params_file import apply_overrides, parse_params
from pipeline.core.paths import TRAINED
from pipeline.experiments import suspects
from pipeline.tracking import store
from pipeline.tracking.runs import TrainingRun
from pipeline.tracking.suspects import PAGE, SUMMARY, TABLE, log_suspects
from pipeline.tracking.sync import sync


@pytest.fixture
def prepared(prepared_dir: Path) -> Prepared:
    """The tiny data set, opened."""
    return load_prepared(prepared_dir)


def test_every_image_is_in_one_fold_and_twins_are_in_the_same() -> None:
    rng = np.random.default_rng(0)
    targets, groups = rng.integers(0, 3, 300), rng.integers(0, 120, 300)
    cut = list(suspects.cut_folds(targets, groups, 4, seed=0))
    assert sorted(np.concatenate(cut)) == list(range(300))
    for held_out in cut:
        assert not set(groups[held_out]) & set(np.delete(groups, held_out))
        counts = np.bincount(targets[held_out], minlength=3)
        assert np.abs(counts - np.bincount(targets) / 4).max() < 10
    assert any((a != b).any() for a, b in zip(cut, suspects.cut_folds(targets, groups, 4, seed=1)) if len(a) == len(b))


@pytest.mark.parametrize("count", [1, 4])
def test_too_many_folds_are_refused(count: int) -> None:
    targets, groups = np.array([0, 0, 0, 0, 1, 1, 1, 1]), np.array([0, 1, 2, 3, 4, 5, 6, 6])
    with pytest.raises(UserError, match="the smallest class has 3 different training images, so take 2 to 3"):
        suspects.cut_folds(targets, groups, count, 0)


def test_twins_by_the_manifest(prepared: Prepared) -> None:
    path = prepared.path / "manifest.csv"
    manifest = pd.read_csv(path, dtype={"twins": object})
    manifest["twins"] = ""
    training = manifest.index[manifest["split"] == "train"]
    manifest.loc[training[[2, 5]], "twins"] = "7"
    manifest.sample(frac=1, random_state=0).to_csv(path, index=False)
    groups = suspects.twin_groups(load_prepared(seal_prepared(prepared.path)))
    rows = manifest.loc[training[[2, 5]], "row"].to_numpy()
    assert groups[rows].tolist() == [7, 7]
    assert len(np.unique(groups)) == len(training) - 1


def test_no_net_sees_what_it_judges(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    params, split = parse_params(TINY_PARAMS).train, prepared.split("train")
    seen, judged = [], []
    monkeypatch.setattr(suspects, "train_on", lambda _params, _prepared, part, _label: seen.append(set(part.files)))

    def judge(_net: None, _params: object, images: np.ndarray) -> np.ndarray:
        judged.append(images)
        return np.full((len(images), 3), 1 / 3)

    monkeypatch.setattr(suspects, "judge", judge)
    probs = suspects.held_out_probs(params, prepared, split, np.arange(len(split)), 3)
    assert np.isfinite(probs).all()
    by_image = {image.tobytes(): file for image, file in zip(split.images, split.files)}
    for files, images in zip(seen, judged, strict=True):
        assert files | {by_image[image.tobytes()] for image in images} == set(split.files)
        assert not files & {by_image[image.tobytes()] for image in images}


def test_wrong_labels_are_found_by_real_training(prepared: Prepared) -> None:
    params = parse_params(apply_overrides(TINY_PARAMS, ["train.epochs=6"])).train
    split = prepared.split("train")
    targets = split.targets.copy()
    wrong = np.arange(0, len(split), len(split) // 4)[:4]
    targets[wrong] = (targets[wrong] + 1) % len(prepared.class_names)
    spoilt = replace(split, targets=targets)
    probs = suspects.held_out_probs(params, prepared, spoilt, np.arange(len(split)), 3)
    own = probs[np.arange(len(split)), targets]
    assert own[wrong].mean() < np.delete(own, wrong).mean()
    again = suspects.held_out_probs(params, prepared, spoilt, np.arange(len(split)), 3)
    np.testing.assert_array_equal(probs, again)


@pytest.mark.usefixtures("project")
def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.metrics.suspects.LEVEL", 1.0)  # after one epoch nets know nothing
    assert run_hyojo("suspects", "--folds", "2", "--epochs", "1") == 0
    table = pd.read_csv("reports/label_suspects_train.csv")
    assert set(table["split"]) <= {"train"}
    page = Path("reports/label_suspects_train.html").read_text(encoding="utf-8")
    assert "training images have a label that the model doubts" in page
    assert "label_suspects_train.csv has" in page
    assert f"{len(table):,} of " in capsys.readouterr().out
    ((_, figures, files),) = logged()
    assert figures["suspects/doubted"] == len(table)
    assert figures["suspects/images"] == len(load_prepared().split("train"))
    assert files == FILES


@pytest.mark.usefixtures("project")
def test_the_command_writes_nothing_where_nets_know_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    Path("params.yaml").write_text(apply_overrides(Path("params.yaml").read_text(), ["train.lr=1e-9"]))
    assert run_hyojo("suspects", "--folds", "2", "--epochs", "1") == 1
    assert re.search(r"too weak to tell .* right on 0\.\d+, as chance .* --epochs 2", capsys.readouterr().err)
    assert not list(Path("reports").glob("label_suspects_train.*"))
    assert run_hyojo("suspects", "--epochs", "0") == 1
    assert "one at least" in capsys.readouterr().err


# MLflow


@pytest.fixture
def doubted(project: Path) -> Path:
    """A project in which the command has been run, but for MLflow."""
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text("file,split\n")
    PAGE.write_text("<p>")
    figures = {"images": 40, "doubted": 7, "accuracy": 0.5, "folds": 2, "epochs": 1}
    SUMMARY.write_text(json.dumps({"data_digest": "d" * 64} | figures))
    return project


def logged() -> list[tuple[str, dict[str, float], set[str]]]:
    """Runs with doubts on them: how each came to be, the figures, and the files."""
    client = store.connect()
    found = []
    for run in client.search_runs([store.experiment_id(client)]):
        figures = {name: value for name, value in run.data.metrics.items() if name.startswith("suspects/")}
        files = {item.path for item in client.list_artifacts(run.info.run_id, "suspects")}
        found += [(run.data.tags["mlflow.source.name"], figures, files)] if figures or files else []
    return found


FIGURES = {
    "suspects/images": 40, "suspects/doubted": 7, "suspects/accuracy": 0.5, "suspects/folds": 2, "suspects/epochs": 1,
}  # fmt: skip
FLAT = {"prepare.source": "data/tiny.zip", "train.backbone": "face_resnet_s"}
FILES = {f"suspects/label_suspects_train.{suffix}" for suffix in ("csv", "html", "json")}


@pytest.mark.parametrize("digest, source", [("d" * 64, "dvc.yaml"), ("e" * 64, "hyojo suspects")])
def test_doubts_are_logged_beside_the_model_that_learnt_these_data(doubted: Path, digest: str, source: str) -> None:
    run = TrainingRun(FLAT, {"hyojo.data_digest": digest})
    run.finish("FINISHED")
    write_sidecars(TRAINED, run.run_id, data_digest=digest)
    log_suspects()
    log_suspects()
    assert logged() == [(source, FIGURES, FILES)]


def test_doubts_without_any_model_have_a_run(
    doubted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.tracking.suspects.connect", lambda: 1 / 0)  # a server that is away costs nothing
        log_suspects()
    assert "warning: MLflow: logging the suspects failed" in capsys.readouterr().err
    log_suspects()
    assert logged() == [("hyojo suspects", FIGURES, FILES)]
    client = store.connect()
    (run,) = client.search_runs([store.experiment_id(client)])
    assert run.info.status == "FINISHED"
    assert run.data.params["train.backbone"] == "face_resnet_s"


def test_sync_makes_up_for_it(doubted: Path) -> None:
    write_sidecars(TRAINED, params=FLAT)
    (TRAINED / "history.csv").write_text("epoch,train/loss\n1,0.5\n")
    assert sync()[-1] == "suspects among training labels of reports/label_suspects_train.json"
    assert sync()
    assert logged() == [("dvc.yaml", FIGURES, FILES)]
