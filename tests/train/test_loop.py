"""The training loop: an update, an epoch, and scores over every sample."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import params_with
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss
from timm.utils import ModelEmaV3
from torch import Tensor
from training import rank_of

from pipeline.core.dataset import Prepared, Split, load_prepared
from pipeline.core.errors import UserError
from pipeline.models import model
from pipeline.models.devices import resolve_device
from pipeline.models.predict import predict
from pipeline.train import loop, planning
from pipeline.train.loader import Batch, Loader, order_epoch
from pipeline.train.loop import Interrupted, Progress
from pipeline.train.trainer import Trainer, build_trainer, wrap

PLAIN = (
    "train.transforms.train=[]", "train.ema_decay=0.0", "train.grad_clip_norm=null", "train.label_smoothing=0.0",
    "train.backbone_args.drop_rate=0.0", "train.optimizer=adamw", "train.lr=0.01", "train.weight_decay=0.0",
)  # fmt: skip
# No batch norm: what a net does with a sample does not depend on the batch around it.
LAYER_NORM = (
    "train.backbone=vit_tiny_patch16_224",
    "train.backbone_args={patch_size: 4, embed_dim: 16, depth: 2, num_heads: 2}",
)  # fmt: skip
CPU = torch.device("cpu")
Build = Callable[..., tuple[Trainer, model.ModelSpec]]


@pytest.fixture
def prepared(prepared_dir: Path) -> Prepared:
    """The tiny data set, opened."""
    return load_prepared(prepared_dir)


@pytest.fixture
def build(prepared: Prepared) -> Build:
    """Makes a trainer and its spec from the tiny params with changes."""

    def make(*overrides: str) -> tuple[Trainer, model.ModelSpec]:
        params = params_with(*overrides).train
        spec, _ = planning.plan(params, prepared.class_names, prepared.img_size, prepared.channels)
        return build_trainer(params, prepared, spec, CPU), spec

    return make


def subset(split: Split, count: int) -> Split:
    """The first samples of a split."""
    return Split(split.images[:count], split.targets[:count], split.files[:count])


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """A copy of the net's state."""
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def load(trainer: Trainer, split: Split, batch_size: int = 16, balanced: bool = False) -> Loader:
    """The batches of a split."""
    return Loader(split, batch_size, trainer.params.seed, CPU, balanced)


def epoch(trainer: Trainer, split: Split, number: int = 0, batch_size: int = 16) -> dict[str, float]:
    """Train one epoch."""
    return loop.train_one_epoch(trainer, load(trainer, split, batch_size), Progress(epoch=number), lambda: None)


def noise(trainer: Trainer, count: int = 16) -> Batch:
    """A batch of pictures of nothing."""
    pictures, numbers = torch.randint(0, 256, (count, 16, 16, 1), dtype=torch.uint8), torch.arange(count)
    return Batch(pictures, numbers % 3, numbers, plan=trainer.augmentation.plan(numbers, 0))


def fed(spec: model.ModelSpec, images: Tensor) -> Tensor:
    """What a net is fed with for pictures uint8 (B, H, W, C) where there are no transforms."""
    mean, std = spec.preprocessing["mean"][0], spec.preprocessing["std"][0]
    return (images.permute(0, 3, 1, 2).float() / 255 - mean) / std


def inputs(trainer: Trainer) -> list[Tensor]:
    """A list that the net's inputs in training will be appended to."""
    seen: list[Tensor] = []

    def keep(net: torch.nn.Module, args: tuple[Tensor]) -> None:
        if net.training:
            seen.append(args[0].clone())

    trainer.model.register_forward_pre_hook(keep)
    return seen


