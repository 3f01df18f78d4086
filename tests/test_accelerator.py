"""The way to an accelerator, on a device that pretends to be one: no devices mixed, no waits, few launches.

``test_injected_mistakes_are_caught`` shows what these tests would find.
"""

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.utils
import torch
from builders import ROOT, make_project, params_with, write_prepared
from evaluation import WHOLE, Workspace
from pretend import LEDGER, MixedDevices, pretending
from torch import Tensor, nn
from torch.amp import GradScaler as Scaler
from training import stop_at, train, training_in

from pipeline.core.dataset import Prepared, load_prepared
from pipeline.core.params import TrainParams
from pipeline.core.params_file import apply_overrides, apply_recipe, parse_params
from pipeline.evaluate import stage
from pipeline.models import devices, model
from pipeline.models.predict import predict
from pipeline.reporting import plots
from pipeline.tracking import evaluations
from pipeline.train import loop, losses, planning
from pipeline.train import trainer as trainers
from pipeline.train.augment import counter_rng, photometric
from pipeline.train.loader import Batch, Loader, build_loader
from pipeline.train.loop import Interrupted, Progress

CPU, PRETEND = torch.device("cpu"), torch.device("pretend:0")
COPIED = devices.get_constant.__wrapped__  # each time anew
UPDATES = 3
KERNELS = (
    "train.transforms.train=[{RandomAffine: {degrees: 20, translate: [0.1, 0.1]}}, {RandomCrop: {size: 16, padding: 2}}"
    ", RandomHorizontalFlip, {ColorJitter: {brightness: 0.3, contrast: 0.3}}, {RandomErasing: {p: 0.5}}]",
)
# Settings, and how many launches an update may take. The numbers may only fall.
SETTINGS: dict[str, tuple[tuple[str, ...], int]] = {
    "ema": (("train.optimizer=adamw", "train.backbone_args.drop_path_rate=0.2"), 191),
    "muon": (("train.optimizer=muon", "train.lr=0.02"), 417),
    "clipped": (("train.grad_clip_norm=0.1", "train.ema_decay=0.0"), 172),
    "mixup": (("train.mixing.mixup_alpha=0.4",), 192),
    "cutmix": (("train.mixing.cutmix_alpha=1.0",), 190),
    "soft labels and weights": ((), 180),
    "accumulated": (("train.accumulate=2", "train.layer_decay=0.8", "train.freeze=[stem]"), 323),
    "bf16": (("train.amp=bf16",), 210),
    "fp16 and clipped": (
        ("train.amp=fp16", "train.grad_clip_norm=1.0", "train.optimizer=momentum", "train.lr=2.0"),
        223,
    ),
    "progressive": (("train.progressive=[{from: 0.0, size: 12}]",), 184),
    "ensemble": (("train.backbone=ensemble", "train.backbone_args={of: face_resnet_s, members: 2}"), 346),
    "pinned": (KERNELS, 273),
    "kernels": (KERNELS, 273),
    "sampling": (("train.imbalance.method=sampling",), 183),
    "class weights": (("train.imbalance.method=weights", "train.optimizer=lamb"), 216),
    "adjusted logits": (("train.imbalance.method=logits", "train.optimizer=momentum"), 182),
}
RECIPE_BUDGET = 757  # of recipes/fer2013-cuda.yaml
VAL_BUDGET = 4  # waits a batch of val


@dataclass
class Update:
    """What an update did on the device."""

    launches: int
    waits: dict[str, int]
    seeds: list[int]


@pytest.fixture
def prepared(prepared_dir: Path) -> Prepared:
    """The tiny data set, opened."""
    return load_prepared(prepared_dir)


def settings_of(name: str) -> TrainParams:
    """The train section of one of the settings."""
    return params_with("train.optimizer=adamw", "train.lr=0.01", *SETTINGS[name][0]).train


