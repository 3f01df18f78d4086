"""Moves of pixels, batched: several transforms in a row, a sample's own each, are done in one resampling.

A move says for every pixel of its output where in its input it is read. Moves in a row compose into one such
placement, by which the images are read once. Coordinates are in px from the centre of an image, x to the right
and y down.

Values are torchvision's up to float rounding, with one exception: where a bilinear footprint reaches over the rim
of the image, fill and image are mixed by the share of it that lies inside. torchvision's tensor kernels multiply
the image by that share twice, which darkens the rim.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.models.devices import get_constant
from pipeline.train.augment.kernel import Kernel, Params

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Placement:
    """Where output pixels are read: input position = linear * output position + offset, for every sample.

    ``linear`` is a matrix, float32 (B, 2, 2) with its columns as rows, or the diagonal of one, (B, 2), or None
    for one; ``offset`` is float32 (B, 2) px or None for zero. B is missing where all samples agree.
    """

    linear: Tensor | None = None
    offset: Tensor | None = None

    def after(self, earlier: "Placement") -> "Placement":
        """Read through this placement first, then through that of the move before it."""
        offset = earlier.offset
        if self.offset is not None:
            moved = earlier.turn(self.offset)
            offset = moved if offset is None else moved + offset
        linear = self.linear if earlier.linear is None else earlier.linear
        if self.linear is not None and earlier.linear is not None:
            inner, outer = self.linear, earlier.linear
            if inner.ndim == 3:
                outer = outer.unsqueeze(-2)  # a diagonal from the left scales the matrix's rows,
            elif outer.ndim == 3:
                inner = inner.unsqueeze(-1)  # from the right its columns
            linear = outer * inner
        return Placement(linear, offset)

    def turn(self, vector: Tensor) -> Tensor:
        """Apply the linear part to vectors (..., 2)."""
        if self.linear is None:
            return vector
        if self.linear.ndim < 3:
            return self.linear * vector
        return (self.linear * vector.unsqueeze(-1)).sum(-2)


class Move:
    """A geometric transform of images of one size.

    Attributes:
        size: Output height and width, px.
        draws: Uniform draws that a sample takes.
        keeps_box: The output shows all of the input and nothing else.
        looks_outside: The output may show what lies outside the input: ``fill``.
        fill: A value each channel, or one for all, on the scale of the images.
        mode: Interpolation, ``nearest`` or ``bilinear``; None if positions are whole pixels.
    """

    draws = 0
    keeps_box = False
    looks_outside = False
    fill: tuple[float, ...] = (0.0,)
    mode: str | None = None

    def __init__(self, size_in: Size, size: Size) -> None:
        self.size_in, self.size = size_in, size

    def draw(self, uniforms: Tensor) -> Params:
        """Turn uniform draws, float32 (draws, B), into parameters named as torchvision's, (B,) each."""
        return {}

    def place(self, params: Params, device: torch.device) -> Placement:
        """Where the output's pixels are read."""
        raise NotImplementedError

    def apply(self, images: Tensor, params: Params) -> Tensor:
        """Move images, float32 (B, C, H, W), by given parameters."""
        return Resampling(self).apply(images, [params])

    def shift(self, left: float, top: float) -> tuple[float, float]:
        """Offset (x, y) of an output whose first pixel is the input's pixel (left, top)."""
        (height_in, width_in), (height, width) = self.size_in, self.size
        return left + (width - width_in) / 2, top + (height - height_in) / 2


class ResizingMove(Move):
    """A move whose output is a box of the input, filtered to another size (bilinear).

    Attributes:
        antialias: The filter widens where the box is larger than the output.
    """

    antialias = True


