"""The way to an accelerator, on a device that pretends to be one: no devices mixed, no waits, few launches.

``test_injected_mistakes_are_caught`` shows what these tests would find.
"""

import contextlib
import copy
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm.utils
import torch
from builders import ROOT, make_project, params_with, write_arrays
from evaluation import WHOLE, Workspace
from pretend import FREE, LEDGER, MixedDevices, pretending
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.amp import GradScaler as Scaler
from torch.utils._python_dispatch import TorchDispatchMode
from training import stop_at, train, training_in

from pipeline.core.dataset import Prepared, load_prepared
from pipeline.core.params import TrainParams
from pipeline.core.params_file import apply_overrides, apply_recipe, parse_params
from pipeline.evaluate import stage
from pipeline.models import devices, model, transforms
from pipeline.models import predict as predicting
from pipeline.models.predict import predict
from pipeline.reporting import plots
from pipeline.tracking import evaluations
from pipeline.train import loader as trainloader
from pipeline.train import loop, losses, muon, planning
from pipeline.train import trainer as trainers
from pipeline.train.augment import counter_rng, photometric
from pipeline.train.augment.batched import Augmentation
from pipeline.train.average import Average
from pipeline.train.loader import Batch, Loader, build_loader, place_images
from pipeline.train.loop import Interrupted, Progress

pytestmark = pytest.mark.usefixtures("bf16_instructions")  # as the device that pretends

CPU, PRETEND = torch.device("cpu"), torch.device("pretend:0")
COPIED = devices.get_constant.__wrapped__  # each time anew
UPDATES = 3
PLAN, RUN, COPY = Augmentation.plan, Augmentation.run, devices.copy_to
KERNELS = (
    "train.transforms.train=[{RandomAffine: {degrees: 20, translate: [0.1, 0.1]}}, {RandomCrop: {size: 16, padding: 2}}"
    ", RandomHorizontalFlip, {ColorJitter: {brightness: 0.3, contrast: 0.3}}, {RandomErasing: {p: 0.5}}]",
)
# Settings, how many launches an update may take, and how many more the first of an epoch. The numbers may only fall.
SETTINGS: dict[str, tuple[tuple[str, ...], int, int]] = {
    "ema": (("train.optimizer=adamw", "train.backbone_args.drop_path_rate=0.2"), 148, 31),
    "muon": (("train.optimizer=muon", "train.lr=0.02"), 201, 31),
    "clipped": (("train.grad_clip_norm=0.1", "train.ema_decay=0.0"), 139, 31),
    "mixup": (("train.mixing.mixup_alpha=0.4",), 149, 31),
    "cutmix": (("train.mixing.cutmix_alpha=1.0",), 147, 31),
    "soft labels and weights": ((), 135, 33),
    "accumulated": (("train.accumulate=2", "train.layer_decay=0.8", "train.freeze=[stem]"), 280, 31),
    "bf16": (("train.amp=bf16",), 167, 31),
    "fp16 and clipped": (
        ("train.amp=fp16", "train.grad_clip_norm=1.0", "train.optimizer=momentum", "train.lr=2.0"),
        176,
        31,
    ),
    "progressive": (("train.progressive=[{from: 0.0, size: 12}]",), 141, 31),
    "ensemble": (("train.backbone=ensemble", "train.backbone_args={of: face_resnet_s, members: 2}"), 287, 31),
    "peers": (
        ("train.backbone=ensemble", "train.backbone_args={of: face_resnet_s, members: 2}", "train.distill.from=peers"),
        308,
        31,
    ),
    "pinned": (KERNELS, 163, 98),
    "kernels": (KERNELS, 163, 98),
    "sampling": (("train.imbalance.method=sampling",), 140, 31),
    "class weights": (("train.imbalance.method=weights", "train.optimizer=lamb"), 173, 31),
    "adjusted logits": (("train.imbalance.method=logits", "train.optimizer=momentum"), 139, 31),
}
RECIPE_BUDGET, EPOCH_BUDGET = 491, 100  # of recipes/fer2013-cuda.yaml
OUTSIDE_BUDGET = 36  # of the same, compiled, outside of graphs


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
) -> tuple[list[float], dict[str, np.ndarray], list[Update]]:
    """Train's first updates, the last of them in a second epoch.

    Returns the sums of losses after each, what would be kept of the net, and what each update did.
    """
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
        if len(done) >= UPDATES - 1:
            raise Interrupted

    LEDGER.clear()
    for _ in range(2):
        with pytest.raises(Interrupted):
            loop.train_one_epoch(trainer, loader, progress, after_step)
        progress.begin_next_epoch()
    kept = {name: value.cpu().numpy() for name, value in trainer.candidate.state_dict().items()}
    return [float(total) for total in sums], kept, done


