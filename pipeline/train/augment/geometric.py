"""Geometric transforms with a batched kernel; arguments and distributions are those of torchvision's v2 modules.

Each takes its arguments from torchvision's module, which has checked and completed them.
"""

from typing import Any

import torch
from torch import Tensor

from pipeline.models.devices import get_constant
from pipeline.train.augment.kernel import Params
from pipeline.train.augment.resampling import Move, Placement, ResizingMove, Size

ATTEMPTS = 10  # at a box that fits, before falling back: as many as torchvision's


class Flip(Move):
    """RandomHorizontalFlip, or RandomVerticalFlip."""

    draws = 1
    keeps_box = True

    def __init__(self, module: Any, size: Size, vertical: bool) -> None:
        super().__init__(size, size)
        self.p, self.turned = module.p, (0.0, -2.0) if vertical else (-2.0, 0.0)

    def draw(self, uniforms: Tensor) -> Params:
        return {"flip": uniforms[0] < self.p}

    def place(self, params: Params, device: torch.device) -> Placement:
        return Placement(params["flip"].unsqueeze(1) * get_constant(self.turned, device) + 1)


class Window(Move):
    """CenterCrop, or Pad with a constant: a fixed part of the input, or of the plane around it."""

    def __init__(self, size_in: Size, size: Size, left: int, top: int, fill: tuple[float, ...] = (0.0,)) -> None:
        super().__init__(size_in, size)
        self.offset = self.shift(left, top)
        self.looks_outside = left < 0 or top < 0 or left + size[1] > size_in[1] or top + size[0] > size_in[0]
        self.fill = fill

    @classmethod
    def center_crop(cls, module: Any, size_in: Size) -> "Window":
        """CenterCrop; an image that is too small is padded with zeros."""
        size = tuple(module.size)
        # Padding is rounded down at the near side; Python rounds halves of a cut to even, as torchvision does.
        left, top = (
            -((out - given) // 2) if out > given else round((given - out) / 2)
            for out, given in zip(reversed(size), reversed(size_in))
        )
        return cls(size_in, size, left, top)

    @classmethod
    def pad(cls, module: Any, size_in: Size, fill: tuple[float, ...]) -> "Window":
        """Pad; by one number, two (x, y) or four (left, top, right, bottom)."""
        sides = [module.padding] if isinstance(module.padding, int) else list(module.padding)
        left, top, right, bottom = sides * (4 // len(sides))
        size = (size_in[0] + top + bottom, size_in[1] + left + right)
        return cls(size_in, size, -left, -top, fill)

    def place(self, params: Params, device: torch.device) -> Placement:
        return Placement(offset=get_constant(self.offset, device))


class Crop(Move):
    """RandomCrop, of the input or of the padded input."""

    draws = 2

    def __init__(self, module: Any, size_in: Size, fill: tuple[float, ...]) -> None:
        super().__init__(size_in, tuple(module.size))
        self.fill = fill
        left, right, top, bottom = module.padding or (0, 0, 0, 0)
        places = []  # of the crop's corner: rows, columns
        lacking = [0, 0]
        for axis, padding in enumerate((top + bottom, left + right)):
            if module.pad_if_needed:
                lacking[axis] = max(0, self.size[axis] - size_in[axis] - padding)
            places.append((float(size_in[axis] + padding + 2 * lacking[axis] - self.size[axis] + 1),))
        self.looks_outside = max(left, right, top, bottom, *lacking) > 0
        self.padding, self.places = (left + lacking[1], top + lacking[0]), tuple(places)

    def draw(self, uniforms: Tensor) -> Params:
        # A draw is at most 1 - 2**-24, so that its product with a whole number n stays below n when rounded.
        top, left = (uniforms * get_constant(self.places, uniforms.device)).floor_()
        return {"top": top, "left": left}

    def place(self, params: Params, device: torch.device) -> Placement:
        shift = self.shift(-self.padding[0], -self.padding[1])
        return Placement(offset=torch.stack((params["left"], params["top"]), 1) + get_constant(shift, device))


class Affine(Move):
    """RandomAffine, or RandomRotation (whose angle counts the other way round)."""

    looks_outside = True

    def __init__(self, module: Any, size: Size, mode: str, fill: tuple[float, ...], rotation: bool) -> None:
        super().__init__(size, size)
        self.mode, self.fill, self.sense = mode, fill, -1.0 if rotation else 1.0
        ranges = {"angle": module.degrees}
        translate = getattr(module, "translate", None)
        if translate is not None:
            reach_x, reach_y = translate[0] * size[1], translate[1] * size[0]
            ranges |= {"translate_x": (-reach_x, reach_x), "translate_y": (-reach_y, reach_y)}
        if getattr(module, "scale", None) is not None:
            ranges["scale"] = module.scale
        shear = getattr(module, "shear", None)
        if shear is not None:
            ranges["shear_x"] = shear[:2]
            if len(shear) == 4:
                ranges["shear_y"] = shear[2:]
        self.draws, self.ranges = len(ranges), ranges
        self.center = None
        if module.center is not None:
            self.center = (module.center[0] - size[1] / 2, module.center[1] - size[0] / 2)

    def draw(self, uniforms: Tensor) -> Params:
        low, high = (tuple((float(ends[i]),) for ends in self.ranges.values()) for i in (0, 1))
        low, high = get_constant(low, uniforms.device), get_constant(high, uniforms.device)
        params = dict(zip(self.ranges, uniforms * (high - low) + low, strict=True))
        for name in ("translate_x", "translate_y"):
            if name in params:
                params[name] = params[name].round()
        return params

    def place(self, params: Params, device: torch.device) -> Placement:
        # The inverse of: shear along x, along y, scale, turn (clockwise, as y points down), translate.
        angle = params["angle"] * (self.sense * torch.pi / 180)
        cos, sin = angle.cos(), angle.sin()
        xx, xy, yx, yy = cos, sin, -sin, cos
        if "shear_y" in params:
            slope = torch.deg2rad(params["shear_y"]).tan()
            yx, yy = yx + slope * xx, yy + slope * xy
        if "shear_x" in params:
            slope = torch.deg2rad(params["shear_x"]).tan()
            xx, xy = xx + slope * yx, xy + slope * yy
        linear = torch.stack((xx, yx, xy, yy), 1)
        if "scale" in params:
            linear = linear / params["scale"].unsqueeze(1)
        linear = linear.view(-1, 2, 2)
        moved = None
        if "translate_x" in params:
            moved = torch.stack((params["translate_x"], params["translate_y"]), 1)
        if self.center is None:
            return Placement(linear, None if moved is None else -Placement(linear).turn(moved))
        center = get_constant(self.center, device)
        return Placement(linear, center - Placement(linear).turn(center if moved is None else moved + center))


class ResizedCrop(ResizingMove):
    """RandomResizedCrop with bilinear interpolation."""

    draws = 2 * ATTEMPTS + 2

    def __init__(self, module: Any, size_in: Size) -> None:
        super().__init__(size_in, tuple(module.size))
        self.antialias = bool(module.antialias)
        self.scale, self.log_ratio = module.scale, tuple(module._log_ratio.tolist())
        height, width = size_in  # of the box where none fits
        ratio = min(max(width / height, min(module.ratio)), max(module.ratio))
        self.whole = (min(height, round(width / ratio)), min(width, round(height * ratio)))

    def draw(self, uniforms: Tensor) -> Params:
        height_in, width_in = self.size_in
        width, height = propose_boxes(uniforms[:-2], self.scale, self.log_ratio, height_in * width_in)
        fits = (width > 0) & (width <= width_in) & (height > 0) & (height <= height_in)
        height, width = take_first(height, fits, self.whole[0]), take_first(width, fits, self.whole[1])
        top = (uniforms[-2] * (height_in - height + 1)).floor()
        left = (uniforms[-1] * (width_in - width + 1)).floor()
        none = ~fits.any(0)
        top = top.masked_fill(none, (height_in - self.whole[0]) // 2)
        left = left.masked_fill(none, (width_in - self.whole[1]) // 2)
        return {"top": top, "left": left, "height": height, "width": width}

    def place(self, params: Params, device: torch.device) -> Placement:
        extent = torch.stack((params["width"], params["height"]), 1)
        corner = torch.stack((params["left"], params["top"]), 1)
        middle = get_constant((self.size_in[1] / 2, self.size_in[0] / 2), device)
        return Placement(extent / get_constant((self.size[1], self.size[0]), device), corner + extent / 2 - middle)


def stretch(uniforms: Tensor, ends: tuple[float, float]) -> Tensor:
    """Stretch uniform draws to a range."""
    return uniforms * (ends[1] - ends[0]) + ends[0]


def propose_boxes(uniforms: Tensor, scale: tuple, log_ratio: tuple, area: int) -> tuple[Tensor, Tensor]:
    """Propose boxes, of a share of an area and a ratio: sqrt(area * ratio) and sqrt(area / ratio), rounded.

    Of draws (2 * A, B), for A attempts, two of float32 (A, B), whole px; ``scale`` and ``log_ratio`` are ranges.
    """
    share, ratio = uniforms.view(2, -1, uniforms.shape[1])
    target = stretch(share, (area * scale[0], area * scale[1]))
    ratio = stretch(ratio, log_ratio).exp_()
    return (target * ratio).sqrt_().round_(), (target / ratio).sqrt_().round_()


def take_first(values: Tensor, fits: Tensor, fallback: float) -> Tensor:
    """The first of a sample's values (A, B) that fits, or the fallback: (B,)."""
    chosen = values.gather(0, fits.int().argmax(0, keepdim=True)).squeeze(0)
    return chosen.masked_fill(~fits.any(0), fallback)
