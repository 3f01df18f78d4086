"""Which names of torchvision.transforms.v2 have a batched kernel, and which one; add a kernel here.

A kernel works on whole batches (see ``Kernel``): ``draw`` turns uniform draws into the parameters of every sample, and
``apply`` does what torchvision's functional form does with them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from torchvision.transforms import InterpolationMode

from pipeline.train.augment import geometric, photometric
from pipeline.train.augment.kernel import Kernel
from pipeline.train.augment.resampling import Move, Resampling

# What is done to images (B, C, H, W) by torchvision's module of that name, with its probability ``p``, or always;
# ``unit`` is what one grey level of its arguments is.
SOMETIMES: dict[str, Callable[[Any, float, Tensor], Tensor]] = {
    "RandomGrayscale": lambda module, unit, images: photometric.to_grey(images).expand_as(images),
    "RandomInvert": lambda module, unit, images: 1 - images,
    "RandomAutocontrast": lambda module, unit, images: photometric.autocontrast(images),
    "RandomAdjustSharpness": lambda module, unit, images: photometric.adjust_sharpness(images, module.sharpness_factor),
}
ALWAYS: dict[str, Callable[[Any, float, Tensor], Tensor]] = {
    "Grayscale": lambda module, unit, images: photometric.to_grey(images).expand(
        -1, module.num_output_channels, -1, -1
    ),
    "ToDtype": lambda module, unit, images: images,
    # Bytes would cut what bicubic interpolation overshoots.
    "Resize": lambda module, unit, images: module(images).clamp(0, 1) if unit < 1 else module(images),
    "RGB": lambda module, unit, images: module(images),
    "Identity": lambda module, unit, images: images,
}


class NoKernel(Exception):
    """A transform has no batched kernel; the text names the argument that is the reason, if one is."""


def build_kernel(name: str, module: Any, shape: tuple[int, int, int], unit: float) -> Kernel | Move:
    """Build the batched kernel of a transform for inputs (C, H, W); ``NoKernel`` if there is none.

    Torchvision's module of that name holds the arguments; ``unit`` is what one grey level of ``fill`` and ``value`` is:
    1/255 before the conversion to float, then 1.
    """
    channels, size = shape[0], shape[1:]
    match name:
        case "RandomHorizontalFlip" | "RandomVerticalFlip":
            return geometric.Flip(module, size, vertical=name == "RandomVerticalFlip")
        case "RandomRotation" | "RandomAffine":
            if getattr(module, "expand", False):
                raise NoKernel("expand")
            mode = _interpolation(module, "nearest", "bilinear")
            return geometric.Affine(module, size, mode, _fill(module, unit), rotation=name == "RandomRotation")
        case "RandomCrop":
            return geometric.Crop(module, size, _fill(module, unit))
        case "CenterCrop":
            return geometric.Window.center_crop(module, size)
        case "Pad":
            return geometric.Window.pad(module, size, _fill(module, unit))
        case "RandomResizedCrop":
            _interpolation(module, "bilinear")
            return geometric.ResizedCrop(module, size)
        case "ColorJitter":
            for argument in ("saturation", "hue"):
                if channels > 1 and getattr(module, argument) is not None:
                    raise NoKernel(argument)
            return photometric.ColorJitter(module)
        case "RandomErasing":
            if module.value is None:
                raise NoKernel("value: random")
            return photometric.Erasing(module, size, unit)
        case "Normalize":
            return photometric.Normalize(module)
    if name in SOMETIMES:
        return photometric.Sometimes(partial(SOMETIMES[name], module, unit), module.p)
    if name in ALWAYS:
        return photometric.Fixed(partial(ALWAYS[name], module, unit))
    raise NoKernel


def fuse(kernels: list[Kernel | Move]) -> list[Kernel]:
    """Replace moves in a row by as few resamplings as give the same outcome."""
    steps: list[Kernel] = []
    for kernel in kernels:
        if not isinstance(kernel, Move):
            steps.append(kernel)
        elif not (steps and isinstance(steps[-1], Resampling) and steps[-1].add(kernel)):
            steps.append(Resampling(kernel))
    return steps


def _interpolation(module: Any, *known: str) -> str:
    """The module's interpolation, if it is one of these."""
    mode = module.interpolation
    mode = mode.value if isinstance(mode, InterpolationMode) else mode
    if mode not in known:
        raise NoKernel(f"interpolation: {mode}")
    return mode


def _fill(module: Any, unit: float) -> tuple[float, ...]:
    """The module's constant fill on the scale of the images."""
    if getattr(module, "padding_mode", "constant") != "constant":
        raise NoKernel(f"padding_mode: {module.padding_mode}")
    fill = 0 if module.fill is None else module.fill
    if isinstance(fill, dict):
        raise NoKernel("fill")
    return tuple(value * unit for value in (fill if isinstance(fill, list | tuple) else [fill]))
