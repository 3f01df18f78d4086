"""The training loss: cross-entropy on hard, soft or mixed targets, with a remedy for rare classes."""

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor, nn

from pipeline.core.params import Distill, Imbalance, TrainParams
from pipeline.train import distill
from pipeline.train.augment.counter_rng import derive_seed


def weigh_classes(counts: np.ndarray, beta: float) -> np.ndarray:
    """Weigh classes by the effective number of samples (Cui et al., 2019, https://arxiv.org/abs/1901.05555).

    Beta 0 weighs all classes alike; towards 1 the weights go to the inverse of the counts of samples, int (K,). They
    are float64 (K,), scaled so that their mean over the training samples is 1; 0 for a class without samples.
    """
    counts = counts.astype(np.float64)
    effective = (1 - beta**counts) / (1 - beta)
    weights = np.divide(1.0, effective, out=np.zeros_like(effective), where=counts > 0)
    return weights * counts.sum() / (weights * counts).sum()


class TrainingLoss(nn.Module):
    """Mean cross-entropy of a batch, in nats, for training samples of so many ``counts`` a class, int (K,).

    Against imbalance, ``weights`` weighs the classes; ``logits`` adds tau times the log prior to the logits, in
    training alone (Menon et al., 2021, https://arxiv.org/abs/2007.07314). With a teacher, a part of the loss is the
    distance from its answers.
    """

    def __init__(
        self, counts: np.ndarray, label_smoothing: float, imbalance: Imbalance, teaching: Distill | None = None
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.teaching = None if teaching is None else (teaching.weight, teaching.temperature)
        weights = prior = None
        if imbalance.method == "weights":
            weights = torch.from_numpy(weigh_classes(counts, imbalance.beta)).float()
        if imbalance.method == "logits":
            # A class without samples counts as one, or its logit would be minus infinity.
            shares = np.maximum(counts, 1) / np.maximum(counts, 1).sum()
            prior = torch.from_numpy(imbalance.tau * np.log(shares)).float()
        self.register_buffer("class_weights", weights)
        self.register_buffer("prior", prior)

    def forward(
        self, logits: Tensor, targets: Tensor, weights: Tensor | None = None, answers: Tensor | None = None
    ) -> Tensor:
        """Loss () of logits (B, K), or the mean over M members of an ensemble with logits (M * B, K).

        Targets are int64 (B,) or float (B, K), weights of the samples (B,), and a teacher's answers logits (B, K).
        """
        members = len(logits) // len(targets)
        if members > 1:
            targets = torch.cat([targets] * members)
            weights = None if weights is None else weights.repeat(members)
        adjusted = logits if self.prior is None else logits + self.prior
        losses = F.cross_entropy(
            adjusted, targets, self.class_weights, reduction="none", label_smoothing=self.label_smoothing
        )
        if self.teaching is not None:
            if answers is None:
                answers = distill.list_peers_answers(logits.view(members, len(logits) // members, -1)).flatten(0, 1)
            weight, temperature = self.teaching
            losses = torch.lerp(losses, distill.match(logits, answers, temperature), weight)
        return (losses if weights is None else losses * weights).mean()


class Mixer:
    """timm's mixup and cutmix, with draws that follow from seed, epoch and step alone.

    A batch is mixed with itself turned round, so the sample at place ``p`` with the one at ``B - 1 - p``.
    """

    def __init__(self, params: TrainParams, num_classes: int) -> None:
        self.mixing, self.num_classes, self.seed = params.mixing, num_classes, params.seed
        self.alphas = {"mixup_alpha": self.mixing.mixup_alpha, "cutmix_alpha": self.mixing.cutmix_alpha}
        self.end = params.epochs if self.mixing.end is None else params.find_epoch(self.mixing.end)

    def active(self, epoch: int) -> bool:
        """Whether a zero-based epoch is mixed."""
        return any(self.alphas.values()) and epoch < self.end

    def __call__(self, images: Tensor, targets: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Mix images (B, C, H, W), in place, and targets float (B, K); B is even."""
        # As its own classes, the samples come back as the rows that say who was mixed with whom.
        prob, switch_prob = self.mixing.prob, self.mixing.switch_prob
        mixup = Mixup(**self.alphas, prob=prob, switch_prob=switch_prob, label_smoothing=0.0, num_classes=len(images))
        state = np.random.get_state()
        np.random.seed(derive_seed(self.seed, epoch, -3 - 2 * step) % 2**32)  # timm draws from numpy's global generator
        try:
            images, parts = mixup(images, torch.arange(len(images), device=images.device))
        finally:
            np.random.set_state(state)
        return images, parts @ targets
