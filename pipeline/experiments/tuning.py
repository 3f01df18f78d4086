"""Before a training: which settings are fastest for this backbone on this machine, and which rate it bears.

Both run the train stage's own loop on the prepared data, and keep nothing of the weights.
"""

import copy
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from pipeline.core.dataset import Prepared, load_prepared
from pipeline.core.errors import UserError
from pipeline.core.params import TrainParams
from pipeline.models.devices import (
    explain_full_memory,
    list_precisions,
    resolve_device,
    set_determinism,
    synchronize,
)
from pipeline.train import loop, planning
from pipeline.train.loader import Loader, build_loader
from pipeline.train.loop import Interrupted, Progress
from pipeline.train.trainer import Trainer, build_trainer, wrap

# A round ends after so many updates, or so many seconds. A wait for the device after each would hide what overlaps.
ROUND, ROUND_S = 20, 0.25
# A larger or smaller batch is another training; it must be worth it.
WORTH = 1.05
# The range test ends where the loss is this many times the lowest.
DIVERGED = 3.0
SMOOTHING = 0.9


@dataclass(frozen=True)
class Measurement:
    """Speed of training with some settings: median and quartiles of img/s over ``updates``; 0 where it failed."""

    settings: dict[str, str | bool | int]
    rate: float
    low: float = 0.0
    high: float = 0.0
    updates: int = 0
    failure: str = ""


