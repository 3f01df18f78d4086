"""Before a training: which settings are fastest for this backbone on this machine, and which rate it bears.

Both run the train stage's own updates on the prepared data, and keep nothing of the weights.
"""

import itertools
import statistics
import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from pipeline.core.dataset import Prepared, load_prepared
from pipeline.core.errors import UserError
from pipeline.core.params import TrainParams
from pipeline.models.devices import list_precisions, resolve_device, synchronize
from pipeline.train import loop, planning
from pipeline.train.loader import Loader, build_loader
from pipeline.train.trainer import Trainer, build_trainer

WARM_UP = 2  # updates before the first that counts
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
    first = _measure(params, prepared, device, settings, seconds * 0.6)
    best = max(first, key=lambda found: found.rate)
    if not best.rate:
        raise UserError(f"no setting works: {best.failure}")
    samples = len(prepared.split("train"))
    sizes = [size for size in (params.batch_size // 2, params.batch_size * 2, params.batch_size * 4) if size >= 8]
    settings = [
        best.settings | {"batch_size": size} for size in sizes if size % params.accumulate == 0 and size <= samples
    ]
    second = _measure(params, prepared, device, [best.settings, *settings], seconds * 0.4)
    reference = second[0].rate
    larger = max(second, key=lambda found: found.rate)
    chosen = larger if larger.rate > WORTH * reference else second[0]
    return chosen.settings, first + second[1:]


def _measure(
    params: TrainParams, prepared: Prepared, device: torch.device, settings: list[dict], seconds: float
) -> list[Measurement]:
    """Time updates under each of the settings, one after the other in rounds, so that noise meets all alike."""
    runs, failures, times = [], {}, [[] for _ in settings]
    for place, setting in enumerate(settings):
        try:
            runs.append(_updates(params.model_copy(update=setting), prepared, device))
            for _ in range(WARM_UP):
                next(runs[-1])
        except (RuntimeError, torch.OutOfMemoryError) as error:
            failures[place] = str(error).splitlines()[0]
    started = time.perf_counter()
    while time.perf_counter() - started < seconds and len(failures) < len(settings):
        for place, run in enumerate(runs):
            if place not in failures:
                times[place].append(next(run))
    measurements = []
    for place, setting in enumerate(settings):
        if place in failures:
            measurements.append(Measurement(setting, 0.0, failure=failures[place]))
            continue
        rates = [setting["batch_size"] / seconds_each for seconds_each in times[place]]
        low, middle, high = statistics.quantiles(rates, n=4) if len(rates) > 1 else rates * 3
        measurements.append(Measurement(setting, middle, low, high, len(rates)))
    return measurements


def _updates(params: TrainParams, prepared: Prepared, device: torch.device):
    """Do update after update, for ever; yields the seconds that each took."""
    trainer, loader = _start(params, prepared, device)
    for epoch in itertools.count():
        for step, batch in enumerate(loader.batches(epoch)):
            synchronize(device)
            start = time.perf_counter()
            loop.update(trainer, batch, epoch, step)
            synchronize(device)
            yield time.perf_counter() - start


def _start(params: TrainParams, prepared: Prepared, device: torch.device) -> tuple[Trainer, Loader]:
    spec, _ = planning.plan(params, prepared.class_names, prepared.img_size, prepared.channels)
    trainer = build_trainer(params, prepared, spec, device)
    trainer.train_mode()
    return trainer, build_loader(prepared.split("train"), params, device)


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
    trainer, loader = _start(params, prepared, device)
    rows, average, best = [], 0.0, np.inf
    batches = ((epoch, step, batch) for epoch in itertools.count() for step, batch in enumerate(loader.batches(epoch)))
    bar = tqdm(np.geomspace(lowest, highest, updates), desc="lr range", unit="update", leave=False)
    for done, (rate, (epoch, step, batch)) in enumerate(zip(bar, batches), start=1):
        for group in trainer.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        loss_sum, _ = loop.update(trainer, batch, epoch, step)
        loss = float(loss_sum) / len(batch.targets)
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        smoothed = average / (1 - SMOOTHING**done)
        rows.append({"lr": rate, "loss": loss, "smoothed": smoothed})
        best = min(best, smoothed)
        if not np.isfinite(loss) or smoothed > DIVERGED * best:
            break
    bar.close()
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
