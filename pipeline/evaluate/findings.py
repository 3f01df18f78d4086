"""What evaluate finds out about a classifier: the answers, and all that is made of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from pipeline.core.dataset import Prepared, Split
from pipeline.core.stage_files import RunFile, WeightsFile
from pipeline.evaluate.explanations import Explanation
from pipeline.metrics.calibration import temper


@dataclass(frozen=True)
class Answers:
    """What a classifier says of every sample of ``val`` and ``test``.

    Attributes:
        splits: By name.
        plain: Class probabilities as the net gives them, floats (N, K), by split.
        temperature: Fitted on val.
    """

    splits: Mapping[str, Split]
    plain: Mapping[str, np.ndarray]
    temperature: float

    @cached_property
    def probs(self) -> dict[str, np.ndarray]:
        """The probabilities at the temperature, which are scored and served."""
        return {name: temper(values, self.temperature) for name, values in self.plain.items()}

    @property
    def targets(self) -> dict[str, np.ndarray]:
        """Class indices, integers (N,), by split."""
        return {name: split.targets for name, split in self.splits.items()}


@dataclass(frozen=True)
class Findings:
    """All that the reports are made from.

    Attributes:
        run: The training's.
        result: The parts of ``evaluation.json``.
        trust: What ``calibration.json`` holds.
        method: How the explanations were made.
        worst: How many mistakes to show.
        views_ms: What the views, or where these are served the image alone, took an image.
    """

    prepared: Prepared
    sidecar: WeightsFile
    run: RunFile
    history: pd.DataFrame
    answers: Answers
    result: Mapping[str, Any]
    intervals: Mapping[str, tuple[float, float]]
    trust: Mapping[str, Any]
    robust: pd.DataFrame
    slices: pd.DataFrame
    method: str
    explanations: list[Explanation]
    suspects: pd.DataFrame | None
    worst: int
    views_ms: float

    @property
    def class_names(self) -> list[str]:
        """The K class names."""
        return self.prepared.class_names

    @property
    def test(self) -> Split:
        """The test split."""
        return self.answers.splits["test"]

    @property
    def probs(self) -> np.ndarray:
        """Its probabilities at the temperature, floats (N, K)."""
        return self.answers.probs["test"]

    @property
    def preds(self) -> np.ndarray:
        """Its predicted class indices, integers (N,)."""
        return self.probs.argmax(axis=1)
