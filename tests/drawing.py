"""Pictures for augmentation, and what is drawn for them."""

from typing import Any

import torch
from torch import Tensor

SIZE = 48


def smooth(count: int, channels: int = 1, height: int = SIZE, width: int = SIZE) -> Tensor:
    """Smooth pictures, float32 (count, channels, height, width) in [0, 1]."""
    coarse = torch.rand(count, channels, 7, 7, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)


def rows(params: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Parameters sample by sample, as Python numbers."""
    return [dict(zip(params, values)) for values in zip(*(column.tolist() for column in params.values()))]
