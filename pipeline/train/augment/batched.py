"""Train and eval transforms: torchvision's v2 vocabulary, by name, from lists in ``params.yaml``.

Every random draw is counter-based: what happens to sample ``i`` in epoch ``e`` under seed ``s`` depends on
nothing else, neither on the batch size, nor on the order, nor on what ran before. A list whose names all have a
batched kernel runs on the whole batch, where the images are; any other runs sample by sample on the CPU.
"""

import difflib
import hashlib
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from pipeline.core.errors import UserError
from pipeline.core.params import TransformSpec
from pipeline.train.augment import kernels
from pipeline.train.augment.counter_rng import Draws

# torchvision's spellings of "picture to float tensor in [0, 1]"; here it happens once, where they stand.
CONVERSIONS = {"ToTensor", "ToDtype", "ConvertImageDtype"}
# Packed arrays are tensors already.
NO_OPS = {"ToImage", "PILToTensor", "ToPureTensor"}
# These mix samples, return several pictures, or need code or boxes.
NOT_FOR_ONE_IMAGE = {
    "CutMix", "MixUp", "Lambda", "FiveCrop", "TenCrop", "LinearTransformation", "ToPILImage", "Transform",
    "Compose", "RandomApply", "RandomChoice", "RandomOrder", "UniformTemporalSubsample", "SanitizeBoundingBoxes",
    "ClampBoundingBoxes", "ConvertBoundingBoxFormat", "ClampKeyPoints", "SanitizeKeyPoints",
    "SetClampingMode", "RandomIoUCrop", "RandomShortestSize", "ScaleJitter",
}  # fmt: skip

# Draws by which a transform shows whether its output's shape, or in evaluation its output, varies.
SHAPE_DRAWS = 32


def valid_names() -> list[str]:
    """Names that may stand in a transform list."""
    return sorted(
        name
        for name, item in vars(v2).items()
        if inspect.isclass(item) and issubclass(item, nn.Module) and name not in NOT_FOR_ONE_IMAGE
    )


def resolve(
    specs: list[TransformSpec], mean: list[float], std: list[float], where: str
) -> list[dict[str, dict[str, Any]]]:
    """Complete a list: each entry with its arguments, one conversion to float, one Normalize.

    Args:
        specs: Names, or one-key mappings from a name to its arguments.
        mean: Per-channel mean in [0, 1], for a ``Normalize`` that gives none or is not there.
        std: Likewise.
        where: The list's key, for messages.

    Returns:
        One-key mappings that ``build`` takes; what is saved beside the weights.

    Raises:
        UserError: An unknown name (with the nearest one), or one that does not work on a single image.
    """
    known = valid_names()
    resolved: list[dict[str, dict[str, Any]]] = []
    for position, spec in enumerate(specs):
        name, args = (spec, {}) if isinstance(spec, str) else next(iter(spec.items()))
        if name in NOT_FOR_ONE_IMAGE and hasattr(v2, name):
            raise UserError(f"{where}.{position}: {name} does not turn one image into one image")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "see torchvision.transforms.v2 for the names"
            raise UserError(f"{where}.{position}: unknown transform {name!r}; {hint}")
        if name in NO_OPS:
            continue
        resolved.append({"ToDtype": {}} if name in CONVERSIONS else {name: dict(args or {})})
    names = [next(iter(spec)) for spec in resolved]
    if "Normalize" not in names:
        resolved.append({"Normalize": {}})
        names.append("Normalize")
    normalize = names.index("Normalize")
    resolved[normalize] = {"Normalize": {"mean": mean, "std": std} | resolved[normalize]["Normalize"]}
    if "ToDtype" not in names[:normalize]:
        resolved.insert(normalize, {"ToDtype": {}})
    return resolved


def build(resolved: list[dict[str, dict[str, Any]]], where: str = "transforms") -> nn.Module:
    """Build the transform that a resolved list describes.

    Returns:
        A module from uint8 (..., C, H, W) to float32 (..., C', H', W'); on a batch it makes one draw for all.

    Raises:
        UserError: Arguments that the transform does not take; the message shows its signature.
    """
    modules = [
        _module(*next(iter(spec.items())), f"{where}.{position}") for position, spec in enumerate(resolved)
    ]
    return v2.Compose(modules) if len(modules) > 1 else modules[0]


def _module(name: str, args: dict[str, Any], where: str) -> nn.Module:
    """Build one of torchvision's transforms."""
    if name == "ToDtype":
        return v2.ToDtype(torch.float32, scale=True)
    kind = getattr(v2, name)
    try:
        if "policy" in args:  # the one argument that torchvision wants as an enum of its own
            args = args | {"policy": v2.AutoAugmentPolicy(args["policy"])}
        return kind(**args)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{where}: {name} does not take {args}: {error}. Its arguments: {inspect.signature(kind)}"
        ) from None


