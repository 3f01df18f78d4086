"""How long a model takes for an answer, as it is served."""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from .bundle import Bundle
from .graphs import load_graph, served_file

WARM_UP = 10
ROUNDS = 200
LIMIT_S = 3.0  # of measuring, for each model; slow ones get fewer rounds


def open_model(bundle_dir: Path) -> Callable[[], np.ndarray]:
    """Load what a bundle is served from; returns a function that classifies one image, of noise."""
    bundle, path = Bundle(bundle_dir), served_file(bundle_dir)[1]
    # It is this project's own, or a registered version, which may run code anyway.
    run = load_graph(path, content=bundle.read(path.name), trust=True)
    preprocessing = bundle.record["preprocessing"]
    size = preprocessing["img_size"]
    shape = (1, size, size, preprocessing["channels"])
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return lambda: run(image)


def measure_ms(models: Sequence[Callable[[], object]], rounds: int = ROUNDS) -> list[float]:
    """Time models, each asked for at most so many answers, in turns: whatever else the machine does hits all.

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