def train_updates(
    device: torch.device, params: TrainParams, prepared: Prepared, soft: bool = False
) -> tuple[list[float], list[Update]]:
    """The sums of losses after each of the first updates of train's loop, and what each update did."""
    spec, _ = planning.plan(params, prepared.class_names, prepared.img_size, prepared.channels)
    trainer = trainers.build_trainer(params, prepared, spec, device)
    split = prepared.split("train")
    if soft:
        rng = np.random.default_rng(0)
        answers = rng.dirichlet(np.ones(3), len(split)).astype(np.float32)
        split = replace(split, soft=answers, weights=rng.uniform(size=len(split)).astype(np.float32))
    loader, progress = build_loader(split, params, device), Progress()
    sums: list[Any] = []
    done: list[Update] = []

    def after_step() -> None:
        sums.append(progress.loss_sum)
        done.append(Update(LEDGER.launches.total(), dict(LEDGER.waits), list(LEDGER.seeds)))
        LEDGER.clear()
        if len(done) == UPDATES:
            raise Interrupted

    LEDGER.clear()
    with pytest.raises(Interrupted):
        loop.train_one_epoch(trainer, loader, progress, after_step)
    return [float(total) for total in sums], done


def check(name: str, prepared: Prepared, mistake: Callable[[pytest.MonkeyPatch], None] | None = None) -> None:
    """Hold the updates of a setting against float32 on the CPU, and against what they may do on the device."""
    params, soft = settings_of(name), name.startswith("soft")
    expected, _ = train_updates(CPU, params.model_copy(update={"amp": "none"}), prepared, soft)
    with pytest.MonkeyPatch.context() as patch:
        if name == "pinned":
            patch.setattr("pipeline.train.loader.RESIDENT_PART", 0.0)
        if mistake:
            mistake(patch)
        with pretending():
            found, done = train_updates(devices.resolve_device("pretend"), params, prepared, soft)
    assert found == pytest.approx(expected, rel=1e-6 if params.amp == "none" else 5e-3), "losses"
    for update in done[1:]:  # constants are copied in the first
        assert update.waits == {}
        assert len(update.seeds) == 1, "seeds"
        assert update.launches <= SETTINGS[name][1], "launches"
    assert len({update.seeds[0] for update in done}) == UPDATES, "seeds"


@pytest.mark.parametrize("name", SETTINGS)
def test_updates_wait_for_nothing_and_are_those_of_the_cpu(prepared: Prepared, name: str) -> None:
    check(name, prepared)


def test_updates_of_the_recipe_for_cuda_are_few_launches(tmp_path: Path) -> None:
    text = apply_recipe((ROOT / "recipes/fer2013-cuda.yaml").read_text(), "recipe")
    changes = ["train.batch_size=8", "train.compile=false"]  # launches do not depend on how many samples there are
    params = parse_params(apply_overrides(text, changes)).train
    prepared = load_prepared(write_prepared(tmp_path / "prepared", img_size=48))
    with pretending():
        _, done = train_updates(devices.resolve_device("pretend"), params, prepared)
    assert [update.waits for update in done[1:]] == [{}, {}]
    assert max(update.launches for update in done[1:]) <= RECIPE_BUDGET


@pytest.mark.parametrize("batch_size", [9, 27])
def test_scores_of_val_wait_a_few_times_a_batch(prepared: Prepared, batch_size: int) -> None:
    params = settings_of("bf16")
    spec, _ = planning.plan(params, prepared.class_names, prepared.img_size, prepared.channels)
    torch.manual_seed(0)
    net, images = model.build_model(spec).eval(), prepared.split("val").images
    expected = predict(model.Classifier(net, spec), images, batch_size)
    with pretending() as ledger:
        device = devices.resolve_device("pretend")
        classifier = model.Classifier(net.to(device), spec)
        ledger.clear()
        np.testing.assert_allclose(predict(classifier, images, batch_size, device), expected, rtol=1e-6)
        assert ledger.waits.total() <= VAL_BUDGET * len(images) // batch_size


