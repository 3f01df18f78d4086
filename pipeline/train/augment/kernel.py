"""What a transform does to a batch, in three steps: what is drawn, what follows from that, what is done to pixels."""

from typing import Any

from torch import Tensor

Params = dict[str, Tensor]


class Kernel:
    """A transform of whole batches, on any device, without waiting for it.

    The first two steps are taken for very many samples at once and the third for each batch of them, so that a device
    is given few things to do.
    """

    draws = 0  # uniform draws that a sample takes

    def draw(self, uniforms: Tensor) -> Any:
        """Turn uniform draws, float32 (draws, N) in [0, 1), into torchvision's parameters, (N,) each."""
        return {}

    def plan(self, params: Any, samples: Tensor) -> Params:
        """Work out what ``run`` needs of the parameters of samples, (N, ...), on their device: tensors (N, ...)."""
        return params  # type: ignore[no-any-return]

    def run(self, images: Tensor, plan: Params) -> Tensor:
        """Transform images, float32 (B, C, H, W), as planned for them."""
        raise NotImplementedError

    def apply(self, images: Tensor, params: Any) -> Tensor:
        """Transform images, float32 (B, C, H, W), by given parameters."""
        return self.run(images, self.plan(params, images))
