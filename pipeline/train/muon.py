"""timm's Muon with fewer launches: weights of one shape are orthogonalized together, to the same bits."""

from collections.abc import Callable
from typing import Any

import timm.optim
import torch
from timm.optim.muon import _COEFFICIENTS, get_lr_scale, resolve_ns_coefficients, zeropower_via_newtonschulz
from torch import Tensor

from pipeline.models import devices

# Of timm's settings, those of the orthogonalization, by the names of its arguments.
ORTHOGONALIZATION = ("eps", "safety_factor", "scale_eps")
CONSTANTS = (*ORTHOGONALIZATION, "momentum", "nesterov", "ns_steps", "ns_coefficients", "adjust_lr_fn")


class Muon(timm.optim.Muon):
    """Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) of whole matrices, as timm does it.

    The first update of a weight, and all of what is no matrix, are timm's own.
    """

    compiled: Callable[..., None] | None = None  # ``update_matrices``, where it is compiled

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update all that has gradients."""
        chosen = []
        for group in self.param_groups:
            weights = [one for one in group["params"] if one.grad is not None and "momentum_buffer" in self.state[one]]
            chosen.append((group, weights, [weight.grad for weight in weights]))
            for weight in weights:
                weight.grad = None  # timm's step passes it by
        super().step(closure)
        for group, weights, grads in chosen:
            for weight, grad in zip(weights, grads, strict=True):
                weight.grad = grad
            if weights:
                self._update(group, weights, grads)

    def _update(self, group: dict[str, Any], weights: list[Tensor], grads: list[Tensor]) -> None:
        momenta = [self.state[weight]["momentum_buffer"] for weight in weights]
        scalars: Any = (group["lr"], 1 - group["lr"] * group["weight_decay"])
        if self.compiled:  # numbers would be part of the graph
            scalars = devices.copy_to(torch.tensor(scalars), weights[0].device).unbind()
        constants = {name: group[name] for name in CONSTANTS}
        (self.compiled or update_matrices)(weights, grads, momenta, scalars, constants)


def update_matrices(
    weights: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    scalars: tuple[float, float] | tuple[Tensor, Tensor],
    constants: dict[str, Any],
) -> None:
    """Move weights (out, in, ...) by their orthogonalized momenta, which the gradients move on.

    Args:
        weights: Of any shapes, as are ``grads`` and ``momenta``.
        grads: Their gradients.
        momenta: The averages of these, which are changed, too.
        scalars: The learning rate, and by what weights are multiplied first.
        constants: Of timm's group of parameters, those that ``CONSTANTS`` names.
    """
    rate, decay = scalars
    torch._foreach_mul_(weights, decay)
    torch._foreach_lerp_(momenta, grads, 1 - constants["momentum"])
    updates = torch._foreach_lerp(grads, momenta, constants["momentum"]) if constants["nesterov"] else momenta
    coefficients = resolve_ns_coefficients(constants["ns_coefficients"], _COEFFICIENTS)
    settings = {name: constants[name] for name in ORTHOGONALIZATION}
    places: dict[torch.Size, list[int]] = {}
    for place, weight in enumerate(weights):
        places.setdefault(weight.shape, []).append(place)
    for shape, own in places.items():
        stacked = torch.stack([updates[place] for place in own]).flatten(2)
        turned = zeropower_via_newtonschulz(stacked, constants["ns_steps"], coefficients, **settings)
        # As exact as the weights, and as they lie in memory: else each would be moved by a launch of its own.
        turned = turned.reshape(-1, *shape).movedim(2, -1).to(torch.float32, memory_format=torch.contiguous_format)
        part, moves = [weights[place] for place in own], list(turned.movedim(-1, 2).unbind())
        factor = -rate * get_lr_scale(stacked.shape, constants["adjust_lr_fn"])
        if isinstance(factor, Tensor):
            torch._foreach_add_(part, torch._foreach_mul(moves, factor))
        else:
            torch._foreach_add_(part, moves, alpha=factor)