def check(name: str, prepared: Prepared, mistake: Callable[[pytest.MonkeyPatch], None] | None = None) -> None:
    """Hold the updates of a setting against float32 on the CPU, and against what they may do on the device."""
    params, soft = settings_of(name), name.startswith("soft")
    losses, weights, _ = train_updates(CPU, params.model_copy(update={"amp": "none"}), prepared, soft)
    with pytest.MonkeyPatch.context() as patch:
        if name == "pinned":
            patch.setattr("pipeline.train.loader.RESIDENT_PART", 0.0)
        if mistake:
            mistake(patch)
        with pretending():
            found, kept, done = train_updates(devices.resolve_device("pretend"), params, prepared, soft)
    assert found == pytest.approx(losses, rel=1e-6 if params.amp == "none" else 5e-3), "losses"
    close = 1e-6 if params.amp == "none" else 0.05
    wrong = [name for name, value in weights.items() if not np.allclose(kept[name], value, atol=close)]
    assert wrong == [], "weights"
    for update in done[1:]:  # constants are copied in the first
        assert update.waits == {}
        assert len(update.seeds) == 1, "seeds"
    assert len({update.seeds[0] for update in done}) == UPDATES, "seeds"
    assert done[-2].launches <= SETTINGS[name][1], "launches"
    assert done[-1].launches - done[-2].launches <= SETTINGS[name][2], "launches of an epoch"


@pytest.mark.parametrize("name", SETTINGS)
def test_updates_wait_for_nothing_and_are_those_of_the_cpu(prepared: Prepared, name: str) -> None:
    check(name, prepared)


def recipe_for_cuda(folder: Path, *changes: str) -> tuple[TrainParams, Prepared]:
    """The recipe, a quarter as wide and in small batches, on which no count depends, and pictures as it trains on."""
    text = apply_recipe((ROOT / "recipes/fer2013-cuda.yaml").read_text(), "recipe")
    small = ("train.batch_size=8", "train.backbone_args.widths=[16, 32, 64]")
    params = parse_params(apply_overrides(text, [*changes, *small])).train
    rng = np.random.default_rng(0)
    splits = {
        name: (rng.integers(0, 256, (count, 48, 48, 1), dtype=np.uint8), np.arange(count) % 7)
        for name, count in (("train", 28), ("val", 21), ("test", 7))
    }
    return params, load_prepared(write_arrays(folder / "prepared", splits, [*"abcdefg"]))


def test_updates_of_the_recipe_for_cuda_are_few_launches(tmp_path: Path) -> None:
    params, prepared = recipe_for_cuda(tmp_path, "train.compile=none")
    with pretending():
        *_, done = train_updates(devices.resolve_device("pretend"), params, prepared)
    assert [update.waits for update in done[1:]] == [{}, {}]
    assert done[1].launches <= RECIPE_BUDGET
    assert done[2].launches - done[1].launches <= EPOCH_BUDGET


def check_val(
    prepared: Prepared, batch_size: int, resident: bool, mistake: Callable[[pytest.MonkeyPatch], None] | None = None
) -> None:
    """Hold the answers for val against the CPU's; they are waited for once, wherever the images lie."""
    params = settings_of("bf16")
    spec, _ = planning.plan(params, prepared.class_names, prepared.img_size, prepared.channels)
    torch.manual_seed(0)
    net, images = model.build_model(spec).eval(), prepared.split("val").images
    expected = predict(model.Classifier(net, spec), images, batch_size)
    with pytest.MonkeyPatch.context() as patch, pretending() as ledger:
        patch.setattr(trainloader, "RESIDENT_PART", 0.5 if resident else 0.0)
        if mistake:
            mistake(patch)
        device = devices.resolve_device("pretend")
        classifier, (placed, there) = model.Classifier(net.to(device), spec), place_images(images, device)
        assert there == resident
        for share in (placed, images):
            ledger.clear()
            np.testing.assert_allclose(predict(classifier, share, batch_size, device), expected, rtol=1e-6)
            assert ledger.waits.total() == 1, dict(ledger.waits)


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("batch_size", [9, 27])
def test_scores_of_val_wait_once(prepared: Prepared, batch_size: int, resident: bool) -> None:
    check_val(prepared, batch_size, resident)


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


