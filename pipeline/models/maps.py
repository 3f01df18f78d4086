"""The maps that a net makes of a picture, read off it as it runs, whatever its family."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers import BlurPool2d
from torch import Tensor, nn

_POOLS = (nn.MaxPool2d, nn.AvgPool2d, BlurPool2d)


def find_last_side(model: nn.Module, size: int, in_chans: int) -> int | None:
    """Side of the last map that a net of timm makes of ``size`` px, before it is pooled; None if it has none, or fails.

    Neither its mode nor its statistics change.
    """
    if not hasattr(model, "forward_features"):
        return None
    try:
        with _evaluating(model):
            out = model.forward_features(torch.zeros(1, in_chans, size, size))
    except Exception:  # as with building: errors of every kind
        return None
    if not isinstance(out, Tensor):
        return None
    if out.ndim == 4:
        _, first, second, third = out.shape
        return second if second == third else first if first == second else None
    if out.ndim == 3:  # tokens, some of which may stand for the whole picture
        tokens = out.shape[1]
        for prefix in (getattr(model, "num_prefix_tokens", 0), 0, 1, 2):
            side = math.isqrt(max(0, tokens - prefix))
            if side and side * side == tokens - prefix:
                return side
    return None


def find_reductions(model: nn.Module, size: int, in_chans: int) -> list[tuple[str, nn.Module, int, int]]:
    """Convolutions and pools that stride, in the order in which they run; arguments as ``find_last_side``.

    Of each its name, the module, and the side of the map before and after it, in cells. A net may fail on the way:
    what ran before it did is told.
    """
    seen: list[tuple[str, nn.Module, int, int]] = []
    names = {module: name for name, module in model.named_modules()}

    def see(module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        before = inputs[0] if inputs else None
        if all(isinstance(each, Tensor) and each.ndim == 4 for each in (before, output)):
            seen.append((names[module], module, before.shape[-1], output.shape[-1]))

    handles = [
        module.register_forward_hook(see)
        for module in model.modules()
        if isinstance(module, (nn.Conv2d, *_POOLS)) and read_stride(module) > 1
    ]
    try:
        with _evaluating(model):
            model(torch.zeros(1, in_chans, size, size))
    except Exception:  # as above
        pass
    finally:
        for handle in handles:
            handle.remove()
    return seen


def read_stride(module: nn.Module) -> int:
    """A convolution's or a pool's stride, in cells; the larger of two."""
    return max(module.stride) if isinstance(module.stride, tuple | list) else module.stride


def has_one_scale(model: nn.Module) -> bool:
    """Whether timm says that all of a net's maps have one size."""
    info = getattr(model, "feature_info", None) or ()
    scales = [each["reduction"] for each in info if isinstance(each, dict) and "reduction" in each]
    return len(scales) > 1 and len(set(scales)) == 1


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Run a net without gradients, in eval mode, which leaves batch statistics alone; its modes come back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