def test_train_one_epoch_one_step(prepared: Prepared, build: Build) -> None:
    trainer, _ = build(*PLAIN)
    before = weights(trainer)
    epoch(trainer, subset(prepared.split("train"), 16))
    assert trainer.updates == 1
    after = weights(trainer)
    unchanged = [name for name, _ in trainer.model.named_parameters() if torch.equal(before[name], after[name])]
    assert unchanged == []
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_train_one_epoch_overfits(prepared: Prepared, build: Build) -> None:
    trainer, spec = build(
        *PLAIN, "train.batch_size=8", "train.epochs=12", "train.transforms.train=[RandomHorizontalFlip]"
    )
    split = subset(prepared.split("train"), 16)
    # Labels that have nothing to do with the pictures, so that only memory helps.
    split = Split(split.images, np.random.default_rng(0).permutation(split.targets), split.files)
    first = epoch(trainer, split, 0, 8)["loss"]
    # 2 updates each, to the end of a schedule that counts 9 for each of its 12 epochs.
    for number in range(1, 54):
        last = epoch(trainer, split, number, 8)
    assert last["loss"] < first / 10
    scores = loop.evaluate(model.Classifier(trainer.model, spec), split, trainer)
    assert scores["accuracy"] == 1.0
    assert scores["loss"] < 0.1