class Outside(TorchDispatchMode):
    """Counts ops but views, and those within compiled graphs; ``graphs`` are these."""

    def __init__(self) -> None:
        super().__init__()
        self.graphs: list[torch.fx.GraphModule] = []
        self.count, self.inside = 0, False

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, name = func._schema.name.split("::")
        self.count += not self.inside and namespace == "aten" and name not in FREE
        return func(*args, **(kwargs or {}))

    def take(self, graph: torch.fx.GraphModule, _inputs: object) -> Callable[..., Any]:
        """A compiler for AOTAutograd, which runs graphs of forward and of backward passes as they are."""
        self.graphs.append(graph)

        def run(args: Any) -> Any:
            self.inside = True
            try:
                return torch.fx.Interpreter(graph).boxed_run(args)
            finally:
                self.inside = False

        run._boxed_call = True  # type: ignore[attr-defined]
        return run


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[Outside]:
    """In place of Inductor: no compiler is needed. Lists of tensors are one op, as they are not on the CPU."""
    counter, compile_it = Outside(), torch.compile
    backend = aot_autograd(fw_compiler=counter.take, bw_compiler=counter.take, keep_inference_input_mutations=True)
    monkeypatch.setattr(devices, "check_compiler", lambda _: None)
    monkeypatch.setattr("timm.optim._helpers._default_to_fused_or_foreach", lambda *_, **__: (False, True))
    monkeypatch.setattr(torch, "compile", lambda what, **named: compile_it(what, backend=backend, **named))
    torch.compiler.reset()
    yield counter
    torch.compiler.reset()


SMALL = ("train.backbone=face_resnet_s", "train.backbone_args={}")


@pytest.mark.parametrize(
    "changes, epochs, graphs, most",
    [
        ((), 2, 6, OUTSIDE_BUDGET),
        pytest.param((*SMALL, "train.ema_decay=0.0"), 10, 8, 35, marks=pytest.mark.slow),
        pytest.param((*SMALL, "train.layer_decay=0.8"), 2, 6, 90, marks=pytest.mark.slow),
        ((*SMALL, "train.optimizer=momentum"), 2, 5, 20),
    ],
    ids=["recipe", "no average", "many rates", "another optimizer"],
)
def test_a_compiled_update_is_few_graphs_and_little_besides(
    tmp_path: Path, outside: Outside, changes: tuple[str, ...], epochs: int, graphs: int, most: int
) -> None:
    """For all epochs: augmentation, the passes of net and loss, Muon, and of val whole and last batches, if scored."""
    launches = run_compiled(outside, *recipe_for_cuda(tmp_path, *changes), epochs)
    assert len(outside.graphs) == graphs
    assert max(launches) <= most


def run_compiled(outside: Outside, params: TrainParams, prepared: Prepared, epochs: int) -> list[int]:
    """What is launched outside of graphs in updates but the first of an epoch; torch compiles a function 8 times."""
    spec, _ = planning.plan(params, prepared.class_names, prepared.img_size, prepared.channels)
    trainer = trainers.build_trainer(params, prepared, spec, CPU)
    trainers.wrap(trainer)
    loader, classifier = build_loader(prepared.split("train"), params, CPU), model.Classifier(trainer.candidate, spec)
    counts: list[int] = []

    def after_step() -> None:
        counts.append(outside.count)
        outside.count = 0

    for epoch in range(epochs):
        with outside:
            loop.train_one_epoch(trainer, loader, Progress(epoch=epoch), after_step)
        loop.evaluate(classifier, prepared.split("val"), trainer)
    return counts[4::3]


def rates_as_numbers(tensor: Tensor, _device: torch.device) -> Any:
    """Hands Muon its rates as floats, which a graph takes for constants."""
    return SimpleNamespace(unbind=lambda: [tuple(pair) for pair in tensor.tolist()])


def epoch_in_graph(augmentation: Augmentation, images: Tensor, plan: Any) -> Tensor:
    """Has the compiled part of augmentation know which epoch it is."""
    return RUN(augmentation, images, plan) + 0 * augmentation.epoch


def note_epoch(_plan: object, augmentation: Augmentation, _numbers: Tensor, epoch: int) -> None:
    """Tells ``epoch_in_graph``."""
    augmentation.epoch = epoch


