"""Augmentation: what torchvision does, with draws that belong to the sample alone."""

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from pipeline.core.errors import UserError
from pipeline.models import transforms
from pipeline.train.augment import batched
from pipeline.train.augment.counter_rng import derive_seed

SIZE = 16


def pictures(count: int = 6, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Noise, uint8 (N, H, W, C)."""
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, channels), dtype=np.uint8)


def built(specs: list, channels: int = 1) -> nn.Module:
    """A list as train builds it, with a mean and std of its own."""
    return transforms.build(transforms.resolve(specs, [0.4] * channels, [0.2] * channels, "train.transforms.train"))


def augmented(images: np.ndarray, indices: np.ndarray, transform: nn.Module, seed: int, epoch: int) -> torch.Tensor:
    """Samples of a split, image by image."""
    rows = torch.from_numpy(np.ascontiguousarray(images[indices]))
    seeds = torch.tensor([derive_seed(seed, epoch, index) for index in indices.tolist()])
    return batched.augment_one_by_one(rows, seeds, transform)


@pytest.mark.parametrize(
    "spec, directly",
    [
        ({"Resize": {"size": [9, 9]}}, v2.Resize([9, 9])),
        ({"CenterCrop": {"size": 8}}, v2.CenterCrop(8)),
        ({"RandomCrop": {"size": SIZE, "padding": 4}}, v2.RandomCrop(SIZE, padding=4)),
        ("RandomHorizontalFlip", v2.RandomHorizontalFlip()),
        ({"RandomVerticalFlip": {"p": 0.4}}, v2.RandomVerticalFlip(0.4)),
        ({"RandomRotation": {"degrees": 15}}, v2.RandomRotation(15)),
        (
            {"RandomAffine": {"degrees": 10, "translate": [0.1, 0.1], "scale": [0.9, 1.1]}},
            v2.RandomAffine(10, translate=(0.1, 0.1), scale=(0.9, 1.1)),
        ),
        ("ToTensor", v2.Identity()),
        ({"AutoAugment": {"policy": "cifar10"}}, v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)),
        # As a tutorial has it: with a conversion, and statistics of its own.
        (
            [
                *({"Resize": {"size": [20, 20]}}, {"RandomCrop": {"size": SIZE}}, "RandomHorizontalFlip"),
                *({"RandomRotation": {"degrees": 10}}, "ToTensor", {"Normalize": {"mean": [0.5], "std": [0.25]}}),
            ],
            v2.Compose([v2.Resize([20, 20]), v2.RandomCrop(SIZE), v2.RandomHorizontalFlip(), v2.RandomRotation(10)]),
        ),
    ],
)
def test_lists_do_what_torchvision_does(spec: Any, directly: nn.Module) -> None:
    """The same generator seed gives the pixels of torchvision called by hand, scaled and normalised."""
    images = pictures(8)
    specs, mean, std = (spec, 0.5, 0.25) if isinstance(spec, list) else ([spec], 0.4, 0.2)
    found = augmented(images, np.arange(8), built(specs), 5, 2)
    expected = []
    for i, image in enumerate(images):
        digest = hashlib.blake2b(f"5/2/{i}".encode(), digest_size=8).digest()
        torch.manual_seed(int.from_bytes(digest, "little") >> 1)
        pixels = directly(torch.from_numpy(image.transpose(2, 0, 1).copy()))
        expected.append((pixels.double() / 255 - mean) / std)
    torch.testing.assert_close(found.double(), torch.stack(expected), atol=1e-5, rtol=0)


RANDOM = [{"RandomCrop": {"size": SIZE, "padding": 4}}, {"RandomRotation": {"degrees": 30}}, "RandomErasing"]


def test_draws_differ_between_epochs_seeds_and_samples() -> None:
    """The same image twice in a split, in another epoch or under another seed, is another picture."""
    images, transform = np.repeat(pictures(1), 6, axis=0), built(["ToTensor", *RANDOM])
    batches = [augmented(images, np.arange(6), transform, s, e) for s, e in ((0, 0), (0, 1), (1, 0))]
    assert len({sample.numpy().tobytes() for batch in batches for sample in batch}) == 18


def test_flips_come_at_their_rate() -> None:
    """Over 600 hashed seeds a fair flip is fair: within 4 standard deviations of 300."""
    image = np.zeros((1, SIZE, SIZE, 1), dtype=np.uint8)
    image[:, :, 0] = 255
    images = np.broadcast_to(image, (600, SIZE, SIZE, 1))
    out = augmented(images, np.arange(600), built(["RandomHorizontalFlip"]), 0, 0)
    flipped = int((out[:, 0, 0, -1] > 0).sum())
    assert abs(flipped - 300) < 4 * np.sqrt(600 * 0.25)


def test_a_failure_leaves_the_global_generator() -> None:
    """Trying shapes, too, draws from nothing that initialisation or dropout draw from."""
    before = torch.get_rng_state()
    transforms.find_output_shape(built(["ToTensor", *RANDOM]), SIZE, 1, "w")
    with pytest.raises(ValueError, match="larger than"):
        augmented(pictures(), np.arange(6), transforms.build([{"RandomCrop": {"size": 99}}]), 0, 0)
    assert torch.equal(torch.get_rng_state(), before)


def augmentation(specs: list, channels: int = 1, seed: int = 3, size: int = SIZE) -> batched.Augmentation:
    """A list as train applies it, with a mean and std of its own."""
    resolved = transforms.resolve(specs, [0.4] * channels, [0.2] * channels, "w")
    return batched.Augmentation(resolved, seed, size, channels)


@pytest.mark.parametrize(
    "specs, named",
    [
        (["RandomHorizontalFlip", {"RandomRotation": {"degrees": 9}}, "RandomErasing"], []),
        (["RandomHorizontalFlip", {"ElasticTransform": {"sigma": 1.0}}], ["ElasticTransform"]),
        (
            [{"RandomRotation": {"degrees": 9, "expand": True}}, {"Resize": {"size": [9, 9]}}],
            ["RandomRotation (expand)"],
        ),
        (
            [
                {"RandomCrop": {"size": 12, "padding": 2, "padding_mode": "reflect"}},
                {"GaussianBlur": {"kernel_size": 3}},
            ],
            ["RandomCrop (padding_mode: reflect)", "GaussianBlur"],
        ),
        (
            [{"RandomResizedCrop": {"size": 12, "interpolation": "bicubic"}}],
            ["RandomResizedCrop (interpolation: bicubic)"],
        ),
        (
            [{"RandomErasing": {"value": "random"}}, {"Pad": {"padding": 1, "padding_mode": "edge"}}],
            ["RandomErasing (value: random)", "Pad (padding_mode: edge)"],
        ),
    ],
)
def test_what_has_no_batched_kernel_is_named_and_runs_through_torchvision(specs: list, named: list[str]) -> None:
    """One such name in a list, and every sample goes through torchvision with its own seed."""
    made, images = augmentation(specs), pictures(5)
    samples = np.array([4, 0, 3])
    found = made(torch.from_numpy(images[samples]), torch.from_numpy(samples), 2)
    assert made.per_sample == named
    assert found.dtype == torch.float32
    expected = augmented(images, samples, built(specs), 3, 2)
    assert torch.equal(found, expected) == bool(named)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("slow", [[], [{"RandomEqualize": {"p": 0.0}}]])
def test_interpolation_is_given_by_its_name(interpolation: str, slow: list) -> None:
    """In batches and sample by sample; halves of an edge, turned by 45 degrees, are grey only if bilinear."""
    specs = [*slow, {"RandomAffine": {"degrees": [45, 45], "interpolation": interpolation}}]
    made = augmentation([*specs, {"Normalize": {"mean": [0.0], "std": [1.0]}}])
    assert len(made.per_sample) == len(slow)
    image = torch.zeros(1, SIZE, SIZE, 1, dtype=torch.uint8)
    image[:, :, SIZE // 2 :] = 255
    values = made(image, torch.zeros(1, dtype=torch.int64), 0)[0, 0, 5:-5, 5:-5]
    grey = ((values > 0.01) & (values < 0.99)).any().item()
    assert grey == (interpolation == "bilinear")


def test_samples_of_an_augmentation_are_their_own() -> None:
    """Sample by sample, too: in any batch, from any random state, whatever it leaves behind."""
    specs, images = [{"ElasticTransform": {"sigma": 1.0}}, *RANDOM], torch.from_numpy(pictures(12))
    made, samples = augmentation(specs), torch.arange(12)
    before, pixels = torch.get_rng_state(), images.clone()
    together = made(images, samples, 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(images, pixels)
    torch.manual_seed(99)
    order = torch.randperm(12)
    assert torch.equal(made(images[order], samples[order], 3), together[order])
    assert torch.equal(made(images[5:6], samples[5:6], 3), together[5:6])
    assert not torch.equal(made(images, samples, 4), together)
    assert not torch.equal(augmentation(specs, seed=4)(images, samples, 3), together)


def test_an_augmentation_refuses_what_cannot_work() -> None:
    """A list that fails on such an image, before any work; images that it was not made for, at once."""
    with pytest.raises(UserError, match=r"train\.transforms\.train fails on a 16 px image"):
        augmentation([{"RandomCrop": {"size": 17}}])
    with pytest.raises(UserError, match=r"0: RandomAffine does not take .*degrees"):
        augmentation([{"RandomAffine": {"degree": 10}}])
    with pytest.raises(UserError, match=r"fails on .*bilinaer"):
        augmentation([{"RandomAffine": {"degrees": 10, "interpolation": "bilinaer"}}])
    made = augmentation(["RandomHorizontalFlip"])
    for images in (torch.zeros(1, SIZE, SIZE + 1, 1, dtype=torch.uint8), torch.zeros(1, SIZE, SIZE, 1)):
        with pytest.raises(ValueError, match="expected uint8"):
            made(images, torch.zeros(1, dtype=torch.int64), 0)
