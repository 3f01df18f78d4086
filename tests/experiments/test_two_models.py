"""Comparing two contenders: figures against scikit-learn, a verdict that knows chance, the right pictures."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import CLASS_NAMES, SPLIT_SIZES, run_hyojo, write_predictions
from sklearn.metrics import f1_score, recall_score

from pipeline.core.dataset import load_prepared
from pipeline.core.errors import UserError
from pipeline.experiments import contenders, names, page
from pipeline.experiments.contenders import Contender
from pipeline.experiments.two_models import compare


@pytest.fixture
def pair(project: Path) -> tuple[Contender, Contender]:
    """Two contenders on the test split of the project; each errs where the other need not."""
    split = load_prepared().split("test")
    digest = load_prepared().split_digests["test"]
    found = []
    for seed, (name, accuracy) in enumerate({"old": 0.4, "new": 0.9}.items()):
        rng = np.random.default_rng(seed)
        preds = np.where(rng.random(len(split)) < accuracy, split.targets, (split.targets + 1) % 3)
        path = write_predictions(project / f"{name}.csv", split.targets, preds)
        table = contenders.read_predictions(path.read_bytes(), name)
        table["file"] = split.files
        params = {"train.lr": str(seed), "train.epochs": "3", "prepare.img_size": "16"}
        costs = {"cost/parameters": 1000.0 * (seed + 1), "train/time_s": 5.0}
        found.append(Contender(name, f"{seed}" * 32, params, costs, {}, table, digest))
    return found[0], found[1]


def test_figures_are_those_of_scikit_learn(pair: tuple[Contender, Contender]) -> None:
    old, new = pair
    found = compare(old, new)
    assert found.scores["accuracy"]["difference"] == pytest.approx(new.right.mean() - old.right.mean())
    for side, contender in (("a", old), ("b", new)):
        expected = f1_score(contender.targets, contender.preds, average="macro")
        assert found.scores["macro-F1"][side] == pytest.approx(expected)
        recalls = recall_score(contender.targets, contender.preds, average=None)
        assert [row[side] for row in found.classes] == pytest.approx(recalls.tolist())
    for score in ("accuracy", "macro-F1"):
        row = found.scores[score]
        assert row["low"] <= row["difference"] <= row["high"]
    assert found.params == [("train.lr", "0", "1")]
    assert found.costs[0] == ("parameters", 1000.0, 2000.0, 2.0)
    assert found.costs[1] == ("FLOPs", None, None, None)
    counts = {name: len(rows) for name, rows in found.samples.items()}
    assert counts["fixed"] - counts["broken"] == new.right.sum() - old.right.sum()
    assert counts["broken"] + counts["still wrong"] == (~new.right).sum()


def test_the_verdict(pair: tuple[Contender, Contender]) -> None:
    old, new = pair
    assert re.match(r"B is better by \d+\.\d\d points of accuracy", compare(old, new).verdict)
    assert compare(new, old).verdict.startswith("B is worse by")
    same = compare(old, old)
    assert same.verdict.startswith("Indistinguishable on these 27 images: B - A is +0.00 points")
    varied = compare(old, replace(new, seed_sd=0.5, seed_runs=4))
    assert "no more than another seed might make it" in varied.verdict


def test_classes_in_another_order_are_the_same_classes(pair: tuple[Contender, Contender]) -> None:
    old, new = pair
    columns = ["file", "label", "predicted", *(f"prob_{name}" for name in reversed(CLASS_NAMES))]
    turned = replace(new, predictions=new.predictions[columns])
    assert compare(old, turned).as_dict() == compare(old, new).as_dict()


def test_what_cannot_be_paired_is_refused(pair: tuple[Contender, Contender]) -> None:
    old, new = pair
    other = replace(new, test_digest="8" * 64, params=new.params | {"prepare.img_size": "32"})
    with pytest.raises(UserError, match=r"different data.*prepare.img_size \(16 and 32\)"):
        compare(old, other)
    with pytest.raises(UserError, match="different data"):
        compare(old, replace(new, test_digest=None, predictions=new.predictions.iloc[1:]))
    renamed = new.predictions.replace("sad", "sorry").rename(columns={"prob_sad": "prob_sorry"})
    with pytest.raises(UserError, match="different classes: angry, happy, sad and angry, happy, sorry"):
        compare(old, replace(new, predictions=renamed))


def test_the_text_and_json_say_it_all(pair: tuple[Contender, Contender]) -> None:
    found = compare(*pair)
    text = page.text(found)
    assert found.verdict in text
    for said in ("macro-F1", "angry", "train.lr", "parameters", "2.00", "fixed", "still wrong"):
        assert said in text
    assert "train.epochs" not in text
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["images"] == 27


def test_what_decisions_on_labels_changed_is_told(pair: tuple[Contender, Contender]) -> None:
    """In the terminal, on the page and as JSON; only where there were decisions, and never 0 for what is not known."""
    old, new = pair
    decided = replace(new, corrections={"relabelled_train": 1234, "dropped_val": 1, "confirmed": 7, "unmatched": 2})
    for found in (compare(old, new), compare(replace(old, corrections={}), replace(new, corrections={"confirmed": 7}))):
        assert found.as_dict()["corrections"] == []
        assert "by decision" not in page.text(found)
        assert "Labels that people decided" not in page.page(found)
    found = compare(replace(old, corrections={}), decided)
    assert found.as_dict()["corrections"] == [
        {"name": "labels changed in train", "a": 0, "b": 1234},
        {"name": "left out in val", "a": 0, "b": 1},
    ]
    assert re.search(r"^labels changed in train +0 +1,234$", page.text(found), re.MULTILINE)
    assert re.search(r"<th>labels changed in train</th><td>0</td><td[^>]*>1,234</td>", page.page(found))
    assert re.search(r"^left out in val +not recorded +1$", page.text(compare(old, decided)), re.MULTILINE)
    other = replace(decided, test_digest="8" * 64, corrections={"relabelled_test": 3})
    with pytest.raises(UserError, match=r"different data.*labels changed in test \(0 and 3\)"):
        compare(replace(old, corrections={}), other)


def test_the_page_has_pictures_only_of_the_data_that_were_compared(pair: tuple[Contender, Contender]) -> None:
    old, new = pair
    found = compare(old, new)
    html = page.page(found)
    assert html.count("data:image/jpeg") == sum(min(24, len(rows)) for rows in found.samples.values())
    assert len(old.targets) == 3 * SPLIT_SIZES["test"]
    assert not re.search(r'(src|href)="(?!data:)', html)  # self-contained
    other = [replace(side, test_digest="8" * 64) for side in pair]
    html = page.page(compare(*other))
    assert "data:image/jpeg" not in html
    assert "another test split" in html
    shutil.rmtree("data")
    assert "classes.json not found" in page.page(found)


def test_the_command(
    pair: tuple[Contender, Contender], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(names, "find_contender", dict(zip(("old", "new"), pair)).__getitem__)
    assert run_hyojo("compare", "old", "new") == 0
    assert "reports/compare.html" in capsys.readouterr().out
    assert Path("reports/compare.html").exists()
    assert run_hyojo("compare", "old", "new", "--json") == 0
    assert json.loads(capsys.readouterr().out)["a"]["name"] == "old"
    assert run_hyojo("compare", "old", "new", "--html", "elsewhere/page.html") == 0
    assert "B is better" in Path("elsewhere/page.html").read_text()
    Path("device").symlink_to(os.devnull)
    assert run_hyojo("compare", "old", "new", "--html", "device") == 0
    assert Path("device").is_symlink()
    assert run_hyojo("compare", "old", "new", "--html", "elsewhere") == 1
    assert "Give another --html FILE" in capsys.readouterr().err
