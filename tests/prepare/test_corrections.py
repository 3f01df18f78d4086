"""Decisions about labels: applied to train alone unless asked, counted in the audit, refused where they are none."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from builders import ROOT, draw_noise, load_script, prepare_params, run_hyojo, write_zip

from pipeline.core.errors import UserError
from pipeline.core.paths import CORRECTIONS
from pipeline.prepare.corrections import HEADER
from pipeline.prepare.stage import prepare

SPLITS = {"train/happy": 8, "train/sad": 6, "val/happy": 2, "val/sad": 3, "test/happy": 4, "test/sad": 4}


@pytest.fixture
def source(home: Path, tmp_path: Path) -> Path:
    """Pictures in splits, one of them twice with two labels, prepared without any decision."""
    seeds = iter(range(100))
    tree = {f"{folder}/{i}.png": draw_noise(next(seeds)) for folder, count in SPLITS.items() for i in range(count)}
    tree["train/sad/twin.png"] = tree["train/happy/0.png"]
    path = write_zip(tmp_path / "s.zip", tree)
    prepare(prepare_params(path, conflicts="keep"))
    return path


def manifest() -> pd.DataFrame:
    return pd.read_csv("data/prepared/manifest.csv", dtype=str, keep_default_na=False).set_index("file")


def decide(*decisions: tuple[str, str]) -> None:
    """Write a decision for each file name; the old label and the digest are those of the manifest."""
    table, rows = manifest(), []
    for file, new in decisions:
        rows.append((table.loc[file, "sha256"], file, table.loc[file, "label"], new, "Ann", "2026-01-02T03:04:05"))
    CORRECTIONS.parent.mkdir(exist_ok=True)
    pd.DataFrame(rows, columns=list(HEADER)).to_csv(CORRECTIONS, index=False)


def test_training_labels_are_changed_and_pictures_left_out(source: Path, home: Path) -> None:
    before, plain = manifest(), json.loads(Path("data/prepared/classes.json").read_text())
    decide(
        ("train/happy/1.png", "sad"), ("train/sad/2.png", ""), ("train/happy/3.png", "happy"),
        ("test/happy/0.png", "sad"), ("train/happy/0.png", "sad"),
    )  # fmt: skip
    audit = prepare(prepare_params(source, conflicts="keep"))
    after = manifest()
    changed = after.index[after["label"] != before["label"]].tolist()
    assert changed == ["train/happy/0.png", "train/happy/1.png"]  # and not the twin, whose label was another one
    assert after.loc[changed, "flags"].str.contains("relabelled").all()
    assert after.loc["train/sad/2.png", "row"] == "-1"
    assert (after["sha256"] == before["sha256"]).all()
    assert audit["corrections"] == {"confirmed": 1, "dropped_train": 1, "left_as_they_are": 1, "relabelled_train": 2}
    assert audit["splits"]["train"] == {"happy": 6, "sad": 8}
    now = json.loads(Path("data/prepared/classes.json").read_text())
    assert now["audit"] == plain["audit"] | {"relabelled": 2, "conflicting_groups": 0}
    assert now["split_digests"]["test"] == plain["split_digests"]["test"]
    assert now["split_digests"]["train"] != plain["split_digests"]["train"]


@pytest.mark.parametrize("scope, relabelled", [("all", {"relabelled": 1, "relabelled_test": 1}), ("none", {})])
def test_val_and_test_are_corrected_only_if_asked(source: Path, scope: str, relabelled: dict[str, int]) -> None:
    before = manifest()
    decide(("test/happy/0.png", "sad"))
    prepare(prepare_params(source, conflicts="keep", corrections=scope))
    assert (manifest().loc["test/happy/0.png", "label"] == "sad") == bool(relabelled)
    headline = json.loads(Path("data/prepared/classes.json").read_text())["audit"]
    assert {name: count for name, count in headline.items() if name.startswith("relabelled")} == relabelled
    assert len(manifest()) == len(before)


def test_cuts_stay_as_they_were(home: Path, tmp_path: Path) -> None:
    """A label that is changed must not deal the pictures out anew: scores before and after could not be compared."""
    tree = {f"{name}/{i}.png": draw_noise(50 * k + i) for k, name in enumerate(("happy", "sad")) for i in range(40)}
    source = write_zip(tmp_path / "s.zip", tree)
    prepare(prepare_params(source))
    before = manifest()
    train = before.index[before["split"] == "train"]
    decide(*((file, "sad" if before.loc[file, "label"] == "happy" else "happy") for file in train[:9]))
    prepare(prepare_params(source))
    after = manifest()
    assert (after["split"] == before["split"]).all()
    assert (after["label"] != before["label"]).sum() == 9


def test_votes_give_way_to_the_decision(home: Path, tmp_path: Path) -> None:
    forms = load_script("benchmarks/forms.py")
    source, _ = forms.as_ferplus(forms.read_archive(ROOT / "data" / "sample.zip", each=8), tmp_path / "work")
    prepare(prepare_params(source, labels="soft"))
    table = manifest()
    file = table.index[table["split"] == "train"][0]
    other = next(name for name in table["label"].unique() if name != table.loc[file, "label"])
    decide((file, other))
    prepare(prepare_params(source, labels="soft"))
    row = int(manifest().loc[file, "row"])
    names = json.loads(Path("data/prepared/classes.json").read_text())["class_names"]
    assert np.load("data/prepared/train_soft.npy")[row].tolist() == [float(name == other) for name in names]


def test_what_is_no_decision_is_refused_before_any_work(source: Path) -> None:
    digest = manifest().loc["train/happy/1.png", "sha256"]
    cases = {
        "a,b\n": "its first line has to be sha256,file",
        f"{','.join(HEADER)}\nabc,f,happy,sad,,\n": "line 2: wants a sha256",
        f"{','.join(HEADER)}\n{digest},f,happy,sda,,\n": "'sda', which is no class: did you mean 'sad'",
        f"{','.join(HEADER)}\n{digest},f,happy,sad,,\n{digest},f,happy,,,\n": "decided twice, as 'sad' and as ''",
    }
    for text, said in cases.items():
        CORRECTIONS.write_text(text)
        with pytest.raises(UserError, match=said):
            prepare(prepare_params(source, conflicts="keep"))
    CORRECTIONS.write_text(f"{','.join(HEADER)}\n{'0' * 64},gone.png,happy,sad,,\n")
    assert prepare(prepare_params(source, conflicts="keep"))["corrections"] == {"unmatched": 1}


def test_relabel_merges_what_pages_saved(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def save(name: str, when: str, who: str, *decisions: tuple[str, str]) -> str:
        decide(*decisions)
        table = pd.read_csv(CORRECTIONS, keep_default_na=False).assign(when=when, who=who)
        table.to_csv(tmp_path / name, index=False)
        CORRECTIONS.unlink()
        return str(tmp_path / name)

    first = save("a.csv", "2026-01-01", "", ("train/happy/1.png", "sad"), ("train/happy/2.png", ""))
    later = save("b.csv", "2026-01-03", "Bob", ("train/happy/1.png", "happy"), ("train/sad/1.png", "happy"))
    older = save("c.csv", "2025-12-31", "Cid", ("train/happy/1.png", ""))
    wrong = save("d.csv", "2026-01-03", "Bob", ("train/happy/1.png", "joy"))
    assert run_hyojo("relabel", first, "--who", "Ann") == 0
    assert (
        "2 decisions more, 0 changed; now 1 labels changed, 0 confirmed, 1 pictures left out" in capsys.readouterr().out
    )
    assert run_hyojo("relabel", later, older) == 0
    table = pd.read_csv(CORRECTIONS, keep_default_na=False)
    assert list(table[["file", "new", "who"]].itertuples(index=False, name=None)) == [
        ("train/happy/1.png", "happy", "Bob"), ("train/happy/2.png", "", "Ann"), ("train/sad/1.png", "happy", "Bob"),
    ]  # fmt: skip
    content = CORRECTIONS.read_bytes()
    assert run_hyojo("relabel", wrong) == 1
    assert "'joy', which is no class" in capsys.readouterr().err
    assert CORRECTIONS.read_bytes() == content
