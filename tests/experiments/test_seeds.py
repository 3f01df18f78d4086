"""Families of seeds, with a stubbed runner for the bookkeeping; ``test_modes`` has one that DVC itself trains."""

import json
from pathlib import Path

import numpy as np
import pytest
from builders import run_git, run_hyojo

from pipeline.core.errors import UserError
from pipeline.core.params_file import apply_overrides
from pipeline.experiments import page as compare_page
from pipeline.experiments import seeds, two_families
from pipeline.metrics.seed_anova import compare_groups
from pipeline.tracking import dvc_experiments, families
from pipeline.tracking.store import connect, experiment_id, find_run

SOURCE, CODE, METRICS = Path("data/tiny.zip"), Path("pipeline/train/loop.py"), Path("reports/metrics.json")
EVALUATION = Path("reports/evaluation.json")


class Runner:
    """Does what DVC leaves behind: a run, and the work tree with params and scores as an experiment."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.failing: set[str] = set()
        self.stopping: str | None = None

    def __call__(self, root: Path, name: str, overrides: list[str], variables: dict[str, str], stop: object) -> int:
        self.asked.append(name)
        if name in self.failing:
            return 1
        if name == self.stopping:
            stop.signal = 15
            return 1
        seed = int(overrides[-1].removeprefix("++train.seed="))
        client = connect()
        run = client.create_run(experiment_id(client), run_name=name)
        client.set_tag(run.info.run_id, "hyojo.run_id", run.info.run_id)
        client.log_metric(run.info.run_id, "train/time_s", 10.0 + seed)
        params = Path("params.yaml")
        params.write_text(apply_overrides(params.read_text(), [each.removeprefix("++") for each in overrides]))
        scores = {"accuracy": 0.5 + seed / 100, "macro_f1": 0.4}
        METRICS.write_text(json.dumps({"val": scores, "test": scores}))
        EVALUATION.write_text(json.dumps({"run_id": run.info.run_id}))
        head, commit = run_git("rev-parse", "HEAD"), run_git("stash", "create")
        run_git("checkout", "-q", "--", str(params), str(METRICS), str(EVALUATION))
        run_git("update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{name}", commit)
        return 0


@pytest.fixture
def runner(project: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    for path, text in ((SOURCE, "zip"), (CODE, "1\n"), (METRICS, "{}"), (EVALUATION, "{}")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    run_git("init", "-q")
    run_git("add", "-f", "params.yaml", "dvc.yaml", *map(str, (SOURCE, CODE, METRICS, EVALUATION)))
    run_git("commit", "-qm", "A project")
    runner = Runner()
    monkeypatch.setattr(dvc_experiments, "run_experiment", runner)
    return runner


def parents() -> list[object]:
    client = connect()
    return list(client.search_runs([experiment_id(client)], "tags.`hyojo.kind` = 'seeds'"))


def test_a_family_goes_on_where_it_stopped(runner: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    runner.failing, runner.stopping = {"fam-1"}, "fam-3"
    assert seeds.train_seeds(5, name="fam") == 128 + 15
    assert runner.asked == ["fam-0", "fam-1", "fam-2", "fam-3"]
    assert parents()[0].info.status == "KILLED"
    runner.asked, runner.failing, runner.stopping = [], set(), None
    assert seeds.train_seeds(5, name="fam") == 0
    assert runner.asked == ["fam-1", "fam-3", "fam-4"]
    (parent,) = parents()
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["seeds/n"] == 5
    assert parent.data.metrics["seeds/test_accuracy_mean"] == pytest.approx(0.52)
    assert parent.data.metrics["seeds/test_accuracy_sd"] == pytest.approx(0.0158114, abs=1e-6)
    assert parent.data.metrics["seeds/train_time_s_mean"] == pytest.approx(12)
    members = families.members(parent)
    assert list(members) == [0, 1, 2, 3, 4]
    for run_id in members.values():
        assert find_run(connect(), run_id).data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert families.parent_tags(connect(), run_id) == {"mlflow.parentRunId": parent.info.run_id}
    paths = {item.path for item in connect().list_artifacts(parent.info.run_id, "seeds")}
    assert paths == {"seeds/seeds.csv", "seeds/seeds.png"}
    assert "fam: 5 seeds (0, 1, 2, 3, 4)" in capsys.readouterr().out


@pytest.mark.parametrize("changed", [CODE, SOURCE])
def test_of_other_code_or_data_a_seed_is_trained_anew_and_the_rest_is_left_out(
    runner: Runner, changed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds.train_seeds(3, name="fam")
    former = changed.read_text()
    changed.write_text("2\n")
    runner.asked = []
    assert seeds.train_seeds(2, name="fam") == 0
    assert runner.asked == ["fam-0", "fam-1"]
    assert parents()[0].data.metrics["seeds/n"] == 2
    assert "left out, since code or data changed after it was trained: seed 2\n" in capsys.readouterr().err
    changed.write_text(former)
    assert seeds.train_seeds(3, name="fam") == 0
    assert runner.asked == ["fam-0", "fam-1"] * 2  # seed 2 is of today again


def test_data_that_git_lacks_are_left_to_dvc(runner: Runner, tmp_path: Path) -> None:
    setting = {"overrides": [f"prepare.source={tmp_path / 'outside.zip'}"], "name": "fam"}
    for _ in range(2):
        assert seeds.train_seeds(1, **setting) == 0
    assert runner.asked == ["fam-0", "fam-0"]
    assert parents()[0].data.metrics["seeds/n"] == 1


@pytest.mark.parametrize("failing", ["for-each-ref", "diff"])
def test_git_that_gives_no_answer_costs_no_result(
    runner: Runner, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not be taken for no: what was trained would be thrown away."""
    assert seeds.train_seeds(1, name="fam") == 0
    git = dvc_experiments.git
    with monkeypatch.context() as patch:
        patch.setattr(dvc_experiments, "git", lambda root, *given: None if given[0] == failing else git(root, *given))
        with pytest.raises(UserError, match="git cannot"):
            seeds.train_seeds(1, name="fam")
    assert runner.asked == ["fam-0"]
    assert list(dvc_experiments.find_experiments(Path.cwd())) == ["fam-0"]


