"""Which parts of a picture speak for a class, as heat maps.

Where the net ends in feature maps, Grad-CAM (R. Selvaraju et al., 2017, https://arxiv.org/abs/1610.02391) with its
gradients kept at each place and not averaged: HiResCAM (R. Draelos and L. Carin, 2020,
https://arxiv.org/abs/2011.08891), which is the same where pooling and a linear head follow, and shows what was used
in earlier layers, too. Small faces leave a stock net's last maps with one to four cells, so the last layer is taken
that has ``MIN_SIDE`` cells a side and lies on every path from picture to answer. Where there is none, as in vision
transformers, parts of the picture are covered one after another (M. Zeiler and R. Fergus, 2014,
https://arxiv.org/abs/1311.2901), and what counts is how much less likely the class becomes. Both are Captum's.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from captum.attr import LayerGradientXActivation, Occlusion
from torch import Tensor, nn
from tqdm import tqdm

from pipeline.core.dataset import Split
from pipeline.metrics.by_class import worst_mistakes
from pipeline.models.model import Classifier

MIN_SIDE = 5
# A window covers a quarter of the side and moves by half of itself: 7 x 7 places.
_WINDOW, _STRIDE = 4, 8


@dataclass(frozen=True)
class Explanation:
    """A picture of the test split, and what speaks for classes in it.

    Attributes:
        row: In the split.
        picture: As the net sees it, uint8 (H, W, C).
        maps: For the predicted class and, where it is another one, the actual: float32 (H, W), from 0 to 1.
    """

    row: int
    picture: np.ndarray
    maps: dict[int, np.ndarray]


class HeatMaps:
    """Makes heat maps for a classifier by the method that suits it, whose name is ``method``."""

    def __init__(self, classifier: Classifier, device: torch.device | str = "cpu") -> None:
        self.classifier, self.device = classifier.eval(), device
        self._layer: nn.Module | None = None
        self._channels_last = False
        self._searched = False

    @property
    def method(self) -> str:
        """``Grad-CAM`` or ``occlusion``; known when a picture has been explained."""
        return "Grad-CAM" if self._layer is not None else "occlusion"

    def prepare(self, images: np.ndarray) -> Tensor:
        """What the net is given for prepared images, uint8 (B, H, W, C) -> float32 (B, C', H', W')."""
        batch = torch.from_numpy(np.array(images)).to(self.device).permute(0, 3, 1, 2)
        return self.classifier.preprocess(batch)

    def explain(self, inputs: Tensor, targets: np.ndarray) -> np.ndarray:
        """Show where in pictures from ``prepare`` something speaks for a class of each, integers (B,).

        Returns:
            float32 (B, H, W); the strongest place of each is 1, and all is 0 where nothing speaks for the class.
        """
        if not self._searched:
            self._layer, self._channels_last = find_layer(self.classifier.model, inputs[:1])
            self._searched = True
        target = torch.as_tensor(targets, device=inputs.device)
        maps = self._occlude(inputs, target) if self._layer is None else self._grad_cam(inputs, target)
        maps = F.interpolate(maps[:, None], inputs.shape[-2:], mode="bilinear")[:, 0].clamp(min=0)
        top = maps.amax((1, 2), keepdim=True)
        return torch.where(top > 0, maps / top.clamp(min=torch.finfo().tiny), 0).cpu().numpy()

    def _grad_cam(self, inputs: Tensor, target: Tensor) -> Tensor:
        """Activation times gradient of the logit, summed over the channels of the layer: (B, h, w)."""
        products = LayerGradientXActivation(self.classifier.model, self._layer).attribute(inputs, target)
        return products.sum(3 if self._channels_last else 1).clamp(min=0).detach()

    @torch.no_grad()
    def _occlude(self, inputs: Tensor, target: Tensor) -> Tensor:
        """How much the log-probability falls when a place is covered by the value 0, the mean grey: (B, H, W)."""

        def log_probs(seen: Tensor) -> Tensor:
            return self.classifier.model(seen).float().log_softmax(1)

        _, channels, height, width = inputs.shape
        window = (channels, max(1, height // _WINDOW), max(1, width // _WINDOW))
        strides = (channels, max(1, height // _STRIDE), max(1, width // _STRIDE))
        found = Occlusion(log_probs).attribute(inputs, window, strides, baselines=0, target=target)
        return found[:, 0]  # alike in all channels, as they are covered together


def explain(
    classifier: Classifier, split: Split, probs: np.ndarray, count: int, device: torch.device | str = "cpu"
) -> tuple[str, list[Explanation]]:
    """Explain the mistakes of which a classifier was surest, and of each class the right answer it was surest of.

    ``count`` is of mistakes at most; 0 explains nothing.

    Returns:
        The name of the method, and the mistakes, then the right answers.
    """
    rows = np.append(worst_mistakes(split.targets, probs, count), surest_right(split.targets, probs))
    heat, found = HeatMaps(classifier, device), []
    for row in tqdm(rows if count else [], desc="explanations", unit="img", disable=None, leave=False):
        classes = list(dict.fromkeys((int(probs[row].argmax()), int(split.targets[row]))))
        inputs = heat.prepare(split.images[row : row + 1])
        maps = heat.explain(inputs.expand(len(classes), -1, -1, -1).contiguous(), np.array(classes))
        found.append(Explanation(int(row), _as_picture(inputs[0]), dict(zip(classes, maps))))
    return heat.method, found


def surest_right(targets: np.ndarray, probs: np.ndarray) -> np.ndarray:
    """Rows of the right answer of which the model was surest, one a class that has any, int64 (M,)."""
    preds = probs.argmax(axis=1)
    right = [np.flatnonzero((preds == targets) & (targets == label)) for label in range(probs.shape[1])]
    return np.array([rows[probs[rows, preds[rows]].argmax()] for rows in right if len(rows)], np.int64)


def find_layer(model: nn.Module, inputs: Tensor) -> tuple[nn.Module | None, bool]:
    """Find the last layer whose output is a map of one square picture and all that the answer depends on.

    Returns:
        The layer, and whether the channels are the last axis of its output; None for nets that do not end in maps.
    """
    with torch.no_grad():
        if _layout(model.forward_features(inputs)) is None:
            return None, False
    seen: list[tuple[nn.Module, bool]] = []

    def note(module: nn.Module, _inputs: object, output: object) -> None:
        layout = _layout(output)
        if layout is not None and layout[0] >= MIN_SIDE:
            seen.append((module, layout[1]))

    with _hooked(list(model.modules())[1:], note), torch.no_grad():
        model(inputs)
    calls = Counter(id(module) for module, _ in seen)
    with _frozen(model):
        for module, channels_last in reversed(seen):
            if calls[id(module)] == 1 and _lies_on_every_path(model, module, inputs):
                return module, channels_last
    return None, False


def _layout(output: object) -> tuple[int, bool] | None:
    """Side of a map and whether its channels come last; None for what is no map of a square picture."""
    if not isinstance(output, Tensor) or output.ndim != 4:
        return None
    _, first, second, third = output.shape
    if second == third:
        return second, False
    return (first, True) if first == second else None


def _lies_on_every_path(model: nn.Module, module: nn.Module, inputs: Tensor) -> bool:
    """Whether the answer of a frozen net no longer depends on the picture when the layer's output is cut off."""
    leaf = inputs.detach().clone().requires_grad_()
    with _hooked([module], lambda _module, _inputs, output: output.detach()), torch.enable_grad():
        return not model(leaf).requires_grad


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Have no parameter ask for gradients."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


@contextmanager
def _hooked(modules: list[nn.Module], hook: object) -> Iterator[None]:
    """Have a function called with the outputs of modules."""
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _as_picture(image: Tensor) -> np.ndarray:
    """A normalised image (C, H, W) as uint8 (H, W, C), stretched to the whole range."""
    values = image.detach().float().cpu().numpy().transpose(1, 2, 0)
    low, high = values.min(), values.max()
    return np.rint(255 * (values - low) / max(high - low, np.finfo(np.float32).tiny)).astype(np.uint8)
