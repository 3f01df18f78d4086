"""The command line: quick help, recipes, exit codes, and answers that other programs can read."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from builders import TINY_RECIPE, write_bundle
from builders import run_hyojo as hyojo
from PIL import Image

from pipeline import cli
from pipeline.experiments import promotion
from pipeline.tracking import registry

HEAVY = {"torch", "timm", "mlflow", "pandas", "numpy", "sklearn", "matplotlib", "onnx", "pydantic"}


def test_help_of_each_command_loads_nothing_heavy(capsys: pytest.CaptureFixture[str]) -> None:
    # One process for all: each help is printed, and then the modules are counted.
    script = f"""
import contextlib, sys
from pipeline import cli
for command in [[], *([name] for names in cli.JOBS.values() for name in names)]:
    sys.argv = ["hyojo", *command, "--help"]
    with contextlib.suppress(SystemExit):
        cli.main()
print("HEAVY", sorted({HEAVY!r} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"
    own = done.stdout.split("usage:")[1]
    for job, names in cli.JOBS.items():
        for name in names:
            assert done.stdout.count(f"usage: hyojo {name} ") == 1
            assert f"\n  {name} " in own.split(f"\n{job}:")[1].split("\n\n")[0]


@pytest.mark.parametrize("arguments", [["fly"], ["predict"], ["promote", "best"], ["predict", "x", "--json", "--csv"]])
def test_misuse_ends_with_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert hyojo(*arguments) == 2
    assert "usage: hyojo" in capsys.readouterr().err


@pytest.fixture
def workshop(tmp_path: Path, tiny_params: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe and an older params.yaml, which is the working directory."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "tiny.yaml").write_text(tiny_params)
    (tmp_path / "params.yaml").write_text("older: true\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_use_writes_the_default_with_the_recipe(workshop: Path, tiny_params: str) -> None:
    """Also of a recipe that is complete; what stands at a recipe's head does not hold with another word in it."""
    for head, recipe in (("# It gave 0.7\n# in an hour.\n", TINY_RECIPE), ("", tiny_params)):
        (workshop / "recipes" / "tiny.yaml").write_text(head + recipe)
        assert hyojo("use", "recipes/tiny.yaml") == 0
        assert (workshop / "params.yaml").read_text() == tiny_params


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_use_changes_params_in_place_and_adds_new_keys(
    workshop: Path, tiny_params: str, capsys: pytest.CaptureFixture[str], line_end: str
) -> None:
    mine = "# mine\n" + tiny_params.replace("  amp: none ", "  amp:   'none' ")
    older = "".join(line for line in mine.splitlines(keepends=True) if not line.startswith("  risk:"))
    (workshop / "params.yaml").write_bytes(older.replace("\n", line_end).encode())
    assert hyojo("use", "params.yaml", "train.epochs=7") == 0
    assert "New keys, with their defaults: evaluate.risk." in capsys.readouterr().out
    written = (workshop / "params.yaml").read_bytes().decode()
    assert written == mine.replace("epochs: 3", "epochs: 7").replace("\n", line_end)


def test_use_takes_overrides(workshop: Path, tiny_params: str) -> None:
    overrides = ["train.epochs=7", "train.schedule.name=cosine", "prepare.source=data/my faces", "train.lr=1e-2"]
    assert hyojo("use", "recipes/tiny.yaml", *overrides) == 0
    expected, written = (yaml.safe_load(text) for text in (tiny_params, (workshop / "params.yaml").read_text()))
    assert float(written["train"]["lr"]) == 0.01
    expected["train"] |= {"epochs": 7, "lr": written["train"]["lr"]}
    expected["train"]["schedule"]["name"] = "cosine"
    expected["prepare"]["source"] = "data/my faces"
    assert written == expected
    assert (workshop / "recipes" / "tiny.yaml").read_text() == tiny_params


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["recipes/tiny.yaml", "train.epoch=7"], "epochs"),
        (["recipes/tiny.yaml", "train.epochs=seven"], "train.epochs"),
        (["recipes/tiny.yaml", "train.epochs"], "train.epochs"),
        (["recipes/tiny.yaml", "train.schedule.name=cosin"], "train.schedule.name"),
        (["recipes/huge.yaml"], "recipes/huge.yaml"),
        (["params.yaml"], "older"),
    ],
)
def test_use_refuses_and_leaves_params_as_they_are(
    workshop: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hyojo("use", *arguments) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert said in printed.err
    assert "Traceback" not in printed.err
    assert (workshop / "params.yaml").read_text() == "older: true\n"
    assert sorted(path.name for path in workshop.iterdir()) == ["params.yaml", "recipes"]


@pytest.mark.parametrize(("changed", "status"), [(True, 0), (False, 0), (False, 1)])
def test_promote_tells_by_its_status(
    changed: bool, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []
    outcome = registry.Outcome(2, changed, "How it went.", refused=status == 1)
    monkeypatch.setattr(promotion, "promote", lambda *given: asked.append(given) or outcome)
    assert hyojo("promote", "2") == status
    assert hyojo("promote", "--force", "--reason", "the demo", "--project", "cats") == status
    assert asked == [(2, False, None, None, None), (None, True, "the demo", "cats", None)]
    assert capsys.readouterr().out.splitlines() == [outcome.message] * 2


@pytest.mark.parametrize("command", [["register"], ["promote"], ["rollback"], ["sync"]])
def test_commands_that_find_nothing_say_what_to_do(
    project: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert hyojo(*command) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ")
    assert "`dvc repro" in said or "`hyojo register`" in said or "no former champion" in said


def test_relocate(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In place it changes nothing; outside a project there is nothing."""
    assert hyojo("sync", "--relocate") == 0
    assert capsys.readouterr().out.startswith("0 ")
    monkeypatch.chdir(tmp_path)
    assert hyojo("sync", "--relocate") == 1
    assert "not inside a Hyojo project" in capsys.readouterr().err


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle that tells bright pictures from dark ones, beside one of each and a broken one."""
    folder = write_bundle(tmp_path / "models" / "bundle")
    (tmp_path / "faces").mkdir()
    Image.new("RGB", (30, 20), "white").save(tmp_path / "faces" / "a.png")
    Image.new("L", (9, 9), 0).save(tmp_path / "faces" / "b.jpg")
    (tmp_path / "faces" / "ü.png").write_bytes(b"no picture")
    monkeypatch.chdir(tmp_path)
    return folder


LABELS = {"faces/a.png": "bright", "faces/b.jpg": "dark", "faces/ü.png": None}
# Softmax of (255 / 64, 0): what the bundle is for pure white, worked by hand.
SURE = 1 / (1 + np.exp(-255 / 64))


@pytest.mark.usefixtures("bundle")
def test_predict_prints_json_csv_or_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    def said(*arguments: str) -> str:
        assert hyojo("predict", *arguments) == 0
        return capsys.readouterr().out

    text = said("--json", "faces")
    rows = json.loads(text)
    assert "ü" in text
    assert {row["file"]: row["label"] for row in rows} == LABELS
    assert rows[0]["probabilities"] == pytest.approx({"bright": SURE, "dark": 1 - SURE}, abs=1e-5)
    assert [bool(row["error"]) for row in rows] == [False, False, True]
    rows = list(csv.DictReader(io.StringIO(said(*LABELS, "--csv"))))
    assert {row["file"]: row["label"] or None for row in rows} == LABELS
    assert float(rows[0]["prob_bright"]) == pytest.approx(SURE, abs=1e-5)
    lines = said("faces").splitlines()
    assert lines[0].split() == ["faces/a.png", "bright", f"{SURE:.3f}"]
    assert lines[2].split()[:2] == ["faces/ü.png", "error:"]


@pytest.mark.usefixtures("bundle")
def test_predict_fails_only_when_nothing_could_be_classified(capsys: pytest.CaptureFixture[str]) -> None:
    assert hyojo("predict", "faces/ü.png") == 1
    assert "faces/ü.png" in capsys.readouterr().out
    assert hyojo("predict", "nowhere.png") == 1
    assert "nowhere.png does not exist" in capsys.readouterr().err
    assert hyojo("predict", "faces", "--model", "models/none") == 1
    assert "models/none is no bundle" in capsys.readouterr().err