def output_shape(
    transform: nn.Module, img_size: int, channels: int, where: str
) -> tuple[int, int | None, int | None]:
    """Shape (C, H, W) that a transform gives for a prepared image; H and W are None if they vary by draw.

    Raises:
        UserError: The transform fails on such an image, or gives something else than one float image.
    """
    image = torch.zeros(channels, img_size, img_size, dtype=torch.uint8)
    state = torch.get_rng_state()
    shapes = set()
    try:
        for draw in range(SHAPE_DRAWS):
            torch.default_generator.manual_seed(draw)
            out = transform(image)
            shapes.add(tuple(out.shape))
    except Exception as error:
        raise UserError(
            f"{where} fails on a {img_size} px image with {channels} channel(s): {type(error).__name__}: {error}"
        ) from None
    finally:
        torch.set_rng_state(state)
    if not isinstance(out, Tensor) or out.dtype != torch.float32 or out.ndim != 3:
        raise UserError(f"{where} must end in one float image (C, H, W)")
    channels_out = {shape[0] for shape in shapes}
    if len(channels_out) > 1:
        raise UserError(f"{where} gives images of {sorted(channels_out)} channels by turns")
    return tuple(out.shape) if len(shapes) == 1 else (out.shape[0], None, None)


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """Seed of one sample's draws: 63 bits of a hash of seed, epoch and sample."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Augmentation:
    """A resolved list as applied to batches: every draw follows from seed, epoch and sample alone.

    Attributes:
        per_sample: Names in the list that have no batched kernel, with the argument that is the reason, if one
            is. With any, the whole list runs sample by sample through torchvision; with none, on whole batches,
            whatever their device, without waiting for it.
        steps: The kernels of a list that runs on whole batches, where moves of pixels share a resampling.

    Args:
        resolved: From ``resolve``.
        seed: The run's seed.
        img_size: Side of a prepared image, px.
        channels: Its channels.
        where: The list's key, for messages.

    Raises:
        UserError: Arguments that a transform does not take, or a list that fails on such an image.
    """

    def __init__(
        self,
        resolved: list[dict[str, dict[str, Any]]],
        seed: int,
        img_size: int,
        channels: int,
        where: str = "train.transforms.train",
    ) -> None:
        self.seed, self.shape = seed, (img_size, img_size, channels)
        self.per_sample: list[str] = []
        self._transform = build(resolved, where)
        output_shape(self._transform, img_size, channels, where)
        found, streams, shape, unit = [], [], (channels, img_size, img_size), 1 / 255
        for position, spec in enumerate(resolved):
            name, args = next(iter(spec.items()))
            try:
                kernel = kernels.make(name, _module(name, args, f"{where}.{position}"), shape, unit)
            except kernels.NoKernel as reason:
                self.per_sample.append(f"{name} ({reason})" if str(reason) else name)
            if self.per_sample:
                continue
            if name == "ToDtype":
                unit = 1.0
            found.append(kernel)
            streams += [(position, draw) for draw in range(kernel.draws)]
            drawn = kernel.draw(torch.zeros(kernel.draws, 1))
            shape = tuple(kernel.apply(torch.zeros(1, *shape), drawn).shape[1:])
        self.steps, self._uniforms = kernels.fuse(found), Draws(seed, streams)

    def __call__(self, images: Tensor, indices: Tensor, epoch: int) -> Tensor:
        """Augment samples, each with draws of its own.

        Args:
            images: Their images, uint8 (B, H, W, C).
            indices: Their numbers in the split, int64 (B,), on the device of ``images``.
            epoch: Zero-based epoch.

        Returns:
            float32 (B, C', H', W'), contiguous, on the device of ``images``. The global random state is left as
            it was.

        Raises:
            ValueError: Images of another shape or type than the list was made for.
        """
        if tuple(images.shape[1:]) != self.shape or images.dtype != torch.uint8:
            raise ValueError(f"expected uint8 (B, *{self.shape}), got {images.dtype} {tuple(images.shape)}")
        if self.per_sample:
            return one_by_one(images, indices, self._transform, self.seed, epoch)
        values = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        values = values.mul_(1 / 255)  # not a quotient: so torchvision converts
        for step, params in zip(self.steps, self.draw(indices, epoch), strict=True):
            values = step.apply(values, params)
        return values.contiguous()

    def draw(self, indices: Tensor, epoch: int) -> list[Any]:
        """What each of ``steps`` does to some samples in an epoch; drawn as for a call."""
        uniforms = self._uniforms(indices, epoch).split([step.draws for step in self.steps])
        return [step.draw(own) for step, own in zip(self.steps, uniforms, strict=True)]


def one_by_one(images: Tensor, indices: Tensor, transform: nn.Module, seed: int, epoch: int) -> Tensor:
    """Augment samples through torchvision, from a seed for each.

    Args:
        images: Their images, uint8 (B, H, W, C).
        indices: Their numbers in the split, int64 (B,).
        transform: From ``build``.
        seed: The run's seed.
        epoch: Zero-based epoch.

    Returns:
        float32 (B, C', H', W'), where ``images`` are. The global random state is left as it was.
    """
    state = torch.get_rng_state()
    samples = []
    try:
        for image, index in zip(images.to("cpu", copy=True), indices.tolist(), strict=True):
            # Not torch.manual_seed: that also records a stack trace for every device, at 20 times the cost.
            torch.default_generator.manual_seed(sample_seed(seed, epoch, index))
            samples.append(transform(image.permute(2, 0, 1)))
    finally:
        torch.set_rng_state(state)
    return torch.stack(samples).to(images.device)
