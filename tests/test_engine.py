"""The training engine: an update, an epoch, and scores over every sample."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, log_loss
from timm.utils import ModelEmaV3

from pipeline import engine, model
from pipeline import train as stage
from pipeline.data import Prepared, Split, load_prepared
from pipeline.engine import Interrupted, Progress, Trainer
from pipeline.errors import UserError
from pipeline.params import apply_overrides, parse_params
from tests.conftest import TINY_PARAMS

PLAIN = (
    "train.transforms.train=[]", "train.ema_decay=0.0", "train.grad_clip_norm=null", "train.label_smoothing=0.0",
    "train.backbone_args.drop_rate=0.0", "train.optimizer=adamw", "train.lr=0.01", "train.weight_decay=0.0",
)  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture
def prepared(prepared_dir: Path) -> Prepared:
    """The tiny data set, opened."""
    return load_prepared(prepared_dir)


@pytest.fixture
def build(prepared: Prepared) -> Callable[..., tuple[Trainer, model.Recipe]]:
    """Makes a trainer and its recipe from the tiny params with changes."""

    def make(*overrides: str) -> tuple[Trainer, model.Recipe]:
        params = parse_params(apply_overrides(TINY_PARAMS, list(overrides))).train
        recipe, _ = model.plan(params, prepared.class_names, prepared.img_size, prepared.channels)
        return stage.build_trainer(params, prepared, recipe, CPU), recipe

    return make


def subset(split: Split, count: int) -> Split:
    """The first samples of a split."""
    return Split(split.images[:count], split.targets[:count], split.files[:count])


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """A copy of the net's state."""
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def epoch(trainer: Trainer, split: Split, number: int = 0) -> dict[str, float]:
    """Train one epoch."""
    return engine.train_one_epoch(trainer, split, Progress(epoch=number), lambda: None)


def test_one_step_changes_every_parameter(prepared: Prepared, build: Callable[..., Any]) -> None:
    trainer, _ = build(*PLAIN)
    before = weights(trainer)
    epoch(trainer, subset(prepared.split("train"), 16))
    assert trainer.updates == 1
    after = weights(trainer)
    unchanged = [
        name for name, _ in trainer.model.named_parameters() if torch.equal(before[name], after[name])
    ]
    assert unchanged == []
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_a_tiny_set_is_learnt_by_heart(prepared: Prepared, build: Callable[..., Any]) -> None:
    trainer, recipe = build(
        *PLAIN, "train.batch_size=8", "train.epochs=40", "train.transforms.train=[RandomHorizontalFlip]"
    )
    split = subset(prepared.split("train"), 16)
    # Labels that have nothing to do with the pictures, so that only memory helps.
    split = Split(split.images, np.random.default_rng(0).permutation(split.targets), split.files)
    first = epoch(trainer, split)["loss"]
    for number in range(1, 40):
        last = epoch(trainer, split, number)
    assert last["loss"] < first / 10
    scores = engine.evaluate(model.Classifier(trainer.model, recipe), split, 8, CPU)
    assert scores["accuracy"] == 1.0
    assert scores["loss"] < 0.1


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    prepared: Prepared, build: Callable[..., Any]
) -> None:
    results = []
    for seed in (3, 3, 4):
        trainer, _ = build(f"train.seed={seed}")
        torch.manual_seed(100)  # draws inside the net follow the global generator
        scores = epoch(trainer, subset(prepared.split("train"), 48))
        results.append((scores, weights(trainer)))
    (first, one), (second, two), (_, three) = results
    assert first == second
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not any(torch.equal(one[name], three[name]) for name in one if one[name].ndim == 4)


def test_an_order_is_a_permutation_and_follows_from_seed_and_epoch() -> None:
    orders = {(seed, number): engine.epoch_order(50, seed, number) for seed in (0, 1) for number in (0, 1, 2)}
    for order in orders.values():
        assert sorted(order.tolist()) == list(range(50))
    assert len({tuple(order) for order in orders.values()}) == len(orders)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    for (seed, number), order in orders.items():
        np.testing.assert_array_equal(engine.epoch_order(50, seed, number), order)
    assert torch.equal(torch.get_rng_state(), state)  # and leaves no trace


@pytest.mark.parametrize(
    "samples, batch_size, steps", [(72, 16, 4), (64, 16, 4), (15, 16, 1), (1, 16, 1), (17, 16, 1)]
)
def test_a_last_smaller_batch_is_dropped_unless_it_is_the_only_one(
    samples: int, batch_size: int, steps: int
) -> None:
    assert engine.steps_per_epoch(samples, batch_size) == steps


