"""Kernels that change values, and whole lists, against torchvision's functional forms with the same parameters."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawing import rows, smooth
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from pipeline.inference import images
from pipeline.models import transforms
from pipeline.train.augment import counter_rng, registry
from pipeline.train.augment.batched import Augmentation

SIZE = 48
GREY_LEVEL = 1 / 255
SAMPLE = Path(__file__).parents[3] / "data" / "sample.zip"
MEAN, STD = [0.4], [0.2]


def faces(count: int, channels: int = 1) -> Tensor:
    """Drawn faces of the sample, uint8 (count, 48, 48, channels)."""
    with zipfile.ZipFile(SAMPLE) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        names = names[:: len(names) // count][:count]
        return torch.from_numpy(np.stack([images.load(archive.read(name), SIZE, channels) for name in names]))


def scenes(count: int, channels: int = 1) -> Tensor:
    """Smooth coloured pictures, uint8 (count, 48, 48, channels)."""
    return (smooth(count, channels) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def floats(batch: Tensor) -> Tensor:
    """uint8 (B, H, W, C) as float32 (B, C, H, W) in [0, 1]."""
    return batch.permute(0, 3, 1, 2).float() / 255


def augmentation(specs: list, channels: int = 1, mean: list[float] = MEAN, std: list[float] = STD, seed: int = 3):
    """A list as train makes it."""
    return Augmentation(transforms.resolve(specs, mean, std, "w"), seed, SIZE, channels)


def params_of(made: Augmentation, count: int) -> list[Any]:
    """What each step draws, sample by sample where it draws a dict."""
    return [
        [rows(move) for move in step] if isinstance(step, list) else rows(step)
        for step in made.draw(torch.arange(count), 0)
    ]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("args", [{"brightness": 0.5}, {"contrast": 0.8}, {"brightness": 0.5, "contrast": 0.8}])
def test_color_jitter_agrees_with_torchvision(args: dict[str, float], channels: int) -> None:
    """In both orders; on floats up to rounding, on uint8 within a grey level for each of the two."""
    batch = torch.cat([scenes(24, channels), faces(8, channels)])
    kernel = registry.build_kernel("ColorJitter", v2.ColorJitter(**args), (channels, SIZE, SIZE), GREY_LEVEL)
    params = kernel.draw(torch.rand(kernel.draws, len(batch), generator=torch.Generator().manual_seed(0)))
    assert params["brightness_first"].any()
    assert not params["brightness_first"].all()
    found = kernel.apply(floats(batch), params)
    for picture, out, row in zip(batch, found, rows(params), strict=True):
        for expected in (picture.permute(2, 0, 1).float() / 255, picture.permute(2, 0, 1)):
            steps = [("brightness", F.adjust_brightness), ("contrast", F.adjust_contrast)]
            for name, function in steps if row["brightness_first"] else steps[::-1]:
                if name in args:
                    expected = function(expected, row[f"{name}_factor"])
            if expected.dtype == torch.uint8:
                torch.testing.assert_close(out, expected / 255, atol=2.8 * GREY_LEVEL, rtol=0)
            else:
                torch.testing.assert_close(out, expected, atol=2e-6, rtol=0)


def test_saturation_and_hue_leave_grey_images_alone() -> None:
    """As in torchvision, so a list that jitters them runs batched; on colour it does not."""
    spec = {"ColorJitter": {"brightness": 0.2, "saturation": 0.5, "hue": 0.1}}
    batch = faces(4)
    made = augmentation([spec])
    factors = torch.stack([F.adjust_saturation(F.adjust_hue(image, 0.1), 0.5) for image in floats(batch)])
    torch.testing.assert_close(factors, floats(batch))
    assert made.per_sample == []
    assert augmentation([spec], 3, MEAN * 3, STD * 3).per_sample == ["ColorJitter (saturation)"]


@pytest.mark.parametrize("value, channels", [(0, 1), (128, 1), (0.5, 3), ([10, 20, 30], 3)])
def test_erasing_agrees_with_torchvision(value: Any, channels: int) -> None:
    """Before the conversion to float the value is a grey level, and the outcome exact."""
    batch = scenes(32, channels)
    made = registry.build_kernel(
        "RandomErasing", v2.RandomErasing(0.7, value=value), (channels, SIZE, SIZE), GREY_LEVEL
    )
    params = made.draw(torch.rand(made.draws, len(batch), generator=torch.Generator().manual_seed(0)))
    found = made.apply(floats(batch), params)
    level = torch.tensor(value, dtype=torch.float32).view(-1, 1, 1) * GREY_LEVEL
    erased = 0
    for image, out, row in zip(floats(batch), found, rows(params), strict=True):
        box = {name: int(number) for name, number in row.items()}
        torch.testing.assert_close(out, F.erase(image, **box, v=level), atol=1e-7, rtol=0)
        erased += box["h"] > 0
    assert 15 < erased < 30


@pytest.mark.parametrize(
    "module, functional",
    [
        (v2.RandomGrayscale(0.5), lambda image: F.rgb_to_grayscale(image, image.shape[-3])),
        (v2.RandomInvert(0.5), F.invert),
        (v2.RandomAutocontrast(0.5), F.autocontrast),
        (v2.RandomAdjustSharpness(2.5, 0.5), lambda image: F.adjust_sharpness(image, 2.5)),
        (v2.RandomAdjustSharpness(0.0, 0.5), lambda image: F.adjust_sharpness(image, 0.0)),
    ],
    ids=["grayscale", "invert", "autocontrast", "sharper", "blurred"],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_done_now_and_then_agrees_with_torchvision(module: nn.Module, functional: Any, channels: int) -> None:
    flat = torch.full((1, SIZE, SIZE, channels), 7, dtype=torch.uint8)
    batch = torch.cat([scenes(24, channels), faces(7, channels), flat])
    made = registry.build_kernel(type(module).__name__, module, (channels, SIZE, SIZE), GREY_LEVEL)
    applied = torch.arange(len(batch)) % 2 == 1
    found = made.apply(floats(batch), {"applied": applied})
    for picture, out, now in zip(batch, found, applied, strict=True):
        image = picture.permute(2, 0, 1)
        expected, rounded = (functional(image / 255), functional(image)) if now else (image / 255, image)
        torch.testing.assert_close(out, expected, atol=2e-6, rtol=0)
        torch.testing.assert_close(out, rounded / 255, atol=1.3 * GREY_LEVEL, rtol=0)


@pytest.mark.parametrize("name", ["RandomHorizontalFlip", "RandomGrayscale", "RandomErasing"])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_p_is_the_share_of_samples(name: str, p: float) -> None:
    made = registry.build_kernel(name, getattr(v2, name)(p=p), (1, SIZE, SIZE), 1.0)
    drawn = made.draw(torch.rand(made.draws, 4000, generator=torch.Generator().manual_seed(0)))
    hit = drawn["h"] > 0 if name == "RandomErasing" else next(iter(drawn.values()))
    assert hit.float().mean().item() == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / 4000))


@pytest.mark.parametrize(
    "spec",
    [
        {"Resize": {"size": 40}},
        {"Resize": {"size": [60, 30], "interpolation": "bicubic"}},
        {"Resize": {"size": [20, 20], "interpolation": "nearest"}},
        {"Grayscale": {"num_output_channels": 3}},
        "RGB",
        "Identity",
        {"Pad": {"padding": 3, "fill": 128}},
        {"CenterCrop": {"size": 40}},
    ],
    ids=str,
)
def test_fixed_transforms_agree_with_torchvision_on_bytes(spec: Any) -> None:
    """Through the whole list, against torchvision's list on uint8: within a grey level, which it rounds to.

    Conversion and normalisation alone give torchvision's numbers.
    """
    batch = torch.cat([scenes(4, 3), faces(4, 3)])
    resolved = transforms.resolve([spec], [0.1, 0.2, 0.3], [0.5, 0.6, 0.7], "w")
    found = Augmentation(resolved, 0, SIZE, 3)(batch, torch.arange(8), 0)
    expected = transforms.build(resolved)(batch.permute(0, 3, 1, 2))
    tolerance = 0 if spec == "Identity" else 1.3 * GREY_LEVEL / 0.5
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
    assert found.is_contiguous()


def test_flip_affine_crop_normalize_agrees_with_torchvision() -> None:
    """The draws of the list, done one after another by torchvision on floats and on bytes."""
    affine = {"degrees": 15, "translate": [0.1, 0.1], "scale": [0.9, 1.1], "interpolation": "bilinear"}
    made = augmentation(["RandomHorizontalFlip", {"RandomAffine": affine}, {"RandomCrop": {"size": 44}}])
    batch = torch.cat([scenes(24), faces(24)])
    found = made(batch, torch.arange(48), 0)
    flips, affines, crops = params_of(made, 48)[0]
    for picture, out, flip, turn, crop in zip(batch, found, flips, affines, crops, strict=True):

        def chain(image: Tensor, flip: dict = flip, turn: dict = turn, crop: dict = crop) -> Tensor:
            image = F.horizontal_flip(image) if flip["flip"] else image
            shift = [turn["translate_x"], turn["translate_y"]]
            image = F.affine(image, turn["angle"], shift, turn["scale"], [0.0, 0.0], "bilinear", fill=0)
            return F.crop(image, int(crop["top"]), int(crop["left"]), 44, 44)

        image = picture.permute(2, 0, 1)
        inside = chain(torch.ones_like(image / 255)) > 1 - 1e-5  # footprints inside, no fill
        assert inside.float().mean() > 0.6
        exact = F.normalize(chain(image / 255), MEAN, STD)
        torch.testing.assert_close(out[inside], exact[inside], atol=2e-3, rtol=0)
        rounded = F.normalize(chain(image) / 255, MEAN, STD)
        torch.testing.assert_close(out[inside], rounded[inside], atol=0.52 * GREY_LEVEL / 0.2, rtol=0)


def test_resized_crop_flip_agrees_with_torchvision() -> None:
    made = augmentation([{"RandomResizedCrop": {"size": 40, "scale": [0.3, 1.0]}}, "RandomHorizontalFlip"])
    batch = torch.cat([scenes(24), faces(24)])
    found = made(batch, torch.arange(48), 0)
    boxes, flips = params_of(made, 48)[0]
    for picture, out, box, flip in zip(batch, found, boxes, flips, strict=True):
        whole = {name: int(value) for name, value in box.items()}
        values = picture.permute(2, 0, 1)
        for image, tolerance in ((values / 255, 1e-5), (values, GREY_LEVEL)):
            expected = F.resized_crop(image, **whole, size=[40, 40])
            expected = F.horizontal_flip(expected) if flip["flip"] else expected
            expected = F.normalize(expected if expected.is_floating_point() else expected / 255, MEAN, STD)
            torch.testing.assert_close(out, expected, atol=1.01 * tolerance / 0.2, rtol=0)


def test_padded_crop_flip_erasing_is_exact() -> None:
    """Only whole pixels move, and grey levels 0 to 255 survive the way through."""
    specs = [
        {"RandomCrop": {"size": 48, "padding": 4}},
        "RandomHorizontalFlip",
        {"RandomErasing": {"p": 0.8, "value": 77}},
    ]
    made = augmentation(specs)
    batch = torch.cat([scenes(24), faces(24)])
    found = made(batch, torch.arange(48), 0)
    (crops, flips), boxes, *_ = params_of(made, 48)
    for picture, out, crop, flip, box in zip(batch, found, crops, flips, boxes, strict=True):
        image = F.pad(picture.permute(2, 0, 1), [4])
        image = F.crop(image, int(crop["top"]), int(crop["left"]), 48, 48)
        image = F.horizontal_flip(image) if flip["flip"] else image
        image = F.erase(image, **{name: int(value) for name, value in box.items()}, v=torch.tensor(77))
        exact = F.normalize(F.to_dtype(image, torch.float32, scale=True), MEAN, STD)
        assert torch.equal(out, exact)


def test_units_change_with_the_conversion() -> None:
    """Fill and value count grey levels before it and are values after it, of a picture in [0, 1] or normalised."""
    batch = scenes(4)
    erase = {"p": 1.0, "scale": [0.1, 0.2]}
    specs = [
        {"Pad": {"padding": 1, "fill": 51}}, "ToTensor", {"Pad": {"padding": 1, "fill": 0.7}}, "Normalize",
        {"Pad": {"padding": 1, "fill": -3.0}}, {"RandomErasing": erase | {"value": 9.0}},
    ]  # fmt: skip
    found = augmentation(specs)(batch, torch.arange(4), 0)
    assert found.shape[2:] == (SIZE + 6, SIZE + 6)
    values = found[0].flatten().tolist()
    for value in (9.0, -3.0, (0.7 - 0.4) / 0.2, (0.2 - 0.4) / 0.2):
        assert any(abs(value - other) < 1e-5 for other in values)


AFFINE = {"degrees": 20, "translate": [0.1, 0.2], "scale": [0.7, 1.3], "shear": [-5, 5, -9, 9], "fill": 30}
EVERYTHING: dict[str, list] = {
    "affine": [
        "RandomHorizontalFlip",
        {"RandomAffine": AFFINE | {"interpolation": "bilinear"}},
        {"RandomCrop": {"size": 44}},
    ],
    "padding": [
        "RandomVerticalFlip",
        {"RandomCrop": {"size": 48, "padding": 4}},
        {"RandomRotation": {"degrees": 30}},
        "RandomErasing",
    ],
    "resizing": [
        {"RandomResizedCrop": {"size": 40}},
        "RandomHorizontalFlip",
        {"ColorJitter": {"brightness": 0.3, "contrast": 0.4}},
    ],
    "values": [
        "RandomGrayscale",
        "RandomInvert",
        "RandomAutocontrast",
        {"RandomAdjustSharpness": {"sharpness_factor": 2}},
        {"Resize": {"size": [52, 52]}},
        {"CenterCrop": {"size": 40}},
        {"Pad": {"padding": 2}},
        "Normalize",
        "RandomErasing",
    ],
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("specs", EVERYTHING.values(), ids=EVERYTHING)
def test_a_sample_is_the_same_in_any_batch(specs: list, channels: int) -> None:
    """Bit for bit: batches of any size, in any order, on one thread or two."""
    count = 130
    made = augmentation(specs, channels, MEAN * channels, STD * channels)
    assert made.per_sample == []
    batch, samples = scenes(count, channels), torch.arange(count) + 1000
    before, pixels = torch.get_rng_state(), batch.clone()
    together = made(batch, samples, 4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(batch, pixels)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    assert torch.equal(made(batch[order], samples[order], 4), together[order])
    threads = torch.get_num_threads()
    try:
        for threads_now, sizes in ((1, [1, 2, 64, 63]), (2, [7, 1, 122]), (1, [3] * 43 + [1])):
            torch.set_num_threads(threads_now)
            parts = [made(*part, 4) for part in zip(batch.split(sizes), samples.split(sizes))]
            assert torch.equal(torch.cat(parts), together)
    finally:
        torch.set_num_threads(threads)
    assert not torch.equal(made(batch, samples, 5), together)
    other = augmentation(specs, channels, MEAN * channels, STD * channels, seed=4)
    assert not torch.equal(other(batch, samples, 4), together)


def test_a_repeated_transform_draws_anew() -> None:
    """Its position in the list is part of the draw: two fair flips in a row cancel for half of the samples only."""
    batch = scenes(1).expand(400, -1, -1, -1)
    found = augmentation(["RandomHorizontalFlip"] * 2)(batch, torch.arange(400), 0)
    unturned = augmentation([])(batch[:1], torch.arange(1), 0)
    assert 150 < (found == unturned).all((1, 2, 3)).sum() < 250


class OnlyOneDevice(TorchDispatchMode):
    """Refuses operations on tensors that are elsewhere: a copy between devices waits for the slower one."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, out)):
            assert not isinstance(value, Tensor) or value.device.type == self.device, f"{func} {value.device}"
        return out


