"""The stage on a tiny data set with a real net: its files against scikit-learn, timm and each other."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from builders import invert_block
from evaluation import AUDIT, CLASS_NAMES, LEAKS, MEAN, PARAMS, SIZE, STD, WHOLE, Workspace, make_prepared
from PIL import Image
from scipy import ndimage
from sklearn import metrics as reference

from pipeline.core.dataset import load_prepared
from pipeline.core.dvc_file import find_stage_outs
from pipeline.core.errors import UserError
from pipeline.core.stage_files import RunFile, WeightsFile
from pipeline.evaluate import net, stage
from pipeline.metrics.suspects import COLUMNS, tabulate
from pipeline.metrics.table import METRICS, score
from pipeline.models.model import build_model
from pipeline.models.weights import load_model, read_spec, save_weights
from pipeline.reporting import plots
from pipeline.tracking import evaluations

SCORES = list(METRICS)
FIGURES = ["confusion_matrix", "per_class", "reliability", "risk_coverage", "worst_mistakes"]


def plain_probs(workspace: Workspace, split: str) -> np.ndarray:
    """Probabilities worked out with timm and NumPy alone, without our preprocessing and batching."""
    sidecar = WeightsFile.load(workspace.trained).as_dict()
    net = timm.create_model(sidecar["backbone"], **sidecar["model_args"])
    net.load_state_dict(torch.load(workspace.trained / "weights.pt", weights_only=True))
    images = np.load(workspace.prepared / f"{split}.npy").astype(np.float32).transpose(0, 3, 1, 2)
    with torch.no_grad():
        logits = net.eval()(torch.from_numpy((images / 255 - MEAN) / STD)).double().numpy()
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def scores_of(table: pd.DataFrame) -> dict[str, float]:
    """The scores of predictions; ``test_table`` holds them against scikit-learn."""
    targets = table["label"].map(CLASS_NAMES.index).to_numpy()
    return score(targets, table.filter(like="prob_").to_numpy())


@pytest.mark.usefixtures("undrawn")
def test_predictions_hold_every_sample_and_its_probabilities(workspace: Workspace) -> None:
    workspace.evaluate()
    table = workspace.predictions()
    split = load_prepared(workspace.prepared).split("test")
    assert list(table.columns) == ["file", "label", "predicted", "prob_1", "prob_NA", "prob_sad, or not"]
    assert table["file"].tolist() == split.files
    assert len(table) == 28
    assert table["label"].tolist() == [CLASS_NAMES[target] for target in split.targets]
    expected = plain_probs(workspace, "test")
    assert len(set(expected.argmax(axis=1))) > 1  # the test would prove little with one answer for all
    np.testing.assert_allclose(table.filter(like="prob_"), expected, atol=1e-5)
    assert table["predicted"].tolist() == [CLASS_NAMES[pred] for pred in expected.argmax(axis=1)]


@pytest.mark.usefixtures("undrawn")
def test_metrics_follow_from_the_predictions(workspace: Workspace) -> None:
    returned = workspace.evaluate()
    table = workspace.predictions()
    written = json.loads((workspace.reports / "evaluation.json").read_text())
    assert written == returned
    assert written["test"] == pytest.approx(scores_of(table))
    val_targets = load_prepared(workspace.prepared).split("val").targets
    val_scores = score(val_targets, plain_probs(workspace, "val"))
    assert written["val"] == pytest.approx({name: val_scores[name] for name in written["val"]})
    assert written["run_id"] == "run-of-train"
    assert {name: list(part) for name, part in written.items() if name != "run_id"} == {
        "val": ["accuracy", "macro_f1"],
        "test": SCORES,
        "test_clean": ["images", *SCORES],
        "audit": ["redundant", "conflicting_groups", "test_in_train"],
    }


@pytest.mark.usefixtures("undrawn")
def test_metrics_are_what_other_results_change(workspace: Workspace) -> None:
    """``dvc metrics diff`` has few columns, and git nothing to commit where another run gave the same results."""
    all_of_it = workspace.evaluate(WHOLE.model_copy(update={"tta": ["flip"]}))
    shown = json.loads((workspace.reports / "metrics.json").read_text())
    assert shown["test"] == all_of_it["test"]
    assert {part: list(scores) for part, scores in shown.items() if part != "test"} == {
        **{part: ["accuracy", "macro_f1"] for part in ("val", "test_clean", "test_tta")},
        "robustness": ["mean_corruption_accuracy"],
    }
    assert all(all_of_it[part][name] == value for part, scores in shown.items() for name, value in scores.items())
    assert sum(map(len, shown.values())) <= 20
    before = (workspace.reports / "metrics.json").read_bytes()
    own = RunFile.load()
    own.model_copy(update={"run_id": "another"}).save()
    workspace.evaluate(WHOLE.model_copy(update={"tta": ["flip"]}))
    assert (workspace.reports / "metrics.json").read_bytes() == before
    assert json.loads((workspace.reports / "evaluation.json").read_text())["run_id"] == "another"


@pytest.mark.usefixtures("undrawn")
def test_clean_scores_are_those_without_the_twins(workspace: Workspace) -> None:
    result = workspace.evaluate()
    assert result["audit"] == AUDIT
    table = workspace.predictions().drop(index=sorted(LEAKS))
    clean = result["test_clean"]
    assert clean == pytest.approx({"images": 24} | scores_of(table))
    assert result["test"]["accuracy"] != clean["accuracy"]
    make_prepared(workspace.prepared, {"train": [0], "val": [2], "test": [1]})
    assert workspace.evaluate()["test_clean"] == {"images": 0}


@pytest.mark.usefixtures("undrawn")
def test_labels_in_doubt_are_listed(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.metrics.suspects.LEVEL", 1.0)  # weights drawn at random know nothing
    workspace.evaluate()
    text = dict.fromkeys(["file", "split", "label", "suggested"], str)
    table = pd.read_csv(workspace.reports / "label_suspects.csv", dtype=text, keep_default_na=False)
    splits = {name: load_prepared(workspace.prepared).split(name) for name in ("val", "test")}
    expected = tabulate(splits, {name: plain_probs(workspace, name) for name in splits}, CLASS_NAMES)
    assert len(table)
    pd.testing.assert_frame_equal(table, expected, atol=1e-5, check_dtype=False)
    html = (workspace.reports / "label_suspects.html").read_text(encoding="utf-8")
    assert html.count("<img ") == len(table)


@pytest.mark.usefixtures("undrawn")
def test_no_label_is_in_doubt_by_a_model_that_knows_nothing(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace.evaluate()
    assert (workspace.reports / "label_suspects.csv").read_text().splitlines() == [",".join(COLUMNS)]
    assert "too weak to tell which labels are wrong" in capsys.readouterr().out
    for page in ("label_suspects.html", "report.html"):
        assert "too weak to tell" in (workspace.reports / page).read_text(encoding="utf-8")


def test_tables_and_pictures(workspace: Workspace) -> None:
    workspace.evaluate()
    pairs = pd.read_csv(workspace.reports / "confusion.csv", dtype=str, keep_default_na=False)
    table = workspace.predictions()[["label", "predicted"]]
    pd.testing.assert_frame_equal(pairs, table.rename(columns={"label": "actual"}))
    classes = pd.read_csv(workspace.reports / "per_class.csv", dtype={"class": str}, keep_default_na=False)
    assert list(classes.columns) == ["class", "precision", "recall", "f1", "support"]
    assert classes["class"].tolist() == CLASS_NAMES
    assert classes["support"].tolist() == [12, 8, 8]
    for name in ("confusion_matrix", "per_class", "worst_mistakes"):
        with Image.open(workspace.reports / "figures" / f"{name}.png") as picture:
            assert min(picture.size) >= 300


def test_again_gives_the_same_bytes_and_leaves_nothing_else(workspace: Workspace) -> None:
    workspace.evaluate(WHOLE)
    first = workspace.digests()
    assert set(first) == {
        "metrics.json", "evaluation.json", "per_class.csv", "confusion.csv", "predictions.csv",
        "label_suspects.csv", "label_suspects.html",
        *(f"figures/{name}.png" for name in [*FIGURES, "robustness"]),
        "calibration.json", "reference.json", "intervals.json", "robustness.csv", "slices.csv", "report.html",
    }  # fmt: skip
    (workspace.reports / "audit.json").write_text("{}")  # another stage's
    (workspace.reports / "figures" / "stale.png").write_text("of an older version")
    workspace.evaluate(WHOLE)
    assert (workspace.reports / "audit.json").read_text() == "{}"
    (workspace.reports / "audit.json").unlink()
    assert workspace.digests() == first
    assert not list(workspace.reports.glob(".*"))


@pytest.mark.usefixtures("undrawn")
def test_key_tells_weights_data_and_params_apart_and_batches_change_no_score(workspace: Workspace) -> None:
    small, large, again = (
        workspace.evaluate(PARAMS.model_copy(update={"batch_size": size, "worst": size // 10})) for size in (1, 1000, 1)
    )
    assert small["test"] == again["test"] == pytest.approx(large["test"], rel=1e-5)
    first, other, same = workspace.keys
    assert first == same != other
    keys = {evaluations.evaluation_key(weights, PARAMS, data) for weights in "ab" for data in "ab"}
    assert len(keys) == 4


@pytest.mark.usefixtures("undrawn")
def test_run_gets_metrics_files_and_key(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    result = workspace.evaluate()
    ((run_id, values, files, tags, params),) = workspace.logged
    assert run_id == "run-of-train"
    scores = {part: result[part].keys() & METRICS for part in ("test", "test_clean")}  # counts are no curves
    assert values == {f"{part}/{name}": result[part][name] for part, names in scores.items() for name in names}
    names = {folder: sorted(path.name for path in paths) for folder, paths in files.items()}
    monkeypatch.chdir(Path(stage.__file__).parents[2])
    outs = {out.name for out in find_stage_outs("evaluate")}
    figures = [f"{name}.png" for name in FIGURES]
    assert names == {"evaluation": sorted(outs - {"figures"}), "evaluation/figures": figures}
    assert workspace.keys[0] in tags.values()
    assert params["evaluate.batch_size"] == str(PARAMS.batch_size)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("served", [False, True])
@pytest.mark.parametrize("names", [["flip"], ["shifts"], ["sizes"], ["flip", "shifts", "sizes"]])
def test_views_are_scored_or_are_the_model(workspace: Workspace, names: list[str], served: bool) -> None:
    result = workspace.evaluate(PARAMS.model_copy(update={"tta": names, "serve_tta": served}))
    trust = json.loads((workspace.reports / "calibration.json").read_text())
    images = np.load(workspace.prepared / "test.npy")
    framed = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    corners = [(2, 2), (0, 2), (4, 2), (2, 0), (2, 4)] if "shifts" in names else [(2, 2)]
    seen = [framed[:, top : top + SIZE, left : left + SIZE] for top, left in corners]
    for part in (images[:, 2:-2, 2:-2], framed) if "sizes" in names else ():
        factor = SIZE / part.shape[1]
        seen.append(ndimage.zoom(part / 1.0, (1, factor, factor, 1), order=1, mode="nearest", grid_mode=True))
    seen += [view[:, :, ::-1] for view in seen] if "flip" in names else []
    net = load_model(workspace.trained)[0]
    with torch.no_grad():
        each = [net((torch.from_numpy(view.copy()).float().permute(0, 3, 1, 2) / 255 - MEAN) / STD) for view in seen]
    answers = {"alone": each[0], "mean": torch.stack(each).mean(0)}
    assert trust["tta"] == {"views": names, "passes": len(seen), "served": served}
    beside = result["test_plain" if served else "test_tta"]
    assert beside["passes"] == (1 if served else len(seen))
    assert ("test_tta" in result) != ("test_plain" in result)
    parts = {"mean": result["test"], "alone": beside} if served else {"mean": beside, "alone": result["test"]}
    targets = np.array([0, 1, 2, 2, 1, 0, 0] * 4)
    for name, logits in answers.items():
        probs = (logits.double() / trust["temperature"]).softmax(1).numpy()
        assert parts[name]["accuracy"] == pytest.approx(reference.accuracy_score(targets, probs.argmax(1)))
        assert parts[name]["nll"] == pytest.approx(reference.log_loss(targets, probs), abs=1e-4)
    ((_, values, *_),) = workspace.logged
    assert values["test_plain/nll" if served else "test_tta/nll"] == beside["nll"]


@pytest.mark.usefixtures("undrawn")
def test_accuracy_under_corruptions_is_logged(workspace: Workspace) -> None:
    result = workspace.evaluate(WHOLE)["robustness"]
    table = pd.read_csv(workspace.reports / "robustness.csv", keep_default_na=False)
    assert len(table) == 1 + 2 * 5
    assert set(table["images"]) == {20} == {result["images"]}
    ((_, values, files, *_),) = workspace.logged
    mean = values["robustness/mean_corruption_accuracy"]
    assert mean == result["mean_corruption_accuracy"] == pytest.approx(table["accuracy"][1:].mean())
    assert "robustness.png" in [path.name for path in files["evaluation/figures"]]


def test_failure_leaves_the_old_reports(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.evaluate()
    before = workspace.digests()

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(plots, "save", full)
    with pytest.raises(OSError, match="no space"):
        workspace.evaluate(PARAMS.model_copy(update={"batch_size": 7, "worst": 1}))
    assert workspace.digests() == before
    assert len(workspace.logged) == 1


@pytest.mark.parametrize(
    "key,value,sides",
    [
        ("class_names", ["1", "NA"], ["['1', 'NA']", "sad, or not"]),
        ("class_names", ["NA", "1", "sad, or not"], ["['NA', '1'", "['1', 'NA'"]),
        ("img_size", 20, ["20", "16"]),
        ("channels", 3, ["has 3", "trained on 1"]),
    ],
)
def test_data_of_another_model_are_refused_before_any_work(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, key: str, value: object, sides: list[str]
) -> None:
    workspace.change_data(**{key: value})
    monkeypatch.delattr(net, "load_classifier")
    with pytest.raises(UserError) as caught:
        workspace.evaluate()
    for part in [key, "dvc repro train", *sides]:
        assert part in str(caught.value)
    assert not workspace.reports.exists()


@pytest.mark.usefixtures("undrawn")
def test_data_that_were_not_trained_on_are_pointed_out(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace.evaluate()
    assert "warning" not in capsys.readouterr().err
    workspace.change_data(digest="e" * 64)
    workspace.evaluate()
    assert "not the data that the model was trained on" in capsys.readouterr().err


def test_pixels_that_were_not_prepared_are_refused(workspace: Workspace) -> None:
    invert_block(workspace.prepared / "test.npy")
    with pytest.raises(UserError, match=r"test\.npy .* not what was prepared"):
        workspace.evaluate()
    assert not workspace.reports.exists()


def test_diverged_weights_are_explained(workspace: Workspace) -> None:
    spec = read_spec(WeightsFile.load(workspace.trained))
    model = build_model(spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    save_weights(workspace.trained, model, spec, "d" * 64)
    with pytest.raises(UserError, match=r"9 of 9 val images.*diverged.*train\.lr"):
        workspace.evaluate()


@pytest.mark.parametrize("test,support", [([1], [0, 1, 0]), ([0, 0, 2], [2, 0, 1])])
def test_few_images_and_missing_classes(workspace: Workspace, test: list[int], support: list) -> None:
    make_prepared(workspace.prepared, {"train": [0], "val": [2], "test": test})
    result = workspace.evaluate()
    assert 0 <= result["test"]["accuracy"] <= 1
    assert pd.read_csv(workspace.reports / "per_class.csv")["support"].tolist() == support
    assert len(workspace.predictions()) == len(test)


def test_empty_split_is_named(workspace: Workspace) -> None:
    make_prepared(workspace.prepared, {"train": [0], "val": [1], "test": []})
    with pytest.raises(UserError, match=r"test split is empty.*prepare\.test_fraction"):
        workspace.evaluate()


@pytest.mark.usefixtures("undrawn")
def test_summary_shows_scores_and_recalls(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    result = workspace.evaluate()
    shown = capsys.readouterr().out
    assert f"{result['test']['accuracy']:.4f}  (95 % interval" in shown
    assert f"{result['test']['macro_f1']:.4f}" in shown
    table = workspace.predictions()
    for name in CLASS_NAMES:
        own = table[table["label"] == name]
        recall = (own["predicted"] == name).mean()
        (line,) = [line for line in shown.splitlines() if line.strip().startswith(f"{name} ")]
        assert line.split()[-2:] == [f"{recall:.4f}", str(len(own))]