@pytest.fixture(scope="module")
def on_the_cpu(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> dict[str, str]:
    """Results of a training on the CPU that nothing disturbed."""
    root = make_project(tmp_path_factory.mktemp("cpu") / "project", empty_store)
    with training_in(root):
        train()
        return digest_results()


def digest_results() -> dict[str, str]:
    """Digests of weights and history."""
    names = ("weights.pt", "history.csv")
    return {name: hashlib.sha256(Path("models/train", name).read_bytes()).hexdigest() for name in names}


@pytest.mark.parametrize("first, then", [("pretend", "pretend"), ("pretend", "cpu"), ("cpu", "pretend")])
def test_a_training_goes_on_elsewhere(project: Path, on_the_cpu: dict[str, str], first: str, then: str) -> None:
    """To the weights of the CPU, bit for bit: here the device computes as it does."""
    for name, update in ((first, 6), (then, None)):
        with (
            training_in(project),
            pytest.MonkeyPatch.context() as patch,
            pretending() if name == "pretend" else contextlib.nullcontext(),
            pytest.raises(SystemExit) if update else contextlib.nullcontext(),
        ):
            train(f"train.device={name}", stop=stop_at(patch, update))
    with contextlib.chdir(project):
        assert digest_results() == on_the_cpu


def test_reports_are_those_of_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluations, "claim_run", lambda _: "run")
    monkeypatch.setattr(evaluations, "log_reports", lambda *_: None)
    monkeypatch.setattr(plots, "save", lambda _figure, path: path.write_bytes(b""))
    space, params = Workspace(), WHOLE.model_copy(update={"tta": ["flip"], "serve_tta": True})
    stage.evaluate(params, "cpu")
    expected = space.digests()
    with pretending():
        stage.evaluate(params, "pretend")
    assert {name: digest for name, digest in space.digests().items() if digest != expected[name]} == {}


@pytest.mark.parametrize("ema", ["0.9", "0.0"])
def test_graphs_do_not_grow_with_epochs(prepared: Prepared, monkeypatch: pytest.MonkeyPatch, ema: str) -> None:
    """Compiled are the net in training and, where there is no average, for whole and last batches of val."""
    graphs: list[object] = []
    compile_net = torch.compile

    def backend(graph: torch.fx.GraphModule, _inputs: object) -> Callable:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(devices, "check_compiler", lambda _: None)
    monkeypatch.setattr(torch, "compile", lambda net, **named: compile_net(net, backend=backend, **named))
    torch.compiler.reset()
    params = params_with("train.compile=true", f"train.ema_decay={ema}", "train.optimizer=momentum").train
    spec, _ = planning.plan(params, prepared.class_names, prepared.img_size, prepared.channels)
    trainer = trainers.build_trainer(params, prepared, spec, CPU)
    trainers.wrap(trainer)
    loader = build_loader(prepared.split("train"), params, CPU)
    for epoch in range(3):
        loop.train_one_epoch(trainer, loader, Progress(epoch=epoch), lambda: None)
        loop.evaluate(model.Classifier(trainer.candidate, spec), prepared.split("val"), trainer)
    assert len(graphs) <= (1 if ema != "0.0" else 3)


def after(owner: object, name: str, action: Callable[..., Any]) -> Callable[[pytest.MonkeyPatch], None]:
    """A mistake: what a function gave goes through ``action``, before its arguments."""

    def patch_in(patch: pytest.MonkeyPatch) -> None:
        inner = getattr(owner, name)

        def changed(*args: Any, **named: Any) -> Any:
            out = inner(*args, **named)
            given = action(out, *args)
            return out if given is None else given

        patch.setattr(owner, name, changed)

    return patch_in


def instead(owner: object, name: str, other: Any) -> Callable[[pytest.MonkeyPatch], None]:
    """A mistake: something else in a function's place."""
    return lambda patch: patch.setattr(owner, name, other)


