"""hyojo watch: folders of batch and logs of requests, against a bundle's reference or earlier scores."""

import json
from pathlib import Path

import numpy as np
import pytest
from builders import grey_png, run_hyojo, seal_bundle, write_bundle

from pipeline.serve import batch, watch

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a reference: the brighter, the surer "bright"; half of its test split was dark."""
    folder = write_bundle(tmp_path_factory.mktemp("watched") / "bundle")
    values = np.arange(300) * 0.85
    bright = 1 / (1 + np.exp((255 - 2 * values) / 64))
    columns = {
        "label": ["bright" if p > 0.5 else "dark" for p in bright],
        "probability": np.maximum(bright, 1 - bright).tolist(),
        "brightness": values.tolist(),
        "right": [bool(i % 5) for i in range(300)],
    }
    off = {"mean": 0.04, "most": 0.17}
    reference = {"images": 300, "accuracy": 0.8, "estimate_off": off, "columns": columns}
    (folder / "reference.json").write_text(json.dumps(reference))
    seal_bundle(folder)
    return folder


def score(model: Path, folder: Path, values: list[int]) -> Path:
    """Scores of plain pictures; every tenth file is none."""
    source = folder / "pictures"
    source.mkdir(parents=True)
    for i, value in enumerate(values):
        (source / f"{i:03d}.png").write_bytes(grey_png(value) if i % 10 else b"none")
    batch.score_pictures(source, folder / "scores", model)
    return folder / "scores"


@pytest.fixture(scope="module")
def same(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return score(model, tmp_path_factory.mktemp("same"), list(range(0, 255, 3)))


@pytest.fixture(scope="module")
def darker(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return score(model, tmp_path_factory.mktemp("darker"), [i // 2 for i in range(0, 255, 3)])


def test_like_the_test_split_is_no_alarm(model: Path, same: Path, capsys: Capture) -> None:
    assert run_hyojo("watch", str(same), "--against", str(model)) == 0
    said = capsys.readouterr().out
    assert "Nothing is shifted by 0.1 or more, beyond chance" in said
    assert "0.800 on the test split" in said
    assert "off by 0.040 on average, by 0.170 at most" in said


def test_darker_pictures_are_told_with_status_and_page(
    model: Path, darker: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ["watch", str(darker), "--against", str(model)]
    assert run_hyojo(*words, "--json", "--page", str(tmp_path / "watch.html")) == 3
    found = json.loads(capsys.readouterr().out)
    assert found["shifted"] == ["label", "brightness"]
    assert found["shifts"]["label"]["size"] == pytest.approx(0.5, abs=0.05)  # half of the answers were bright, none is
    assert found["shifts"]["brightness"]["size"] == pytest.approx(0.5, abs=0.05)
    assert found["labels"]["bright"] == {"reference": pytest.approx(149 / 300), "now": 0.0}
    page = (tmp_path / "watch.html").read_text()
    assert "Shifted: label, brightness." in page
    assert page.count("<svg") == 3
    assert "http" not in page.replace("http://www.w3.org", "")


def test_a_log_of_requests_is_compared_with_earlier_scores(same: Path, darker: Path, tmp_path: Path) -> None:
    log = tmp_path / "requests.jsonl"
    rows = watch._read_parts(darker).to_dict("records")
    for row in rows:
        row["error"] = row["error"] or None
    rows += [{"label": None, "error": "no face was found"}] * 40
    log.write_text("".join(json.dumps(row, default=str) + "\n" for row in rows).replace("NaN", "null"))
    found = watch.watch(str(log), str(same), 0.1)
    assert [shift.name for shift in found.shifted] == ["label", "brightness", "without_face"]
    (share,) = [shift for shift in found.shifts if shift.name == "without_face"]
    assert (share.reference, share.now) == pytest.approx((0, 40 / len(rows)))
    assert found.accuracy is None


def test_what_cannot_be_compared_is_told(
    model: Path, same: Path, bright_bundle: Path, tmp_path: Path, capsys: Capture
) -> None:
    few = score(model, tmp_path / "few", [1] * 20)
    (tmp_path / "odd.jsonl").write_text("odd\n")
    (tmp_path / "other.jsonl").write_text('{"a": 1}\n')
    cases = [
        ([str(few), "--against", str(model)], "18 answers say nothing of a distribution"),
        ([str(same), "--against", str(bright_bundle)], "bundle has no reference.json"),
        ([str(tmp_path / "odd.jsonl"), "--against", str(model)], "odd.jsonl is no log of"),
        ([str(tmp_path / "other.jsonl"), "--against", str(model)], "has no column error, label"),
        ([str(tmp_path / "nothing"), "--against", str(model)], "nothing does not exist"),
        ([str(tmp_path), "--against", str(model)], "is no folder of `hyojo batch`"),
        ([str(same), "--against", str(model), "--least", "2"], "--least is a size"),
        ([str(same), "--against", str(model), "--page", str(tmp_path / "few" / "scores" / "_SUCCESS" / "x")], "--page"),
    ]
    for words, text in cases:
        assert run_hyojo("watch", *words) == 1, words
        assert text in capsys.readouterr().err


@pytest.mark.usefixtures("project")
def test_figures_and_page_go_onto_a_run(model: Path, darker: Path) -> None:
    from pipeline.tracking.store import connect, experiment_id

    assert run_hyojo("watch", str(darker), "--against", str(model), "--log") == 3
    (run,) = connect().search_runs([experiment_id(connect())])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["watch/size/label"] == pytest.approx(0.5, abs=0.05)
    assert run.data.metrics["watch/accuracy_low"] < run.data.metrics["watch/accuracy"]
    assert [file.path for file in connect().list_artifacts(run.info.run_id, "watch")] == ["watch/watch.html"]