def test_train_one_epoch_takes_batches_in_order(
    prepared: Prepared, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, _ = build("train.batch_size=32", "train.seed=5", "train.accumulate=4")
    taken: list[list[int]] = []

    def spy(trainer: Trainer, batch: Batch, *place: int) -> tuple[Tensor, Tensor]:
        taken.append(batch.numbers.tolist())
        return update(trainer, batch, *place)

    update = loop.update
    monkeypatch.setattr(loop, "update", spy)
    split, progress = prepared.split("train"), Progress(epoch=2)
    loop.train_one_epoch(trainer, load(trainer, split, 32), progress, lambda: None)
    order = order_epoch(split.targets, 5, 2).tolist()
    assert taken == [order[:32], order[32:64]]
    assert (progress.step, progress.samples) == (2, 64)
    assert trainer.updates == 2 * 2 + 2

    taken.clear()
    seen, few = inputs(trainer), subset(split, 7)  # too few to be accumulated in parts
    epoch(trainer, few)
    assert taken == [order_epoch(few.targets, 5, 0).tolist()]
    assert [len(images) for images in seen] == [7]


@pytest.mark.parametrize("accumulate", [1, 4])
def test_train_one_epoch_scores_are_means(prepared: Prepared, build: Build, accumulate: int) -> None:
    net = LAYER_NORM if accumulate > 1 else ()  # batch norm would see other batches
    trainer, spec = build(
        *PLAIN, *net, "train.lr=0.000000000001", "train.batch_size=24", f"train.accumulate={accumulate}"
    )
    twin = copy.deepcopy(trainer.model).train()
    split = prepared.split("train")
    scores = epoch(trainer, split, batch_size=24)
    losses, hits = [], []
    order = order_epoch(split.targets, 0, 0)
    for start in range(0, 72, 24):
        rows = order[start : start + 24]
        probs = twin(fed(spec, torch.from_numpy(split.images[rows]))).softmax(1).detach().double().numpy()
        targets = split.targets[rows]
        losses.append(log_loss(targets, probs / probs.sum(1, keepdims=True), labels=[0, 1, 2]))
        hits.append(accuracy_score(targets, probs.argmax(1)))
    assert scores["loss"] == pytest.approx(np.mean(losses), abs=1e-4)
    assert scores["accuracy"] == pytest.approx(np.mean(hits), abs=1 / 72)


def test_train_one_epoch_soft_targets_and_weights(prepared: Prepared, build: Build) -> None:
    trainer, spec = build(*PLAIN)
    twin = copy.deepcopy(trainer.model).train()
    split, rng = subset(prepared.split("train"), 16), np.random.default_rng(0)
    soft = rng.dirichlet(np.ones(3), 16).astype(np.float32)
    weights = rng.uniform(0.1, 3.0, 16).astype(np.float32)
    soft_split = Split(split.images, split.targets, split.files, soft, weights)
    scores = epoch(trainer, soft_split)
    order = order_epoch(split.targets, 0, 0)
    logits = twin(fed(spec, torch.from_numpy(split.images[order]))).detach()
    losses = -(soft[order] * logits.log_softmax(1).numpy()).sum(1)
    assert scores["loss"] == pytest.approx((losses * weights[order]).mean(), rel=1e-5)
    # A right answer is still the class that the sample has.
    assert scores["accuracy"] == (logits.argmax(1).numpy() == split.targets[order]).mean()
    plain, _ = build(*PLAIN)
    assert epoch(plain, split)["loss"] != pytest.approx(scores["loss"], rel=1e-3)


def test_train_one_epoch_entered_midway(prepared: Prepared, build: Build) -> None:
    overrides = ("train.backbone_args.drop_path_rate=0.2", "train.mixing.mixup_alpha=0.4")
    whole, _ = build(*overrides)
    scores = epoch(whole, prepared.split("train"))

    parts, _ = build(*overrides)
    loader, progress = load(parts, prepared.split("train")), Progress()

    def leave() -> None:
        if progress.step == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        loop.train_one_epoch(parts, loader, progress, leave)
    assert (progress.step, progress.samples) == (2, 32)
    parts.updates = 99  # follows from progress
    torch.manual_seed(99)  # and so do draws
    np.random.seed(99)
    assert loop.train_one_epoch(parts, loader, progress, lambda: None) == scores
    assert parts.updates == whole.updates
    one, two = weights(whole), weights(parts)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("batch_size", [1, 7, 27, 100])
def test_evaluate_equals_scikit_learn(prepared: Prepared, build: Build, batch_size: int) -> None:
    trainer, spec = build()
    epoch(trainer, prepared.split("train"))
    classifier = model.Classifier(trainer.model, spec).eval()
    split = prepared.split("val")
    assert len(split) == 27
    mean, std = spec.preprocessing["mean"][0], spec.preprocessing["std"][0]
    with torch.no_grad():
        images = torch.from_numpy(np.array(split.images)).permute(0, 3, 1, 2).float() / 255
        wanted = trainer.model.eval()((images - mean) / std).double().softmax(1).numpy()
    probs = predict(classifier, split.images, batch_size)
    assert probs.dtype == np.float32
    np.testing.assert_allclose(probs, wanted, atol=1e-5)
    np.testing.assert_allclose(probs.sum(1), 1, atol=1e-5)
    trainer.model.train()  # evaluate is called with a net that has just been trained
    trainer.params = trainer.params.model_copy(update={"batch_size": batch_size})
    before, state = weights(trainer), torch.get_rng_state()
    scores = loop.evaluate(model.Classifier(trainer.model, spec), split, trainer)
    assert all(torch.equal(before[name], value) for name, value in weights(trainer).items())  # batch statistics too
    assert torch.equal(torch.get_rng_state(), state)
    preds = wanted.argmax(1)
    assert scores == {
        "loss": pytest.approx(log_loss(split.targets, wanted, labels=[0, 1, 2]), abs=1e-4),
        "accuracy": pytest.approx(accuracy_score(split.targets, preds)),
        "balanced_accuracy": pytest.approx(balanced_accuracy_score(split.targets, preds)),
        "macro_f1": pytest.approx(f1_score(split.targets, preds, average="macro")),
    }


def test_predict_precision(prepared: Prepared, build: Build) -> None:
    trainer, spec = build()
    classifier, images = model.Classifier(trainer.model, spec).eval(), prepared.split("val").images
    seen = []
    trainer.model.register_forward_hook(lambda *call: seen.append(call[-1].dtype))
    exact, rounded = (predict(classifier, images, 8, CPU, amp=amp) for amp in ("none", "bf16"))
    assert set(seen) == {torch.float32, torch.bfloat16}
    assert rounded.dtype == np.float32
    np.testing.assert_allclose(rounded.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(rounded, exact, atol=0.02)
    assert (rounded != exact).any()


def test_a_net_that_is_not_finite(prepared: Prepared, build: Build) -> None:
    trainer, spec = build()
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match=r"loss is nan in epoch 4.*train\.lr"):
        epoch(trainer, prepared.split("train"), 3)
    with pytest.raises(UserError, match=r"not finite.*train\.lr"):
        loop.evaluate(model.Classifier(trainer.model, spec), prepared.split("val"), trainer)


@pytest.mark.parametrize("limit", [1e-3, None, 1e6])
def test_update_clips_gradients(prepared: Prepared, build: Build, limit: float | None) -> None:
    # Plain SGD at a rate of 1: the change of the weights is the gradient.
    trainer, spec = build(*PLAIN, "train.optimizer=sgd")
    trainer.params = trainer.params.model_copy(update={"grad_clip_norm": limit})
    for group in trainer.optimizer.param_groups:
        group.update(lr=1.0, weight_decay=0.0, momentum=0.0, nesterov=False)
    twin = copy.deepcopy(trainer.model)
    batch = noise(trainer)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    loop.update(trainer, batch, 0, 0)
    change = torch.cat([(old - new.detach()).flatten() for old, new in zip(before, trainer.model.parameters())])
    torch.nn.functional.cross_entropy(twin.train()(fed(spec, batch.images)), batch.targets).backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in twin.parameters()])
    assert gradient.norm() > 1e-2
    wanted = gradient if limit != 1e-3 else gradient * (limit / gradient.norm())
    torch.testing.assert_close(change, wanted, rtol=1e-2, atol=1e-6 if limit != 1e-3 else 3e-7)


