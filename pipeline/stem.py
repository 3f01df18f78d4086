"""Nets built for large pictures, made to suit small faces: less stride at the input, and the very same weights.

Most of timm's nets halve a picture five times: of 48 px a map of 2x2 or 1x1 is left, in which nothing tells an eye
from a mouth. As the ResNets for CIFAR do (He et al., 2016, https://arxiv.org/abs/1512.03385, section 4.2), the first
convolutions and pools stop striding, which changes the shape of no weight. Which they are is read off the running net,
whatever its family: all that reduce the earliest map that is reduced, then all that reduce the next, until the last map
is large enough. Nets built for one size, which have tables of positions, take a smaller patch or a larger grid instead.
Where that costs too much, a last map can be kept from collapsing by rounding its side up when it is halved.

What was changed is part of a recipe (``Changes``), so that no later stage works it out again.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from timm.layers import BlurPool2d
from torch import Tensor, nn

# A module's name and its new ``stride``, ``padding`` or ``ceil_mode``; None: it passes through.
Changes = dict[str, dict[str, Any] | None]

# The last map has at least so many cells a side: 3 is the least with a middle. Each further halving that is taken out
# makes nearly every layer cost four times as much. At 48 px it is the map, and the cost, that a net of reduction 32
# has at 96 px, without resizing.
SIDE = 3
# Nets whose maps are all of one size, as vision transformers are, see no finer map before: as many as ours end with.
SIDE_OF_ONE_SCALE = 6
# A last map of so few cells a side is refused.
COLLAPSED = 1

_POOLS = (nn.MaxPool2d, nn.AvgPool2d, BlurPool2d)


@dataclass(frozen=True)
class Fitted:
    """A net for its input, and how it came about.

    Attributes:
        model: The net.
        model_args: Arguments of ``timm.create_model`` that made it.
        side: Of its last map, in cells; 0: it does not run, None: not known.
        changes: What was changed in it since.
        changed: Whether it is another than timm builds by itself.
        note: What was done to it, for the log, with the backbone's name to be put before.
    """

    model: nn.Module
    model_args: dict[str, Any]
    side: int | None
    changes: Changes = field(default_factory=dict)
    changed: bool = False
    note: str = ""


def apply(model: nn.Module, changes: Changes) -> nn.Module:
    """Change a freshly built net in place; names and shapes of its weights stay. Returns the net."""
    for name, change in changes.items():
        parent, _, attribute = name.rpartition(".")
        if change is None:
            setattr(model.get_submodule(parent), attribute, nn.Identity())
            continue
        module = model.get_submodule(name)
        for key, value in change.items():
            setattr(module, key, tuple(value) if isinstance(value, list) else value)
    return model


def fit(
    plain: Fitted, size: int, in_chans: int, build: Callable[[dict[str, Any]], nn.Module],
    runs: Callable[[nn.Module], bool], given: dict[str, Any],
) -> Fitted:  # fmt: skip
    """Take out as many of the first halvings as the last map needs; none if it is large enough already.

    Args:
        plain: The net as timm builds it for this size.
        size: Side of its input, px.
        in_chans: Channels of its input.
        build: Makes a net of such arguments; may raise anything.
        runs: Whether a net runs at this size.
        given: Arguments that the user chose, which stay as they are.

    Returns:
        The net whose last map is large enough, or as large as can be had.
    """
    found = plain
    wanted = SIDE_OF_ONE_SCALE if _has_one_scale(plain.model) else SIDE
    while found.side is not None and found.side < wanted:
        better = next(_larger(found, size, in_chans, build, runs, given), None)
        if better is None:
            break
        found = better
    return replace(found, changed=True, note=_note(plain, found, size)) if found is not plain else plain


def round_up(
    plain: Fitted, size: int, in_chans: int, build: Callable[[dict[str, Any]], nn.Module],
    runs: Callable[[nn.Module], bool],
) -> Fitted | None:  # fmt: skip
    """Let the last halving of an odd side make one cell more, not one less: of 3x3 comes 2x2 instead of 1x1.

    Args:
        plain: The net as timm builds it for this size.
        size: Side of its input, px.
        in_chans: Channels of its input.
        build: Makes a net of such arguments.
        runs: Whether a net runs at this size.

    Returns:
        A net with a larger last map; None if there is none to be had so.
    """
    changes = plain.changes | _rounded_up(_reductions(plain.model, size, in_chans))
    if changes == plain.changes:
        return None
    found = Fitted(apply(build(plain.model_args), changes), plain.model_args, None, changes, changed=True)
    found = replace(found, side=last_side(found.model, size, in_chans))
    if found.side is None or found.side <= plain.side or not runs(found.model):
        return None
    return replace(found, note=_note(plain, found, size))


def _larger(
    found: Fitted, size: int, in_chans: int, build: Callable[[dict[str, Any]], nn.Module],
    runs: Callable[[nn.Module], bool], given: dict[str, Any],
) -> Iterator[Fitted]:  # fmt: skip
    """Nets with one halving less, which run, and whose last map is larger for it."""
    for args, changes in _steps(found, size, in_chans, given):
        try:
            candidate = apply(build(args), changes)
        except Exception:  # timm's nets refuse arguments with errors of every kind
            continue
        side = last_side(candidate, size, in_chans)
        if side is None:
            continue
        # One cell stays one until what is left for the last halvings is more than that.
        if (side > found.side or side == found.side == 1) and runs(candidate):
            yield Fitted(candidate, args, side, changes)


def _note(plain: Fitted, found: Fitted, size: int) -> str:
    """What was made of a net."""
    args = plain.model_args
    parts = [f"{key} {value}" for key, value in found.model_args.items() if value != args.get(key)]
    strides = [
        f"{name} strides by {max(change['stride'])}" if "stride" in change else f"{name} rounds up"
        for name, change in found.changes.items()
        if change
    ]
    dropped = [name for name, change in found.changes.items() if change is None]
    parts += [_some(strides)] if strides else []
    parts += [f"without {_some(dropped)}"] if dropped else []
    would = f"would end in a map of {plain.side}x{plain.side} at" if plain.side else "does not take"
    return (
        f"{would} {size} px as it is, and now ends in a map of {found.side}x{found.side}: {'; '.join(parts)} "
        "(train.stem)"
    )


def remedies(size: int, stem: str) -> str:
    """What to do about a map that collapses at a size."""
    larger = max(96, -(-2 * size // 32) * 32)  # most nets halve five times: 96 px end in 3x3
    wider = f"train.input_size to a larger one, such as {larger}"
    return f"Set train.stem to adapt, or {wider}." if stem == "keep" else f"Set {wider}."


def last_side(model: nn.Module, size: int, in_chans: int) -> int | None:
    """Side of a net's last map, before it is pooled; None where it has none, or does not run.

    Args:
        model: A net of timm; neither its mode nor its statistics change.
        size: Side of the input, px.
        in_chans: Channels of the input.
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


