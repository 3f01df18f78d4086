"""A graph of torch.export; the one module of this folder that needs torch."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch


def load_pt2(path: Path, threads: int | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """Load a file of torch.export on the CPU; arguments and result as of ``graphs.load_graph``."""
    if threads:
        torch.set_num_threads(threads)
    module = torch.export.load(str(path)).module()

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            probs: np.ndarray = module(torch.from_numpy(images)).numpy()
        return probs

    return run