@pytest.mark.slow
@pytest.mark.parametrize("mistake", ["rates", "epochs"])
def test_graphs_that_grow_are_caught(
    tmp_path: Path, outside: Outside, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    if mistake == "rates":
        monkeypatch.setattr(devices, "copy_to", rates_as_numbers)
        monkeypatch.setattr(trainloader, "devices", SimpleNamespace(copy_to=COPY, has_room=devices.has_room))
    else:
        after(Augmentation, "plan", note_epoch)(monkeypatch)
        monkeypatch.setattr(Augmentation, "run", epoch_in_graph)
    run_compiled(outside, *recipe_for_cuda(tmp_path, *SMALL), 2)
    assert len(outside.graphs) > 6


@pytest.mark.usefixtures("outside")
def test_a_compiled_training_goes_on_to_the_same_weights(tmp_path: Path, empty_store: Path) -> None:
    """Graphs that are run op by op give what no graphs give, before and after a stop."""
    found = []
    for compiled, update in (("none", None), ("default", 5)):
        with training_in(make_project(tmp_path / compiled, empty_store)), pytest.MonkeyPatch.context() as patch:
            settings = ("train.optimizer=muon", "train.lr=0.02", f"train.compile={compiled}")
            if update:
                with pytest.raises(SystemExit):
                    train(*settings, stop=stop_at(patch, update))
                torch.compiler.reset()
            train(*settings)
            found.append(pd.read_csv("models/train/history.csv"))
    pd.testing.assert_frame_equal(*found, rtol=1e-4, atol=1e-5)


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


def average_on_host(net: nn.Module, decay: float) -> nn.Module:
    """An average of weights that is kept on the CPU."""
    return timm.utils.ModelEmaV3(net, device=CPU, decay=decay, use_warmup=True)


def average_of_a_copy(net: nn.Module, decay: float) -> nn.Module:
    """An average whose lists are of tensors that nobody trains."""
    return Average(copy.deepcopy(net), decay)


def average_with_counts(_out: None, average: Average, *_: object) -> None:
    """Gives an average counts of its own again."""
    for buffer in [name for name, _ in average.module.named_buffers() if name.endswith("num_batches_tracked")]:
        owner, _, name = buffer.rpartition(".")
        setattr(average.module.get_submodule(owner), name, torch.zeros((), dtype=torch.int64))


def turn_plan(plan: list[dict[str, Tensor]], *_: object) -> list[dict[str, Tensor]]:
    """Gives each sample the next one's draws."""
    return [{name: values.roll(1, 0) for name, values in step.items()} for step in plan]


def plan_of_first_epoch(augmentation: Augmentation, numbers: Tensor, _epoch: int) -> list[dict[str, Tensor]]:
    """Makes the draws once and for all."""
    return PLAN(augmentation, numbers, 0)


def swap_rows(moves: list[Tensor], *_: object) -> list[Tensor]:
    """Hands Muon's moves to other weights of that shape."""
    return moves[::-1]


def answer_at_once(probs: Tensor, *_: object) -> Tensor:
    """Brings a batch's answers to the host."""
    return probs.cpu()


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
    "erasing asks its images": ("kernels", after(photometric.Erasing, "run", nothing_if_black), "scalar"),
    "only the host draws anew": ("ema", instead(devices, "seed_draws", seed_host), "seeds"),
    "the average is on the host": ("ema", instead(trainers, "Average", average_on_host), "copy to the host"),
    "the average follows a copy": ("ema", instead(trainers, "Average", average_of_a_copy), "weights"),
    "the average counts for itself": ("ema", after(Average, "__init__", average_with_counts), "num_batches_tracked"),
    "a sample has another's draws": ("kernels", after(Augmentation, "plan", turn_plan), "losses"),
    "draws are made once for all epochs": ("kernels", instead(Augmentation, "plan", plan_of_first_epoch), "losses"),
    "draws are made for each batch": ("kernels", instead(trainloader, "AHEAD", 1), "launches"),
    "weights get each other's moves": ("muon", after(muon, "_orthogonalize", swap_rows), "losses"),
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


VAL_MISTAKES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "statistics are copied for each batch": instead(transforms, "Normalize", lambda module: module),
    "answers are read batch by batch": after(model.Classifier, "forward", answer_at_once),
    "images are copied blocking": instead(predicting, "copy_to", lambda values, to: values.to(to)),
    "images are copied from pageable memory": instead(
        predicting, "copy_to", lambda values, to: values.to(to, non_blocking=True)
    ),
}


@pytest.mark.parametrize("name", VAL_MISTAKES)
def test_mistakes_injected_into_val_are_caught(prepared: Prepared, name: str) -> None:
    with pytest.raises((AssertionError, MixedDevices)):
        check_val(prepared, 9, False, VAL_MISTAKES[name])
