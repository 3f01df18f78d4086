"""timm's Muon with fewer launches: where they cost time, weights of one shape are orthogonalized together.

And in float32 where bf16, which timm takes, would be emulated: that is eight times as slow.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.optim import muon as timms
from torch import Tensor

from pipeline.models import devices

# Of timm's settings, those of the orthogonalization, by the names of its arguments.
ORTHOGONALIZATION = ("eps", "safety_factor", "scale_eps")
CONSTANTS = (*ORTHOGONALIZATION, "momentum", "nesterov", "ns_steps", "ns_coefficients", "adjust_lr_fn")

Group = tuple[list[Tensor], list[Tensor], list[Tensor], dict[str, Any]]


class Muon(timms.Muon):
    """Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) of whole matrices, as timm does it.

    The first update of a weight, and all of what is no matrix, are timm's own.
    """

    compiled: Callable[..., None] | None = None  # ``update_matrices``, where it is compiled

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update all that has gradients."""
        groups, scalars = [], []
        for group in self.param_groups:
            weights = [one for one in group["params"] if one.grad is not None and "momentum_buffer" in self.state[one]]
            if weights:
                momenta = [self.state[weight]["momentum_buffer"] for weight in weights]
                native = "bf16" in devices.list_precisions(weights[0].device)
                dtype = torch.bfloat16 if native else torch.float32
                constants = {name: group[name] for name in CONSTANTS} | {"dtype": dtype}
                groups.append((weights, [weight.grad for weight in weights], momenta, constants))
                scalars.append((group["lr"], 1 - group["lr"] * group["weight_decay"]))
        for weights, *_ in groups:
            for weight in weights:
                weight.grad = None  # timm's step passes it by
        loss = super().step(closure)  # type: ignore[no-untyped-call]
        for weights, grads, *_ in groups:
            for weight, grad in zip(weights, grads, strict=True):
                weight.grad = grad
        if groups and self.compiled:  # numbers would be part of the graph
            device = groups[0][0][0].device
            self.compiled(groups, devices.copy_to(torch.tensor(scalars), device).unbind())
        else:
            update_matrices(groups, scalars)
        return loss


def update_matrices(groups: list[Group], scalars: Sequence[Tensor | tuple[float, float]]) -> None:
    """Move weights (out, in, ...) by their orthogonalized momenta, which the gradients move on.

    Args:
        groups: Weights of any shapes, their gradients, the averages of these, which are changed, too, and of timm's
            settings those that ``CONSTANTS`` names, and a dtype.
        scalars: Of each group the learning rate, and by what weights are multiplied first.
    """
    for (weights, grads, momenta, constants), (rate, decay) in zip(groups, scalars, strict=True):
        momentum = constants["momentum"]
        torch._foreach_mul_(weights, decay)
        torch._foreach_lerp_(momenta, grads, 1 - momentum)
        updates = torch._foreach_lerp(grads, momenta, momentum) if constants["nesterov"] else momenta
        # The CPU launches nothing, and small products of many matrices round otherwise than those of one.
        together = devices.is_accelerator(weights[0].device)
        places: dict[torch.Size | int, list[int]] = {}
        for place, weight in enumerate(weights):
            places.setdefault(weight.shape if together else place, []).append(place)
        for own in places.values():
            moves = _orthogonalize([updates[place] for place in own], constants)
            shape = torch.Size((len(moves[0]), moves[0][0].numel()))
            factor: Any = -rate * timms.get_lr_scale(shape, constants["adjust_lr_fn"])
            part = [weights[place] for place in own]
            if isinstance(factor, Tensor):
                torch._foreach_add_(part, [move.float() * factor for move in moves])
            else:
                torch._foreach_add_(part, moves, alpha=factor)


def _orthogonalize(updates: list[Tensor], constants: dict[str, Any]) -> list[Tensor]:
    """What comes nearest to updates of one shape, as matrices, and is orthogonal."""
    stacked = torch.stack(updates).flatten(2) if len(updates) > 1 else updates[0].flatten(1)
    coefficients = timms.resolve_ns_coefficients(constants["ns_coefficients"], timms._COEFFICIENTS)
    settings = {name: constants[name] for name in (*ORTHOGONALIZATION, "dtype")}
    turned = timms.zeropower_via_newtonschulz(stacked, constants["ns_steps"], coefficients, **settings)
    if len(updates) == 1:
        return [turned.reshape(updates[0].shape)]
    # As exact as the weights, and as they lie in memory: else each would be moved by a launch of its own.
    turned = turned.reshape(-1, *updates[0].shape).movedim(2, -1)
    return list(turned.to(torch.float32, memory_format=torch.contiguous_format).movedim(-1, 2).unbind())
