"""Learning-rate schedules: timm's cosine and step, torch's one-cycle and plateau, behind one interface."""

from typing import Any

from timm.scheduler import CosineLRScheduler, StepLRScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from pipeline.core.params import Schedule

# The warm-up starts at this part of the learning rate.
WARMUP_START = 0.04


class LRSchedule:
    """Steps once an update (cosine, step, one-cycle; plateau while it warms up) or once an epoch (plateau)."""

    def __init__(
        self, optimizer: Optimizer, schedule: Schedule, *, lr: float, epochs: int, steps: int, mode: str
    ) -> None:
        """Drive the learning rates of an optimizer, up to ``lr``, over epochs of so many ``steps`` (updates).

        For plateau, ``mode`` (``max`` or ``min``) is the way in which the watched val metric is better.
        """
        self.name, self.optimizer, self.lr, self.updates = schedule.name, optimizer, lr, 0
        self.total_updates = epochs * steps
        self.warmup_updates = round(schedule.warmup * self.total_updates)
        # A decay counts from the end of the warm-up.
        warmup: Any = {"warmup_t": self.warmup_updates, "warmup_lr_init": lr * WARMUP_START, "warmup_prefix": True}
        if self.name == "cosine":
            length = max(1, self.total_updates - self.warmup_updates)
            self.scheduler: Any = CosineLRScheduler(
                optimizer, t_initial=length, lr_min=schedule.min_lr, t_in_epochs=False, **warmup
            )
        elif self.name == "step":
            interval, rate = max(1, round(schedule.decay * self.total_updates)), schedule.decay_rate
            self.scheduler = StepLRScheduler(optimizer, decay_t=interval, decay_rate=rate, t_in_epochs=False, **warmup)
        elif self.name == "plateau":
            patience, rate = round(schedule.decay * epochs), schedule.decay_rate
            self.scheduler = ReduceLROnPlateau(optimizer, mode, factor=rate, patience=patience, min_lr=schedule.min_lr)
            self._warm_up()
        else:
            updates = max(2, self.total_updates)
            rising = min(max(self.warmup_updates, 2), updates - 1)
            self.scheduler = OneCycleLR(
                optimizer,
                max_lr=[lr * group.get("lr_scale", 1.0) for group in optimizer.param_groups],
                total_steps=updates,
                pct_start=rising / updates if rising > 1 else 0.0,  # on a single one torch would divide by 0
                div_factor=1 / WARMUP_START,
                cycle_momentum=False,
            )

    def step_update(self, updates: int) -> None:
        """Set the learning rate for the next update; ``updates`` are done."""
        if self.name == "onecycle":
            if updates < self.total_updates:
                self.scheduler.step()
        elif self.name == "plateau":
            self.updates = updates
            self._warm_up()
        else:
            self.scheduler.step_update(updates)

    def step_epoch(self, metric: float) -> None:
        """Tell the schedule that an epoch is done, with this val metric."""
        if self.name == "plateau" and self.updates > self.warmup_updates:
            self.scheduler.step(metric)

    def _warm_up(self) -> None:
        """Plateau: the rate of the warm-up's next update, in a straight line up to the highest."""
        if self.updates <= self.warmup_updates:
            part = self.updates / self.warmup_updates if self.warmup_updates else 1.0
            for group in self.optimizer.param_groups:
                scale = group.get("lr_scale", 1.0)  # layer-wise decay
                group["lr"] = self.lr * scale * (WARMUP_START + (1 - WARMUP_START) * part)

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint; plain numbers only."""
        if self.name == "plateau":
            inner = self.scheduler.state_dict()
            return {key: value for key, value in inner.items() if isinstance(value, int | float | list)}
        if self.name == "onecycle":
            return {"last_epoch": self.scheduler.last_epoch, "_step_count": self.scheduler._step_count}
        return {}  # a function of the number of updates alone

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave; the optimizer restores the learning rate itself."""
        self.scheduler.__dict__.update(state)
