"""Probing: the fastest settings are found and written, and a range test finds where the loss falls."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from builders import TINY_PARAMS, run_hyojo

from pipeline.core.errors import UserError
from pipeline.core.params_file import apply_overrides, load_params, parse_params
from pipeline.experiments import tuning
from pipeline.train import loop
from pipeline.train.loader import Loader

pytestmark = pytest.mark.usefixtures("bf16_instructions")


@pytest.fixture
def slow_unless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time as it were if only float32 in contiguous layout were fast, and batches of 32 better still."""

    def rounds(params, *_):
        while True:
            good = params.amp == "none" and not params.channels_last
            yield 1, params.batch_size / (100 if not good else 400 if params.batch_size == 32 else 300)

    monkeypatch.setattr(tuning, "_rounds", rounds)


@pytest.mark.usefixtures("project", "slow_unless")
def test_the_fastest_settings_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    text = Path("params.yaml").read_text()
    assert run_hyojo("probe", "--seconds", "0.01", "--dry-run") == 0
    assert Path("params.yaml").read_text() == text
    assert run_hyojo("probe", "--seconds", "0.01") == 0
    expected = apply_overrides(text, ["train.amp=none", "train.channels_last=false", "train.batch_size=32"])
    assert load_params() == parse_params(expected)
    assert "# one file or folder of labelled faces" in Path("params.yaml").read_text()
    out = capsys.readouterr().out
    assert "train.lr (0.4) was chosen for batches of 16" in out
    assert run_hyojo("probe", "--seconds", "0.01") == 0
    assert "has the fastest settings already" in capsys.readouterr().out


@pytest.mark.usefixtures("project", "slow_unless")
def test_the_batch_size_can_be_kept() -> None:
    assert run_hyojo("probe", "--seconds", "0.01", "--keep-batch-size") == 0
    train = load_params().train
    assert (train.amp, train.channels_last, train.batch_size) == ("none", False, 16)


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("after", [0, tuning.ROUND + 1], ids=["at once", "while it is timed"])
def test_real_updates_are_measured_and_failures_are_told(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    update = loop.update
    monkeypatch.setattr(tuning, "ROUND_S", 9.0)

    def fail_in_bf16(trainer, *rest):
        if trainer.params.amp == "bf16" and trainer.updates >= after:
            raise RuntimeError("no such instruction\nand a stack")
        return update(trainer, *rest)

    monkeypatch.setattr(loop, "update", fail_in_bf16)
    chosen, measured = tuning.fastest_settings(load_params().train, seconds=0.2)
    assert chosen["amp"] == "none"
    for found in measured:
        if found.settings["amp"] == "bf16":
            assert (found.rate, found.failure) == (0.0, "no such instruction")
        else:
            assert found.updates >= 1
            assert 0 < found.low <= found.rate <= found.high
    assert {found.settings["batch_size"] for found in measured} == {8, 16, 32, 64}


@pytest.mark.usefixtures("project")
def test_a_probe_runs_the_loop_of_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled, tuned by cuDNN, waited for once a round, fetching counted, on images that are loaded once."""
    happened: list[str] = []

    def note(owner: object, name: str, label: str) -> None:
        inner = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **named: (happened.append(label), inner(*args, **named))[1])

    for owner, name, label in (
        (tuning, "set_determinism", "determinism"), (tuning, "wrap", "wrap"), (tuning, "synchronize", "wait"),
        (Loader, "__init__", "load"), (Loader, "_fetch", "fetch"), (loop, "update", "update"),
    ):  # fmt: skip
        note(owner, name, label)
    tuning.fastest_settings(load_params().train, seconds=0.1)
    count = Counter(happened)
    assert count["load"] == 1
    assert count["wrap"] == count["determinism"] == 4 + 4  # a setting each
    assert count["fetch"] == count["update"] > 3 * count["wait"]
    # Between the waits of a round, fetching and updates take turns.
    rounds = [part for part in " ".join(happened).split("wait")[1::2]]
    assert all(set(part.split()) == {"fetch", "update"} for part in rounds if "determinism" not in part)
    happened.clear()
    tuning.lr_range(load_params().train, 1e-3, 1e-2, 10)
    assert Counter(happened) == {"determinism": 1, "wrap": 1, "load": 1, "fetch": 10, "update": 10}


def test_nothing_prepared_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="dvc repro prepare"):
        tuning.fastest_settings(parse_params(TINY_PARAMS).train)


@pytest.mark.usefixtures("project")
def test_a_range_test_ends_where_the_loss_diverges(capsys: pytest.CaptureFixture[str]) -> None:
    params = load_params().train.model_copy(update={"grad_clip_norm": None, "ema_decay": 0.0})
    curve = tuning.lr_range(params, 1e-3, 1e6, 120)
    assert len(curve) < 120
    np.testing.assert_allclose(np.diff(np.log(curve["lr"])), np.log(1e9) / 119)
    # pandas' exponential average, corrected for its start, is the same quantity.
    finite = curve[np.isfinite(curve["loss"])]
    np.testing.assert_allclose(finite["smoothed"], finite["loss"].ewm(alpha=0.1).mean())
    assert run_hyojo("lr-range", "--from", "1e-3", "--to", "10", "--updates", "40") == 0
    assert Path("reports/lr_range.png").read_bytes().startswith(b"\x89PNG")
    assert "train.lr is 0.4" in capsys.readouterr().out


def test_the_suggestion_is_the_steepest_fall() -> None:
    lr = np.geomspace(1e-4, 1, 81)
    loss = 2 - 1 / (1 + np.exp(-3 * np.log(lr / 0.01)))  # a step down whose middle is at 0.01
    curve = pd.DataFrame({"lr": lr, "loss": loss, "smoothed": loss})
    assert tuning.suggested_lr(curve) == pytest.approx(0.01, rel=0.01)
    with pytest.raises(UserError, match="falls at no rate"):
        tuning.suggested_lr(curve.assign(smoothed=np.linspace(1, 2, 81)))


@pytest.mark.parametrize("arguments", [["--from", "1", "--to", "0.1"], ["--from", "0"], ["--updates", "5"]])
def test_senseless_ranges_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_hyojo("lr-range", *arguments) != 0
    assert "0 < --from < --to" in capsys.readouterr().err
