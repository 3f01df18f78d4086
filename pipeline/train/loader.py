"""Batches of prepared images on the training device, in an order that follows from seed and epoch alone.

A sample's number in an epoch is ``row + repeat * N``: a row that an epoch shows more than once (balanced sampling)
has a number, and so an augmentation, of its own each time.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.core.dataset import Split
from pipeline.core.params import TrainParams
from pipeline.models import devices
from pipeline.train.augment.counter_rng import derive_seed

# Part of the device's free memory that the images may take to stay there for the whole run.
RESIDENT_PART = 0.5


@dataclass(frozen=True)
class Batch:
    """uint8 ``images`` (B, H, W, C), ``targets`` int64 (B,), sample ``numbers`` int64 (B,), all on the device.

    ``soft`` targets float32 (B, K) and ``weights`` float32 (B,) are None where the data has none.
    """

    images: Tensor
    targets: Tensor
    numbers: Tensor
    soft: Tensor | None = None
    weights: Tensor | None = None


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


class Loader:
    """A split's batches, moved to the device; the images stay there if they fit, or come from pinned memory."""

    def __init__(self, split: Split, batch_size: int, seed: int, device: torch.device, balanced: bool = False) -> None:
        self.split, self.batch_size, self.seed, self.balanced = split, batch_size, seed, balanced
        self.device = device
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable.*")  # nobody writes to it
            self.images = torch.from_numpy(split.images)
        self.targets = torch.from_numpy(split.targets).to(device)
        self.soft, self.weights = (
            None if values is None else torch.from_numpy(values).to(device) for values in (split.soft, split.weights)
        )
        self.resident = devices.has_room(device, self.images.nbytes, RESIDENT_PART)
        if self.resident:
            self.images = self.images.to(device)

    @property
    def steps(self) -> int:
        """Updates in an epoch."""
        return count_steps(len(self.split), self.batch_size)

    def batches(self, epoch: int, first_step: int = 0, positions: Tensor | None = None) -> Iterator[Batch]:
        """The batches of a zero-based epoch from a step on; of each all places, or those of ``positions``, int64."""
        order = torch.from_numpy(order_epoch(self.split.targets, self.seed, epoch, self.balanced))
        for step in range(first_step, self.steps):
            numbers = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield self._fetch(numbers if positions is None else numbers[positions])

    def _fetch(self, numbers: Tensor) -> Batch:
        """The batch of these sample numbers (on the CPU); waits for nothing on CUDA."""
        moved = devices.copy_to(numbers, self.device)
        rows = moved % len(self.split)
        if self.resident:
            images = self.images[rows]
        else:
            images = devices.copy_to(self.images[numbers % len(self.split)], self.device)
        return Batch(
            images,
            self.targets[rows],
            moved,
            None if self.soft is None else self.soft[rows],
            None if self.weights is None else self.weights[rows],
        )


def build_loader(split: Split, params: TrainParams, device: torch.device) -> Loader:
    """A loader of a split in the order that params say."""
    return Loader(split, params.batch_size, params.seed, device, params.imbalance.method == "sampling")