class Resampling(Kernel):
    """Moves that are done in one resampling, with the outcome of doing them in turn."""

    def __init__(self, move: Move) -> None:
        self.moves = [move]
        self.draws = move.draws

    def add(self, move: Move) -> bool:
        """Take in a further move, if it can be done along with those before it.

        What lies outside a move's input is fill. Here it would be the picture, where an earlier move has cut or
        turned it.
        """
        if isinstance(move, ResizingMove):
            fits = not any(earlier.looks_outside or isinstance(earlier, ResizingMove) for earlier in self.moves)
        else:
            fits = not move.looks_outside or all(earlier.keeps_box for earlier in self.moves)
        if fits:
            self.moves.append(move)
            self.draws += move.draws
        return fits

    def draw(self, uniforms: Tensor) -> list[Params]:
        """Parameters of each move."""
        parts = uniforms.split([move.draws for move in self.moves])
        return [move.draw(part) for move, part in zip(self.moves, parts, strict=True)]

    def plan(self, params: list[Params], samples: Tensor) -> Params:
        """Where the moves' output is read, by rows of a matrix and an offset, and what is the same for all samples."""
        (height_in, width_in), (height, width) = self.moves[0].size_in, self.moves[-1].size
        placement, box, device, count = Placement(), None, samples.device, len(samples)
        for move, drawn in zip(self.moves, params, strict=True):
            placement = move.place(drawn, device).after(placement)
            box = placement if isinstance(move, ResizingMove) else box
        if box is not None:
            sides = {"x_in": width_in, "x": width, "y_in": height_in, "y": height}
            centres = {name: share(place_centres(side, device), count) for name, side in sides.items()}
            parts = {"linear": placement.linear, "offset": placement.offset, "box": box.linear, "corner": box.offset}
            return centres | {name: part for name, part in parts.items() if part is not None}
        # grid_sample wants -1 and 1 at the outer edges of the image.
        unit = get_constant((2 / width_in, 2 / height_in), device)
        linear = get_constant((1.0, 1.0), device) if placement.linear is None else placement.linear
        if linear.ndim < 3:
            linear = torch.diag_embed(linear)
        plan = {"columns": (linear * unit).expand(count, 2, 2)}
        if placement.offset is not None:
            plan["offset"] = (placement.offset * unit).expand(count, 2)
        fills = [move.fill for move in self.moves if move.looks_outside]
        if fills and any(fills[-1]):
            plan["level"] = share(get_constant(fills[-1], device).view(-1, 1, 1), count)
        sides = {"x": width, "y": height}
        return plan | {name: share(place_centres(side, device), count) for name, side in sides.items()}

    def run(self, images: Tensor, plan: Params) -> Tensor:
        """Move images, float32 (B, C, H, W)."""
        for move in self.moves:
            if isinstance(move, ResizingMove):
                return _filter(images, plan, move)
        return _sample(images, plan, ([move.mode for move in self.moves if move.mode] or ["nearest"])[-1])


def share(values: Tensor, count: int) -> Tensor:
    """The same values for each of ``count`` samples, as part of a plan; they take no memory."""
    return values.expand(count, *values.shape)


def place_centres(count: int, device: torch.device) -> Tensor:
    """Centres of a row of pixels, (count,), in px from the row's middle."""
    return get_constant(tuple(pixel - (count - 1) / 2 for pixel in range(count)), device)


def _sample(images: Tensor, plan: Params, mode: str) -> Tensor:
    """Read images where the plan says, and fill where that is outside."""
    across, down = (plan["columns"][:, i : i + 1] * plan[axis].unsqueeze(2) for i, axis in enumerate("xy"))
    if "offset" in plan:
        across = across + plan["offset"].unsqueeze(1)
    if torch.compiler.is_compiling():
        grid = down.unsqueeze(2) + across.unsqueeze(1)
    else:  # the grid is the one large tensor here: as complex numbers, its points take one pass
        across, down = torch.view_as_complex(across), torch.view_as_complex(down)
        grid = torch.view_as_real(down.unsqueeze(2) + across.unsqueeze(1))
    if "level" not in plan:
        return F.grid_sample(images, grid, mode, "zeros", align_corners=False)
    return F.grid_sample(images - plan["level"], grid, mode, "zeros", align_corners=False) + plan["level"]


def _filter(images: Tensor, plan: Params, move: ResizingMove) -> Tensor:
    """Filter the box that a resizing move has cut out, along one axis and then along the other."""
    batch, channels, height_in, width_in = images.shape
    across, down = (_weights(plan, move, axis) for axis in (0, 1))
    rows = torch.bmm(images.reshape(batch, channels * height_in, width_in), across.transpose(1, 2))
    return torch.matmul(down.unsqueeze(1), rows.view(batch, channels, height_in, across.shape[1]))


def _weights(plan: Params, move: ResizingMove, axis: int) -> Tensor:
    """Weights along an axis (0: x) of pixels in and out: float32 (B, out, in)."""
    pixels, centres = (plan["xy"[axis] + name][:1] for name in ("_in", ""))
    scale = plan["box"][:, axis].abs().view(-1, 1, 1)
    reads = plan["linear"][:, axis, None] * centres + plan["offset"][:, axis, None]
    distance = (pixels - reads.unsqueeze(2)).abs_()
    if move.antialias:
        distance = distance.div_(scale.clamp(min=1))
    # The filter ends with the box, half an input pixel beyond the centres of its outermost ones.
    inside = (pixels - plan["corner"][:, axis].view(-1, 1, 1)).abs_() < scale * (move.size[1 - axis] / 2)
    weights = (1 - distance).clamp_(min=0).mul_(inside)
    return weights.div_(weights.sum(2, keepdim=True))
