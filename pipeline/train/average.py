"""The average of the weights over updates, which is what is scored and kept."""

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn


class Average(ModelEmaV3):
    """timm's average of a net, as one launch an update: lists of tensors are made once, and counts are the net's own.

    ``module`` is the averaged net. The net may change its tensors in place, as training and loading do, and must not
    replace them.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        super().__init__(net, decay=decay, use_warmup=True)
        for own, other in zip(self.module.modules(), net.modules(), strict=True):
            for name, buffer in other.named_buffers(recurse=False):
                if not buffer.is_floating_point():  # batches that a norm has seen: not to be averaged
                    setattr(own, name, buffer)
        states = self.module.state_dict(), net.state_dict()
        self.averages, self.followed = (
            [tensor for tensor in state.values() if tensor.is_floating_point()] for state in states
        )

    def apply_update_(self, model: nn.Module, decay: float) -> None:
        """Move the average towards the net."""
        torch._foreach_lerp_(self.averages, self.followed, weight=1 - decay)
