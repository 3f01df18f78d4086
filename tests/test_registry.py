"""The registry: one version a bundle, and a champion that only a test score no lower can replace."""

import json
from pathlib import Path

import pytest

from pipeline import registry, tracking
from pipeline.errors import UserError
from pipeline.store import connect, experiment_id

TEST_DIGEST = "7" * 64


def make_bundle(digest: str, accuracy: float, *, test_digest: str = TEST_DIGEST, on_run: bool = True) -> Path:
    """Write a bundle.json, with an MLflow run that has the served model unless ``on_run`` says no."""
    client = connect()
    run_id = client.create_run(experiment_id(client)).info.run_id
    folder = Path("models") / digest
    folder.mkdir(parents=True)
    (folder / "bundle.json").write_text(
        json.dumps(
            {
                "digest": digest, "test_digest": test_digest, "data_digest": "d" * 64, "weights_sha256": "e" * 64,
                "backbone": "face_resnet_s", "run_id": run_id,
                "metrics": {"test": {"accuracy": accuracy, "macro_f1": accuracy / 2}},
            }
        )
    )  # fmt: skip
    (folder / "MODEL_CARD.md").write_text(f"card of {digest}")
    (folder / "pyfunc").mkdir()
    (folder / "pyfunc" / "MLmodel").write_text("flavors: {}\n")
    if on_run:
        tracking.log_bundle(run_id, folder, folder / "pyfunc")
    return folder


def champion() -> int:
    """The version that the alias points at, asked of MLflow itself."""
    return int(connect().get_model_version_by_alias("hyojo", "champion").version)


def versions() -> list[int]:
    return sorted(int(version.version) for version in connect().search_model_versions("name = 'hyojo'"))


def decision(number: int) -> str:
    return connect().get_model_version("hyojo", str(number)).tags["hyojo.decision"]


@pytest.fixture
def _registered(project: Path) -> None:
    """Version 1 with accuracy 0.5, which is champion."""
    registry.register(make_bundle("first", 0.5))


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

    assert (Path(download_artifacts(version.source)) / "MLmodel").read_text() == "flavors: {}\n"


@pytest.mark.usefixtures("_registered")
def test_registering_the_same_bundle_again_changes_nothing() -> None:
    outcome = registry.register(Path("models/first"))
    assert (outcome.version, outcome.changed) == (1, False)
    assert versions() == [1]
    # The same bundle by its digest, though another run made it.
    bundle = json.loads((Path("models/first") / "bundle.json").read_text())
    make_bundle("twin", 0.9)
    twin = json.loads((Path("models/twin") / "bundle.json").read_text())
    Path("models/twin/bundle.json").write_text(json.dumps(twin | {"digest": bundle["digest"]}))
    assert not registry.register(Path("models/twin")).changed
    assert versions() == [1]


@pytest.mark.usefixtures("_registered")
def test_a_later_version_is_not_champion_by_itself() -> None:
    outcome = registry.register(make_bundle("second", 0.9))
    assert (outcome.version, outcome.changed) == (2, True)
    assert "hyojo promote 2" in outcome.message
    assert champion() == 1


@pytest.mark.usefixtures("_registered")
@pytest.mark.parametrize("accuracy", [0.5, 0.6])
def test_a_score_no_lower_is_promoted(accuracy: float) -> None:
    registry.register(make_bundle("second", accuracy))
    outcome = registry.promote()
    assert (outcome.version, outcome.changed) == (2, True)
    assert champion() == 2
    assert decision(2).startswith("champion: test accuracy")
    again = registry.promote(2)
    assert not again.changed
    assert "already" in again.message


@pytest.mark.usefixtures("_registered")
def test_a_lower_score_is_refused_with_both_figures() -> None:
    registry.register(make_bundle("second", 0.4321))
    outcome = registry.promote()
    assert (outcome.version, outcome.changed) == (2, False)
    assert outcome.message.startswith("Refused")
    assert "0.4321" in outcome.message
    assert "0.5000" in outcome.message
    assert champion() == 1
    assert "refused" in decision(2)


@pytest.mark.usefixtures("_registered")
def test_a_score_a_hair_lower_is_refused_and_told_apart() -> None:
    registry.register(make_bundle("second", 0.49999))
    message = registry.promote().message
    assert champion() == 1
    assert "0.5000 of version 2 is lower than 0.5000" not in message


@pytest.mark.usefixtures("_registered")
def test_scores_on_other_data_are_not_compared() -> None:
    registry.register(make_bundle("second", 0.9, test_digest="8" * 64))
    outcome = registry.promote()
    assert not outcome.changed
    assert "other data" in outcome.message
    assert champion() == 1


@pytest.mark.usefixtures("_registered")
def test_rollback_goes_back_one_champion_at_a_time() -> None:
    with pytest.raises(UserError, match="no former champion"):
        registry.rollback()
    for name, accuracy in (("second", 0.6), ("third", 0.7)):
        registry.register(make_bundle(name, accuracy))
        registry.promote()
    assert champion() == 3
    assert registry.rollback().version == 2
    assert champion() == 2
    assert registry.rollback().version == 1
    assert champion() == 1
    with pytest.raises(UserError, match="no former champion"):
        registry.rollback()
    # Promoted again, it is the gate's decision again.
    assert registry.promote(3).changed
    assert registry.rollback().version == 1


@pytest.mark.usefixtures("_registered")
def test_rollback_passes_over_deleted_versions() -> None:
    for name, accuracy in (("second", 0.6), ("third", 0.7)):
        registry.register(make_bundle(name, accuracy))
        registry.promote()
    connect().delete_model_version("hyojo", "2")
    assert registry.rollback().version == 1
    assert champion() == 1


@pytest.mark.usefixtures("_registered")
def test_a_version_takes_the_place_of_a_deleted_champion() -> None:
    registry.register(make_bundle("second", 0.1))
    connect().delete_model_version("hyojo", "1")
    assert registry.promote().changed
    assert champion() == 2
    with pytest.raises(UserError, match="no former champion"):
        registry.rollback()


@pytest.mark.usefixtures("_registered")
def test_an_unknown_version_is_named_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"no version 7; it has 1\."):
        registry.promote(7)


@pytest.mark.usefixtures("project")
def test_what_is_missing_is_said_with_a_remedy() -> None:
    with pytest.raises(UserError, match="dvc repro"):
        registry.register(Path("models/bundle"))
    with pytest.raises(UserError, match="hyojo register"):
        registry.promote()
    with pytest.raises(UserError, match="hyojo sync"):
        registry.register(make_bundle("unlogged", 0.5, on_run=False))
    assert versions() == []