@pytest.mark.parametrize("amp", ["none", "bf16", "fp16"])
def test_train_one_epoch_precisions(prepared: Prepared, build: Build, amp: str) -> None:
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


def test_update_fp16_overflow(prepared: Prepared, build: Build) -> None:
    trainer, _ = build(*PLAIN, "train.amp=fp16")
    scale = trainer.scaler.get_scale()
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.model.register_forward_hook(lambda _net, _args, out: out * 1e38)
    loop.update(trainer, noise(trainer), 0, 0)
    assert all(torch.equal(old, new) for old, new in zip(before, trainer.model.parameters()))
    assert trainer.scaler.get_scale() == scale / 2


def test_train_one_epoch_averages_weights(prepared: Prepared, build: Build) -> None:
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

    loop.train_one_epoch(trainer, load(trainer, prepared.split("train"), 8), Progress(), follow)
    assert count == 9
    found = trainer.ema.module.state_dict()
    for name, value in average.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-4, atol=1e-5)
    live = weights(trainer)
    assert not all(torch.allclose(live[name].double(), average[name]) for name in average)


def test_resolve_device() -> None:
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("cuda:77", "gpu", "nonsense"):
        with pytest.raises(UserError, match=r"train\.device.*auto or cpu"):
            resolve_device(name)


MIXED = ("train.mixing.mixup_alpha=0.5", "train.mixing.cutmix_alpha=1.0")


@pytest.mark.parametrize("limit", ["null", "0.05"])
@pytest.mark.parametrize("mixing", [(), MIXED], ids=["plain", "mixed"])
def test_update_accumulated(prepared: Prepared, build: Build, mixing: tuple[str, ...], limit: str) -> None:
    found, seen = [], []
    for accumulate in (1, 2, 8):
        trainer, _ = build(
            *LAYER_NORM, *mixing, f"train.accumulate={accumulate}", f"train.grad_clip_norm={limit}",
            "train.lr=0.05",
        )  # fmt: skip
        seen.append(inputs(trainer))
        scores = epoch(trainer, prepared.split("train"))
        assert len(seen[-1]) == 4 * accumulate
        assert trainer.updates == 4
        found.append((scores, weights(trainer), copy.deepcopy(trainer.ema.module.state_dict())))
    one = found[0]
    for other in found[1:]:
        assert other[0] == pytest.approx(one[0], abs=1e-5)
        for mine, theirs in zip(one[1:], other[1:]):
            for name, value in mine.items():
                torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=1e-5)
    # The samples are augmented and mixed alike, bit for bit.
    assert all(torch.equal(torch.cat(seen[0]), torch.cat(each)) for each in seen[1:])


def test_train_one_epoch_frozen_parts(prepared: Prepared, build: Build) -> None:
    trainer, spec = build("train.freeze=[stem, stages.0]")
    before = weights(trainer)
    for number in range(2):
        epoch(trainer, prepared.split("train"), number)
        loop.evaluate(model.Classifier(trainer.model, spec), prepared.split("val"), trainer)
    for net in (trainer.model, trainer.ema.module):
        same = {name for name, value in net.state_dict().items() if torch.equal(before[name], value)}
        assert same == {name for name in before if name.startswith(("stem.", "stages.0."))}
    optimized = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    names = {name for name, p in trainer.model.named_parameters() if id(p) in optimized}
    assert names == {n for n, _ in trainer.model.named_parameters() if not n.startswith(("stem.", "stages.0."))}


