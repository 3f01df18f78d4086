"""Promotion through a real store: what the gate finds is recorded, overruling is accounted for, and one of two wins."""

import getpass
import subprocess
import sys
import time
from pathlib import Path

import pytest
from builders import add_version, read_champion

from pipeline.core.errors import UserError
from pipeline.experiments import promotion
from pipeline.tracking import decisions, registry
from pipeline.tracking.decisions import Decision
from pipeline.tracking.store import connect


def tags(number: int) -> dict[str, str]:
    return connect().get_model_version("hyojo", str(number)).tags


def last(version: int) -> Decision:
    """The last decision about a version."""
    return [each for each in decisions.read_history(connect()).decisions if each.version == version][-1]


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
    assert read_champion() == 2
    made = last(2)
    found = made.figures
    assert float(found["difference"]) == pytest.approx(0.1)
    assert (found["gained"], found["lost"], made.former) == ("30", "0", 1)
    assert float(found["p_value"]) == pytest.approx(2**-30, rel=1e-4)
    assert found["costs"] == "measured"
    assert 0.2 < float(found["latency_ratio"]) < 5
    assert made.by == getpass.getuser()
    assert abs(made.at.timestamp() - time.time()) < 60
    assert made.reason.startswith("test accuracy 0.8000 against 0.7000")
    assert tags(2)[f"hyojo.decision.{made.number}"] == f"promoted: {made.reason}"
    assert "already" in promotion.promote(2).message
    assert registry.rollback().version == 1
    assert read_champion() == 1
    assert (last(1).kind, last(1).former, last(1).by) == ("rolled back", 2, getpass.getuser())


@pytest.mark.usefixtures("_champion")
def test_a_refusal_is_recorded_with_its_reasons() -> None:
    add_version(71, "second")
    outcome = promotion.promote()
    assert (outcome.changed, outcome.refused) == (False, True)
    assert outcome.message.startswith("Refused: version 2 is not better beyond chance")
    assert read_champion() == 1
    refused = last(2)
    assert refused.kind == "refused"
    assert refused.figures["costs"] == "recorded"
    assert float(refused.figures["latency_ratio"]) == 1.0
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("rule: better", "rule: not_worse"))
    assert promotion.promote().changed
    both = [each for each in decisions.read_history(connect()).decisions if each.version == 2]
    assert [each.kind for each in both] == ["refused", "promoted"]
    assert both[0] == refused  # the earlier one stays what it was
    assert len([key for key in tags(2) if key.startswith("hyojo.decision.")]) == 2


@pytest.mark.usefixtures("_champion")
def test_three_times_as_slow_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    add_version(80, "second")
    monkeypatch.setattr(promotion, "measure", lambda *_: [(6.0, 1.0), (2.0, 1.0)])
    assert "3.00 times as slow" in promotion.promote().message
    assert read_champion() == 1


@pytest.mark.usefixtures("_champion")
def test_overruling_wants_a_reason_and_leaves_a_trace() -> None:
    add_version(60, "second")
    for given in ({"force": True}, {"reason": "why not"}, {"force": True, "reason": " "}):
        with pytest.raises(UserError, match="go together"):
            promotion.promote(2, **given)
    outcome = promotion.promote(2, force=True, reason="the demo")
    assert outcome.changed
    assert read_champion() == 2
    assert last(2).kind == "forced"
    assert last(2).reason.startswith("forced: the demo (against: version 2 is not better")


@pytest.mark.usefixtures("_champion")
@pytest.mark.parametrize("foreign", ["project", "classes", "test data", "test data, predictions gone"])
def test_what_is_of_another_project_passes_only_if_that_is_named(foreign: str) -> None:
    """And if its classes or test data are others: ``--force`` alone does not do."""
    add_version(90, "second")
    client = connect()
    said = {"project": "of another project, cats, than hyojo", "classes": "knows other classes"}
    if foreign == "project":
        client.set_model_version_tag("hyojo", "2", "hyojo.project", "cats")
    elif foreign == "classes":
        path = Path("scratch/predictions.csv")
        path.write_text(path.read_text().replace("sad", "calm"))
        client.log_artifact(client.get_model_version("hyojo", "2").run_id, str(path), "evaluation")
    else:
        client.set_model_version_tag("hyojo", "2", "hyojo.test_digest", "t" * 64)
    if "gone" in foreign:
        client.set_model_version_tag("hyojo", "1", "hyojo.test_digest", "u" * 64)
        client.delete_run(client.get_model_version("hyojo", "1").run_id)
        said[foreign] = "the two cannot be compared"
    own = "cats" if foreign == "project" else "hyojo"
    for given in ({}, {"force": True, "reason": "new data"}, {"force": True, "reason": "new data", "project": "dogs"}):
        outcome = promotion.promote(2, **given)
        assert outcome.refused
        assert said.get(foreign, "tested on other data") in outcome.message
        assert (f"--project {own}" in outcome.message) == bool(given)
        assert read_champion() == 1
    assert promotion.promote(2, force=True, reason="new data", project=own).changed
    assert read_champion() == 2


def test_a_version_of_another_project_is_no_first_champion(project: Path) -> None:
    add_version(70, "first")
    connect().set_model_version_tag("hyojo", "1", "hyojo.project", "cats")
    connect().delete_registered_model_alias("hyojo", "champion")
    assert "of another project, cats" in promotion.promote(1).message
    assert read_champion() is None


@pytest.mark.usefixtures("_champion")
def test_lost_predictions_and_a_deleted_champion() -> None:
    add_version(80, "second")
    connect().delete_run(connect().get_model_version("hyojo", "1").run_id)
    assert "cannot be compared: version 1" in promotion.promote().message
    connect().delete_model_version("hyojo", "1")
    assert promotion.promote().changed
    assert read_champion() == 2


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

    def move(client: object, versions: object) -> str:  # while it is measured, on another machine
        connect().set_registered_model_alias("hyojo", "champion", "3")
        return "it was not loaded"

    monkeypatch.setattr(promotion, "measure", move)
    outcome = promotion.promote(2)
    assert (outcome.changed, outcome.refused) == (False, True)
    assert "version 3 became champion while version 2 was held against 1" in outcome.message
    assert read_champion() == 3
    assert (last(2).kind, last(2).void) == ("promoted", True)


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
    assert read_champion() == winner
    assert f"Version {winner} is champion" in said[winner - 2]
    # Judged against the winner, to which it is equal.
    assert f"Refused: version {loser} is not better beyond chance: +0.00 points" in said[loser - 2]
    assert last(loser).former == winner
    assert decisions.read_history(connect()).line == [1, winner]
