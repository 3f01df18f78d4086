"""Moves of pixels against torchvision's functional forms, with the same parameters and on the same pictures."""

from typing import Any

import pytest
import torch
from drawing import SIZE, rows, smooth
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from pipeline.train.augment import registry
from pipeline.train.augment.resampling import Move, Resampling

# Positions are float32: 1e-6 of the image's size off, where the pictures rise by at most 1/10 a pixel.
TOLERANCE = 2e-5


def uniforms(draws: int, count: int, seed: int = 1) -> Tensor:
    """Stand-ins for counter-based draws."""
    return torch.rand(draws, count, generator=torch.Generator().manual_seed(seed))


def made(module: v2.Transform, images: Tensor) -> Move:
    """The kernel of a module for images of this shape, in units of the images."""
    return registry.build_kernel(type(module).__name__, module, tuple(images.shape[1:]), 1.0)


def affine(image: Tensor, row: dict[str, float], **kwargs: Any) -> Tensor:
    """Torchvision's affine with parameters of a row."""
    return F.affine(
        image,
        angle=row["angle"],
        translate=[row.get("translate_x", 0.0), row.get("translate_y", 0.0)],
        scale=row.get("scale", 1.0),
        shear=[row.get("shear_x", 0.0), row.get("shear_y", 0.0)],
        **kwargs,
    )


AFFINES = [
    v2.RandomAffine(180, interpolation="bilinear"),
    v2.RandomAffine(20, translate=(0.2, 0.1), interpolation="bilinear", fill=0.7),
    v2.RandomAffine((10, 30), scale=(0.5, 2.0), interpolation="bilinear", center=[10.0, 30.0]),
    v2.RandomAffine(10, (0.1, 0.1), (0.8, 1.2), 25, "bilinear", [0.1, 0.5, 0.9]),
    v2.RandomAffine(0, (0.3, 0.3), (0.8, 1.2), (-10, 20, -30, 5), "bilinear", 1.0, [0.0, 47.0]),
    v2.RandomRotation(90, "bilinear", fill=0.3),
    v2.RandomRotation((-5, 200), "bilinear", center=[5.0, 40.0]),
]


@pytest.mark.parametrize("module", AFFINES, ids=str)
def test_affine_and_rotation_agree_with_torchvision(module: v2.Transform) -> None:
    """Wherever the footprint lies inside; and at the rim, with torchvision given enough of the fill around."""
    images = smooth(24, 3, SIZE, 40)
    kernel = made(module, images)
    params = kernel.draw(uniforms(kernel.draws, len(images)))
    found = kernel.apply(images, params)
    margin = 80
    fill = module.fill if isinstance(module.fill, list) else [module.fill] * 3
    for image, out, row in zip(images, found, rows(params), strict=True):

        def peer(image: Tensor, center: list[float] | None, fill: Any, row: dict = row) -> Tensor:
            if isinstance(module, v2.RandomRotation):
                return F.rotate(image, row["angle"], "bilinear", center=center, fill=fill)
            return affine(image, row, interpolation="bilinear", center=center, fill=fill)

        inside = peer(torch.ones_like(image), module.center, 0.0) > 1 - 1e-6
        torch.testing.assert_close(out[inside], peer(image, module.center, fill)[inside], atol=TOLERANCE, rtol=0)
        padded = F.pad(image, [margin], fill=fill)
        center = module.center and [value + margin for value in module.center]
        expected = F.center_crop(peer(padded, center, fill), list(image.shape[1:]))
        torch.testing.assert_close(out, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    "module", [v2.RandomRotation(180), v2.RandomAffine(30, (0.2, 0.2), (0.7, 1.3), 10, fill=0.25)], ids=str
)
def test_nearest_reads_the_same_pixels(module: v2.Transform) -> None:
    """But for the few whose position lies within rounding of the middle between two."""
    images = smooth(40)
    kernel = made(module, images)
    params = kernel.draw(uniforms(kernel.draws, len(images)))
    found = kernel.apply(images, params)
    turns = isinstance(module, v2.RandomRotation)
    peers = [(F.rotate if turns else affine, row["angle"] if turns else row) for row in rows(params)]
    expected = [peer(image, row, fill=module.fill) for image, (peer, row) in zip(images, peers)]
    same = (found - torch.stack(expected)).abs() < 1e-6
    assert same.float().mean() > 0.9995


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_right_angles_are_exact(interpolation: str) -> None:
    """Torchvision turns pixels over for these; so it must be the same pixels here."""
    images = smooth(4)
    kernel = made(v2.RandomRotation(180, interpolation), images)
    found = kernel.apply(images, {"angle": torch.tensor([0.0, 90.0, 180.0, -90.0])})
    expected = torch.stack([torch.rot90(image, k, (1, 2)) for k, image in enumerate(images)])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("height, width", [(48, 48), (37, 50)])
