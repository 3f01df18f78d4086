"""How many threads work: as many as there are cores for this process, whatever the machine has."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pipeline.prepare import decoding
from pipeline.prepare.pixels.cache import Cache
from pipeline.prepare.twins import search


@pytest.mark.parametrize("module", [decoding, search])
def test_threads_are_the_cores_of_the_control_group(module: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's share of a large machine counts, which the affinity does not tell."""
    asked = []
    monkeypatch.setattr(module, "available", lambda: 3)
    monkeypatch.setattr(module, "ThreadPoolExecutor", lambda n: asked.append(n) or ThreadPoolExecutor(n))
    if module is search:
        search.near_pairs(np.zeros((2, 48, 48, 1), np.uint8), np.arange(2))
    else:
        decoding.decode_all(iter([]), [], np.empty((0, 8, 8, 1)), Cache(None, [], (8, 8, 1)))
    assert asked == [3]