def test_train_mode_frozen_batch_norm_that_is_shared(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several CUDA devices: what is frozen stays so in the module that takes its place."""
    monkeypatch.setattr("pipeline.models.devices.list_ids", lambda _: [0])
    monkeypatch.setattr("pipeline.train.trainer.DistributedDataParallel", lambda net, **_: net)
    net, _ = build()
    (name, *others) = (name for name, part in net.model.named_modules() if isinstance(part, torch.nn.BatchNorm2d))
    trainer, _ = build("train.sync_bn=true", f"train.freeze=[{name}]")
    trainer.ranks = rank_of(0, 2)
    wrap(trainer)
    trainer.train_mode()
    parts = {place: trainer.model.get_submodule(place) for place in (name, *others)}
    assert all(isinstance(part, torch.nn.SyncBatchNorm) for part in parts.values())
    assert [part.training for part in parts.values()] == [False] + [True] * len(others)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_update_clips_in_mixed_precision_as_without(prepared: Prepared, build: Build, accumulate: int) -> None:
    """Gradients are clipped after their scale is taken out: else a net hardly moves."""
    moved = []
    for amp in ("none", "fp16"):
        trainer, _ = build(
            *PLAIN, "train.optimizer=momentum", "train.grad_clip_norm=0.05", f"train.amp={amp}",
            f"train.accumulate={accumulate}",
        )  # fmt: skip
        before = weights(trainer)
        for number in range(2):
            epoch(trainer, prepared.split("train"), number)
        names = [name for name, _ in trainer.model.named_parameters()]
        after = weights(trainer)
        moved.append(sum(float((before[name] - after[name]).square().sum()) for name in names) ** 0.5)
    assert moved[1] == pytest.approx(moved[0], rel=0.01)


@pytest.mark.parametrize("wanted", [True, False])
def test_update_alone_may_use_tf32(prepared: Prepared, build: Build, wanted: bool) -> None:
    trainer, spec = build(*PLAIN, f"train.tf32={str(wanted).lower()}")
    seen: dict[bool, set[tuple[bool, bool]]] = {True: set(), False: set()}

    def look(net: torch.nn.Module, _args: object) -> None:
        seen[net.training].add((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))

    resolve_device("cpu")
    trainer.model.register_forward_pre_hook(look)
    epoch(trainer, prepared.split("train"))
    loop.evaluate(model.Classifier(trainer.model, spec), prepared.split("val"), trainer)
    assert seen == {True: {(wanted, wanted)}, False: {(False, False)}}


def test_train_one_epoch_progressive(prepared: Prepared, build: Build) -> None:
    sizes = "train.progressive=[{from: 0.0, size: 8}, {from: 0.4, size: 12}, {from: 0.6, size: null}]"
    trainer, _ = build(*PLAIN, sizes, "train.epochs=5")
    plain, _ = build(*PLAIN)
    small, full = inputs(trainer), inputs(plain)
    split = subset(prepared.split("train"), 16)
    for number in range(5):
        epoch(trainer, split, number)
        epoch(plain, split, number)
    assert [images.shape[-1] for images in small] == [8, 8, 12, 16, 16]
    for images, whole in zip(small, full):
        wanted = torch.nn.functional.interpolate(
            whole, images.shape[-2:], mode="bilinear", antialias=True, align_corners=False
        )
        torch.testing.assert_close(images, wanted)
    assert torch.equal(small[4], full[4])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_members_of_an_ensemble_learn_as_if_each_were_alone(prepared: Prepared, build: Build, accumulate: int) -> None:
    """With an optimizer whose steps follow the size of the gradient, every sample seen by each."""
    small = "widths: [4, 8, 8], depths: [1, 1, 1]"
    sgd = (*PLAIN, "train.optimizer=momentum", f"train.accumulate={accumulate}")
    trainer, _ = build(
        *sgd, "train.backbone=ensemble", f"train.backbone_args={{of: face_resnet_s, members: 2, {small}}}"
    )
    split, alone = subset(prepared.split("train"), 32), []
    for member in trainer.model.members:
        single, _ = build(*sgd, "train.backbone=face_resnet_s", f"train.backbone_args={{{small}}}")
        single.model.load_state_dict(member.state_dict())
        alone.append(single)
    scores = epoch(trainer, split)
    losses = [epoch(single, split)["loss"] for single in alone]
    assert scores["loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)
    for member, single in zip(trainer.model.members, alone):
        for name, value in single.model.state_dict().items():
            torch.testing.assert_close(member.state_dict()[name], value, msg=name)


def test_build_trainer_size_not_taken(build: Build) -> None:
    with pytest.raises(UserError, match=r"train\.progressive\.1: .*12 px"):
        build(*LAYER_NORM, "train.progressive=[{from: 0.0, size: 16}, {from: 0.5, size: 12}]")


@pytest.mark.parametrize(
    "changes", [(), MIXED, ("train.imbalance.method=sampling",), ("train.backbone_args.drop_path_rate=0.3",)],
    ids=["plain", "mixing", "sampling", "drop path"],
)  # fmt: skip
def test_train_one_epoch_same_and_other_seeds(prepared: Prepared, build: Build, changes: tuple[str, ...]) -> None:
    whole = prepared.split("train")
    rows = np.flatnonzero(whole.targets != 1)[:20]
    rows = np.concatenate([np.flatnonzero(whole.targets == 1), rows])
    split = Split(whole.images[rows], whole.targets[rows], [whole.files[row] for row in rows])
    found = []
    for place, seed in enumerate((3, 3, 4)):
        trainer, _ = build(*changes, f"train.seed={seed}")
        seen = inputs(trainer)
        loader = load(trainer, split, balanced="train.imbalance.method=sampling" in changes)
        torch.manual_seed(place)  # what was drawn before does not matter
        np.random.seed(place)
        scores = loop.train_one_epoch(trainer, loader, Progress(), lambda: None)
        found.append((scores, torch.cat(seen), weights(trainer)))
    (first, fed_first, one), (second, fed_second, two), (_, fed_third, three) = found
    assert first == second
    assert torch.equal(fed_first, fed_second)
    assert not torch.equal(fed_first, fed_third)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not any(torch.equal(one[name], three[name]) for name in one if one[name].ndim == 4)


def test_train_one_epoch_mixing_ends(prepared: Prepared, build: Build) -> None:
    mixed, _ = build(*PLAIN, *MIXED, "train.mixing.end=0.5", "train.epochs=4")
    plain, _ = build(*PLAIN)
    one, two = inputs(mixed), inputs(plain)
    split = subset(prepared.split("train"), 16)
    for number in range(4):
        epoch(mixed, split, number)
        epoch(plain, split, number)
    assert [torch.equal(*pair) for pair in zip(one, two)] == [False, False, True, True]


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
def test_wrap_compiled(prepared: Prepared, build: Build) -> None:
    found = []
    for compiled in ("none", "default"):
        overrides = ["train.optimizer=muon", "train.lr=0.001", f"train.compile={compiled}"]
        trainer, spec = build(*overrides)
        wrap(trainer)
        assert (trainer.model._compiled_call_impl is not None) == (compiled == "default")
        scores = epoch(trainer, prepared.split("train"))
        classifier = model.Classifier(trainer.model, spec)
        found.append((scores, loop.evaluate(classifier, prepared.split("val"), trainer), weights(trainer)))
    (one, first, eager), (two, second, graph) = found
    assert two == pytest.approx(one, abs=1e-4)
    assert second == pytest.approx(first, abs=1e-3)
    assert list(graph) == list(eager)
    for name, value in eager.items():
        torch.testing.assert_close(graph[name], value, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("part", [0.5, 0.0], ids=["resident", "pinned"])
def test_train_one_epoch_on_cuda(
    prepared: Prepared, build: Build, monkeypatch: pytest.MonkeyPatch, part: float
) -> None:
    monkeypatch.setattr("pipeline.train.loader.RESIDENT_PART", part)
    split, found = prepared.split("train"), []
    for device in (CPU, torch.device("cuda:0")):
        params = params_with(*PLAIN, "train.lr=0.001", *MIXED).train
        spec, _ = planning.plan(params, prepared.class_names, prepared.img_size, prepared.channels)
        trainer = build_trainer(params, prepared, spec, device)
        loader = Loader(split, 16, 0, device)
        assert loader.resident == (device.type == "cpu" or part > 0)
        found.append(loop.train_one_epoch(trainer, loader, Progress(), lambda: None))
    assert found[1] == pytest.approx(found[0], abs=2e-2)
