"""The train transforms on whole batches, where the images are, or sample by sample on the CPU.

Every random draw is counter-based: what happens to sample ``i`` in epoch ``e`` under seed ``s`` depends on
nothing else, neither on the batch size, nor on the order, nor on what ran before. A list whose names all have a
batched kernel runs on the whole batch; any other runs through torchvision.
"""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models import transforms
from pipeline.train.augment import registry
from pipeline.train.augment.counter_rng import Draws, derive_seed
from pipeline.train.augment.kernel import Params


class Augmentation:
    """A resolved list as applied to batches: every draw follows from seed, epoch and sample alone.

    Attributes:
        per_sample: Names in the list that have no batched kernel, with the argument that is the reason, if one
            is. With any, the whole list runs sample by sample through torchvision; with none, on whole batches,
            whatever their device, without waiting for it.
        steps: The kernels of a list that runs on whole batches, where moves of pixels share a resampling.

    Raises:
        UserError: Arguments that a transform does not take, or a list that fails on such an image.
    """

    def __init__(self, resolved: list[transforms.TransformArgs], seed: int, img_size: int, channels: int) -> None:
        self.seed, self.shape = seed, (img_size, img_size, channels)
        self.per_sample: list[str] = []
        self._transform = transforms.build_train(resolved)
        transforms.find_output_shape(self._transform, img_size, channels, "train.transforms.train")
        found, streams, shape, unit = [], [], (channels, img_size, img_size), 1 / 255
        for position, (spec, module) in enumerate(zip(resolved, self._transform.transforms, strict=True)):
            name = next(iter(spec))
            try:
                kernel = registry.build_kernel(name, module, shape, unit)
            except registry.NoKernel as reason:
                self.per_sample.append(f"{name} ({reason})" if str(reason) else name)
            if self.per_sample:
                continue
            if name == "ToDtype":
                unit = 1.0
            found.append(kernel)
            streams += [(position, draw) for draw in range(kernel.draws)]
            drawn = kernel.draw(torch.zeros(kernel.draws, 1))
            shape = tuple(kernel.apply(torch.zeros(1, *shape), drawn).shape[1:])
        self.steps, self._uniforms = registry.fuse(found), Draws(seed, streams)

    def __call__(self, images: Tensor, indices: Tensor, epoch: int) -> Tensor:
        """Augment samples, each with draws of its own, which leave the global random state as it was.

        Of images uint8 (B, H, W, C), with numbers in the split int64 (B,), come float32 (B, C', H', W'), contiguous;
        all are on one device. Raises ``ValueError`` for images of another shape or type than the list was made for.
        """
        return self.run(images, self.plan(indices, epoch))

    def draw(self, indices: Tensor, epoch: int) -> list[Any]:
        """What each of ``steps`` does to some samples in an epoch, in torchvision's terms; drawn as for a call."""
        uniforms = self._uniforms(indices, epoch).split([step.draws for step in self.steps])
        return [step.draw(own) for step, own in zip(self.steps, uniforms, strict=True)]

    def plan(self, indices: Tensor, epoch: int) -> list[Params]:
        """What ``run`` is to do to some samples, (N,), in an epoch: tensors (N, ...) for each step, a row a sample."""
        if self.per_sample:
            seeds = [derive_seed(self.seed, epoch, index) for index in indices.tolist()]
            return [{"seeds": torch.tensor(seeds)}]
        drawn = self.draw(indices, epoch)
        return [step.plan(params, indices) for step, params in zip(self.steps, drawn, strict=True)]

    def run(self, images: Tensor, plan: list[Params]) -> Tensor:
        """Augment images as planned for them; the second half of a call."""
        if tuple(images.shape[1:]) != self.shape or images.dtype != torch.uint8:
            raise ValueError(f"expected uint8 (B, *{self.shape}), got {images.dtype} {tuple(images.shape)}")
        if self.per_sample:
            return augment_one_by_one(images, plan[0]["seeds"], self._transform)
        values = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        values = values.mul_(1 / 255)  # not a quotient: so torchvision converts
        for step, own in zip(self.steps, plan, strict=True):
            values = step.run(values, own)
        return values.contiguous()


def augment_one_by_one(images: Tensor, seeds: Tensor, transform: nn.Module) -> Tensor:
    """Augment images through torchvision, from a seed for each; shapes as a call of ``Augmentation`` has them.

    The global random state is left as it was.
    """
    state = torch.get_rng_state()
    samples = []
    try:
        for image, seed in zip(images.to("cpu", copy=True), seeds.tolist(), strict=True):
            # Not torch.manual_seed: that also records a stack trace for every device, at 20 times the cost.
            torch.default_generator.manual_seed(seed)
            samples.append(transform(image.permute(2, 0, 1)))
    finally:
        torch.set_rng_state(state)
    return torch.stack(samples).to(images.device)
