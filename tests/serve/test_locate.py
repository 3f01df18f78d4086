"""What answers is what was exported, and a folder runs no code of its own unless it is trusted."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from builders import ROOT, add_answering_version, grey_png, run_hyojo, seal_bundle

from pipeline.core.errors import UserError
from pipeline.serve import locate

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def picture(tmp_path: Path) -> str:
    (tmp_path / "face.png").write_bytes(grey_png(250))
    return str(tmp_path / "face.png")


@pytest.mark.parametrize("damage", ["a bit", "classes", "a file more"])
@pytest.mark.parametrize("command", ["predict", "batch", "serve", "verify"])
def test_a_bundle_that_was_changed_is_refused(
    command: str, damage: str, bright_bundle: Path, picture: str, tmp_path: Path, capsys: Capture
) -> None:
    folder = Path(shutil.copytree(bright_bundle, tmp_path / "bundle"))
    words = {
        "predict": [picture, "--model", str(folder)],
        "batch": [str(Path(picture).parent), "--out", str(tmp_path / "out.parquet"), "--model", str(folder)],
        "serve": ["--model", str(folder), "--port", "0"],
        "verify": [str(folder)],
    }
    graph, record = folder / "model.onnx", folder / "bundle.json"
    if damage == "a bit":
        graph.write_bytes(graph.read_bytes()[:-1] + bytes([graph.read_bytes()[-1] ^ 1]))
    elif damage == "classes":
        record.write_text(record.read_text().replace('["bright", "dark"]', '["dark", "bright"]'))
    else:
        (folder / "weights.bin").touch()
    named = {"a bit": "model.onnx", "classes": "bundle.json", "a file more": "weights.bin"}[damage]
    assert run_hyojo(command, *words[command]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert named in said.err
    assert "dvc repro -f export" in said.err
    assert not (tmp_path / "out.parquet").exists()


def test_a_folder_of_mlflow_runs_its_python_only_if_trusted(
    pyfunc_dir: Path, picture: str, tmp_path: Path, capsys: Capture
) -> None:
    folder, mark = Path(shutil.copytree(pyfunc_dir, tmp_path / "model")), tmp_path / "it ran"
    script = folder / "pyfunc_model.py"
    script.write_text(f"open({str(mark)!r}, 'w')\n" + script.read_text())
    for name in (str(folder), folder.as_uri()):
        assert run_hyojo("predict", picture, "--model", name) == 1
        assert (
            f"--trust loads it; the bundle in it is data: --model {name}/artifacts/bundle." in capsys.readouterr().err
        )
    assert run_hyojo("predict", picture, "--model", str(folder / "artifacts" / "bundle")) == 0
    assert not mark.exists()
    assert run_hyojo("predict", picture, "--model", str(folder), "--trust") == 0
    assert mark.exists()


def test_a_bundle_that_was_replaced_is_not_loaded_in_place_of_the_other(bright_bundle: Path, tmp_path: Path) -> None:
    """A process that serves, started anew after a new export, would answer otherwise than the others."""
    folder = Path(shutil.copytree(bright_bundle, tmp_path / "bundle"))
    found = pickle.loads(pickle.dumps(locate.locate(str(folder))))
    assert locate.open_predictor(found)([grey_png(250)])[0]["label"] == "bright"
    (folder / "MODEL_CARD.md").write_text("of another model")
    seal_bundle(folder, class_names=["dark", "bright"])
    with pytest.raises(UserError, match="is not the file that was exported"):
        locate.open_predictor(found)


def test_reading_a_store_needs_no_project_and_writes_nothing(project: Path, picture: str, tmp_path: Path) -> None:
    add_answering_version("first")
    shutil.rmtree(project / ".hyojo")  # locks and the like
    before = {path: path.stat().st_mtime_ns for path in project.rglob("*")}
    elsewhere, scratch = tmp_path / "elsewhere", tmp_path / "scratch"
    elsewhere.mkdir()
    scratch.mkdir()
    named = {"MLFLOW_TRACKING_URI": f"sqlite:///{project / 'mlflow.db'}"}
    for folder, extra in ((elsewhere, named), (project, {})):
        for model in ("champion", "models:/hyojo/1"):
            said = subprocess.run(
                [sys.executable, "-m", "pipeline.cli", "predict", picture, "--model", model],
                env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(scratch)} | extra,
                cwd=folder, capture_output=True, text=True, timeout=120,
            )  # fmt: skip
            assert (said.returncode, said.stderr) == (0, "")
            assert "bright" in said.stdout
    assert {path: path.stat().st_mtime_ns for path in project.rglob("*")} == before
    assert not [*elsewhere.iterdir(), *scratch.iterdir()]


def test_outside_of_projects_the_store_has_to_be_named(
    tmp_path: Path, picture: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert run_hyojo("predict", picture, "--model", "champion") == 1
    assert "Or set MLFLOW_TRACKING_URI to the store" in capsys.readouterr().err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///nothing.db")
    assert run_hyojo("predict", picture, "--model", "champion") == 1
    assert "nothing.db" in capsys.readouterr().err
    assert not (tmp_path / "nothing.db").exists()


def test_a_run_that_is_gone_is_none_where_nobody_made_the_experiment(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.tracking import store

    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    assert store.find_run(store.open_reader(), "0" * 32) is None