@pytest.mark.parametrize("specs", EVERYTHING.values(), ids=EVERYTHING)
def test_nothing_waits_for_the_device(specs: list) -> None:
    """On tensors without values nothing can be read from the device, and after the first batch nothing is copied."""
    made = augmentation(specs, 3, MEAN * 3, STD * 3)
    batch, samples = (tensor.to("meta") for tensor in (scenes(4, 3), torch.arange(4)))
    made(batch, samples, 0)
    with OnlyOneDevice("meta"):
        found = made(batch, samples, 1)
    assert found.device.type == "meta"
    assert found.shape == made(scenes(4, 3), torch.arange(4), 0).shape


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("specs", EVERYTHING.values(), ids=EVERYTHING)
def test_cuda_agrees_and_is_not_waited_for(specs: list) -> None:
    made = augmentation(specs, 3, MEAN * 3, STD * 3)
    batch, samples = scenes(64, 3), torch.arange(64)
    expected = made(batch, samples, 1)
    batch, samples = batch.cuda(), samples.cuda()
    made(batch, samples, 0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = made(batch, samples, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert ((found.cpu() - expected).abs() < 1e-3).float().mean() > 0.999
    uniform = counter_rng.Draws(0, [(0, 0), (5, 3)])
    assert torch.equal(uniform(samples, 3).cpu(), uniform(samples.cpu(), 3))