def test_a_name_stands_for_one_setting(runner: Runner) -> None:
    seeds.train_seeds(1, name="fam")
    with pytest.raises(UserError, match="other params"):
        seeds.train_seeds(1, overrides=["train.lr=0.2"], name="fam")
    seeds.train_seeds(1, overrides=["train.lr=0.2"])
    assert len(parents()) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"count": 0}, "1 to"),
        ({"count": 1, "overrides": ["train.seed=3"]}, "--start"),
        ({"count": 1, "name": "a b"}, "--name"),
        ({"count": 1, "overrides": ["prepare.source=data/none.zip"]}, "dvc add data/none.zip"),
    ],
)
def test_mistakes_are_told_before_anything_runs(runner: Runner, arguments: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        seeds.train_seeds(**arguments)
    assert runner.asked == []


@pytest.mark.usefixtures("project")
def test_outside_git() -> None:
    with pytest.raises(UserError, match="git init"):
        seeds.train_seeds(1)


def add_family(name: str, right: np.ndarray, **corrections: int) -> str:
    """A family whose seeds answered so, bool (S, N); the samples stand in another order in every run."""
    client = connect()
    parent = families.open_family(client, name, name, {"train.backbone": name}).info.run_id
    found = []
    for seed, row in enumerate(right):
        run_id = client.create_run(experiment_id(client)).info.run_id
        client.set_tag(run_id, "hyojo.test_digest", "7" * 64)
        lines = [f"{i}.png,x,{'x' if good else 'y'},{float(good)},{float(not good)}" for i, good in enumerate(row)]
        text = "\n".join(["file,label,predicted,prob_x,prob_y", *(lines[seed:] + lines[:seed])])
        client.log_text(run_id, text, "evaluation/predictions.csv")
        client.log_text(run_id, json.dumps({"corrections": corrections}), "audit.json")
        found.append(families.Member(seed, f"{name}-{seed}", run_id))
    families.publish(client, parent, found, [], "")
    return parent


def compare(*names: str) -> two_families.FamilyComparison:
    return two_families.compare(*two_families.find_pair(*names))


@pytest.mark.usefixtures("project")
def test_families_are_compared_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    good, alike, poor = (rng.random((3, 60)) < chance for chance in (0.9, 0.9, 0.2))
    add_family("good", good)
    add_family("alike", alike)
    poor_id = add_family("poor", poor, relabelled_train=245)
    add_family("Shouting", good)
    assert compare("good", "alike").verdict == "indistinguishable"
    found = compare("good", poor_id)
    assert found.accuracy == compare_groups(poor, good)
    assert run_hyojo("compare", "good", "poor") == 0
    said = capsys.readouterr().out
    assert "verdict: good is better" in said
    (row,) = found.classes  # all samples are of one class
    assert row["difference"] == found.accuracy.difference
    assert row["p"] == found.accuracy.p_value
    assert found.params == [("train.backbone", "good", "poor")]
    page = Path("reports/compare.html").read_text()
    assert "Verdict: good is better" in page
    assert "<svg" in page
    assert found.as_dict()["corrections"] == [{"name": "labels changed in train", "a": 0, "b": 245}]
    for figure in (f"{row['a']:.4f}", f"{row['b']:.4f}", "train.backbone", "labels changed in train"):
        assert figure in said
        assert figure in page
    assert "Verdict: Shouting is better" in compare_page.families_page(compare("poor", "Shouting"))
    add_family("lone", good[:1])
    add_family("shorter", good[:, 1:])
    with pytest.raises(UserError, match="1 seeds"):
        compare("good", "lone")
    with pytest.raises(UserError, match="same samples"):
        compare("good", "shorter")
    with pytest.raises(UserError, match="no family"):
        two_families.find_pair("good", "champion")
    assert two_families.find_pair("champion", "3") is None
