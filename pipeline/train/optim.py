"""timm's optimizers: parameter groups, layer-wise learning rates, frozen parts."""

import inspect
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class, list_optimizers
from timm.utils import freeze
from torch import nn
from torch.optim import Optimizer

from pipeline.core.errors import UserError, suggest
from pipeline.core.params import TrainParams
from pipeline.train.muon import Muon


def freeze_parts(net: nn.Module, names: list[str]) -> None:
    """Keep parts of a net as they are: no gradients here, and eval mode in the loop (batch statistics stay).

    Names are dotted, such as ``stages.0``. Raises ``UserError`` if there is no such module, or nothing left to train.
    """
    modules = dict(net.named_modules())
    for name in names:
        if name not in modules or not name:
            there = ", ".join(name for name in modules if name and "." not in name)
            hint = suggest(name, modules, f"it has {there}", most=3, cutoff=0.4)
            raise UserError(f"train.freeze: the net has no module {name!r}; {hint}")
    if names:
        freeze(net, names, include_bn_running_stats=False)
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise UserError("train.freeze: no parameter is left to train")


def build_optimizer(net: nn.Module, params: TrainParams) -> Optimizer:
    """Timm's optimizer of that name; torch's fused kernels where there are any.

    Raises:
        UserError: No such optimizer (with the nearest name), or settings that it does not take.
    """
    known = list_optimizers()
    if params.optimizer not in known:
        hint = suggest(params.optimizer, known, f"timm has {', '.join(known)}")
        raise UserError(f"train.optimizer: timm has no optimizer {params.optimizer!r}; {hint}")
    settings = inspect.signature(get_optimizer_class(params.optimizer, bind_defaults=False)).parameters
    chosen: dict[str, Any] = {"opt": params.optimizer, "lr": params.lr, "momentum": params.momentum}
    chosen |= {"weight_decay": params.weight_decay} | ({"fused": True} if "fused" in settings else {})
    try:
        _try_update(chosen)
        optimizer = create_optimizer_v2(
            net, layer_decay=params.layer_decay if params.layer_decay < 1 else None, **chosen
        )
    except (TypeError, ValueError, RuntimeError) as error:  # sgd is Nesterov's, for one, and wants a momentum
        raise UserError(
            f"train.optimizer: {params.optimizer} does not take these settings, or an ordinary update: {error}. "
            "Set another one, such as adamw."
        ) from None
    return Muon(optimizer.param_groups) if params.optimizer in ("muon", "nmuon") else optimizer


def _try_update(settings: dict[str, Any]) -> None:
    """Update a net of one layer as the loop does, before hours are spent: adahessian wants gradients' graphs, say."""
    layer = nn.Linear(2, 2)
    optimizer = create_optimizer_v2(layer, **settings)
    layer.weight.grad, layer.bias.grad = torch.ones(2, 2), torch.ones(2)
    optimizer.step()
