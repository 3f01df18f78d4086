"""The vocabulary of transform lists: names, arguments, shapes, and what a resolved list holds."""

from typing import Any

import pytest
import torch
from torch import nn

from pipeline.core.errors import UserError
from pipeline.models import transforms

SIZE = 16
# Arguments without which a transform cannot be made, does nothing, or wants a larger picture.
NEEDED: dict[str, dict[str, Any]] = {
    "CenterCrop": {"size": 12},
    "ColorJitter": {"brightness": 0.5},
    "ElasticTransform": {"sigma": 1.0},
    "JPEG": {"quality": 50},
    "GaussianBlur": {"kernel_size": 3},
    "Pad": {"padding": 2},
    "RandomAdjustSharpness": {"sharpness_factor": 2.0},
    "RandomAffine": {"degrees": 20},
    "RandomCrop": {"size": 12},
    "RandomPosterize": {"bits": 2},
    "RandomResize": {"min_size": 12, "max_size": 20},
    "RandomResizedCrop": {"size": 12},
    "RandomRotation": {"degrees": 20},
    "RandomSolarize": {"threshold": 128.0},
    "Resize": {"size": [12, 12]},
}
# torchvision adds noise to floats only.
AFTER_CONVERSION = {"GaussianNoise"}


def built(specs: list, channels: int = 1) -> nn.Module:
    """A list as train builds it, with a mean and std of its own."""
    resolved = transforms.resolve(specs, [0.4] * channels, [0.2] * channels, "train.transforms.train")
    return transforms.build_train(resolved)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", transforms.list_names())
def test_build_every_name(name: str, channels: int) -> None:
    """Each name that may stand in a list gives one float image, for grey and for colour."""
    specs: list = [{name: NEEDED[name]} if name in NEEDED else name]
    if name in AFTER_CONVERSION:
        specs.insert(0, "ToTensor")
    channels_after = {"RGB": 3, "Grayscale": 1}.get(name, channels)
    transform = built(specs, channels_after)
    channels_out, *_ = transforms.find_output_shape(transform, SIZE, channels, "train.transforms.train")
    assert channels_out == channels_after
    out = transform(torch.randint(0, 256, (channels, SIZE, SIZE), dtype=torch.uint8))
    assert out.dtype == torch.float32
    assert torch.isfinite(out).all()


def test_resolve_adds_conversion_and_normalisation_once() -> None:
    """Left out, they stand at the end; given, they stay where they are; no-ops go."""
    mean, std = [0.4], [0.2]
    normalize = {"Normalize": {"mean": mean, "std": std}}
    assert transforms.resolve([], mean, std, "w") == [{"ToDtype": {}}, normalize]
    assert transforms.resolve(["ToTensor", "RandomErasing"], mean, std, "w") == [
        {"ToDtype": {}}, {"RandomErasing": {}}, normalize,
    ]  # fmt: skip
    assert transforms.resolve(["ToImage", "Normalize", "RandomErasing"], mean, std, "w") == [
        {"ToDtype": {}}, normalize, {"RandomErasing": {}},
    ]  # fmt: skip
    own = transforms.resolve([{"Normalize": {"mean": [0.1]}}], mean, std, "w")
    assert own[-1] == {"Normalize": {"mean": [0.1], "std": [0.2]}}


@pytest.mark.parametrize(
    "spec, said",
    [
        # The name that was meant.
        ("RandomHorizontalFlp", "unknown transform 'RandomHorizontalFlp'.*RandomHorizontalFlip"),
        ("centercrop", "unknown transform 'centercrop'.*CenterCrop"),
        # They exist in torchvision, so the message is another.
        *(
            (name, f"{name} does not turn one image into one image")
            for name in ("MixUp", "CutMix", "FiveCrop", "TenCrop", "Lambda", "Compose", "RandomApply")
        ),
        # The arguments that the transform takes.
        ({"RandomRotation": {"degree": 10}}, r"RandomRotation does not take .*\(.*degrees.*\)"),
        ("RandomCrop", r"RandomCrop does not take .*\(.*size.*\)"),
        ({"RandomHorizontalFlip": {"p": "often"}}, r"RandomHorizontalFlip does not take .*\(.*p.*\)"),
        ({"GaussianBlur": {"kernel_size": 4}}, r"GaussianBlur does not take .*\(.*kernel_size.*\)"),
        ({"AutoAugment": {"policy": "fer"}}, r"AutoAugment does not take .*\(.*policy.*\)"),
    ],
)
def test_what_cannot_stand_in_a_list(spec: Any, said: str) -> None:
    """The message names the place in the file, and the remedy."""
    with pytest.raises(UserError, match=rf"train\.transforms\.train\.1: .*{said}"):
        built(["RandomVerticalFlip", spec])


def test_find_output_shape() -> None:
    """Channels and size after the list; a size that the draw decides is None."""
    for spec, channels, shape in (
        ({"Grayscale": {"num_output_channels": 3}}, 3, (3, SIZE, SIZE)),
        ({"CenterCrop": {"size": [8, 10]}}, 1, (1, 8, 10)),
        ({"RandomResize": {"min_size": 8, "max_size": 20}}, 1, (1, None, None)),
    ):
        assert transforms.find_output_shape(built([spec], channels), SIZE, 1, "w") == shape
    with pytest.raises(UserError, match=r"eval fails on a 16 px image with 1 channel"):
        transforms.find_output_shape(built([{"RandomCrop": {"size": 17}}]), SIZE, 1, "eval")
