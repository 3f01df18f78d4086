"""Look for better parameters on the val split: trials chosen by Optuna, each a DVC experiment below one MLflow run.

A trial runs prepare and train, and never evaluate: the test split is not read. Trials whose val curve falls behind are
ended early; they are MLflow runs, and no experiments. The study lies in a database that several machines may share.
"""

import csv
import io
import math
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from pipeline.core.errors import UserError
from pipeline.core.params import TrainParams
from pipeline.core.params_file import load_params
from pipeline.core.paths import TRAINED
from pipeline.core.project import project_root
from pipeline.core.signals import StopRequest, stop_requests
from pipeline.experiments import search_report
from pipeline.experiments.search_space import Space
from pipeline.experiments.seed_setting import hydra_value
from pipeline.tracking import dvc_experiments, searches
from pipeline.tracking.attempts import attempt
from pipeline.tracking.families import PARENT_VARIABLE
from pipeline.tracking.store import connect

LOOK_S = 2.0  # between two looks at a trial's curve
HEARTBEAT_S = 60
STARTUP = 5  # trials before what came of them is minded
DONE = (TrialState.COMPLETE, TrialState.PRUNED)


class TrialError(RuntimeError):
    """A trial that gave no result; others go on."""


@dataclass
class Search:
    """A search under way.

    Attributes:
        name: Of it, and so of its experiments: ``<name>-<trial>``.
        prune: Whether trials that fall behind are ended early.
        parent_id: Of the MLflow run above the trials; empty if the store did not answer.
    """

    root: Path
    name: str
    space: Space
    prune: bool
    parent_id: str
    stop: StopRequest = field(default_factory=StopRequest)

    def run_trial(self, trial: Trial) -> float:
        """Train with what Optuna chose, and return the objective in the best epoch."""
        overrides = {name: _suggest(trial, name, found) for name, found in self.space.ranges.items()}
        name = f"{self.name}-{trial.number}"
        words = [f"++{key}={hydra_value(value)}" for key, value in overrides.items()]
        watcher = _Watcher(self, trial, name) if self.prune else None
        value = self.train(name, words, watcher)
        if watcher and watcher.fell_behind:
            raise optuna.TrialPruned
        if self.stop:
            trial.study.stop()
        if value is None:
            raise TrialError(f"{name} gave no result")
        return value

    def train(self, name: str, overrides: list[str], watcher: "_Watcher | None" = None) -> float | None:
        """Train as an experiment; the objective in the best epoch, None if it did not come to its end."""
        variables = {PARENT_VARIABLE: self.parent_id} if self.parent_id else {}
        dvc_experiments.remove_experiment(self.root, name)
        status = dvc_experiments.run_experiment(
            self.root, name, overrides, variables, self.stop, target="train", is_over=watcher
        )
        made = dvc_experiments.find_experiments(self.root).get(name)
        if status or made is None:
            return None
        rows = list(csv.DictReader(io.StringIO(dvc_experiments.read_out(made, str(TRAINED), "history.csv"))))
        return self.space.best([float(row[self.space.objective]) for row in rows])


class _Watcher:
    """Tells Optuna the val curve of a trial while it runs; called again and again, true once it has fallen behind."""

    def __init__(self, search: Search, trial: Trial, name: str) -> None:
        self._search, self._trial, self._name = search, trial, name
        self._next, self._told, self._since_s = time.monotonic(), 0, time.time()
        self.fell_behind = False

    def __call__(self) -> bool:
        if time.monotonic() >= self._next:
            own = self._name, self._search.space.objective, self._since_s
            curve = attempt(lambda: searches.read_curve(*own), "reading a curve") or []
            for step, value in enumerate(curve[self._told :], self._told + 1):
                self._trial.report(value, step)
            self._told = max(self._told, len(curve))
            self._next = time.monotonic() + LOOK_S
            self.fell_behind = bool(curve) and self._trial.should_prune()
            if self.fell_behind:
                attempt(lambda: searches.mark_pruned(self._name, self._since_s), "marking a pruned run")
        return self.fell_behind