def test_an_epoch_takes_its_batches_from_the_order_and_counts_what_it_took(
    prepared: Prepared, build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[list[int]] = []
    augment = engine.augment_batch

    def spy(images: np.ndarray, indices: np.ndarray, *args: Any) -> torch.Tensor:
        taken.append(indices.tolist())
        return augment(images, indices, *args)

    monkeypatch.setattr(engine, "augment_batch", spy)
    trainer, _ = build("train.batch_size=32", "train.seed=5")
    progress = Progress(epoch=2)
    engine.train_one_epoch(trainer, prepared.split("train"), progress, lambda: None)
    order = engine.epoch_order(72, 5, 2).tolist()
    assert taken == [sorted(order[:32]), sorted(order[32:64])]
    assert (progress.step, progress.samples) == (2, 64)
    assert trainer.updates == 2 * 2 + 2

    taken.clear()
    epoch(trainer, subset(prepared.split("train"), 7))
    assert taken == [list(range(7))]


def test_loss_and_accuracy_are_means_over_the_samples_as_trained_on(
    prepared: Prepared, build: Callable[..., Any]
) -> None:
    trainer, recipe = build(*PLAIN, "train.lr=0.000000000001", "train.batch_size=24")
    twin = copy.deepcopy(trainer.model).train()
    split = prepared.split("train")
    scores = epoch(trainer, split)
    losses, hits = [], []
    mean, std = recipe.preprocessing["mean"][0], recipe.preprocessing["std"][0]
    order = engine.epoch_order(72, 0, 0)
    for start in range(0, 72, 24):
        rows = order[start : start + 24]
        images = torch.from_numpy(split.images[np.sort(rows)]).permute(0, 3, 1, 2).float() / 255
        probs = twin((images - mean) / std).softmax(1).detach().numpy().astype(float)
        targets = split.targets[np.sort(rows)]
        losses.append(log_loss(targets, probs / probs.sum(1, keepdims=True), labels=[0, 1, 2]))
        hits.append(accuracy_score(targets, probs.argmax(1)))
    assert scores["loss"] == pytest.approx(np.mean(losses), abs=1e-4)
    assert scores["accuracy"] == pytest.approx(np.mean(hits), abs=1 / 72)


def test_an_epoch_that_was_left_is_entered_where_it_was_left(
    prepared: Prepared, build: Callable[..., Any]
) -> None:
    overrides = ("train.backbone_args.drop_rate=0.0", "train.amp=none")
    whole, _ = build(*overrides)
    scores = epoch(whole, prepared.split("train"))

    parts, _ = build(*overrides)
    progress = Progress()

    def leave() -> None:
        if progress.step == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        engine.train_one_epoch(parts, prepared.split("train"), progress, leave)
    assert (progress.step, progress.samples) == (2, 32)
    parts.updates = 99  # follows from progress
    assert engine.train_one_epoch(parts, prepared.split("train"), progress, lambda: None) == scores
    assert parts.updates == whole.updates
    one, two = weights(whole), weights(parts)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("batch_size", [1, 7, 27, 100])
def test_scores_count_every_sample_and_equal_scikit_learns(
    prepared: Prepared, build: Callable[..., Any], batch_size: int
) -> None:
    trainer, recipe = build()
    epoch(trainer, prepared.split("train"))
    classifier = model.Classifier(trainer.model, recipe).eval()
    split = prepared.split("val")
    assert len(split) == 27
    mean, std = recipe.preprocessing["mean"][0], recipe.preprocessing["std"][0]
    with torch.no_grad():
        images = torch.from_numpy(np.array(split.images)).permute(0, 3, 1, 2).float() / 255
        wanted = trainer.model.eval()((images - mean) / std).double().softmax(1).numpy()
    probs = engine.predict(classifier, split.images, batch_size)
    assert probs.dtype == np.float32
    np.testing.assert_allclose(probs, wanted, atol=1e-5)
    np.testing.assert_allclose(probs.sum(1), 1, atol=1e-5)
    trainer.model.train()  # evaluate is called with a net that has just been trained
    scores = engine.evaluate(model.Classifier(trainer.model, recipe), split, batch_size, CPU)
    preds = wanted.argmax(1)
    assert scores == {
        "loss": pytest.approx(log_loss(split.targets, wanted, labels=[0, 1, 2]), abs=1e-4),
        "accuracy": pytest.approx(accuracy_score(split.targets, preds)),
        "macro_f1": pytest.approx(f1_score(split.targets, preds, average="macro")),
    }


def test_evaluating_leaves_the_net_and_the_random_state_as_they_are(
    prepared: Prepared, build: Callable[..., Any]
) -> None:
    trainer, recipe = build()
    before, state = weights(trainer), torch.get_rng_state()
    engine.evaluate(model.Classifier(trainer.model, recipe), prepared.split("val"), 8, CPU)
    after = weights(trainer)
    assert all(torch.equal(before[name], after[name]) for name in before)  # batch statistics too
    assert torch.equal(torch.get_rng_state(), state)


def test_a_loss_that_is_not_finite_names_the_remedy(prepared: Prepared, build: Callable[..., Any]) -> None:
    trainer, _ = build()
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match=r"loss is nan in epoch 3.*train\.lr"):
        epoch(trainer, prepared.split("train"), 3)


