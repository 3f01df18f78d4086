"""What an answer of a model costs: parameters, floating-point operations, size and latency.

torch is imported inside functions: a registry's commands need it for pt2 alone.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import nn

# What a bundle is served from: the first of these that it has.
SERVED = ("onnx", "pt2")
WARM_UP = 10
ROUNDS = 200
LIMIT_S = 3.0  # of measuring, for each model; slow ones get fewer rounds


def count(classifier: "nn.Module", img_size: int, channels: int) -> dict[str, int]:
    """Count what one image takes, by running one through a classifier.

    Args:
        classifier: From uint8 images (B, H, W, C) to probabilities, in eval mode, on the CPU.
        img_size: Height and width of the image, px.
        channels: 1 or 3.

    Returns:
        ``parameters``, and ``flops`` of matrix products and convolutions, a multiply-add being two, as torch's counter
        has them; without ``flops`` where it cannot follow a net.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    found = {"parameters": sum(parameter.numel() for parameter in classifier.parameters())}
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            classifier(torch.zeros(1, img_size, img_size, channels, dtype=torch.uint8))
    except Exception:  # the counter's hooks do not suit every net, and a count is not worth a trained model
        return found
    return found | {"flops": int(counter.get_total_flops())}


def served_file(bundle_dir: Path) -> Path:
    """The file that a bundle is served from.

    Raises:
        FileNotFoundError: There is none.
    """
    for name in SERVED:
        if (path := bundle_dir / f"model.{name}").exists():
            return path
    raise FileNotFoundError(f"{bundle_dir} holds no model.{' and no model.'.join(SERVED)}")


def open_model(bundle_dir: Path, img_size: int, channels: int) -> Callable[[], np.ndarray]:
    """Load what a bundle is served from; returns a function that classifies one image, of noise.

    Args:
        bundle_dir: Holds the exported graph.
        img_size: Height and width of its images, px.
        channels: Of them, 1 or 3.
    """
    from pipeline import formats

    path = served_file(bundle_dir)
    run = formats.LOADERS[path.suffix[1:]](path)
    shape = (1, img_size, img_size, channels)
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return lambda: run(image)


def measure_ms(models: Sequence[Callable[[], object]], rounds: int = ROUNDS) -> list[float]:
    """Time models against each other in this process, in turns, so that whatever else the machine does hits all.

    Args:
        models: Functions that give one answer each.
        rounds: How often each is asked at most.

    Returns:
        The median time of an answer of each, ms.
    """
    for model in models:
        for _ in range(WARM_UP):
            model()
    taken: list[list[float]] = [[] for _ in models]
    deadline = time.perf_counter() + LIMIT_S * len(models)
    for _ in range(rounds):
        for model, times in zip(models, taken):
            start = time.perf_counter()
            model()
            times.append(1e3 * (time.perf_counter() - start))
        if time.perf_counter() > deadline:
            break
    return [statistics.median(times) for times in taken]
