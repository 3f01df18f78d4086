"""Kernels that change values: of whole batches, on any device, without waiting for it.

Images are float32 (B, C, H, W). Before a list's conversion to float, torchvision works on uint8 and rounds after every
transform; the kernels work on the same values in [0, 1] and round nowhere, so that results differ by up to about
one grey level a transform.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models.devices import get_constant
from pipeline.train.augment import geometric
from pipeline.train.augment.kernel import Kernel, Params
from pipeline.train.augment.resampling import Size, share

LUMA = (0.2989, 0.587, 0.114)  # of torchvision's rgb_to_grayscale


class Fixed(Kernel):
    """The same deterministic function of every image."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def run(self, images: Tensor, plan: Params) -> Tensor:
        return self.function(images)


class Normalize(Kernel):
    """Subtract the mean and divide by the standard deviation, by channel."""

    def __init__(self, module: Any) -> None:
        self.statistics = {"mean": tuple(module.mean), "std": tuple(module.std)}

    def plan(self, params: Params, samples: Tensor) -> Params:
        constants = {name: get_constant(values, samples.device) for name, values in self.statistics.items()}
        return {name: share(values.view(-1, 1, 1), len(samples)) for name, values in constants.items()}

    def run(self, images: Tensor, plan: Params) -> Tensor:
        return images.sub(plan["mean"]).div_(plan["std"])


class Sometimes(Kernel):
    """A deterministic function, applied to a sample with probability ``p``."""

    draws = 1

    def __init__(self, function: Callable[[Tensor], Tensor], p: float) -> None:
        self.function, self.p = function, p

    def draw(self, uniforms: Tensor) -> Params:
        return {"applied": uniforms[0] < self.p}

    def run(self, images: Tensor, plan: Params) -> Tensor:
        return torch.where(shape_per_image(plan["applied"]), self.function(images), images)


class ColorJitter(Kernel):
    """Brightness and contrast, in an order of each sample's own; saturation and hue leave grey images alone."""

    draws = 3

    def __init__(self, module: Any) -> None:
        self.brightness, self.contrast = module.brightness, module.contrast

    def draw(self, uniforms: Tensor) -> Params:
        params = {"brightness_first": uniforms[0] < 0.5}
        if self.brightness is not None:
            params["brightness_factor"] = geometric.stretch(uniforms[1], self.brightness)
        if self.contrast is not None:
            params["contrast_factor"] = geometric.stretch(uniforms[2], self.contrast)
        return params

    def run(self, images: Tensor, plan: Params) -> Tensor:
        brightness, contrast = plan.get("brightness_factor"), plan.get("contrast_factor")
        if contrast is None:
            return images if brightness is None else adjust_brightness(images, brightness)
        if brightness is None:
            return adjust_contrast(images, contrast)
        first = shape_per_image(plan["brightness_first"])
        images = torch.where(first, adjust_brightness(images, brightness), images)
        images = adjust_contrast(images, contrast)
        return torch.where(first, images, adjust_brightness(images, brightness))


class Erasing(Kernel):
    """RandomErasing with constant values."""

    draws = 2 * geometric.ATTEMPTS + 3

    def __init__(self, module: Any, size: Size, unit: float) -> None:
        self.p, self.size = module.p, size
        self.scale, self.log_ratio = module.scale, tuple(module._log_ratio.tolist())
        self.value = tuple(value * unit for value in module.value)

    def draw(self, uniforms: Tensor) -> Params:
        height_in, width_in = self.size
        height, width = geometric.propose_boxes(uniforms[:-3], self.scale, self.log_ratio, height_in * width_in)
        fits = (height < height_in) & (width < width_in)
        h, w = geometric.take_first(height, fits, 0), geometric.take_first(width, fits, 0)
        i = (uniforms[-3] * (height_in - h + 1)).floor()
        j = (uniforms[-2] * (width_in - w + 1)).floor()
        return {"i": i, "j": j, "h": h * (uniforms[-1] < self.p), "w": w}

    def plan(self, params: Params, samples: Tensor) -> Params:
        height, width = self.size
        return {
            "rows": mark_span(params["i"], params["h"], height),
            "columns": mark_span(params["j"], params["w"], width),
            "value": share(get_constant(self.value, samples.device).view(-1, 1, 1), len(samples)),
        }

    def run(self, images: Tensor, plan: Params) -> Tensor:
        inside = plan["rows"].unsqueeze(2) & plan["columns"].unsqueeze(1)
        return torch.where(inside.unsqueeze(1), plan["value"], images)


def mark_span(start: Tensor, length: Tensor, count: int) -> Tensor:
    """Which of ``count`` pixels lie in [start, start + length), for every sample: bool (B, count)."""
    pixels = torch.arange(count, device=start.device)
    return (pixels >= start.unsqueeze(1)) & (pixels < (start + length).unsqueeze(1))


def shape_per_image(values: Tensor) -> Tensor:
    """One value an image, (B,), shaped to meet images (B, C, H, W)."""
    return values.view(-1, 1, 1, 1)


def to_grey(images: Tensor) -> Tensor:
    """Luminance, (B, 1, H, W)."""
    if images.shape[1] == 1:
        return images
    # Separate products: a fused one would round differently in a loop's last steps, which vary with the batch.
    red, green, blue = (images[:, i : i + 1] * factor for i, factor in enumerate(LUMA))
    return red + green + blue


def adjust_brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply, and cut at 0 and 1."""
    return (images * shape_per_image(factors)).clamp_(0, 1)


def adjust_contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Stretch about the mean luminance, and cut at 0 and 1."""
    # In two steps: one sum over a single image is split between threads, and would depend on the batch.
    mean, factors = to_grey(images).mean(3, keepdim=True).mean(2, keepdim=True), shape_per_image(factors)
    return (images * factors).add_((1 - factors) * mean).clamp_(0, 1)


def autocontrast(images: Tensor) -> Tensor:
    """Stretch each channel to [0, 1]; a channel of one value stays as it is."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    flat = low == high
    extent = (high - low).masked_fill_(flat, 1)
    return (images - low.masked_fill(flat, 0)).div_(extent).clamp_(0, 1)


def adjust_sharpness(images: Tensor, factor: float) -> Tensor:
    """Blend with a blurred image, all but the outermost pixels, and cut at 0 and 1."""
    if min(images.shape[-2:]) <= 2:
        return images
    inner = images[..., 1:-1, 1:-1]
    # The blur's weights are 1/13, at the centre 5/13.
    blurred = (nn.functional.avg_pool2d(images, 3, 1) * 9 + inner * 4) / 13
    out = images.clone()
    out[..., 1:-1, 1:-1] += (blurred - inner) * (1 - factor)
    return out.clamp_(0, 1)
