"""Train a setting under several seeds: ``hyojo seeds 5``. Mean, standard deviation and interval of each score.

Each seed is a DVC experiment and an MLflow run; a parent run ties these together. DVC's record says what is done, so
an interrupted family goes on, and what changed is trained anew.
"""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError
from pipeline.core.paths import PARAMS
from pipeline.core.project import project_root
from pipeline.core.signals import StopRequest, stop_requests
from pipeline.experiments.seed_setting import STAGES, Setting, pick_decisive, read_setting
from pipeline.experiments.seed_summary import TRAIN_TIME, format_summary, publish, read_figures
from pipeline.tracking import dvc_experiments, families, runs
from pipeline.tracking.dvc_experiments import Experiment
from pipeline.tracking.families import Member
from pipeline.tracking.origin import git
from pipeline.tracking.store import connect, find_run

# More would not fit the tag that names the members.
MOST_SEEDS = 100
AGAIN = "running `hyojo seeds` again"
Runner = Callable[[Path, str, list[str], dict[str, str], StopRequest], int]


@dataclass(frozen=True)
class Seed:
    """One seed of a setting, in the project at ``root``."""

    root: Path
    setting: Setting
    seed: int

    @property
    def name(self) -> str:
        """DVC's name of it."""
        return f"{self.setting.name}-{self.seed}"


def train_seeds(
    count: int,
    start: int = 0,
    overrides: list[str] | None = None,
    name: str | None = None,
    runner: Runner = dvc_experiments.run_experiment,
) -> int:
    """Train and evaluate seeds ``start`` to ``start + count - 1``, summarise the family, print the summary.

    Args:
        count: How many.
        start: The first.
        overrides: ``key=value`` pairs on top of ``params.yaml``.
        name: Of the family; from the params if None.
        runner: What runs an experiment.

    Returns:
        Exit status: 0, 1 if a seed failed, 128 + signal if stopped.

    Raises:
        UserError: What would let all seeds fail; before the first is trained.
    """
    if not 1 <= count <= MOST_SEEDS or start < 0:
        raise UserError(f"seeds wants 1 to {MOST_SEEDS} seeds and a --start of 0 or more")
    root = project_root()
    dvc_experiments.check_repository(root)
    setting = read_setting(overrides or [], name)
    dvc_experiments.check_source(root, setting.params.prepare.source)
    client = runs.attempt(connect, "opening the store", AGAIN)
    parent = client and families.open_family(client, setting.name, setting.key, setting.flat_params())
    variables = {families.PARENT_VARIABLE: parent.info.run_id} if parent else {}
    failed: list[int] = []
    try:
        with stop_requests() as stop:
            for seed in range(start, start + count):
                wanted = Seed(root, setting, seed)
                if not (_is_done(wanted) or _run_seed(wanted, variables, runner, stop)):
                    failed.append(seed)
                if stop:
                    break
    except BaseException:
        if parent:
            runs.attempt(lambda: client.set_terminated(parent.info.run_id, "FAILED"), "ending the run", "the next run")
        raise
    found = find_members(root, setting, client)
    if parent:
        status = "KILLED" if stop else "FAILED" if failed else "FINISHED"
        runs.attempt(lambda: publish(client, parent.info.run_id, setting, found, status), "the summary", AGAIN)
    print(format_summary(setting, found))
    if stop:
        print("Stopped; the same command goes on from here.", file=sys.stderr)
        return 128 + stop.signal
    if failed:
        seeds = ", ".join(map(str, failed))
        print(f"warning: no result for seed {seeds}; the same command tries again.", file=sys.stderr)
    return int(bool(failed))


def _is_done(wanted: Seed) -> bool:
    """Whether there is a result of a seed already, of today's params, code and data."""
    former = dvc_experiments.find_experiments(wanted.root).get(wanted.name)
    if former is None or not is_current(former, wanted, {}):
        return False
    print(f"{wanted.name} is there already.", flush=True)
    return True


