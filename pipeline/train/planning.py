"""What a training starts from: how a backbone takes some data, and the weights that it has then."""

import warnings
from dataclasses import replace
from typing import Any

import timm
import torch
from torch import Tensor, nn

from pipeline.core.errors import UserError, suggest
from pipeline.core.params import TrainParams
from pipeline.models import costs, maps, stem, transforms
from pipeline.models.model import ModelSpec, build_model
from pipeline.train import pretrained

# Left to choose, nets are adapted that then take no more for an image: multiply-adds, each of two operations. A finer
# map is worth its cost when there is time to train: in ten minutes of a core it was for small nets, and not for large
# ones, which had seen FER2013 hardly twice by then (`benchmarks/README.md`); they keep a map of more than one cell.
CHEAP = 50_000_000


def check_backbone(name: str) -> None:
    """Raise ``UserError`` with the nearest names if timm knows no such architecture, or no such weights of it."""
    architecture = name.split(".")[0]
    if timm.is_model(architecture):
        try:
            timm.get_pretrained_cfg(name)
        except RuntimeError:
            tags = ", ".join(timm.list_models(f"{architecture}.*", pretrained=True)) or architecture
            raise UserError(f"train.backbone: timm has no model {name!r}; these it has: {tags}") from None
        return
    all_there = "`timm.list_models()` has them all"
    hint = suggest(architecture, timm.list_models(), all_there, most=3, cutoff=0.5)
    raise UserError(f"train.backbone: timm has no model {name!r}; {hint}")


def plan(params: TrainParams, class_names: list[str], img_size: int, channels: int) -> tuple[ModelSpec, list[str]]:
    """Work out, before any training, how this backbone takes this data: images of ``img_size`` px.

    Returns the spec, and sentences for the log about what was adapted. Raises ``UserError`` for an unknown backbone or
    transform, a size that the backbone cannot take, or one of which it leaves a map of one cell.
    """
    check_backbone(params.backbone)
    given = None if params.input_size == "auto" else params.input_size
    specs = {"eval": transforms.fill_auto(params.transforms.eval, given or img_size)}
    # Channels may change on the way (Grayscale to 3); a first pass with stand-in statistics tells how many come.
    in_chans, eval_size = _shape_after(specs["eval"], img_size, channels, "train.transforms.eval")
    if eval_size is None:
        raise UserError("train.transforms.eval: the size of its images varies; evaluation must not be random")
    specs["train"] = transforms.fill_auto(params.transforms.train, eval_size)
    train_chans, train_size = _shape_after(specs["train"], img_size, channels, "train.transforms.train")
    if train_chans != in_chans:
        raise UserError(
            f"train.transforms: train gives {train_chans} channel(s) and eval {in_chans}; they must be the same"
        )
    wanted = given or eval_size
    sizes = [given] if given else _candidate_sizes(params.backbone, wanted)
    model_args = dict(params.backbone_args) | {"num_classes": len(class_names), "in_chans": in_chans}
    size, fitted = _first_that_fits(params, model_args, sizes)
    notes = [f"{params.backbone} {fitted.note}"] if fitted.note else []
    if size != wanted:
        notes.insert(0, f"{params.backbone} does not take {wanted} px; images are resized to {size} px")

    mean, std = _statistics(fitted.model, in_chans)
    resolved = {}
    for split, own_size in (("train", train_size), ("eval", eval_size)):
        where = f"train.transforms.{split}"
        resolved[split] = transforms.resolve(specs[split], mean, std, where)
        suits = own_size and not given and size == wanted and not find_run_failure(fitted.model, own_size, in_chans)
        if own_size != size and not suits:
            resolved[split].append({"Resize": {"size": [size, size]}})
    _check_deterministic(transforms.build(resolved["eval"], "train.transforms.eval"), img_size, channels)
    preprocessing: dict[str, Any] = {"img_size": img_size, "channels": channels, "input_size": size}
    preprocessing |= {"in_chans": in_chans, "mean": mean, "std": std, **resolved}
    return ModelSpec(params.backbone, fitted.model_args, class_names, preprocessing, fitted.changes), notes


def build_initial_model(spec: ModelSpec, params: TrainParams) -> nn.Module:
    """Build the net that training starts from: random, timm's pretrained weights, or a local state_dict.

    Raises ``UserError``, with the remedy, for weights that cannot be had, do not match their digest or do not fit.
    """
    if params.weights:
        net = pretrained.load_file(spec.backbone, spec.model_args, params.weights, params.weights_sha256)
        return stem.apply(net, spec.stem)
    if params.pretrained:
        return stem.apply(pretrained.load_hub(spec.backbone, spec.model_args), spec.stem)
    return build_model(spec)


def _shape_after(specs: list[Any], img_size: int, channels: int, where: str) -> tuple[int, int | None]:
    """Channels and side of what a transform list makes of a prepared image; the side is None if it varies."""
    transform = transforms.build(transforms.resolve(specs, [0.5], [0.5], where), where)
    out_channels, height, width = transforms.find_output_shape(transform, img_size, channels, where)
    if height != width:
        raise UserError(f"{where} gives images of {height}x{width}; they must be square")
    return out_channels, height


