"""The registry: one version a bundle, and a champion that moves and comes back."""

import json
from pathlib import Path

import pytest
from builders import seal_bundle, write_exported

from pipeline.core.errors import UserError
from pipeline.tracking import bundles, decisions, registry, store
from pipeline.tracking.decisions import PROMOTED, Decision, MovedError
from pipeline.tracking.store import connect, experiment_id


def make_bundle(digest: str, accuracy: float, *, on_run: bool = True) -> Path:
    """Write a bundle.json, with an MLflow run that has the served model unless ``on_run`` says no."""
    client = connect()
    run_id = client.create_run(experiment_id(client)).info.run_id
    metrics = {"test": {"accuracy": accuracy, "macro_f1": accuracy / 2}}
    folder = write_exported(Path("models") / digest, digest=digest, run_id=run_id, metrics=metrics)
    if on_run:
        bundles.log_bundle(folder, folder / "pyfunc")
    return folder


def champion() -> int:
    """The version that the alias points at, asked of MLflow itself."""
    return int(connect().get_model_version_by_alias("hyojo", "champion").version)


def versions() -> list[int]:
    return sorted(int(version.version) for version in connect().search_model_versions("name = 'hyojo'"))


def promote(number: int) -> None:
    """Crown a version; what the gate says is tested elsewhere."""
    decisions.settle(connect())
    decisions.move(connect(), Decision(PROMOTED, number, champion(), "it is better"))


def roll_back() -> int:
    """Which version is champion after going back, by what is said and by the alias."""
    version = registry.rollback().version
    assert champion() == version
    return version


@pytest.fixture
def _registered(project: Path) -> None:
    """Version 1 with accuracy 0.5, which is champion."""
    registry.register(make_bundle("first", 0.5))


@pytest.fixture
def _three(_registered: None) -> None:
    """Two more versions, which are not."""
    for name in ("second", "third"):
        registry.register(make_bundle(name, 0.6))


@pytest.mark.usefixtures("project")
def test_the_first_version_ever_is_champion() -> None:
    folder = make_bundle("first", 0.5)
    outcome = registry.register(folder)
    assert (outcome.version, outcome.changed) == (1, True)
    assert champion() == 1
    version = connect().get_model_version("hyojo", "1")
    run_id = json.loads((folder / "bundle.json").read_text())["run_id"]
    assert version.run_id == run_id
    assert float(version.tags["test.accuracy"]) == 0.5
    assert version.tags["hyojo.digest"] == "first"
    # What the version points at is what was logged: mlflow itself finds it there.
    from mlflow.artifacts import download_artifacts

    assert run_id in (Path(download_artifacts(version.source)) / "MLmodel").read_text()
    (model,) = connect().search_logged_models([experiment_id(connect())], f"source_run_id = '{run_id}'")
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "hyojo", "version": "1"}]
    assert model.artifact_location == version.source


@pytest.mark.usefixtures("_registered")
def test_registering_the_same_bundle_again_changes_nothing() -> None:
    outcome = registry.register(Path("models/first"))
    assert (outcome.version, outcome.changed) == (1, False)
    assert versions() == [1]
    # The same bundle by its digest, though another run made it.
    twin = make_bundle("twin", 0.9)
    seal_bundle(twin, **json.loads((twin / "bundle.json").read_text()) | {"digest": "first"})
    assert not registry.register(Path("models/twin")).changed
    assert versions() == [1]


@pytest.mark.usefixtures("_registered")
def test_a_later_version_is_not_champion_by_itself() -> None:
    outcome = registry.register(make_bundle("second", 0.9))
    assert (outcome.version, outcome.changed) == (2, True)
    assert "hyojo promote 2" in outcome.message
    assert champion() == 1


@pytest.mark.usefixtures("_three")
def test_rollback_goes_back_one_champion_at_a_time() -> None:
    with pytest.raises(UserError, match="no former champion"):
        registry.rollback()
    for number in (2, 3):
        promote(number)
    assert [champion(), roll_back(), roll_back()] == [3, 2, 1]
    with pytest.raises(UserError, match="no former champion"):
        registry.rollback()
    promote(3)
    assert roll_back() == 1


@pytest.mark.usefixtures("_three")
def test_rollback_after_the_alias_was_moved_by_hand_or_a_version_was_deleted() -> None:
    promote(2)
    connect().set_registered_model_alias("hyojo", "champion", "3")  # as in MLflow's UI
    assert [roll_back(), roll_back()] == [2, 1]
    for number in (2, 3):
        promote(number)
    connect().delete_model_version("hyojo", "2")
    assert roll_back() == 1


