"""hyojo search: ranges are checked first, trials are experiments on val alone, and the best is confirmed."""

import io
import itertools
import time
from pathlib import Path
from types import SimpleNamespace

import optuna
import pandas as pd
import pytest
from builders import params_with, run_hyojo, train_params
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from PIL import Image

from pipeline.core.errors import UserError
from pipeline.experiments import search as searching
from pipeline.experiments.search_report import format_summary, publish
from pipeline.experiments.search_space import Space, read_space
from pipeline.tracking import store
from pipeline.tracking.runs import read_artifact
from pipeline.tracking.store import connect, experiment_id

SPACE = """
objective: val/accuracy
params:
  train.lr: {low: 0.0001, high: 0.1, log: true}
  train.epochs: {low: 2, high: 9}
  train.optimizer: [adamw, sgd]
"""


def space_of(text: str) -> Space:
    Path("search.yaml").write_text(text)
    return read_space(Path("search.yaml"))


@pytest.mark.usefixtures("project")
def test_ranges_are_read() -> None:
    found = space_of(SPACE)
    assert found.ranges == {
        "train.lr": FloatDistribution(0.0001, 0.1, log=True),
        "train.epochs": IntDistribution(2, 9),
        "train.optimizer": CategoricalDistribution(["adamw", "sgd"]),
    }
    assert (found.direction, found.best([0.1, 0.3, 0.2])) == ("maximize", 0.3)
    other = space_of(SPACE.replace("val/accuracy", "val/loss"))
    assert (other.direction, other.best([0.3, 0.1, 0.2])) == ("minimize", 0.1)


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("val/accuracy", "test/accuracy", "never looks at the test split"),
        ("train.lr", "train.lrr", "lrr"),
        ("train.lr", "prepare.seed", "no parameter of training"),
        ("high: 0.1", "high: -1", "train.lr: a list of values is wanted"),
        ("low: 0.0001", "low: -0.1", "train.lr"),
        ("high: 9", "high: 9, step: 2", "train.epochs: a list of values is wanted"),
        ("sgd", "sgdd", "'sgdd' is not allowed"),
        ("objective: val/accuracy", "", "two keys are wanted"),
        ("params:", "params: [", "cannot be read"),
    ],
)
@pytest.mark.usefixtures("project")
def test_what_is_no_space_is_refused_before_any_trial(old: str, new: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        space_of(SPACE.replace(old, new))


@pytest.mark.usefixtures("project")
def test_misuse_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    Path("search.yaml").write_text(SPACE)
    for words, said in (
        (["nothing.yaml"], "nothing.yaml not found"),
        (["--trials", "0"], "1 or more --trials"),
        (["--name", "a b"], "--name 'a b'"),
        ([], "no git repository"),
    ):
        assert run_hyojo("search", *words) == 1
        assert said in capsys.readouterr().err


@pytest.mark.usefixtures("project")
def test_a_search_begins_with_the_params_as_they_are() -> None:
    text = SPACE.replace("0.1, log", "0.9, log")
    assert space_of(text).find_start(params_with()) == {"train.lr": 0.4, "train.epochs": 3, "train.optimizer": "sgd"}
    assert space_of(SPACE).find_start(params_with()) == {}  # 0.4 is above 0.1, so no trial could be like it


def test_a_search_learns_from_what_was_tried(tmp_path: Path) -> None:
    """Of a bowl, twenty trials find the bottom more closely than as many draws: twice so, over four seeds."""
    ranges = {f"train.{name}": FloatDistribution(-1.0, 1.0) for name in ("lr", "weight_decay", "label_smoothing")}
    space, found = Space("val/loss", ranges), {"tpe": 0.0, "random": 0.0}
    for seed, sampler in itertools.product(range(4), found):
        params = train_params(seed=seed)
        study = searching.open_study(tmp_path, space, f"{sampler}{seed}", None, params, prune=True, sampler=sampler)
        for _ in range(20):
            trial = study.ask()
            values = [searching._suggest(trial, name, given) for name, given in ranges.items()]
            study.tell(trial, sum((value - 0.3) ** 2 for value in values))
        found[sampler] += study.best_value
    assert found["tpe"] < found["random"] / 2


@pytest.mark.usefixtures("project")
def test_a_trial_is_judged_by_its_own_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by that of a former experiment of the same name, nor again by what the store did not answer in between."""

    def log_run(*curve: float) -> str:
        tags = {"hyojo.dvc.exp_name": "one-0"}
        run_id = client.create_run(store.experiment_id(client), tags=tags).info.run_id
        for epoch, value in enumerate(curve, 1):
            client.log_metric(run_id, "val/accuracy", value, step=epoch)
        return run_id

    client, told = store.connect(), []
    monkeypatch.setattr(searching, "LOOK_S", 0.0)
    former = log_run(0.9, 0.8, 0.7)
    time.sleep(0.01)
    space = Space("val/accuracy", {"train.lr": FloatDistribution(0.1, 1)})
    trial = SimpleNamespace(report=lambda value, step: told.append((step, value)), should_prune=lambda: len(told) > 1)
    watcher = searching._Watcher(searching.Search(Path(), "one", space, True, ""), trial, "one-0")
    assert not watcher()
    assert told == []
    own = log_run(0.1)
    assert not watcher()
    with monkeypatch.context() as patch:
        patch.setattr(searching.searches, "read_curve", lambda *_: [])
        assert not watcher()
    client.log_metric(own, "val/accuracy", 0.2, step=2)
    assert watcher()
    assert told == [(1, 0.1), (2, 0.2)]
    pruned = [client.get_run(each).data.tags.get("hyojo.search.pruned") for each in (former, own)]
    assert pruned == [None, "true"]


def test_a_study_goes_on_and_draws_nothing_twice(tmp_path: Path) -> None:
    space = Space("val/accuracy", {"train.lr": FloatDistribution(0.1, 1)})
    drawn = []
    for _ in range(2):
        study = searching.open_study(tmp_path, space, "one", None, train_params(), prune=True, sampler="random")
        for _ in range(3):
            trial = study.ask()
            drawn.append(searching._suggest(trial, "train.lr", space.ranges["train.lr"]))
            study.tell(trial, 0.5)
    assert len(study.trials) == len(set(drawn)) == 6
    other = Space("val/accuracy", {"train.epochs": IntDistribution(1, 2)})
    with pytest.raises(UserError, match=r"is over train\.lr\. Give another --name"):
        searching.open_study(tmp_path, other, "one", None, train_params(), prune=True, sampler="tpe")
    with pytest.raises(UserError, match="cannot be opened"):
        searching.open_study(
            tmp_path, other, "one", "sqlite:////nowhere/x.db", train_params(), prune=True, sampler="tpe"
        )


@pytest.mark.usefixtures("project")
def test_the_summary_shows_what_the_winner_s_luck_was() -> None:
    study = optuna.create_study(direction="maximize")
    for value in (0.5, 0.62, 0.55):
        study.add_trial(
            optuna.trial.create_trial(
                params={"train.lr": 0.01}, distributions={"train.lr": FloatDistribution(0.001, 1)}, value=value
            )
        )
    said = format_summary(study, "wide", "val/accuracy", [0.58, 0.6])
    assert "3 trials finished, 0 ended early, 0 failed" in said
    assert "best: wide-1, val/accuracy 0.6200" in said
    assert "under 2 fresh seeds: 0.5900 (0.5800 to 0.6000); the search's own figure is +0.0300 from that" in said
    assert "`dvc exp apply wide-1`" in said
    client = connect()
    run_id = client.create_run(experiment_id(client)).info.run_id
    publish(client, run_id, study, [0.58, 0.6], "FINISHED")
    table = read_artifact(client, run_id, "search/trials.csv")
    assert pd.read_csv(io.BytesIO(table))["value"].tolist() == [0.5, 0.62, 0.55]
    with Image.open(io.BytesIO(read_artifact(client, run_id, "search/optimization_history.png"))) as picture:
        assert min(picture.size) > 300
    run = client.get_run(run_id)
    assert (run.info.status, run.data.metrics["search/confirmed_mean"]) == ("FINISHED", pytest.approx(0.59))