def _steps(
    found: Fitted, size: int, in_chans: int, given: dict[str, Any]
) -> Iterator[tuple[dict[str, Any], Changes]]:
    """Ways to take one halving out, the simplest first: arguments to build with, and changes to what is built."""
    changes = found.changes | _without_a_halving(found.model, size, in_chans)
    if changes != found.changes:
        if "img_size" in found.model_args:
            # It has tables for a grid of positions: those of a picture of twice the side suit the grid that now comes.
            # Left as they are, they may fit nothing and yet be used, as Swin's masks are.
            yield found.model_args | {"img_size": 2 * found.model_args["img_size"]}, changes
        else:
            yield found.model_args, changes
    patch = next(
        (module.patch_size for module in found.model.modules() if hasattr(module, "patch_size")), None
    )
    patch = max(patch) if isinstance(patch, tuple | list) else patch
    if isinstance(patch, int) and patch > 1 and "patch_size" not in given:
        yield found.model_args | {"patch_size": patch // 2}, found.changes


def _without_a_halving(model: nn.Module, size: int, in_chans: int) -> Changes:
    """What must change for the first map that is reduced to stay as it is, in all its branches."""
    seen = _reductions(model, size, in_chans)
    return {
        name: _gentler(module, side, reduced) if isinstance(module, nn.Conv2d) else None
        for name, module, side, reduced in seen
        if side == seen[0][2]
    }


def _rounded_up(seen: list[tuple[str, nn.Module, int, int]]) -> Changes:
    """What must change for the last map that is reduced to be rounded up, in all branches that round it down."""
    changes: Changes = {}
    for name, module, side, reduced in seen:
        wanted = -(-side // _stride(module))
        if side != seen[-1][2] or reduced >= wanted:
            continue
        if isinstance(module, nn.Conv2d):
            reach = module.dilation[0] * (module.kernel_size[0] - 1) + 1
            missing = (wanted - 1) * _stride(module) + reach - side
            changes[name] = {"padding": [-(-missing // 2)] * 2}
        elif not isinstance(module, BlurPool2d):
            changes[name] = {"ceil_mode": True}
    return changes


def _reductions(model: nn.Module, size: int, in_chans: int) -> list[tuple[str, nn.Module, int, int]]:
    """Convolutions and pools with a stride, as they run: name, module, and the side of the map before and after."""
    seen: list[tuple[str, nn.Module, int, int]] = []
    names = {module: name for name, module in model.named_modules()}

    def see(module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        maps = (inputs[0] if inputs else None, output)
        if all(isinstance(each, Tensor) and each.ndim == 4 for each in maps):
            seen.append((names[module], module, maps[0].shape[-1], maps[1].shape[-1]))

    handles = [
        module.register_forward_hook(see)
        for module in model.modules()
        if isinstance(module, (nn.Conv2d, *_POOLS)) and _stride(module) > 1
    ]
    try:
        with _evaluating(model):
            model(torch.zeros(1, in_chans, size, size))
    except Exception:  # what ran before it failed is what matters
        pass
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _gentler(conv: nn.Conv2d, side: int, reduced: int) -> dict[str, Any]:
    """Half a convolution's stride, with the padding that then gives a map of twice the side."""
    stride = max(1, _stride(conv) // 2)
    change: dict[str, Any] = {"stride": [stride, stride]}
    reach = conv.dilation[0] * (conv.kernel_size[0] - 1) + 1
    if isinstance(conv.padding, str):
        return change
    padding = conv.padding[0]
    if (
        reduced != (side + 2 * padding - reach) // _stride(conv) + 1
    ):  # timm's own "same" convolutions pad themselves
        return change
    if not reach - stride <= 2 * padding < reach:
        change["padding"] = [-(-(reach - stride) // 2)] * 2
    return change


def _stride(module: nn.Module) -> int:
    return max(module.stride) if isinstance(module.stride, tuple | list) else module.stride


def _has_one_scale(model: nn.Module) -> bool:
    """Whether timm says that all of a net's maps have one size."""
    info = getattr(model, "feature_info", None)
    if not info:
        return False
    reductions = [each["reduction"] for each in info if isinstance(each, dict) and "reduction" in each]
    return len(reductions) > 1 and len(set(reductions)) == 1


def _some(names: list[str]) -> str:
    """A few names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


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