def _statistics(model: nn.Module, in_chans: int) -> tuple[list[float], list[float]]:
    """Mean and std of timm's data config, for the channels at hand."""
    cfg = timm.data.resolve_data_config({}, model=model)
    mean, std = list(cfg["mean"]), list(cfg["std"])
    if len(mean) != in_chans:
        mean, std = ([sum(values) / len(values)] * in_chans for values in (mean, std))
    return mean, std


def _candidate_sizes(backbone: str, wanted: int) -> list[int]:
    """Sizes to try, nearest first: the wanted one, multiples of 32 around it, the backbone's own."""
    multiples = sorted(range(32, 513, 32), key=lambda size: (abs(size - wanted), -size))[:4]
    cfg = timm.get_pretrained_cfg(backbone, allow_unregistered=True)
    own = cfg.input_size[-1] if cfg else 224
    return list(dict.fromkeys([wanted, *multiples, own]))


def _first_that_fits(params: TrainParams, model_args: dict[str, Any], sizes: list[int]) -> tuple[int, stem.Fitted]:
    """The first size at which the backbone can be built and run, and the net for it."""
    state = torch.get_rng_state()
    failure = ""
    try:
        for size in sizes:
            # Nets with position tables or windows are built for the size; the others refuse the argument.
            for args in ({**model_args, "img_size": size}, model_args):
                try:
                    model = timm.create_model(params.backbone, pretrained=False, **args)
                except TypeError as error:
                    if "img_size" in str(error) and "img_size" in args:
                        continue
                    raise UserError(f"train.backbone_args do not fit {params.backbone}: {error}") from None
                except Exception as error:  # timm's nets refuse sizes with errors of every kind
                    failure = f"{type(error).__name__}: {error}"
                    continue
                failure = find_run_failure(model, size, model_args["in_chans"])
                fitted = _fit_stem(params, args, size, model, bool(failure))
                if not failure or fitted.changed:
                    return size, fitted
    finally:
        torch.set_rng_state(state)
    raise UserError(
        f"train.backbone: {params.backbone} takes none of these sizes: {', '.join(map(str, sizes))} px ({failure}). "
        "Set train.input_size to one that it takes, or choose another backbone."
    )


def _fit_stem(params: TrainParams, args: dict[str, Any], size: int, model: nn.Module, fails: bool) -> stem.Fitted:
    """A net that suits its size, as far as params let it; one whose last map collapses is refused."""
    trial = stem.Trial(
        size,
        args["in_chans"],
        build=lambda args: timm.create_model(params.backbone, pretrained=False, **args),
        runs=lambda net: not find_run_failure(net, size, args["in_chans"]),
    )
    found = stem.Fitted(model, args, 0 if fails else maps.find_last_side(model, size, trial.in_chans))
    if params.stem != "keep":
        adapted = stem.fit(found, trial, params.backbone_args)
        found = adapted if params.stem == "adapt" else _choose(found, adapted, trial)
    if found.side is not None and 0 < found.side <= stem.COLLAPSED:
        raise UserError(
            f"train.backbone: {params.backbone} shrinks pictures of {size} px to a map of {found.side}x{found.side}, "
            f"in which no place of a face is left. {stem.name_remedies(size, params.stem)}"
        )
    return found


def _choose(plain: stem.Fitted, adapted: stem.Fitted, trial: stem.Trial) -> stem.Fitted:
    """The adapted net if it is cheap or nothing else runs; else the plain one, rounded up where its map collapses."""
    if not adapted.changed or not plain.side:
        return adapted
    images = torch.zeros(1, trial.in_chans, trial.size, trial.size)
    after = costs.count_flops(adapted.model, images)
    if after is None or after <= 2 * CHEAP:
        return adapted
    kept = plain if plain.side > stem.COLLAPSED else stem.round_up(plain, trial)
    before = kept and costs.count_flops(kept.model, images)
    if not before:
        return adapted
    note = (
        f"{kept.note or f'ends in a map of {plain.side}x{plain.side} at {trial.size} px'}; adapted to small pictures "
        f"(train.stem: adapt) it would end in one of {adapted.side}x{adapted.side}, which needs {after / before:.1f} "
        "times the operations, and time to train"
    )
    return replace(kept, note=note)


def find_run_failure(model: nn.Module, size: int, in_chans: int) -> str:
    """Why a net cannot run on images of a size, in train and in eval mode; empty if it can."""
    images = torch.zeros(2, in_chans, size, size)
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for mode in (True, False):
                out = model.train(mode)(images)
                if not isinstance(out, Tensor) or out.ndim != 2:
                    return "it does not return one row of logits a sample"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(statistics[name])
    return ""


def _check_deterministic(transform: nn.Module, img_size: int, channels: int) -> None:
    """Refuse eval transforms that draw."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    image = torch.randint(0, 256, (channels, img_size, img_size), dtype=torch.uint8)
    first = transform(image)
    same = all(torch.equal(first, transform(image)) for _ in range(transforms.SHAPE_DRAWS))
    torch.set_rng_state(state)
    if not same:
        raise UserError("train.transforms.eval: evaluation must not be random; use CenterCrop for RandomCrop, say")
