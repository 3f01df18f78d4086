"""Train a setting under several seeds: ``hyojo seeds 5``. Mean, standard deviation and interval of each score.

Each seed is a DVC experiment and an MLflow run; a parent run ties these together. An experiment's commit says what it
was made from, so an interrupted family goes on, and what changed is trained anew.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError
from pipeline.core.params_file import parse_params
from pipeline.core.paths import PARAMS
from pipeline.core.project import project_root
from pipeline.core.signals import StopRequest, stop_requests
from pipeline.experiments.seed_setting import Setting, pick_decisive, read_setting
from pipeline.experiments.seed_summary import TRAIN_TIME, format_summary, publish, read_figures
from pipeline.tracking import dvc_experiments, families
from pipeline.tracking.attempts import attempt
from pipeline.tracking.dvc_experiments import Experiment
from pipeline.tracking.families import Member
from pipeline.tracking.store import connect, find_run

# More would not fit the tag that names the members.
MOST_SEEDS = 100
AGAIN = "running `hyojo seeds` again"


def train_seeds(count: int, start: int = 0, overrides: list[str] | None = None, name: str | None = None) -> int:
    """Train and evaluate seeds ``start`` to ``start + count - 1``, summarise the family, print the summary.

    Args:
        count: How many.
        start: The first.
        overrides: ``key=value`` pairs on top of ``params.yaml``.
        name: Of the family; from the params if None.

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
    client = attempt(connect, "opening the store", AGAIN)
    parent = client and families.open_family(client, setting.name, setting.key, setting.flat_params())
    variables = {families.PARENT_VARIABLE: parent.info.run_id} if parent else {}
    failed: list[int] = []
    try:
        with stop_requests() as stop:
            for seed in range(start, start + count):
                if not (_is_done(root, setting, seed) or _run_seed(root, setting, seed, variables, stop)):
                    failed.append(seed)
                if stop:
                    break
    except BaseException:
        if parent:
            attempt(lambda: client.set_terminated(parent.info.run_id, "FAILED"), "ending the run", "the next run")
        raise
    found = find_members(root, setting, client)
    if parent:
        status = "KILLED" if stop else "FAILED" if failed else "FINISHED"
        attempt(lambda: publish(client, parent.info.run_id, setting, found, status), "the summary", AGAIN)
    print(format_summary(setting, found))
    if stop:
        print("Stopped; the same command goes on from here.", file=sys.stderr)
        return 128 + stop.signal
    if failed:
        seeds = ", ".join(map(str, failed))
        print(f"warning: no result for seed {seeds}; the same command tries again.", file=sys.stderr)
    return int(bool(failed))


def _is_done(root: Path, setting: Setting, seed: int) -> bool:
    """Whether there is a result of a seed already; where git lacks the data, DVC says so, at the cost of a look."""
    former = dvc_experiments.find_experiments(root).get(setting.name_seed(seed))
    if former is None or setting.params.prepare.source not in setting.inputs or not is_current(former, setting, seed):
        return False
    print(f"{former.name} is there already.", flush=True)
    return True


def _run_seed(root: Path, setting: Setting, seed: int, variables: dict[str, str], stop: StopRequest) -> bool:
    """Train and evaluate a seed; whether there is a result."""
    name = setting.name_seed(seed)
    # DVC refuses a name twice; what it computed stays in the cache.
    dvc_experiments.remove_experiment(root, name)
    overrides = [*setting.overrides, f"++train.seed={seed}"]
    status = dvc_experiments.run_experiment(root, name, overrides, variables, stop)
    made = dvc_experiments.find_experiments(root).get(name)
    return status == 0 and made is not None and bool(made.text("reports/metrics.json"))


def is_current(experiment: Experiment, setting: Setting, seed: int) -> bool:
    """Tell whether a finished experiment is what these params, and code and data as git has them, give."""
    try:
        params = parse_params(experiment.text(str(PARAMS)))
    except UserError:  # of an older version, with other keys
        return False
    same = params.train.seed == seed and pick_decisive(params) == pick_decisive(setting.params)
    return same and experiment.matches(setting.inputs) and bool(experiment.text("reports/metrics.json"))


def find_members(root: Path, setting: Setting, client: Any) -> list[Member]:
    """Find the family's seeds that are of today's params, code and data, by seed; others are told and left out."""
    pattern = re.compile(re.escape(setting.name) + r"-(0|[1-9]\d*)")
    known = dvc_experiments.find_experiments(root)
    named = {int(match[1]): known[name] for name in known if (match := pattern.fullmatch(name))}
    alike = {seed: made for seed, made in named.items() if is_current(made, setting, seed)}
    # What data git lacks is DVC's to know: the newest record has it.
    digests = {seed: made.source_digest() for seed, made in alike.items()}
    found = sorted(seed for seed, digest in digests.items() if digest == [*digests.values()][-1])
    if stale := sorted(named.keys() - found):
        seeds = ", ".join(map(str, stale))
        print(f"left out, since code or data changed after it was trained: seed {seeds}", file=sys.stderr)
    return [_member(alike[seed], seed, client) for seed in found]


def _member(experiment: Experiment, seed: int, client: Any) -> Member:
    """An experiment's figures; its run is rebuilt if the store lacks it."""
    result = json.loads(experiment.text("reports/metrics.json"))
    run_id = json.loads(experiment.read(dvc_experiments.EVALUATION))["run_id"]
    member = Member(seed, experiment.name, run_id, read_figures(result))

    def look_up() -> None:
        run = find_run(client, member.run_id)
        if run is None:
            dvc_experiments.restore_run(experiment)
            run = find_run(client, member.run_id)
        if run and "train/time_s" in run.data.metrics:
            member.figures[TRAIN_TIME] = run.data.metrics["train/time_s"]

    if client:
        attempt(look_up, f"the run of {experiment.name}", AGAIN)
    return member
