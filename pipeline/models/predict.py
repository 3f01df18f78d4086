"""A classifier's answers for prepared images, in batches, at a precision of choice."""

import numpy as np
import torch
from tqdm import tqdm

from pipeline.models.devices import copy_to
from pipeline.models.model import Classifier, count_passes

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def use_precision(amp: str, device: torch.device | str) -> torch.autocast:
    """A context in which nets compute at the precision that ``train.amp`` names."""
    dtype = AMP_DTYPES.get(amp)
    return torch.autocast(torch.device(device).type, dtype=dtype, enabled=dtype is not None)


@torch.inference_mode()
def predict(
    classifier: Classifier,
    images: np.ndarray | torch.Tensor,
    batch_size: int,
    device: torch.device | str = "cpu",
    progress: str | None = None,
    amp: str = "none",
) -> np.ndarray:
    """Probabilities, float32 (N, K), of prepared images, uint8 (N, H, W, C); the classifier is in eval mode.

    Images may lie on the device already: nothing waits for it until all are classified. Each view of an image counts in
    a batch; ``progress`` is the label of a bar, and ``amp`` as ``train.amp``, whose float32 is IEEE's here.
    """
    parts, device = [], torch.device(device)
    batch_size = max(1, batch_size // count_passes(classifier.views))
    bar = tqdm(total=len(images), desc=progress, unit="img", disable=True if progress is None else None, leave=False)
    with bar, use_precision(amp, device):
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            batch = torch.from_numpy(np.array(batch)) if isinstance(batch, np.ndarray) else batch
            parts.append(classifier(copy_to(batch, device)))
            bar.update(len(batch))
    return torch.cat(parts).cpu().numpy()
