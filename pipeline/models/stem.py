"""Nets built for large pictures, made to suit small faces: less stride at the input, and the very same weights.

Most of timm's nets halve a picture five times: of 48 px a map of 2x2 or 1x1 is left, in which nothing tells an eye
from a mouth. As the ResNets for CIFAR do (He et al., 2016, https://arxiv.org/abs/1512.03385, section 4.2), the first
convolutions and pools stop striding, which changes the shape of no weight. Which they are is read off the running net,
whatever its family: all that reduce the earliest map that is reduced, then all that reduce the next, until the last map
is large enough. Nets built for one size, which have tables of positions, take a smaller patch or a larger grid instead.
Where that costs too much, a last map can be kept from collapsing by rounding its side up when it is halved.

What was changed is part of a spec (``Changes``), so that no later stage works it out again.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from timm.layers import BlurPool2d
from torch import nn

from pipeline.models import maps

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


@dataclass(frozen=True)
class Trial:
    """How nets are tried: the input's side, px, and channels; what builds one, or raises anything; whether it runs."""

    size: int
    in_chans: int
    build: Callable[[dict[str, Any]], nn.Module]
    runs: Callable[[nn.Module], bool]


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


def fit(plain: Fitted, trial: Trial, given: dict[str, Any]) -> Fitted:
    """Take out as many of the first halvings of timm's net as the last map needs; none if it is large enough already.

    Arguments that the user has ``given`` stay as they are. Returns the net whose last map is large enough, or as large
    as can be had.
    """
    found = plain
    wanted = SIDE_OF_ONE_SCALE if maps.has_one_scale(plain.model) else SIDE
    while found.side is not None and found.side < wanted:
        better = next(_larger(found, trial, _steps(found, trial, given)), None)
        if better is None:
            break
        found = better
    return replace(found, changed=True, note=_note(plain, found, trial.size)) if found is not plain else plain


def round_up(plain: Fitted, trial: Trial) -> Fitted | None:
    """Let the last halving of an odd side make one cell more, not one less: of 3x3 comes 2x2 instead of 1x1.

    Returns a net with a larger last map than timm's; None if there is none to be had so.
    """
    changes = plain.changes | _rounded_up(maps.find_reductions(plain.model, trial.size, trial.in_chans))
    found = next(_larger(plain, trial, [(plain.model_args, changes)]), plain)
    if found.side <= plain.side:
        return None
    return replace(found, changed=True, note=_note(plain, found, trial.size))


def _larger(found: Fitted, trial: Trial, steps: Iterable[tuple[dict[str, Any], Changes]]) -> Iterator[Fitted]:
    """Those of some nets, as ``_steps`` has them, which run, and whose last map is larger."""
    for args, changes in steps:
        try:
            candidate = apply(trial.build(args), changes)
        except Exception:  # timm's nets refuse arguments with errors of every kind
            continue
        side = maps.find_last_side(candidate, trial.size, trial.in_chans)
        if side is None:
            continue
        # A step may leave a map of one cell as it is; a further one can still enlarge it.
        if (side > found.side or side == found.side == 1) and trial.runs(candidate):
            yield Fitted(candidate, args, side, changes)


def _note(plain: Fitted, found: Fitted, size: int) -> str:
    """What was made of a net."""
    args = plain.model_args
    parts = [f"{key} {value}" for key, value in found.model_args.items() if value != args.get(key)]
    changed = [
        f"{name} strides by {max(change['stride'])}" if "stride" in change else f"{name} rounds up"
        for name, change in found.changes.items()
        if change
    ]
    dropped = [name for name, change in found.changes.items() if change is None]
    parts += [_some(changed)] if changed else []
    parts += [f"without {_some(dropped)}"] if dropped else []
    would = f"would end in a map of {plain.side}x{plain.side} at" if plain.side else "does not take"
    return (
        f"{would} {size} px as it is, and now ends in a map of {found.side}x{found.side}: {'; '.join(parts)} "
        "(train.stem)"
    )


def name_remedies(size: int, stem: str) -> str:
    """What to do about a map that collapses at a size."""
    larger = max(96, -(-2 * size // 32) * 32)  # most nets halve five times: 96 px end in 3x3
    wider = f"train.input_size to a larger one, such as {larger}"
    return f"Set train.stem to adapt, or {wider}." if stem == "keep" else f"Set {wider}."


def _steps(found: Fitted, trial: Trial, given: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Changes]]:
    """Ways to take one halving out, the simplest first: arguments to build with, and changes to what is built."""
    changes = found.changes | _without_a_halving(found.model, trial)
    if changes != found.changes:
        if "img_size" in found.model_args:
            # It has tables for a grid of positions: those of a picture of twice the side suit the grid that now comes.
            # Left as they are, they may fit nothing and yet be used, as Swin's masks are.
            yield found.model_args | {"img_size": 2 * found.model_args["img_size"]}, changes
        else:
            yield found.model_args, changes
    patch = next((module.patch_size for module in found.model.modules() if hasattr(module, "patch_size")), None)
    patch = max(patch) if isinstance(patch, tuple | list) else patch
    if isinstance(patch, int) and patch > 1 and "patch_size" not in given:
        yield found.model_args | {"patch_size": patch // 2}, found.changes


def _without_a_halving(model: nn.Module, trial: Trial) -> Changes:
    """What must change for the first map that is reduced to stay as it is, in all its branches."""
    seen = maps.find_reductions(model, trial.size, trial.in_chans)
    return {
        name: _gentler(module, side, reduced) if isinstance(module, nn.Conv2d) else None
        for name, module, side, reduced in seen
        if side == seen[0][2]
    }


def _rounded_up(seen: list[tuple[str, nn.Module, int, int]]) -> Changes:
    """What must change for the last map that is reduced to be rounded up, in all branches that round it down."""
    changes: Changes = {}
    for name, module, side, reduced in seen:
        wanted = -(-side // maps.read_stride(module))
        if side != seen[-1][2] or reduced >= wanted:
            continue
        if isinstance(module, nn.Conv2d):
            missing = (wanted - 1) * maps.read_stride(module) + _reach(module) - side
            changes[name] = {"padding": [-(-missing // 2)] * 2}
        elif not isinstance(module, BlurPool2d):
            changes[name] = {"ceil_mode": True}
    return changes


def _gentler(conv: nn.Conv2d, side: int, reduced: int) -> dict[str, Any]:
    """Half a convolution's stride, with the padding that then gives a map of twice the side."""
    stride = max(1, maps.read_stride(conv) // 2)
    change: dict[str, Any] = {"stride": [stride, stride]}
    reach = _reach(conv)
    if isinstance(conv.padding, str):
        return change
    padding = conv.padding[0]
    # timm's own "same" convolutions pad themselves
    if reduced != (side + 2 * padding - reach) // maps.read_stride(conv) + 1:
        return change
    if not reach - stride <= 2 * padding < reach:
        change["padding"] = [-(-(reach - stride) // 2)] * 2
    return change


def _reach(conv: nn.Conv2d) -> int:
    """Side of what one cell of a convolution sees."""
    return conv.dilation[0] * (conv.kernel_size[0] - 1) + 1


def _some(names: list[str]) -> str:
    """A few names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
