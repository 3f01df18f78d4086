"""Test-time augmentation: the mean of a classifier's answers to several views of each image."""

import time

import numpy as np
import torch

from pipeline import engine
from pipeline.model import Classifier

SHIFT = 2  # px


def views(images: np.ndarray, names: list[str]) -> list[np.ndarray]:
    """Return the views of images that are averaged, the images themselves first.

    Args:
        images: uint8 (N, H, W, C).
        names: Among ``flip`` (left to right) and ``shifts`` (by ``SHIFT`` px to each of four sides; edges go on).
            With both, every shift is flipped, too.
    """
    found = [images]
    if "shifts" in names:
        height, width = images.shape[1:3]
        for down, right in ((SHIFT, 0), (-SHIFT, 0), (0, SHIFT), (0, -SHIFT)):
            rows = (np.arange(height) - down).clip(0, height - 1)
            columns = (np.arange(width) - right).clip(0, width - 1)
            found.append(images[:, rows[:, None], columns])
    if "flip" in names:
        found += [view[:, :, ::-1] for view in found]
    return found


def predict(
    classifier: Classifier,
    images: np.ndarray,
    names: list[str],
    batch_size: int,
    device: torch.device | str = "cpu",
) -> tuple[np.ndarray, int, float]:
    """Classify images by the mean probabilities of their views.

    Returns:
        Probabilities, float64 (N, K), the number of views, and the seconds that it took.
    """
    start = time.perf_counter()
    seen = views(np.asarray(images), names)
    total = sum(
        engine.predict(classifier, np.ascontiguousarray(view), batch_size, device, progress="views").astype(
            np.float64
        )
        for view in seen
    )
    return total / len(seen), len(seen), time.perf_counter() - start