def test_probabilities_that_are_not_finite_name_the_remedy(
    prepared: Prepared, build: Callable[..., Any]
) -> None:
    trainer, recipe = build()
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match=r"not finite.*train\.lr"):
        engine.evaluate(model.Classifier(trainer.model, recipe), prepared.split("val"), 8, CPU)


@pytest.mark.parametrize("limit", [1e-3, None, 1e6])
def test_gradients_are_clipped_to_the_norm(
    prepared: Prepared, build: Callable[..., Any], limit: float | None
) -> None:
    # Plain SGD at a rate of 1: the change of the weights is the gradient.
    trainer, _ = build(*PLAIN, "train.optimizer=sgd")
    trainer.grad_clip_norm = limit
    for group in trainer.optimizer.param_groups:
        group.update(lr=1.0, weight_decay=0.0, momentum=0.0, nesterov=False)
    twin = copy.deepcopy(trainer.model)
    images, targets = torch.randn(16, 1, 16, 16), torch.arange(16) % 3
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    engine._update(trainer, images, targets)
    change = torch.cat(
        [(old - new.detach()).flatten() for old, new in zip(before, trainer.model.parameters())]
    )
    torch.nn.functional.cross_entropy(twin.train()(images), targets).backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in twin.parameters()])
    assert gradient.norm() > 1e-2
    wanted = gradient if limit != 1e-3 else gradient * (limit / gradient.norm())
    torch.testing.assert_close(change, wanted, rtol=1e-2, atol=1e-6 if limit != 1e-3 else 3e-7)


@pytest.mark.parametrize("amp", ["none", "bf16", "fp16"])
def test_every_precision_trains_on_the_cpu(prepared: Prepared, build: Callable[..., Any], amp: str) -> None:
    seen = []
    trainer, _ = build(*PLAIN, f"train.amp={amp}")
    trainer.model.register_forward_hook(lambda _net, _args, out: seen.append(out.dtype))
    split = subset(prepared.split("train"), 32)
    first = epoch(trainer, split)
    for number in range(1, 10):
        last = epoch(trainer, split, number)
    assert last["loss"] < first["loss"]
    assert set(seen) == {{"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]}
    assert trainer.scaler.is_enabled() == (amp == "fp16")
    assert all(value.dtype != torch.bfloat16 for value in trainer.model.state_dict().values())
    assert all(torch.isfinite(value).all() for value in trainer.model.state_dict().values())


def test_fp16_skips_a_step_that_overflows_and_goes_on(prepared: Prepared, build: Callable[..., Any]) -> None:
    trainer, _ = build(*PLAIN, "train.amp=fp16")
    scale = trainer.scaler.get_scale()
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.model.register_forward_hook(lambda _net, _args, out: out * 1e38)
    engine._update(trainer, torch.randn(16, 1, 16, 16), torch.arange(16) % 3)
    assert all(torch.equal(old, new) for old, new in zip(before, trainer.model.parameters()))
    assert trainer.scaler.get_scale() == scale / 2


def test_averaged_weights_follow_timms_formula(prepared: Prepared, build: Callable[..., Any]) -> None:
    trainer, _ = build("train.ema_decay=0.6", "train.batch_size=8")
    assert isinstance(trainer.ema, ModelEmaV3)
    average = {name: value.double() for name, value in weights(trainer).items()}
    count = 0

    def follow() -> None:
        nonlocal count
        count += 1
        # decay_t = min(decay, 1 - t^(-2/3)), t = 1 at the first update; see timm.utils.ModelEmaV3.
        decay = min(0.6, 1 - count ** (-2 / 3))
        for name, value in trainer.model.state_dict().items():
            if value.is_floating_point():
                average[name] = decay * average[name] + (1 - decay) * value.double()
            else:
                average[name] = value.double()

    engine.train_one_epoch(trainer, prepared.split("train"), Progress(), follow)
    assert count == 9
    found = trainer.ema.module.state_dict()
    for name, value in average.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-4, atol=1e-5)
    live = weights(trainer)
    assert not all(torch.allclose(live[name].double(), average[name]) for name in average)


def test_a_device_that_is_not_there_is_refused() -> None:
    assert engine.resolve_device("cpu") == CPU
    assert engine.resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("cuda:77", "gpu", "nonsense"):
        with pytest.raises(UserError, match=r"train\.device.*auto or cpu"):
            engine.resolve_device(name)
