"""Schedules against closed forms and torch's own schedulers; a resumed one goes on as if nothing had happened."""

import io
import math

import pytest
import torch
from builders import ROOT
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from pipeline.core.params import Schedule
from pipeline.core.params_file import apply_overrides, apply_recipe, parse_params
from pipeline.train.schedule import WARMUP_START, LRSchedule

LR, EPOCHS, UPDATES = 0.1, 10, 7


def optimizer() -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)


def schedule(name: str, **changes: float) -> Schedule:
    values = {"warmup": 0.2, "min_lr": 0.001, "decay": 0.3, "decay_rate": 0.5} | changes
    return Schedule(name=name, **values)


def attach(
    params: Schedule, epochs: int = EPOCHS, updates: int = UPDATES, mode: str = "max"
) -> tuple[torch.optim.Optimizer, LRSchedule]:
    opt = optimizer()
    return opt, LRSchedule(opt, params, lr=LR, epochs=epochs, steps=updates, mode=mode)


def drive(
    opt: torch.optim.Optimizer, sched: LRSchedule, metrics: list[float], updates: int = UPDATES, start: int = 0
) -> list[float]:
    """Learning rates of the updates, as the loop drives a schedule: after each update, and after each epoch."""
    lrs, done = [], start * updates
    for epoch in range(start, len(metrics)):
        for _ in range(updates):
            lrs.append(opt.param_groups[0]["lr"])
            opt.step()
            done += 1
            sched.step_update(done)
        sched.step_epoch(metrics[epoch])
    return lrs


METRICS = [0.1, 0.2, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3]


def ramp(update: int, warmup: int) -> float:
    return LR * (WARMUP_START + (1 - WARMUP_START) * update / warmup)


@pytest.mark.parametrize("warmup", [14, 0])
def test_cosine_is_a_linear_rise_and_half_a_cosine(warmup: int) -> None:
    total = EPOCHS * UPDATES
    opt, sched = attach(schedule("cosine", warmup=warmup / total))
    falling = [0.001 + (LR - 0.001) / 2 * (1 + math.cos(math.pi * t / (total - warmup))) for t in range(total - warmup)]
    assert drive(opt, sched, METRICS) == pytest.approx([ramp(t, warmup) for t in range(warmup)] + falling)


def test_step_decays_by_the_rate_at_every_such_part_after_the_warm_up() -> None:
    opt, sched = attach(schedule("step"))
    warmup = 2 * UPDATES
    expected = [
        ramp(t, warmup) if t < warmup else LR * 0.5 ** ((t - warmup) // (3 * UPDATES)) for t in range(EPOCHS * UPDATES)
    ]
    assert drive(opt, sched, METRICS) == pytest.approx(expected)


def test_onecycle_is_torchs() -> None:
    opt, sched = attach(schedule("onecycle"))
    peer = optimizer()
    reference = OneCycleLR(
        peer, LR, total_steps=EPOCHS * UPDATES, pct_start=2 / EPOCHS, div_factor=1 / WARMUP_START, cycle_momentum=False
    )
    expected = []
    for _ in range(EPOCHS * UPDATES):
        expected.append(peer.param_groups[0]["lr"])
        peer.step()
        if len(expected) < EPOCHS * UPDATES:
            reference.step()
    assert drive(opt, sched, METRICS) == pytest.approx(expected)
    assert max(expected) == pytest.approx(LR)


@pytest.mark.parametrize(
    "epochs, updates, warmup",
    [(1, 1, 0.5), (2, 1, 0.5), (12, 4, 0.02), (12, 1, 0.08), (3, 1, 0.67), (5, 3, 0.002), (1, 1, 0.99)],
)
@pytest.mark.parametrize("name", ["cosine", "onecycle", "step", "plateau"])
def test_runs_of_a_few_updates_have_finite_rates_up_to_the_highest(
    name: str, epochs: int, updates: int, warmup: float
) -> None:
    opt, sched = attach(schedule(name, warmup=warmup), epochs, updates)
    lrs = drive(opt, sched, [0.5] * epochs, updates)
    assert len(lrs) == epochs * updates
    assert all(0 <= lr <= LR + 1e-9 for lr in lrs)


# What each recipe was measured with: training samples, epochs of warm-up, and the epochs that begin another size.
MEASURED = {
    "sample": (1610, 3, []), "fer2013-fast": (28709, 1, []), "fer2013-finetune": (28709, 1, []),
    "fer2013": (28709, 2, [0, 13]), "fer2013-best": (28709, 2, [0, 19]), "fer2013-cuda": (28709, 8, []),
}  # fmt: skip


@pytest.mark.parametrize("name", [path.stem for path in (ROOT / "recipes").glob("*.yaml")])
def test_recipes_in_parts_are_what_was_measured_in_epochs(name: str) -> None:
    samples, warmup, starts = MEASURED[name]
    params = parse_params(apply_recipe((ROOT / f"recipes/{name}.yaml").read_text(), name)).train
    steps = samples // params.batch_size
    _, sched = attach(params.schedule, params.epochs, steps)
    assert sched.warmup_updates == warmup * steps
    assert [params.find_epoch(stretch.start) for stretch in params.progressive] == starts


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 100])
def test_recipes_take_any_number_of_epochs(epochs: int) -> None:
    for path in (ROOT / "recipes").glob("*.yaml"):
        text = apply_recipe(path.read_text(), path.name)
        params = parse_params(apply_overrides(text, [f"train.epochs={epochs}"])).train
        starts = [params.find_epoch(stretch.start) for stretch in params.progressive]
        assert starts == sorted(starts), path
        assert all(0 <= start < epochs for start in starts), path  # so the last epoch has the last size
        lrs = drive(*attach(params.schedule, epochs, 5), [0.5] * epochs, 5)
        assert max(lrs) == pytest.approx(LR), path  # the rate is reached


@pytest.mark.parametrize("mode", ["max", "min"])
def test_plateau_is_torchs_after_the_warm_up(mode: str) -> None:
    metrics = METRICS if mode == "max" else [1 - m for m in METRICS]
    opt, sched = attach(schedule("plateau", decay=0.2), mode=mode)
    lrs = drive(opt, sched, metrics)
    assert lrs[: 2 * UPDATES] == pytest.approx([ramp(t, 2 * UPDATES) for t in range(2 * UPDATES)])
    peer = optimizer()
    reference = ReduceLROnPlateau(peer, mode, factor=0.5, patience=2, min_lr=0.001)
    expected = []
    for metric in metrics[2:]:
        expected.append(peer.param_groups[0]["lr"])
        reference.step(metric)
    assert lrs[2 * UPDATES :: UPDATES] == pytest.approx(expected)
    assert lrs[-1] < LR / 2


@pytest.mark.parametrize("name", ["cosine", "onecycle", "step", "plateau"])
@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_resumed_schedule_goes_on_as_the_uninterrupted_one(name: str, stop: int) -> None:
    params = schedule(name, decay=0.1)
    whole = drive(*attach(params), METRICS)
    opt, sched = attach(params)
    first = drive(opt, sched, METRICS[:stop])
    buffer = io.BytesIO()
    torch.save({"schedule": sched.state_dict(), "optimizer": opt.state_dict()}, buffer)
    state = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    opt, sched = attach(params)
    opt.load_state_dict(state["optimizer"])
    sched.load_state_dict(state["schedule"])
    assert first + drive(opt, sched, METRICS, start=stop) == whole
