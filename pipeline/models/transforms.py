"""Train and eval transforms: torchvision's v2 vocabulary, by name, from lists in ``params.yaml``.

A list is resolved once, before training, and saved beside the weights; every later stage builds from that.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from pipeline.core.errors import UserError, suggest
from pipeline.core.params import TransformSpec

TransformArgs = dict[str, dict[str, Any]]  # a transform's name, and its arguments

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


def list_names() -> list[str]:
    """Names that may stand in a transform list."""
    return sorted(
        name
        for name, item in vars(v2).items()
        if inspect.isclass(item) and issubclass(item, nn.Module) and name not in NOT_FOR_ONE_IMAGE
    )


def fill_auto(specs: list[TransformSpec], size: int) -> list[TransformSpec]:
    """Put a size, px, in place of each ``size: auto`` in a list."""
    return [
        spec if isinstance(spec, str) else {name: _fill_size(args or {}, size) for name, args in spec.items()}
        for spec in specs
    ]


def _fill_size(args: dict[str, Any], size: int) -> dict[str, Any]:
    return args | {"size": size} if args.get("size") == "auto" else args


def resolve(specs: list[TransformSpec], mean: list[float], std: list[float], where: str) -> list[TransformArgs]:
    """Complete a list of names or one-key mappings: each with its arguments, one conversion to float, one Normalize.

    Per channel, ``mean`` and ``std`` are for a ``Normalize`` that gives none or is not there; ``where`` is the list's
    key, for messages. What is returned is saved beside the weights, and taken by ``build``.

    Raises:
        UserError: An unknown name (with the nearest one), or one that does not work on a single image.
    """
    known = list_names()
    resolved: list[TransformArgs] = []
    for position, spec in enumerate(specs):
        name, args = (spec, {}) if isinstance(spec, str) else next(iter(spec.items()))
        if name in NOT_FOR_ONE_IMAGE and hasattr(v2, name):
            raise UserError(f"{where}.{position}: {name} does not turn one image into one image")
        if name not in known:
            hint = suggest(name, known, "see torchvision.transforms.v2 for the names")
            raise UserError(f"{where}.{position}: unknown transform {name!r}; {hint}")
        if name in NO_OPS:
            continue
        resolved.append({"ToDtype": {}} if name in CONVERSIONS else {name: dict(args or {})})
    if not any("Normalize" in spec for spec in resolved):
        resolved.append({"Normalize": {}})
    names = [next(iter(spec)) for spec in resolved]
    normalize = names.index("Normalize")
    resolved[normalize] = {"Normalize": {"mean": mean, "std": std} | resolved[normalize]["Normalize"]}
    if "ToDtype" not in names[:normalize]:
        resolved.insert(normalize, {"ToDtype": {}})
    return resolved


def build(resolved: list[TransformArgs], where: str = "transforms") -> v2.Compose:
    """Build what torchvision does with one image, uint8 (..., C, H, W) to float32, by a resolved list.

    On a batch it makes one draw for all. Raises ``UserError``, with the signature, for arguments not taken.
    """
    return v2.Compose(
        [_module(*next(iter(spec.items())), f"{where}.{position}") for position, spec in enumerate(resolved)]
    )


def build_train(resolved: list[TransformArgs]) -> v2.Compose:
    """Build what is done to an image in training; ``train/augment`` does it to whole batches."""
    return build(resolved, "train.transforms.train")


class Normalize(nn.Module):
    """torchvision's, whose statistics lie where the images are: it copies them there for every batch, and waits."""

    mean: Tensor
    std: Tensor

    def __init__(self, module: v2.Normalize) -> None:
        super().__init__()
        for name in ("mean", "std"):
            statistic = torch.tensor(getattr(module, name), dtype=torch.float32)
            self.register_buffer(name, statistic.view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalize images, float32 (..., C, H, W)."""
        return images.sub(self.mean).div_(self.std)


def build_eval(resolved: list[TransformArgs]) -> nn.Sequential:
    """Build what is done to an image wherever it is classified: in evaluation, in every format, in serving."""
    # Floats before any Resize: the one for bytes rounds to whole greys, in eager mode otherwise than in a graph.
    modules = build([{"ToDtype": {}}, *resolved], "train.transforms.eval").transforms
    return nn.Sequential(*(Normalize(one) if isinstance(one, v2.Normalize) else one for one in modules))


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


def find_output_shape(
    transform: nn.Module, img_size: int, channels: int, where: str
) -> tuple[int, int | None, int | None]:
    """Shape (C, H, W) that a transform gives for a prepared image; H and W are None if they vary by draw.

    Raises ``UserError`` where it fails on such an image, or gives something else than one float image.
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
