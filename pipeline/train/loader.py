"""Batches of prepared images on the training device, in an order that follows from seed and epoch alone.

A sample's number in an epoch is ``row + repeat * N``: a row that an epoch shows more than once (balanced sampling)
has a number, and so an augmentation, of its own each time.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pipeline.core.dataset import Split
from pipeline.core.params import TrainParams
from pipeline.models import devices
from pipeline.train.augment.counter_rng import derive_seed
from pipeline.train.augment.kernel import Params

Plan = Callable[[Tensor, int], list[Params]]

# Samples whose draws are made at once: few launches for a whole epoch of most data, some MB for any.
AHEAD = 2**16
# Part of the device's free memory that the images may take to stay there for the whole run.
RESIDENT_PART = 0.5


@dataclass(frozen=True)
class Batch:
    """uint8 ``images`` (B, H, W, C), ``targets`` int64 (B,), sample ``numbers`` int64 (B,), all on the device.

    ``soft`` targets float32 (B, K) and ``weights`` float32 (B,) are None where the data has none; ``plan`` is what is
    to be done to the images, (B, ...) each.
    """

    images: Tensor
    targets: Tensor
    numbers: Tensor
    soft: Tensor | None = None
    weights: Tensor | None = None
    plan: list[Params] = field(default_factory=list)


def count_steps(samples: int, batch_size: int) -> int:
    """Updates in an epoch: the last, smaller batch is dropped, unless it is the only one."""
    return max(1, samples // batch_size)


def order_epoch(targets: np.ndarray, seed: int, epoch: int, balanced: bool = False) -> np.ndarray:
    """Sample numbers of a zero-based epoch, int64 (N,), in their order; a function of the arguments.

    Balanced, every class, of targets int (N,), is shown equally often: small ones several times, of large ones a
    random part.
    """
    samples = len(targets)
    generator = torch.Generator().manual_seed(derive_seed(seed, epoch, -1))
    if not balanced:
        return torch.randperm(samples, generator=generator).numpy()
    classes = np.unique(targets)
    numbers = []
    for position, target in enumerate(classes):
        rows = np.flatnonzero(targets == target)
        quota = samples // len(classes) + (position < samples % len(classes))
        repeats = -(-quota // len(rows))
        whole = [rows + repeat * samples for repeat in range(repeats - 1)]
        part = torch.randperm(len(rows), generator=generator).numpy()[: quota - (repeats - 1) * len(rows)]
        numbers += [*whole, rows[part] + (repeats - 1) * samples]
    order = np.concatenate(numbers)
    return order[torch.randperm(samples, generator=generator).numpy()]


def place_images(images: np.ndarray, device: torch.device) -> tuple[Tensor, bool]:
    """Images as a tensor, on the device if they fit beside what is there; and whether they do."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")  # nobody writes to it
        placed = torch.from_numpy(images)
    resident = devices.has_room(device, placed.nbytes, RESIDENT_PART)
    return (placed.to(device) if resident else placed), resident


class Loader:
    """A split's batches, moved to the device; the images stay there if they fit, or come from pinned memory."""

    def __init__(self, split: Split, batch_size: int, seed: int, device: torch.device, balanced: bool = False) -> None:
        self.split, self.batch_size, self.seed, self.balanced = split, batch_size, seed, balanced
        self.device = device
        self.images, self.resident = place_images(split.images, device)
        self.targets = torch.from_numpy(split.targets).to(device)
        self.soft, self.weights = (
            None if values is None else torch.from_numpy(values).to(device) for values in (split.soft, split.weights)
        )

    @property
    def steps(self) -> int:
        """Updates in an epoch."""
        return count_steps(len(self.split), self.batch_size)

    def batches(
        self, epoch: int, first_step: int = 0, positions: Tensor | None = None, plan: Plan = lambda *_: []
    ) -> Iterator[Batch]:
        """The batches of a zero-based epoch from a step on; of each all places, or those of ``positions``, int64.

        ``plan`` says of sample numbers (N,) and the epoch what is to be done to the images.
        """
        order = torch.from_numpy(order_epoch(self.split.targets, self.seed, epoch, self.balanced))
        steps = order[: self.steps * self.batch_size].view(self.steps, -1)
        ahead = max(1, AHEAD // self.batch_size)
        for begin in range(first_step, self.steps, ahead):
            numbers = steps[begin : begin + ahead]
            numbers = numbers if positions is None else numbers[:, positions]
            moved = devices.copy_to(numbers.flatten(), self.device)
            rows = moved % len(self.split)
            targets = self.targets[rows]
            others = [None if values is None else values[rows] for values in (self.soft, self.weights)]
            planned = plan(moved, epoch)
            for step, own in enumerate(numbers):
                place = slice(step * len(own), (step + 1) * len(own))
                soft, weights = (None if values is None else values[place] for values in others)
                cut = [{name: values[place] for name, values in params.items()} for params in planned]
                images = self._fetch(own, rows[place])
                yield Batch(images, targets[place], moved[place], soft=soft, weights=weights, plan=cut)

    def _fetch(self, numbers: Tensor, rows: Tensor) -> Tensor:
        """The images of sample numbers, which the host knows, and of their rows on the device; waits for nothing."""
        if self.resident:
            return self.images[rows]
        return devices.copy_to(self.images[numbers % len(self.split)], self.device)


def build_loader(split: Split, params: TrainParams, device: torch.device) -> Loader:
    """A loader of a split in the order that params say."""
    return Loader(split, params.batch_size, params.seed, device, params.imbalance.method == "sampling")
