"""Files between stages are read back as they were written, and a damaged one is refused by name, with the remedy."""

from pathlib import Path

import pytest

from pipeline.core.errors import UserError
from pipeline.core.stage_files import CalibrationFile, EvaluationFile, RunFile, StageFile

RUN = RunFile(run_id="a", job="b", formats={"onnx": None, "pt2": "too é"})
METRICS = EvaluationFile(val={"accuracy": 0.5}, test={"accuracy": 0.25}, test_clean={"images": 3}, run_id="a")


@pytest.mark.parametrize("file", [RUN, METRICS])
def test_load_gives_what_save_wrote(tmp_path: Path, file: StageFile) -> None:
    file.save(tmp_path)
    assert type(file).load(tmp_path) == file
    assert type(file).load(tmp_path).as_dict() == file.as_dict()


def test_save_leaves_out_what_was_not_given_and_keeps_integers(tmp_path: Path) -> None:
    METRICS.save(tmp_path)
    text = (tmp_path / "evaluation.json").read_text()
    assert "robustness" not in text
    assert '"images": 3\n' in text


@pytest.mark.parametrize(
    "content, reason",
    [
        (b'{"job": "b"}', "run_id: Field required"),
        (b'{"run_id": 3}', "run_id"),
        (b'{"run_id": "a"', "JSON"),
        (b"\xff", "run.json is damaged"),
        (b"", "JSON"),
    ],
)
def test_load_refuses_a_damaged_file_with_its_remedy(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UserError) as caught:
        RunFile.load(tmp_path)
    assert str(tmp_path / "run.json") in str(caught.value)
    assert reason in str(caught.value)
    assert "`dvc repro -f train`" in str(caught.value)


def test_load_names_the_stage_that_writes_a_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"models/train/run.json not found. Run `dvc repro train` first"):
        RunFile.load()
    with pytest.raises(UserError, match=r"reports/calibration.json not found. Run `dvc repro evaluate` first"):
        CalibrationFile.load()


def test_a_file_of_a_newer_version_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"run_id": "a", "mood": 3}')
    assert RunFile.load(tmp_path).run_id == "a"
