"""The trained net at work: every sample of a split gets its probabilities."""

from dataclasses import dataclass

import numpy as np
import torch

from pipeline.core.dataset import Split
from pipeline.core.errors import UserError
from pipeline.core.params import EvaluateParams
from pipeline.core.paths import TRAINED
from pipeline.evaluate.findings import Answers
from pipeline.metrics.calibration import fit_temperature
from pipeline.models.devices import resolve_device
from pipeline.models.model import Classifier
from pipeline.models.predict import predict
from pipeline.models.weights import load_classifier


@dataclass(frozen=True)
class Net:
    """A classifier in eval mode, where it runs, and how many images at once."""

    classifier: Classifier
    device: torch.device
    batch_size: int

    def predict(self, images: np.ndarray, label: str | None = None) -> np.ndarray:
        """Probabilities (N, K) of prepared images, uint8 (N, H, W, C); ``label`` names the progress bar."""
        return predict(self.classifier, images, self.batch_size, self.device, progress=label)


def answer_splits(net: Net, splits: dict[str, Split]) -> Answers:
    """Classify every sample of the splits, and fit the temperature.

    Raises:
        UserError: A probability is no number.
    """
    plain = {name: net.predict(split.images, name) for name, split in splits.items()}
    for name, values in plain.items():
        if bad := int((~np.isfinite(values)).any(axis=1).sum()):
            raise UserError(
                f"the model gives no number as probability for {bad} of {len(values)} {name} images: its "
                "training diverged. Lower train.lr, set train.grad_clip_norm, or use train.amp: none."
            )
    return Answers(splits, plain, fit_temperature(splits["val"].targets, plain["val"]))


def load_net(splits: dict[str, Split], params: EvaluateParams, device: str) -> Net:
    """Load the trained net to where it is to run; refuses splits without images first."""
    if empty := [name for name, split in splits.items() if len(split) == 0]:
        raise UserError(
            f"the {empty[0]} split is empty: there is nothing to evaluate. Add images, or let "
            f"prepare.{empty[0]}_fraction cut some from train."
        )
    place = resolve_device(device)
    classifier = load_classifier(TRAINED, place)
    classifier.views = params.tta if params.serve_tta else []
    return Net(classifier, place, params.batch_size)
