"""On an accelerator itself: nothing is waited for, and its numbers, its weights after a stop and its graphs are right.

``make test-gpu`` runs these where ``HYOJO_DEVICE`` says, such as ``cpu``, which shows only that they run.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import params_with

from pipeline.core.dataset import Prepared, load_prepared
from pipeline.core.errors import UserError
from pipeline.models import devices, model
from pipeline.models.predict import predict
from pipeline.train import job, loop, planning
from pipeline.train.loader import build_loader, place_images
from pipeline.train.loop import Interrupted, Progress
from pipeline.train.trainer import Trainer, build_trainer, wrap

pytestmark = pytest.mark.gpu
CPU = torch.device("cpu")
MUON = ("train.optimizer=muon", "train.lr=0.02", "train.ema_decay=0.9")
SETTINGS = {
    "adamw": ("train.optimizer=adamw", "train.lr=0.003", "train.ema_decay=0.9"),
    "muon in bf16": (*MUON, "train.amp=bf16"),
    "fp16 and clipped": ("train.optimizer=adamw", "train.lr=0.003", "train.amp=fp16", "train.grad_clip_norm=1.0"),
    "mixed": (*MUON, "train.mixing.mixup_alpha=0.4", "train.mixing.cutmix_alpha=1.0"),
    "kernels": (
        *MUON,
        "train.transforms.train=[{RandomAffine: {degrees: 20, translate: [0.1, 0.1]}}, {RandomCrop: {size: 16, "
        "padding: 2}}, RandomHorizontalFlip, {ColorJitter: {brightness: 0.3}}, {RandomErasing: {p: 0.5}}]",
    ),
    "accumulated": (*MUON, "train.accumulate=2"),
}


@pytest.fixture(scope="module")
def device() -> torch.device:
    """The device to look at."""
    return devices.resolve_device(os.environ.get("HYOJO_DEVICE", "auto"))


@pytest.fixture
def prepared(prepared_dir: Path) -> Prepared:
    """The tiny data set, opened."""
    return load_prepared(prepared_dir)


@pytest.fixture
def _deterministic(device: torch.device) -> Iterator[None]:
    devices.set_determinism(True, device)
    yield
    torch.use_deterministic_algorithms(False)


def build(prepared: Prepared, device: torch.device, *changes: str) -> tuple[Trainer, model.ModelSpec]:
    """A trainer as the train stage has it."""
    params = params_with("train.batch_size=8", *changes).train
    spec, _ = planning.plan(params, prepared.class_names, prepared.img_size, prepared.channels)
    trainer = build_trainer(params, prepared, spec, device)
    wrap(trainer)
    return trainer, spec


def train(trainer: Trainer, prepared: Prepared, progress: Progress, updates: int, *, watched: bool = False) -> float:
    """So many updates of an epoch, the first of which may wait for the device; the sum of the losses."""
    loader, begun = build_loader(prepared.split("train"), trainer.params, trainer.device), progress.step

    with ExitStack() as stack, suppress(Interrupted):

        def after_step() -> None:
            if watched and progress.step == begun + 1:
                stack.enter_context(devices.watch_waits(trainer.device))
            if progress.step == begun + updates:
                raise Interrupted

        loop.train_one_epoch(trainer, loader, progress, after_step)
    return float(progress.loss_sum)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """What would be kept."""
    return {name: value.detach().cpu().clone() for name, value in trainer.candidate.state_dict().items()}


@pytest.mark.parametrize("part", [0.5, 0.0], ids=["resident", "pinned"])
@pytest.mark.parametrize("name", SETTINGS)
def test_updates_wait_for_nothing(
    prepared: Prepared, device: torch.device, monkeypatch: pytest.MonkeyPatch, name: str, part: float
) -> None:
    monkeypatch.setattr("pipeline.train.loader.RESIDENT_PART", part)
    trainer, _ = build(prepared, device, *SETTINGS[name])
    assert np.isfinite(train(trainer, prepared, Progress(), 5, watched=True))
    with devices.watch_waits(device, "warn"):  # an epoch's first update, of draws and copies: told, if it waits
        train(trainer, prepared, Progress(epoch=1), 1)


@pytest.mark.parametrize("name", SETTINGS)
def test_losses_are_those_of_the_cpu(prepared: Prepared, device: torch.device, name: str) -> None:
    exact = [change for change in SETTINGS[name] if "train.amp" not in change]
    expected = train(build(prepared, CPU, *exact)[0], prepared, Progress(), 4)
    trainer, _ = build(prepared, device, "train.tf32=false", *SETTINGS[name])
    rough = trainer.params.amp != "none" or trainer.params.optimizer == "muon"  # which orthogonalizes in bf16
    assert train(trainer, prepared, Progress(), 4) == pytest.approx(expected, rel=0.03 if rough else 1e-3)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_epochs_are_those_of_the_cpu(prepared: Prepared, device: torch.device, mode: str) -> None:
    try:
        devices.check_compiler(device)
    except UserError as reason:
        pytest.skip(str(reason))
    torch.compiler.reset()
    found = []
    for place, changes in ((CPU, ()), (device, ("train.amp=bf16", f"train.compile={mode}"))):
        trainer, spec = build(prepared, place, *SETTINGS["kernels"], *changes)
        sums = [train(trainer, prepared, Progress(epoch=epoch), 9) for epoch in range(2)]
        scores = loop.evaluate(model.Classifier(trainer.candidate, spec), prepared.split("val"), trainer)
        found.append([*sums, scores["loss"]])
    assert found[1] == pytest.approx(found[0], rel=0.06)


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize("name", ["muon in bf16", "fp16 and clipped", "kernels"])
def test_a_stop_changes_no_weight(prepared: Prepared, device: torch.device, tmp_path: Path, name: str) -> None:
    """Nor does training twice, where all is deterministic."""
    found = []
    for stops in ((6,), (6,), (2, 4)):
        folder = tmp_path / str(len(found))
        for updates in stops:
            trainer, spec = build(prepared, device, *SETTINGS[name])
            own = job.Job(params_with(), prepared, spec, "key", folder)
            session = job.resume(own, trainer)
            train(trainer, prepared, session.progress, updates)
            job.save(own, trainer, session)
        found.append(weights(trainer))
    for other in found[1:]:
        assert [key for key, value in found[0].items() if not torch.equal(value, other[key])] == []


def test_scores_of_val_wait_once(prepared: Prepared, device: torch.device) -> None:
    trainer, spec = build(prepared, device, *MUON)
    images, classifier = prepared.split("val").images, model.Classifier(trainer.candidate, spec).eval()
    share, _ = place_images(images, device)
    predict(classifier, share, 9, device)
    with warnings.catch_warnings(record=True) as told, devices.watch_waits(device, "warn"):
        warnings.simplefilter("always")
        found = predict(classifier, share, 9, device)
    assert len([one for one in told if "synchronizing" in str(one.message)]) == devices.is_accelerator(device)
    np.testing.assert_allclose(found, predict(classifier.cpu(), images, 9), atol=1e-4)
