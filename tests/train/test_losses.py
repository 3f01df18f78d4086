"""The training loss by hand and against torch; mixing against timm."""

import math

import numpy as np
import pytest
import torch
from builders import TINY_PARAMS
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from training import rank_of

from pipeline.core.params import Imbalance, Mixing
from pipeline.core.params_file import parse_params
from pipeline.train.augment.counter_rng import derive_seed
from pipeline.train.losses import Mixer, TrainingLoss, weigh_classes

COUNTS = np.array([60, 30, 10])


def imbalance(method: str = "none", beta: float = 0.9, tau: float = 1.5) -> Imbalance:
    return Imbalance(method=method, beta=beta, tau=tau)


def mixer_of(num_classes: int, seed: int = 0, **changes: float | None) -> Mixer:
    """The mixer of a training of six epochs."""
    values = {"mixup_alpha": 0.4, "cutmix_alpha": 1.0, "prob": 1.0, "switch_prob": 0.5, "end": None} | changes
    update = {"mixing": Mixing(**values), "seed": seed, "epochs": 6}
    return Mixer(parse_params(TINY_PARAMS).train.model_copy(update=update), num_classes)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits float32 (12, 3) and targets int64 (12,)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(12, 3, generator=generator) * 2, torch.arange(12) % 3


def test_weights_are_the_inverse_of_the_effective_numbers() -> None:
    found = weigh_classes(np.array([10, 2, 0, 1]), 0.5)
    # E_n = (1 - b^n) / (1 - b): 1.998046875, 1.5, none, 1.
    raw = [1 / 1.998046875, 1 / 1.5, 0.0, 1.0]
    mean = (10 * raw[0] + 2 * raw[1] + 1 * raw[3]) / 13
    assert found.tolist() == pytest.approx([value / mean for value in raw])


@pytest.mark.parametrize("beta, wanted", [(0.0, [1.0, 1.0, 1.0]), (1 - 1e-9, [100 / 180, 100 / 90, 100 / 30])])
def test_weights_go_from_none_to_the_inverse_of_the_counts(beta: float, wanted: list[float]) -> None:
    assert weigh_classes(COUNTS, beta).tolist() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("method", ["weights", "logits"])
def test_losses_are_worked_out_by_hand(batch: tuple[torch.Tensor, torch.Tensor], method: str) -> None:
    logits, targets = batch
    weights = weigh_classes(COUNTS, 0.9) if method == "weights" else np.ones(3)
    tau = 1.5 if method == "logits" else 0.0
    rows = []
    for row, target in zip(logits.double().tolist(), targets.tolist()):
        moved = [v + tau * math.log(share) for v, share in zip(row, (0.6, 0.3, 0.1))]
        rows.append(weights[target] * (math.log(sum(math.exp(v) for v in moved)) - moved[target]))
    found = TrainingLoss(COUNTS, 0.0, imbalance(method))(logits, targets)
    assert float(found) == pytest.approx(sum(rows) / 12, rel=1e-5)


@pytest.mark.parametrize("method", ["weights", "logits"])
def test_a_class_without_samples_leaves_the_loss_finite(batch: tuple[torch.Tensor, torch.Tensor], method: str) -> None:
    logits, _ = batch
    targets = torch.arange(12) % 2
    loss = TrainingLoss(np.array([60, 30, 0]), 0.1, imbalance(method))(logits.requires_grad_(), targets)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("method", ["none", "sampling"])
def test_smoothing_is_torchs(batch: tuple[torch.Tensor, torch.Tensor], method: str) -> None:
    logits, targets = batch
    wanted = torch.nn.CrossEntropyLoss(label_smoothing=0.1)(logits, targets)
    torch.testing.assert_close(TrainingLoss(COUNTS, 0.1, imbalance(method))(logits, targets), wanted)


