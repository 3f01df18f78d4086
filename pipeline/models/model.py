"""Any timm backbone for small faces: how it is built, and how it answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pipeline.models.backbones  # noqa: F401  (registers our nets with timm)
from pipeline.models import stem, transforms
from pipeline.models.stem import Changes

SHIFT = 2  # px


@dataclass(frozen=True)
class ModelSpec:
    """How to build a net and feed it; ``json``-able, and saved beside the weights as it is.

    ``model_args`` are the arguments of ``timm.create_model``; ``preprocessing`` has ``img_size`` and
    ``channels`` of a prepared image, ``input_size`` (px) and ``in_chans`` of the net, ``mean``, ``std``, and
    the resolved ``train`` and ``eval`` transforms; train adds ``faces``, how they were cut out of photos.
    ``stem`` is what is changed in the net that timm builds, so that it suits small pictures (see ``stem``).
    """

    backbone: str
    model_args: dict[str, Any]
    class_names: list[str]
    preprocessing: dict[str, Any]
    stem: Changes = field(default_factory=dict)


def build_model(spec: ModelSpec) -> nn.Module:
    """Build the net of a spec, randomly initialised from torch's global generator."""
    net = timm.create_model(spec.backbone, pretrained=False, **spec.model_args)
    return stem.apply(net, spec.stem)


class Classifier(nn.Module):
    """A net with its eval preprocessing and softmax: prepared images in, probabilities out.

    This is what is evaluated, exported and served, so that all of them see the same arithmetic.

    Attributes:
        temperature: By which logits are divided.
        views: Names for ``list_views``, over which logits are averaged; none: the image alone.
    """

    def __init__(self, model: nn.Module, spec: ModelSpec, temperature: float = 1.0, views: Sequence[str] = ()) -> None:
        super().__init__()
        self.model = model
        self.preprocess = transforms.build_eval(spec.preprocessing["eval"]).to(next(model.parameters()).device)
        self.temperature = temperature
        self.views = views

    def forward(self, images: Tensor) -> Tensor:
        """Classify images uint8 (B, H, W, C), as prepare packs them: probabilities, float32 (B, K)."""
        images = self.preprocess[0](images.permute(0, 3, 1, 2))  # to floats
        if self.views:
            images = torch.cat(list_views(images, self.views))
        logits = self.model(self.preprocess[1:](images)).float()
        if self.views:
            logits = logits.unflatten(0, (count_passes(self.views), -1)).mean(0)
        return (logits if self.temperature == 1 else logits / self.temperature).softmax(1)


def list_views(images: Tensor, names: Sequence[str]) -> list[Tensor]:
    """List the views of images, float (B, C, H, W), that are averaged, the images themselves first.

    Names are ``flip`` (left to right), ``shifts`` (by ``SHIFT`` px to each of four sides), ``sizes`` (larger, so that
    ``SHIFT`` px of each side are cut, and smaller by as many); edges go on. Every other view is flipped, too.
    """
    found = [images]
    if "shifts" in names:
        found += [_shifted(images, side, by) for side in (2, 3) for by in (SHIFT, -SHIFT)]
    if "sizes" in names:
        found += [_resized(images, by) for by in (-SHIFT, SHIFT)]
    if "flip" in names:
        found += [view.flip(3) for view in found]
    return found


def count_passes(names: Sequence[str]) -> int:
    """Count the views of an image."""
    return (1 + 4 * ("shifts" in names) + 2 * ("sizes" in names)) * (2 if "flip" in names else 1)


def _shifted(images: Tensor, side: int, by: int) -> Tensor:
    """Images moved along one side; what comes in repeats the edge."""
    length = images.shape[side]
    return images.index_select(side, (torch.arange(length, device=images.device) - by).clamp(0, length - 1))


def _resized(images: Tensor, by: int) -> Tensor:
    """Images of which each side got so many px more, or less, brought back to their size."""
    seen = images
    for side in (2, 3):
        length = images.shape[side]
        seen = seen.index_select(side, torch.arange(-by, length + by, device=images.device).clamp(0, length - 1))
    return F.interpolate(seen, images.shape[2:], mode="bilinear")
