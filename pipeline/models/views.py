"""Test-time augmentation: several views of each image, of whose answers the mean is taken."""

from collections.abc import Sequence

import torch
from torch import Tensor

SHIFT = 2  # px


def list_views(images: Tensor, names: Sequence[str]) -> list[Tensor]:
    """List the views of images that are averaged, the images themselves first.

    Args:
        images: (B, C, H, W).
        names: Among ``flip`` (left to right) and ``shifts`` (by ``SHIFT`` px to each of four sides; edges go on).
            With both, every shift is flipped, too.
    """
    found = [images]
    if "shifts" in names:
        found += [_shifted(images, side, by) for side in (2, 3) for by in (SHIFT, -SHIFT)]
    if "flip" in names:
        found += [view.flip(3) for view in found]
    return found


def count_passes(names: Sequence[str]) -> int:
    """Count the views of an image."""
    return (5 if "shifts" in names else 1) * (2 if "flip" in names else 1)


def _shifted(images: Tensor, side: int, by: int) -> Tensor:
    """Images moved along one side; what comes in repeats the edge."""
    length = images.shape[side]
    return images.index_select(side, (torch.arange(length, device=images.device) - by).clamp(0, length - 1))