def fastest_settings(params: TrainParams, seconds: float = 8.0) -> tuple[dict, list[Measurement]]:
    """Measure dtypes and layouts, then batch sizes, each against the others in turn, for ``seconds`` without set-up.

    Returns:
        The fastest of ``amp``, ``channels_last`` and ``batch_size``, and all that was measured.

    Raises:
        UserError: Nothing is prepared, or no setting works.
    """
    prepared, device = load_prepared(), resolve_device(params.device)
    settings = [
        {"amp": amp, "channels_last": layout, "batch_size": params.batch_size}
        for amp, layout in itertools.product(list_precisions(device), (True, False))
    ]
    shared = build_loader(prepared.split("train"), params, device)  # one: the images are on the device once
    first = _measure(params, shared, prepared, settings, seconds * 0.6)
    best = max(first, key=lambda found: found.rate)
    if not best.rate:
        raise UserError(f"no setting works: {best.failure}")
    samples = len(prepared.split("train"))
    sizes = [size for size in (params.batch_size // 2, params.batch_size * 2, params.batch_size * 4) if size >= 8]
    settings = [
        best.settings | {"batch_size": size} for size in sizes if size % params.accumulate == 0 and size <= samples
    ]
    second = _measure(params, shared, prepared, [best.settings, *settings], seconds * 0.4)
    reference = second[0].rate
    larger = max(second, key=lambda found: found.rate)
    chosen = larger if larger.rate > WORTH * reference else second[0]
    return chosen.settings, first + second[1:]


def _measure(
    params: TrainParams, shared: Loader, prepared: Prepared, settings: list[dict], seconds: float
) -> list[Measurement]:
    """Time the loop under each of the settings, one after the other in rounds, so that noise meets all alike."""
    torch.compiler.reset()  # or nets of many settings would reach the limit behind which they run as they are
    runs = [_rounds(params.model_copy(update=setting), shared, prepared) for setting in settings]
    found: list[list[tuple[int, float]]] = [[] for _ in settings]
    failures: dict[int, str] = {}
    started, first = time.perf_counter(), True  # the first round warms up
    while first or (time.perf_counter() - started < seconds and len(failures) < len(settings)):
        for place in sorted(set(range(len(settings))) - set(failures)):
            try:
                found[place].append(next(runs[place]))
            except (RuntimeError, UserError) as error:  # too little memory, say
                failures[place] = str(error).splitlines()[0]
        if first:
            found, started, first = [[] for _ in settings], time.perf_counter(), False
    measurements = []
    for place, setting in enumerate(settings):
        if place in failures:
            measurements.append(Measurement(setting, 0.0, failure=failures[place]))
            continue
        rates = [setting["batch_size"] * updates / seconds_all for updates, seconds_all in found[place]]
        low, middle, high = statistics.quantiles(rates, n=4) if len(rates) > 1 else rates * 3
        measurements.append(Measurement(setting, middle, low, high, sum(updates for updates, _ in found[place])))
    return measurements


def _rounds(params: TrainParams, shared: Loader, prepared: Prepared) -> Iterator[tuple[int, float]]:
    """Run the train stage's loop for ever, a round at a time; yields each one's updates and seconds."""
    trainer = _start(params, prepared, shared.device)
    loader, progress = copy.copy(shared), Progress()
    loader.batch_size = params.batch_size
    while True:
        synchronize(trainer.device)
        begun, count = time.perf_counter(), itertools.count(1)

        def end_round(begun: float = begun, count: Iterator[int] = count) -> None:
            if next(count) >= ROUND or time.perf_counter() - begun > ROUND_S:
                raise Interrupted

        _run(trainer, loader, progress, end_round)
        synchronize(trainer.device)
        yield next(count) - 1, time.perf_counter() - begun


def _run(trainer: Trainer, loader: Loader, progress: Progress, after_step: Callable[[], None]) -> None:
    """Run the train stage's loop, from where ``progress`` stands, until ``after_step`` raises ``Interrupted``."""
    with suppress(Interrupted):
        while True:
            loop.train_one_epoch(trainer, loader, progress, after_step)
            progress.begin_next_epoch()


def _start(params: TrainParams, prepared: Prepared, device: torch.device) -> Trainer:
    """What the train stage would begin with."""
    set_determinism(params.deterministic, device)
    spec, _ = planning.plan(params, prepared.class_names, prepared.img_size, prepared.channels)
    trainer = build_trainer(params, prepared, spec, device)
    wrap(trainer)
    return trainer


@explain_full_memory("Lower train.batch_size, raise train.accumulate, or set train.amp to bf16.")
def lr_range(params: TrainParams, lowest: float, highest: float, updates: int) -> pd.DataFrame:
    """Range test (Smith, 2017, https://arxiv.org/abs/1506.01186): raise the rate each update, and watch the loss.

    Args:
        params: The train section.
        lowest: First learning rate.
        highest: Last one; the test ends before it once the loss diverges.
        updates: How many updates lie between.

    Returns:
        Columns ``lr``, ``loss`` and ``smoothed`` (exponential average), a row an update.
    """
    prepared, device = load_prepared(), resolve_device(params.device)
    trainer, progress = _start(params, prepared, device), Progress()
    loader = build_loader(prepared.split("train"), params, device)
    rates = np.geomspace(lowest, highest, updates)
    rows: list[dict[str, float]] = []
    average, best, before = 0.0, np.inf, (0, 0.0)

    def set_rate() -> None:
        for group in trainer.optimizer.param_groups:
            group["lr"] = rates[len(rows)] * group.get("lr_scale", 1.0)

    def after_step() -> None:
        nonlocal average, best, before
        samples, loss_sum = (0, 0.0) if progress.step == 1 else before  # an epoch's sums begin anew
        before = progress.samples, float(progress.loss_sum)
        loss = (before[1] - loss_sum) / (before[0] - samples)
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        smoothed = average / (1 - SMOOTHING ** (len(rows) + 1))
        rows.append({"lr": rates[len(rows)], "loss": loss, "smoothed": smoothed})
        best = min(best, smoothed)
        if len(rows) == updates or not np.isfinite(loss) or smoothed > DIVERGED * best:
            raise Interrupted
        bar.update()
        set_rate()

    with tqdm(total=updates, desc="lr range", unit="update", leave=False) as bar:
        set_rate()
        _run(trainer, loader, progress, after_step)
    return pd.DataFrame(rows)


def suggested_lr(curve: pd.DataFrame) -> float:
    """The rate at which the smoothed loss falls most steeply over the logarithm of the rate.

    Raises:
        UserError: The loss falls nowhere.
    """
    kept = curve[np.isfinite(curve["smoothed"])].iloc[len(curve) // 10 :]  # the average must settle first
    if len(kept) < 3:
        raise UserError("the range test ended at once: lower --from")
    slopes = np.gradient(kept["smoothed"].to_numpy(), np.log(kept["lr"].to_numpy()))
    steepest = int(slopes.argmin())
    if slopes[steepest] >= 0:
        raise UserError("the loss falls at no rate: widen --from and --to, or give it more --updates")
    return float(kept["lr"].iloc[steepest])
