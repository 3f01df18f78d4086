"""Promotion through a real store: what the gate finds is recorded, overruling is accounted for, and one of two wins."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from builders import write_exported, write_predictions

from pipeline.core.errors import UserError
from pipeline.experiments import promotion
from pipeline.tracking import bundles, registry
from pipeline.tracking.evaluations import EVALUATION_TAG
from pipeline.tracking.store import connect, experiment_id

TARGETS = np.repeat([0, 1, 2], 100)


def answers(right: int) -> np.ndarray:
    """Predictions with that many right answers of 100 in each class, the same ones first."""
    wrong = np.tile(np.arange(100) >= right, 3)
    return np.where(wrong, (TARGETS + 1) % 3, TARGETS)


def add_version(right: int, digest: str, graph: Path | None = None) -> int:
    """Register a version with such answers, as evaluate, export and register would."""
    client = connect()
    run_id = client.create_run(experiment_id(client)).info.run_id
    preds = answers(right)
    probs = np.full((300, 3), (1 - right / 100) / 2)
    probs[np.arange(300), preds] = right / 100
    table = write_predictions(Path("scratch/predictions.csv"), TARGETS, preds, probs)
    client.log_artifact(run_id, str(table), "evaluation")
    client.set_tag(run_id, EVALUATION_TAG, "k")
    scores = {"accuracy": right / 100, "macro_f1": right / 100}
    about = {"parity": {"formats": ["onnx"]}, "cost": {"parameters": 5, "size_bytes": 1000}}
    folder = write_exported(Path("models") / digest, digest=digest, run_id=run_id, metrics={"test": scores}, **about)
    if graph:
        (folder / "pyfunc/artifacts/bundle/model.onnx").write_bytes(graph.read_bytes())
    bundles.log_bundle(folder, folder / "pyfunc", {"cost/latency_ms": 2.0})
    return registry.register(folder).version


def tags(number: int) -> dict[str, str]:
    return connect().get_model_version("hyojo", str(number)).tags


def champion() -> int | None:
    return registry.champion_number(connect())


@pytest.fixture
def _champion(project: Path) -> None:
    """Version 1, right on 70 of 100, is champion; its graph cannot be loaded, so that recorded costs count."""
    add_version(70, "first")


def test_from_registering_to_rolling_back(project: Path, bright_bundle: Path) -> None:
    graph = bright_bundle / "model.onnx"
    add_version(70, "first", graph=graph)
    add_version(80, "second", graph=graph)
    outcome = promotion.promote()
    assert (outcome.version, outcome.changed, outcome.refused) == (2, True, False)
    assert champion() == 2
    found = tags(2)
    assert float(found["gate.difference"]) == pytest.approx(0.1)
    assert (found["gate.gained"], found["gate.lost"], found["gate.champion"]) == ("30", "0", "1")
    assert float(found["gate.p_value"]) == pytest.approx(2**-30, rel=1e-4)
    assert found["gate.costs"] == "measured"
    assert 0.2 < float(found["gate.latency_ratio"]) < 5
    assert found["gate.by"]
    assert found["hyojo.decision"].startswith("champion: test accuracy 0.8000 against 0.7000")
    assert "already" in promotion.promote(2).message
    assert registry.rollback().version == 1
    assert champion() == 1


@pytest.mark.usefixtures("_champion")
def test_a_refusal_is_recorded_with_its_reasons() -> None:
    add_version(71, "second")
    outcome = promotion.promote()
    assert (outcome.changed, outcome.refused) == (False, True)
    assert outcome.message.startswith("Refused: version 2 is not better beyond chance")
    assert champion() == 1
    assert tags(2)["hyojo.decision"].startswith("refused: ")
    assert tags(2)["gate.costs"] == "recorded"
    assert float(tags(2)["gate.latency_ratio"]) == 1.0
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("rule: better", "rule: not_worse"))
    assert promotion.promote().changed
    assert "gate.reasons" not in tags(2)  # of the earlier decision


@pytest.mark.usefixtures("_champion")
def test_three_times_as_slow_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    add_version(80, "second")
    monkeypatch.setattr(promotion, "measure", lambda *_: [(6.0, 1.0), (2.0, 1.0)])
    assert "3.00 times as slow" in promotion.promote().message
    assert champion() == 1


@pytest.mark.usefixtures("_champion")
def test_overruling_wants_a_reason_and_leaves_a_trace() -> None:
    add_version(60, "second")
    for given in ({"force": True}, {"reason": "why not"}, {"force": True, "reason": " "}):
        with pytest.raises(UserError, match="go together"):
            promotion.promote(2, **given)
    outcome = promotion.promote(2, force=True, reason="the demo")
    assert outcome.changed
    assert champion() == 2
    assert tags(2)["gate.forced"] == "the demo"
    assert "the demo" in tags(2)["hyojo.decision"]
    assert "not better" in tags(2)["hyojo.decision"]
    assert tags(2)["gate.by"] in tags(2)["hyojo.decision"]


@pytest.mark.usefixtures("_champion")
def test_lost_predictions_and_a_deleted_champion() -> None:
    add_version(80, "second")
    connect().delete_run(connect().get_model_version("hyojo", "1").run_id)
    assert "cannot be compared: version 1" in promotion.promote().message
    connect().delete_model_version("hyojo", "1")
    assert promotion.promote().changed
    assert champion() == 2


@pytest.mark.usefixtures("project")
def test_unknown_versions_are_named_with_those_there_are() -> None:
    with pytest.raises(UserError, match="hyojo register"):
        promotion.promote()
    add_version(70, "first")
    with pytest.raises(UserError, match=r"no version 7; it has 1\."):
        promotion.promote(7)


@pytest.mark.usefixtures("_champion")
def test_a_champion_that_changed_meanwhile_voids_the_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    add_version(80, "second")
    add_version(90, "third")

    def move(client: object, versions: object) -> None:  # while it is measured, on another machine
        connect().set_registered_model_alias("hyojo", "champion", "3")

    monkeypatch.setattr(promotion, "measure", move)
    outcome = promotion.promote(2)
    assert (outcome.changed, outcome.refused) == (False, True)
    assert "version 3 became champion while version 2 was held against 1" in outcome.message
    assert champion() == 3
    assert tags(2)["hyojo.decision"].startswith("void: ")


@pytest.mark.slow
@pytest.mark.usefixtures("_champion")
def test_of_two_promotions_at_once_one_wins() -> None:
    for digest in ("second", "third"):
        add_version(80, digest)
    code = "import sys; from pipeline import cli; sys.argv[0] = 'hyojo'; cli.main()"
    both = [
        subprocess.Popen([sys.executable, "-c", code, "promote", number], stdout=subprocess.PIPE, text=True)
        for number in ("2", "3")
    ]
    said = [process.communicate(timeout=100)[0] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1]
    winner = 2 if both[0].returncode == 0 else 3
    loser = 5 - winner
    assert champion() == winner
    assert f"Version {winner} is champion" in said[winner - 2]
    # Judged against the winner, to which it is equal.
    assert f"Refused: version {loser} is not better beyond chance: +0.00 points" in said[loser - 2]
    assert tags(loser)["gate.champion"] == str(winner)
    assert json.loads(connect().get_registered_model("hyojo").tags["hyojo.champions"]) == [1, winner]