@pytest.mark.parametrize("name", ["RandomHorizontalFlip", "RandomVerticalFlip"])
def test_flips_are_exact(name: str, height: int, width: int) -> None:
    images = smooth(2, 3, height, width)
    kernel = made(getattr(v2, name)(), images)
    found = kernel.apply(images, {"flip": torch.tensor([True, False])})
    flip = F.horizontal_flip if name == "RandomHorizontalFlip" else F.vertical_flip
    assert torch.equal(found, torch.stack([flip(images[0]), images[1]]))


@pytest.mark.parametrize(
    "module",
    [
        v2.RandomCrop(44),
        v2.RandomCrop([31, 40]),
        v2.RandomCrop(48, padding=4),
        v2.RandomCrop([40, 45], padding=[3, 5]),
        v2.RandomCrop([50, 47], padding=[1, 2, 3, 4]),
        v2.RandomCrop([60, 44], pad_if_needed=True),
        v2.RandomCrop([60, 70], padding=2, pad_if_needed=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("fill", [0, [0.5, 0.25, 1.0]])
def test_crops_are_exact(module: v2.RandomCrop, fill: Any) -> None:
    """Torchvision's module with the same corner, on an image that is no square."""
    images = smooth(16, 3, 48, 44)
    module._fill = {"others": fill}
    module.fill = fill
    kernel = made(module, images)
    params = kernel.draw(uniforms(2, len(images)))
    found = kernel.apply(images, params)
    for image, out, row in zip(images, found, rows(params), strict=True):
        corner = {name: int(value) for name, value in row.items()}
        frame = module.make_params([image]) | corner | {"needs_crop": True}
        torch.testing.assert_close(out, module.transform(image, frame), atol=1e-6 if fill else 0, rtol=0)


@pytest.mark.parametrize(
    "module",
    [
        v2.CenterCrop(40), v2.CenterCrop([41, 47]), v2.CenterCrop([60, 30]), v2.CenterCrop([49, 51]), v2.Pad(3),
        v2.Pad([1, 2]), v2.Pad([1, 2, 3, 4], fill=0.5), v2.Pad(2, fill=[0.25, 0.5, 0.75]),
    ],
    ids=str,
)  # fmt: skip
def test_fixed_windows_are_exact(module: v2.Transform) -> None:
    images = smooth(3, 3, 48, 44)
    kernel = made(module, images)
    found = kernel.apply(images, kernel.draw(uniforms(0, len(images))))
    torch.testing.assert_close(found, module(images), atol=1e-6, rtol=0)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [48, 20, [70, 44]])
def test_resized_crops_agree_with_torchvision(size: Any, antialias: bool) -> None:
    """Boxes of every size, up and down, with the filter cut off where the box ends."""
    images = smooth(40, 3, 48, 40)
    module = v2.RandomResizedCrop(size, antialias=antialias)
    kernel = made(module, images)
    params = kernel.draw(uniforms(kernel.draws, len(images)))
    found = kernel.apply(images, params)
    for image, out, row in zip(images, found, rows(params), strict=True):
        whole = {name: int(value) for name, value in row.items()}
        expected = F.resized_crop(image, **whole, size=module.size, antialias=antialias)
        torch.testing.assert_close(out, expected, atol=TOLERANCE, rtol=0)


def ks(found: Tensor, peer: list[float]) -> float:
    """P-value that two samples are of one distribution."""
    return stats.ks_2samp(found.double().numpy(), peer).pvalue


def drawn(module: v2.Transform, image: Tensor, count: int = 3000) -> tuple[dict[str, Tensor], list[dict]]:
    """Parameters that the kernel and that torchvision draw."""
    kernel = made(module, image[None])
    torch.manual_seed(0)
    return kernel.draw(uniforms(kernel.draws, count)), [module.make_params([image]) for _ in range(count)]


@pytest.mark.parametrize(
    "module", [v2.RandomAffine(30, (0.2, 0.1), (0.5, 2.0), (-10, 20, -30, 5)), v2.RandomRotation((-5, 200))], ids=str
)
def test_angles_scales_and_shears_are_drawn_as_torchvision_draws(module: v2.Transform) -> None:
    found, peer = drawn(module, smooth(1, 1, 48, 40)[0])
    assert ks(found["angle"], [row["angle"] for row in peer]) > 0.001
    if isinstance(module, v2.RandomAffine):
        assert ks(found["scale"], [row["scale"] for row in peer]) > 0.001
        for i, axis in enumerate("xy"):
            assert ks(found[f"shear_{axis}"], [row["shear"][i] for row in peer]) > 0.001
            shifts = found[f"translate_{axis}"]
            assert ks(shifts, [row["translate"][i] for row in peer]) > 0.001
            assert torch.equal(shifts, shifts.round())
            assert shifts.abs().max() == max(abs(row["translate"][i]) for row in peer)


@pytest.mark.parametrize(
    "module",
    [
        v2.RandomCrop(44, padding=3),
        *(v2.RandomResizedCrop(48), v2.RandomResizedCrop(48, (0.9, 1.0), (0.5, 3.0))),
        *(v2.RandomErasing(1.0), v2.RandomErasing(1.0, (0.3, 0.9), (0.5, 4.0))),
    ],
    ids=str,
)
def test_boxes_are_drawn_as_torchvision_draws(module: v2.Transform) -> None:
    """The last crop needs the fallback now and then; of large boxes to erase, many attempts fail, now and then all."""
    found, peer = drawn(module, smooth(1, 1, 48, 46)[0])
    for name, values in found.items():
        theirs = [0.0 if row.get("v", 0) is None else float(row[name]) for row in peer]
        assert ks(values, theirs) > 0.001
        if isinstance(module, v2.RandomCrop):
            assert (values.min(), values.max()) == (min(theirs), max(theirs))


@pytest.mark.parametrize("ratio", [(3.0, 4.0), (0.2, 0.3), (0.5, 2.0)])
def test_the_fallback_is_torchvisions(ratio: tuple[float, float]) -> None:
    """No box of twice the image's area fits, so every sample falls back to the same central one."""
    found, peer = drawn(v2.RandomResizedCrop(48, (2.0, 2.0), ratio), smooth(1, 1, 48, 40)[0], 20)
    assert rows(found) == [{name: float(row[name]) for name in found} for row in peer]


def test_the_highest_draw_stays_inside() -> None:
    """1 - 2**-24 times any number of places, rounded to float32, is below that number."""
    places = torch.arange(1, 1 << 16, dtype=torch.float32)
    assert (places * (1 - 2.0**-24) < places).all()


def joined(*modules: v2.Transform) -> list[int]:
    """How many moves each resampling of a list holds."""
    shape, found = (1, 48, 48), []
    for module in modules:
        kernel = registry.build_kernel(type(module).__name__, module, shape, 1.0)
        found.append(kernel)
        shape = (1, *kernel.size)
    return [len(step.moves) for step in registry.fuse(found) if isinstance(step, Resampling)]


def test_moves_share_a_resampling_only_where_the_outcome_is_the_same() -> None:
    flip, crop, padded = v2.RandomHorizontalFlip(), v2.RandomCrop(40), v2.RandomCrop(48, padding=4)
    turn, box = v2.RandomRotation(10), v2.RandomResizedCrop(48)
    assert joined(flip, turn, crop, flip) == [4]
    assert joined(flip, padded, flip, crop) == [4]
    assert joined(crop, flip, box, flip, crop) == [5]
    assert joined(crop, turn) == [1, 1]  # torchvision shows fill where the crop ended
    assert joined(turn, turn) == [1, 1]
    assert joined(turn, padded) == [1, 1]
    assert joined(turn, box) == [1, 1]  # a filter reads more than the four pixels around
    assert joined(box, turn) == [1, 1]
    assert joined(box, box) == [1, 1]


@pytest.mark.parametrize(
    "modules",
    [
        [v2.RandomVerticalFlip(), v2.RandomCrop(48, padding=[2, 3, 4, 5], fill=0.5), v2.RandomHorizontalFlip()],
        [v2.RandomCrop(40), v2.RandomHorizontalFlip(), v2.CenterCrop([31, 38]), v2.RandomVerticalFlip()],
        [v2.RandomHorizontalFlip(), v2.Pad([1, 2, 3, 4]), v2.RandomVerticalFlip(), v2.RandomCrop(44)],
        [
            v2.RandomCrop(44),
            v2.RandomHorizontalFlip(),
            v2.RandomResizedCrop(32),
            v2.RandomVerticalFlip(),
            v2.RandomCrop(30),
        ],
        [v2.RandomHorizontalFlip(), v2.RandomRotation(40, "bilinear"), v2.RandomVerticalFlip(), v2.RandomCrop(20)],
    ],
    ids=lambda modules: "-".join(type(module).__name__ for module in modules),
)
def test_one_resampling_is_as_good_as_one_after_another(modules: list[v2.Transform]) -> None:
    images = smooth(32, 2)
    found, drawn, expected = [], [], images
    for position, module in enumerate(modules):
        kernel = made(module, expected)
        found.append(kernel)
        drawn.append(kernel.draw(uniforms(kernel.draws, len(images), position)))
        expected = kernel.apply(expected, drawn[-1])
    (step,) = registry.fuse(found)
    torch.testing.assert_close(step.apply(images, drawn), expected, atol=TOLERANCE, rtol=0)