def _run_seed(wanted: Seed, variables: dict[str, str], runner: Runner, stop: StopRequest) -> bool:
    """Train and evaluate a seed; whether there is a result."""
    # DVC refuses a name twice; what it computed stays in the cache.
    dvc_experiments.remove_experiment(wanted.root, wanted.name)
    overrides = [*wanted.setting.overrides, f"++train.seed={wanted.seed}"]
    status = runner(wanted.root, wanted.name, overrides, variables, stop)
    made = dvc_experiments.find_experiments(wanted.root).get(wanted.name)
    return status == 0 and made is not None and bool(made.text("reports/metrics.json"))


def is_current(experiment: Experiment, wanted: Seed, digests: dict[str, str | None]) -> bool:
    """Tell whether an experiment is what these params, code and data give, by DVC's record of it.

    Args:
        experiment: A finished one.
        wanted: What it is to be.
        digests: MD5 of deps by path, where known; those of other files are added, and a folder that is not known
            makes an experiment one to run again, which DVC does at no cost if nothing changed.
    """
    lock, setting = experiment.lock(), wanted.setting
    if any(stage not in lock for stage in STAGES) or not experiment.text("reports/metrics.json"):
        return False
    params = {stage: lock[stage]["params"][PARAMS.name][stage] for stage in STAGES}
    try:
        known = setting.params.model_validate({**setting.params.model_dump(), **params})
    except ValueError:  # of an older version, with other keys
        return False
    if known.train.seed != wanted.seed or pick_decisive(known) != pick_decisive(setting.params):
        return False
    made = {out["path"] for stage in STAGES for out in lock[stage]["outs"]}
    for stage in STAGES:
        for dep in lock[stage]["deps"]:
            path = dep["path"]
            if path in made:
                continue
            if path not in digests:
                place = wanted.root / path
                digests[path] = dvc_experiments.file_digest(place) if place.is_file() else None
            if digests[path] != dep.get("md5"):
                return False
    return True


def find_members(root: Path, setting: Setting, client: Any) -> list[Member]:
    """Find the family's seeds that are of today's params, code and data, by seed; others are told and left out."""
    digests: dict[str, str | None] = {}
    pattern = re.compile(re.escape(setting.name) + r"-(0|[1-9]\d*)")
    named = {
        int(match[1]): experiment
        for name, experiment in dvc_experiments.find_experiments(root).items()
        if (match := pattern.fullmatch(name))
    }
    # A folder's digest is DVC's to know: the newest record has it.
    for experiment in sorted(named.values(), key=lambda one: _committed(root, one)):
        for dep in experiment.lock().get("prepare", {}).get("deps", []):
            if (root / dep["path"]).is_dir():
                digests[dep["path"]] = dep.get("md5")
    found, stale = [], []
    for seed, experiment in sorted(named.items()):
        if is_current(experiment, Seed(root, setting, seed), digests):
            found.append(_member(experiment, seed, client))
        else:
            stale.append(seed)
    if stale:
        seeds = ", ".join(map(str, stale))
        print(f"left out, since code or data changed after it was trained: seed {seeds}", file=sys.stderr)
    return found


def _committed(root: Path, experiment: Experiment) -> int:
    """When an experiment was recorded, s."""
    return int(git(root, "show", "-s", "--format=%ct", experiment.commit) or 0)


def _member(experiment: Experiment, seed: int, client: Any) -> Member:
    """An experiment's figures; its run is rebuilt if the store lacks it."""
    result = json.loads(experiment.text("reports/metrics.json"))
    member = Member(seed, experiment.name, result["run_id"], read_figures(result))

    def look_up() -> None:
        run = find_run(client, member.run_id)
        if run is None:
            dvc_experiments.restore_run(experiment)
            run = find_run(client, member.run_id)
        if run and "train/time_s" in run.data.metrics:
            member.figures[TRAIN_TIME] = run.data.metrics["train/time_s"]

    if client:
        runs.attempt(look_up, f"the run of {experiment.name}", AGAIN)
    return member