class HostTorch:
    """torch, whose ``arange`` forgets the device."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def arange(self, *args: Any, **_: Any) -> Tensor:
        return torch.arange(*args)


def leave_on_host(name: str) -> Callable[..., None]:
    """Bring a loader's tensor back."""
    return lambda _out, loader, *_: setattr(loader, name, getattr(loader, name).cpu())


def copy_images_blocking(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies numbers as they should be."""
    return tensor.pin_memory().to(device, non_blocking=tensor.dtype != torch.uint8)


def average_on_host(net: nn.Module, **named: Any) -> nn.Module:
    """An average of weights that is kept on the CPU."""
    return timm.utils.ModelEmaV3(net, device=CPU, **named)


def seed_host(seed: int, _device: torch.device) -> None:
    """Seeds the CPU's generator alone."""
    torch.default_generator.manual_seed(seed)


def nothing_if_black(images: Tensor, *_: object) -> Tensor | None:
    """Asks the device whether there is anything to see."""
    return images if (images > 0).any() else None


def count_by_mask(out: tuple[Tensor, Tensor], _trainer: object, batch: Batch, *_: object) -> tuple[Tensor, Tensor]:
    """The right answers of an update, picked by a tensor of truth values."""
    return out[0], batch.targets[batch.targets > 0].sum()


UPDATE, FEED = (loop, "update"), (devices, "copy_to")
# The setting, the mistake, and what tells of it.
MISTAKES: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None], str]] = {
    "the loss is read in the loop": ("ema", after(*UPDATE, lambda out, *_: (float(out[0]), out[1])), "scalar"),
    "the loop waits for the device": ("ema", after(*UPDATE, lambda *_: devices.synchronize(PRETEND)), "synchronize"),
    "a launch is in vain": ("ema", after(*UPDATE, lambda out, *_: (out[0] + 0, out[1])), "launches"),
    "answers are picked by truth values": ("ema", after(*UPDATE, count_by_mask), "truth values"),
    "targets stay on the host": ("ema", after(Loader, "__init__", leave_on_host("targets")), "MixedDevices"),
    "resident images are not moved": ("ema", after(Loader, "__init__", leave_on_host("images")), "MixedDevices"),
    "numbers are copied blocking": ("ema", instead(*FEED, lambda values, to: values.pin_memory().to(to)), "blocking"),
    "numbers are not pinned": ("ema", instead(*FEED, lambda values, to: values.to(to, non_blocking=True)), "pageable"),
    "pinned images are copied blocking": ("pinned", instead(*FEED, copy_images_blocking), "blocking copy"),
    "mixed classes are on the host": ("mixup", instead(losses, "torch", HostTorch()), "MixedDevices"),
    "constants are copied each time": ("kernels", instead(counter_rng, "get_constant", COPIED), "blocking copy"),
    "erasing asks its images": ("kernels", after(photometric.Erasing, "apply", nothing_if_black), "scalar"),
    "only the host draws anew": ("ema", instead(devices, "seed_draws", seed_host), "seeds"),
    "the average is on the host": ("ema", instead(trainers, "ModelEmaV3", average_on_host), "copy to the host"),
    "class weights are not moved": ("class weights", instead(losses.TrainingLoss, "to", lambda net, _: net), "Mixed"),
    "a device has no number": ("ema", instead(devices, "resolve_device", lambda _: torch.device("pretend")), "Type"),
    "scaled gradients are clipped": ("fp16 and clipped", instead(Scaler, "unscale_", lambda *_: None), "losses"),
    "gradients add up": ("ema", instead(torch.optim.Optimizer, "zero_grad", lambda *_, **__: None), "losses"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_injected_mistakes_are_caught(prepared: Prepared, name: str) -> None:
    setting, mistake, sign = MISTAKES[name]
    with pytest.raises((AssertionError, MixedDevices, TypeError)) as caught:
        check(setting, prepared, mistake)
    assert sign in f"{caught.typename}: {caught.value}"
