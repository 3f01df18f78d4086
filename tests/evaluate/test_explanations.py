"""Heat maps: against the map that a pooling head has by definition, and on pictures whose cause is planted."""

import warnings

import numpy as np
import pytest
import timm
import torch
from torch import nn

import pipeline.models.backbones  # noqa: F401  (registers our nets)
from pipeline.core.dataset import Split
from pipeline.evaluate import explanations
from pipeline.evaluate.explanations import HeatMaps, find_layer

SIZE = 32


class Fed(nn.Module):
    """A classifier of uint8 pictures around a net."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        return (images.float() / 255 - 0.5) / 0.25


def net(name: str, **more: object) -> Fed:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Fed(timm.create_model(name, num_classes=3, in_chans=1, **more)).eval()


def faces(count: int = 2, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 1), dtype=np.uint8)


def test_where_a_linear_head_follows_pooling_the_map_is_the_class_activation_map() -> None:
    # B. Zhou et al., "Learning deep features for discriminative localization", 2016: weights of the head on the maps.
    classifier = net("face_resnet_s", widths=(8, 8, 8), depths=(1, 1, 1), stem_width=8)
    heat = HeatMaps(classifier)
    inputs = heat.prepare(faces(size=48))
    with torch.no_grad():
        features = classifier.model.forward_features(inputs)
        maps = torch.einsum("bchw,c->bhw", features, classifier.model.fc.weight[1]).clamp(min=0)
        expected = torch.nn.functional.interpolate(maps[:, None], (48, 48), mode="bilinear")[:, 0]
        expected = expected / expected.amax((1, 2), keepdim=True).clamp(min=1e-12)
    np.testing.assert_allclose(heat.explain(inputs, np.array([1, 1])), expected, atol=1e-5)
    assert heat.method == "Grad-CAM"


class Corner(nn.Module):
    """Class 1 looks at the brightness of the upper left quarter, class 0 at the rest; with maps or without."""

    def __init__(self, maps: bool) -> None:
        super().__init__()
        self.maps, self.same = maps, nn.Identity()
        place = torch.zeros(SIZE, SIZE)
        place[: SIZE // 2, : SIZE // 2] = 1
        self.register_buffer("place", place)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        x = self.same(x.clamp(min=0))
        return x if self.maps else x.flatten(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.forward_features(x).reshape(len(x), SIZE, SIZE)
        return torch.stack([(x * (1 - self.place)).mean((1, 2)), (x * self.place).mean((1, 2))], 1)


@pytest.mark.parametrize("maps,method", [(True, "Grad-CAM"), (False, "occlusion")])
def test_what_speaks_for_a_class_is_found_where_it_was_planted(maps: bool, method: str) -> None:
    heat = HeatMaps(Fed(Corner(maps)))
    inputs = heat.prepare(np.full((2, SIZE, SIZE, 1), 255, np.uint8))
    others, corner = heat.explain(inputs, np.array([0, 1]))
    assert heat.method == method
    quarter = corner[: SIZE // 2, : SIZE // 2]
    assert quarter.sum() > 0.9 * corner.sum() if maps else quarter.sum() > 0.75 * corner.sum()
    assert np.unravel_index(corner.argmax(), corner.shape) < (SIZE // 2, SIZE // 2)
    assert others[: SIZE // 4, : SIZE // 4].sum() < 0.05 * others.sum()


@pytest.mark.parametrize(
    "name,more",
    [
        ("mobilenetv3_small_050", {}),
        ("regnetx_002", {}),
        ("swin_tiny_patch4_window7_224", {"img_size": 48, "embed_dim": 24, "depths": (1, 1, 1, 1)}),
        ("vit_tiny_patch16_224", {"img_size": 48}),
    ],
)
def test_nets_of_every_kind_have_maps(name: str, more: dict) -> None:
    classifier = net(name, **more)
    flags = [parameter.requires_grad for parameter in classifier.parameters()]
    heat = HeatMaps(classifier)
    maps = heat.explain(heat.prepare(faces(size=48)), np.array([0, 2]))
    assert heat.method == ("occlusion" if name.startswith("vit") else "Grad-CAM")
    assert (maps.shape, maps.dtype) == ((2, 48, 48), np.float32)
    assert (maps.min() >= 0, maps.max()) == (True, 1)
    assert np.isin(maps.max(axis=(1, 2)), [0, 1]).all()
    assert flags == [parameter.requires_grad for parameter in classifier.parameters()]
    assert all(parameter.grad is None for parameter in classifier.parameters())


def test_layer_lies_on_every_path_and_is_fine_enough() -> None:
    class Forked(nn.Module):
        """The last map of the long way misses what the short way carries."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.long, self.short = (nn.Conv2d(1, 1, 1) for _ in range(3))
            self.coarse = nn.AvgPool2d(8)

        def forward_features(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            return self.coarse(self.long(x)) + self.coarse(self.short(x))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.forward_features(x).flatten(1)

    model = Forked()
    assert find_layer(model, torch.rand(1, 1, 16, 16)) == (model.first, False)


def test_mistakes_and_one_right_answer_a_class_are_explained() -> None:
    probs = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.45, 0.55], [0.7, 0.3]])
    split = Split(faces(5), np.array([0, 0, 0, 0, 1]), list("abcde"))
    method, found = explanations.explain(Fed(Corner(True)), split, probs, 2)
    assert method == "Grad-CAM"
    assert [item.row for item in found] == [2, 4, 0]
    assert [list(item.maps) for item in found] == [[1, 0], [0, 1], [0]]
    assert all(item.picture.shape == (SIZE, SIZE, 1) for item in found)
    assert explanations.explain(Fed(Corner(True)), split, probs, 0)[1] == []