@pytest.mark.usefixtures("_three")
def test_champions_from_before_there_was_a_record_can_be_gone_back_to() -> None:
    client = connect()
    client.delete_registered_model("hyojo.decisions")
    client.set_registered_model_tag("hyojo", "hyojo.champions", "[1, 3, 2]")
    client.set_registered_model_alias("hyojo", "champion", "2")
    assert decisions.read_history(client).ever == [1, 3, 2]
    assert [roll_back(), roll_back()] == [3, 1]
    assert [each.kind for each in decisions.read_history(client).decisions] == ["rolled back"] * 2


@pytest.mark.usefixtures("_three")
def test_versions_of_a_registered_model_that_was_deleted_are_not_gone_back_to() -> None:
    """Their numbers belong to others now, which were never champion."""
    promote(2)
    connect().delete_registered_model("hyojo")
    for name in ("first", "second", "third"):
        assert registry.register(Path("models") / name).changed
    assert versions() == [1, 2, 3]
    decisions.move(connect(), Decision(PROMOTED, 3, None, "there is none"))
    with pytest.raises(UserError, match="no former champion"):
        registry.rollback()
    promote(1)
    assert roll_back() == 3


@pytest.mark.usefixtures("_three")
def test_a_decision_whose_version_was_deleted_blocks_nothing() -> None:
    client = connect()
    decisions.record(client, Decision(PROMOTED, 2, 1, "its author was killed here"))
    client.delete_model_version("hyojo", "2")
    promote(3)
    assert champion() == 3
    assert [each.void for each in decisions.read_history(client).decisions] == [False, True, False]


@pytest.mark.usefixtures("_three")
@pytest.mark.parametrize("after", [False, True])
def test_an_alias_that_moved_meanwhile_is_left_where_it_is(monkeypatch: pytest.MonkeyPatch, after: bool) -> None:
    """Moved by hand, before the champion is looked at, or just after."""
    client = connect()
    alias = client.set_registered_model_alias

    def move_and_lose(name: str, key: str, value: str) -> None:
        alias(name, key, value)
        alias(name, key, "3")

    if after:
        monkeypatch.setattr(client, "set_registered_model_alias", move_and_lose)
    else:
        alias("hyojo", "champion", "3")
    with pytest.raises(MovedError) as caught:
        decisions.move(client, Decision(PROMOTED, 2, 1, "it is better"))
    assert caught.value.champion == champion() == 3
    history, finished = decisions.settle(client)
    assert (history.champion, finished) == (3, None)
    assert history.ever == ([1, 2, 3] if after else [1, 3])
    assert history.decisions[-1].kind == "outside the gate"


@pytest.mark.usefixtures("_three")
def test_of_two_decisions_about_one_champion_the_first_counts() -> None:
    """Also if the author of the first is slow: whoever comes next has the alias follow it."""
    client = connect()
    decisions.record(client, Decision(PROMOTED, 2, 1, "it is better"))
    with pytest.raises(MovedError) as caught:
        decisions.move(client, Decision(PROMOTED, 3, 1, "it is better too"))
    assert caught.value.champion == 2
    history, finished = decisions.settle(client)
    assert finished.version == champion() == history.champion == 2
    assert [(each.version, each.void) for each in history.decisions] == [(1, False), (2, False), (3, True)]


@pytest.mark.usefixtures("_registered")
def test_another_project_of_the_same_name_is_told(project: Path) -> None:
    path = make_bundle("second", 0.9) / "bundle.json"
    seal_bundle(path.parent, **json.loads(path.read_text()) | {"class_names": ["cat", "dog"]})
    assert "project.name" in registry.register(path.parent).message
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("name: hyojo ", "name: cats "))
    store.project_name.cache_clear()
    assert registry.register(path.parent).message == "Registered version 1 of cats; the first, so it is champion."
    assert champion() == 1


@pytest.mark.usefixtures("_registered")
def test_registering_again_fills_in_what_a_version_lacks() -> None:
    path = Path("models/first/bundle.json")
    bundle = json.loads(path.read_text())
    seal_bundle(path.parent, **bundle | {"parity": {"formats": ["onnx"]}, "cost": {"parameters": 7}})
    assert not registry.register(Path("models/first")).changed
    tags = connect().get_model_version("hyojo", "1").tags
    assert (tags["hyojo.parity"], tags["cost.parameters"]) == ("passed", "7")


@pytest.mark.usefixtures("project")
def test_what_is_missing_is_said_with_a_remedy() -> None:
    with pytest.raises(UserError, match="dvc repro"):
        registry.register(Path("models/bundle"))
    with pytest.raises(UserError, match="hyojo sync"):
        registry.register(make_bundle("unlogged", 0.5, on_run=False))
    assert versions() == []
