"""The sizes that lists of transforms say: a training that sees much less than evaluation is refused."""

from collections.abc import Iterator
from typing import Any

# Less than this part of evaluation's side, or of what it sees of a picture, is no augmentation any more.
LEAST = 0.75
CUTS, RESIZINGS = ("RandomCrop", "CenterCrop"), ("Resize", "RandomResizedCrop")


def find_fault(train: list[Any], evaluation: list[Any], img_size: int, input_size: int) -> str | None:
    """Say what is wrong with a train list whose pictures are much smaller than evaluation's, and the value to set.

    Args:
        train: Names of transforms, or names with arguments, as in ``train.transforms``.
        evaluation: Likewise.
        img_size: Side of the prepared pictures, px.
        input_size: That of the pictures that the net shall take, px.

    Returns:
        A sentence; None where the sizes agree, or where a ``Resize`` says that training sees smaller ones.
    """
    side, seen = img_size, 1.0
    for name, before, side in _follow_sizes(evaluation, img_size, input_size):
        seen *= min(1, side / before) if name in CUTS else 1
    steps = [("", img_size, img_size), *_follow_sizes(train, img_size, side)]
    name, before, after = steps[-1]
    whole = round(seen * before)
    if name in CUTS and after < LEAST * whole:
        remedy = "auto" if whole == side else f"{whole}, and put `Resize: {{size: {side}}}` behind it"
        return f"{name} cuts {after} px out of {before}, of which evaluation sees {whole}: set its size to {remedy}"
    if name in CUTS and LEAST * after > before:
        remedy = f"put `Resize: {{size: {side}}}` in front of it" if side > before else "set its size to auto"
        return f"{name} cannot cut {after} px out of {before}: {remedy}"
    if after < LEAST * side and all(step[0] != "Resize" for step in steps):
        remedy = (
            f"set the size of {name} to auto" if name in RESIZINGS else f"put `Resize: {{size: {side}}}` at its end"
        )
        return f"training would see pictures of {after} px, and evaluation of {side} px: {remedy}"
    return None


def _follow_sizes(specs: list[Any], side: int, auto: int) -> Iterator[tuple[str, int, int]]:
    """Name, side before and side after of each transform that says a size."""
    for spec in specs:
        for name, args in spec.items() if isinstance(spec, dict) else ():
            size = (args or {}).get("size")
            size = size[0] if isinstance(size, list) and size else auto if size == "auto" else size
            if name in CUTS + RESIZINGS and type(size) is int:
                yield name, side, size
                side = size