@pytest.mark.parametrize("method", ["none", "weights", "logits"])
def test_a_certain_soft_target_is_a_class(batch: tuple[torch.Tensor, torch.Tensor], method: str) -> None:
    logits, targets = batch
    criterion = TrainingLoss(COUNTS, 0.1, imbalance(method))
    soft = torch.nn.functional.one_hot(targets, 3).float()
    torch.testing.assert_close(criterion(logits, soft), criterion(logits, targets))


def test_weights_of_samples_scale_their_losses(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, targets = batch
    criterion = TrainingLoss(COUNTS, 0.1, imbalance("weights"))
    weights = torch.linspace(0, 2, 12)
    each = torch.stack([criterion(logits[i : i + 1], targets[i : i + 1]) for i in range(12)])
    torch.testing.assert_close(criterion(logits, targets, weights), (each * weights).sum() / 12)


@pytest.mark.parametrize("prob", [1.0, 0.5])
def test_mixing_is_timms(batch: tuple[torch.Tensor, torch.Tensor], prob: float) -> None:
    logits, targets = batch
    images = torch.rand(12, 1, 16, 16)
    mixer = mixer_of(3, seed=9, prob=prob)
    one_hot = torch.nn.functional.one_hot(targets, 3).float()
    criterion = TrainingLoss(COUNTS, 0.1, imbalance())
    kinds = set()
    for step in range(12):
        found, soft = mixer(images.clone(), one_hot, 2, step)
        timms = Mixup(0.4, 1.0, prob=prob, switch_prob=0.5, label_smoothing=0.1, num_classes=3)
        np.random.seed(derive_seed(9, 2, -3 - 2 * step) % 2**32)
        wanted, smoothed = timms(images.clone(), targets)
        assert torch.equal(found, wanted)
        torch.testing.assert_close(criterion(logits, soft), SoftTargetCrossEntropy()(logits, smoothed))
        torch.testing.assert_close(soft.sum(1), torch.ones(12))
        cut = (found == images) | (found == images.flip(0))
        kinds.add("none" if torch.equal(found, images) else "cutmix" if cut.all() else "mixup")
    assert kinds == {"mixup", "cutmix"} | ({"none"} if prob < 1 else set())


def test_mixing_follows_from_seed_epoch_and_step_and_leaves_no_trace() -> None:
    images, targets = torch.rand(8, 1, 16, 16), torch.eye(8)
    found = {}
    for seed, epoch, step in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]:
        np.random.seed(4)
        before = np.random.get_state()
        found[seed, epoch, step] = mixer_of(8, seed)(images.clone(), targets, epoch, step)
        assert all(np.array_equal(one, two) for one, two in zip(before, np.random.get_state()))
        np.random.seed(5)  # what was drawn before does not matter
        again = mixer_of(8, seed)(images.clone(), targets, epoch, step)
        assert all(torch.equal(*pair) for pair in zip(found[seed, epoch, step], again))
    parts = [mixed.numpy().tobytes() for mixed, _ in found.values()]
    assert len(set(parts)) == len(parts)


@pytest.mark.parametrize("world", [2, 4])
def test_a_ranks_share_is_mixed_as_in_the_whole_batch(world: int) -> None:
    images, targets = torch.rand(16, 1, 16, 16), torch.eye(16)
    mixer = mixer_of(16)
    for step in range(6):
        whole, soft = mixer(images.clone(), targets, 0, step)
        taken = []
        for rank in range(world):
            own = rank_of(rank, world).positions(16)
            share, share_soft = mixer(images[own], targets[own], 0, step)
            assert torch.equal(share, whole[own])
            assert torch.equal(share_soft, soft[own])
            taken += own.tolist()
        assert sorted(taken) == list(range(16))


@pytest.mark.parametrize(
    "changes, epochs", [({}, [0, 1, 2, 5]), ({"end": 0.33}, [0, 1]), ({"mixup_alpha": 0.0, "cutmix_alpha": 0.0}, [])]
)
def test_mixing_is_on_where_params_say(changes: dict[str, float], epochs: list[int]) -> None:
    mixer = mixer_of(3, **changes)
    assert [epoch for epoch in (0, 1, 2, 5) if mixer.active(epoch)] == epochs