def search(
    space: Space, name: str, *, trials: int, minutes: float | None, confirm: int, storage: str | None, **how: Any
) -> int:
    """Search until there are so many finished trials, or the time is over; then confirm the best on fresh seeds.

    Args:
        space: What is searched.
        name: Of the study; one that is there goes on.
        trials: Finished ones in all, pruned ones included, those of other machines too.
        minutes: After which no further trial begins; None: no limit.
        confirm: Fresh seeds; 0: none.
        storage: URL of the study's database; None: one of the project.
        how: ``prune`` (bool) and ``sampler`` (``tpe`` or ``random``).

    Returns:
        Exit status: 0, 1 if no trial gave a result, 128 + signal if stopped.

    Raises:
        UserError: What would let all trials fail.
    """
    root, params = project_root(), load_params()
    dvc_experiments.check_repository(root)
    dvc_experiments.check_source(root, params.prepare.source)
    client = attempt(connect, "opening the store", "running `hyojo search` again")
    parent_id = searches.open_parent(client, name, space.objective) if client else ""
    study = open_study(root, space, name, storage, params.train, **how)
    if not study.get_trials(deepcopy=False) and (start := space.find_start(params)):
        study.enqueue_trial(start)
    with stop_requests() as stop:
        running = Search(root, name, space, how["prune"], parent_id=parent_id, stop=stop)
        left = trials - len(study.get_trials(deepcopy=False, states=DONE))
        if left > 0:
            study.optimize(
                running.run_trial,
                timeout=minutes and 60 * minutes,
                callbacks=[
                    optuna.study.MaxTrialsCallback(trials, DONE),
                    lambda study, _: study.stop() if stop else None,
                ],
                catch=(TrialError,),
            )
        finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        confirmed = [] if stop or not finished else confirm_best(running, study.best_trial, confirm, params.train.seed)
    status = "KILLED" if stop else "FINISHED" if finished else "FAILED"
    if parent_id:
        attempt(lambda: search_report.publish(client, parent_id, study, confirmed, status), "the summary of the search")
    print(search_report.format_summary(study, name, space.objective, confirmed))
    return 128 + stop.signal if stop else int(not finished)


def open_study(
    root: Path, space: Space, name: str, storage: str | None, params: TrainParams, prune: bool, sampler: str
) -> optuna.Study:
    """Open the study of this name, made if there is none; a trial whose process died is tried again."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder = root / ".hyojo"
    folder.mkdir(exist_ok=True)
    url = storage or f"sqlite:///{folder / 'search.db'}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            retry = optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=3)
            database = optuna.storages.RDBStorage(
                url, heartbeat_interval=HEARTBEAT_S, heartbeat_stale_trial_callback=retry
            )
        study = optuna.create_study(study_name=name, storage=database, direction=space.direction, load_if_exists=True)
    except Exception as error:  # whatever SQLAlchemy and the drivers below it raise
        raise UserError(f"--storage: {url.split('@')[-1]} cannot be opened ({str(error).splitlines()[0]}).") from None
    # One that goes on draws what it has not drawn yet; workers that share a study must not all draw the same.
    drawn = None if storage else params.seed + len(study.get_trials(deepcopy=False))
    if sampler == "random":
        study.sampler = optuna.samplers.RandomSampler(seed=drawn)
    else:
        # It learns from trials that were ended early, too; Optuna's Gaussian process would choose them again.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.sampler = optuna.samplers.TPESampler(seed=drawn, n_startup_trials=STARTUP, multivariate=True)
    # Early epochs say little: rates rise, and averages of weights lag.
    behind = optuna.pruners.MedianPruner(n_startup_trials=STARTUP - 1, n_warmup_steps=math.ceil(params.epochs / 2))
    study.pruner = behind if prune else optuna.pruners.NopPruner()
    known = {key: value for trial in study.get_trials(deepcopy=False)[:1] for key, value in trial.distributions.items()}
    if known and known.keys() != space.ranges.keys():
        raise UserError(f"--name {name}: a search of that name is over {', '.join(known)}. Give another --name.")
    return study


def _suggest(trial: Trial, name: str, found: BaseDistribution) -> Any:
    """Have Optuna choose from a range."""
    if isinstance(found, CategoricalDistribution):
        return trial.suggest_categorical(name, found.choices)
    if isinstance(found, IntDistribution):
        return trial.suggest_int(name, found.low, found.high, log=found.log)
    assert isinstance(found, FloatDistribution)
    return trial.suggest_float(name, found.low, found.high, log=found.log)


def confirm_best(running: Search, best: FrozenTrial, count: int, seed: int) -> list[float]:
    """Train the best trial's params under fresh seeds: the score that won was the luckiest of many, and is too good."""
    words = [f"++{key}={hydra_value(value)}" for key, value in best.params.items()]
    found = []
    for number in range(1, count + 1):
        if running.stop:
            break
        value = running.train(f"{running.name}-best-{number}", [*words, f"++train.seed={seed + number}"])
        found += [] if value is None else [value]
    return found
