"""Distillation: a teacher answers the very views that are learnt from, whatever it was trained with; peers likewise."""

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import make_project, params_with, scramble
from scipy.special import log_softmax
from scipy.stats import entropy
from training import find_runs, hasten_training, train, training_in

from pipeline.core.dataset import Prepared, load_prepared
from pipeline.core.errors import UserError
from pipeline.core.params import Distill
from pipeline.models.model import Classifier, ModelSpec, build_model
from pipeline.models.weights import save_weights
from pipeline.train import distill, loop, planning
from pipeline.train.loader import Batch
from pipeline.train.losses import TrainingLoss
from pipeline.train.trainer import Trainer, build_trainer

CPU = torch.device("cpu")
PEERS = (
    "train.backbone=ensemble", "train.backbone_args.of=face_resnet_s", "train.backbone_args.members=3",
    "train.distill.from=peers",
)  # fmt: skip


@pytest.fixture
def prepared(prepared_dir: Path) -> Prepared:
    """The tiny data set, opened."""
    return load_prepared(prepared_dir)


def write_teacher(folder: Path, prepared: Prepared, *overrides: str, names: list[str] | None = None) -> list[str]:
    """Write a net that train could have made; returns the overrides that name it as the teacher."""
    params = params_with(*overrides).train
    spec, _ = planning.plan(params, names or prepared.class_names, prepared.img_size, prepared.channels)
    net = build_model(spec)
    net.load_state_dict(scramble(net.state_dict()))
    folder.mkdir()
    digest = save_weights(folder, net, spec, prepared.digest, kept_epoch=1, params={})
    return [f"train.distill.from={folder}", f"train.distill.sha256={digest}"]


def build(prepared: Prepared, *overrides: str) -> tuple[Trainer, ModelSpec]:
    params = params_with(*overrides).train
    spec, _ = planning.plan(params, prepared.class_names, prepared.img_size, prepared.channels)
    return build_trainer(params, prepared, spec, CPU), spec


def first_batch(trainer: Trainer, prepared: Prepared) -> Batch:
    split, indices = prepared.split("train"), torch.arange(16)
    images, targets = (torch.from_numpy(np.array(part[:16])) for part in (split.images, split.targets))
    return Batch(images, targets.long(), indices, plan=trainer.augmentation.plan(indices, 0))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_distance_is_scipy_s_divergence(temperature: float) -> None:
    ours, theirs = np.random.default_rng(0).normal(size=(2, 12, 3)) * 2
    found = distill.match(torch.tensor(ours), torch.tensor(theirs), temperature)
    p, q = (np.exp(log_softmax(each / temperature, axis=1)) for each in (theirs, ours))
    np.testing.assert_allclose(found, temperature**2 * entropy(p, q, axis=1), rtol=1e-5)
    assert distill.match(torch.tensor(ours), torch.tensor(ours), temperature).abs().max() < 1e-6


def test_peers_learn_from_the_mean_of_the_others_and_from_the_labels() -> None:
    """Each member's gradient is that of its own loss, where the others' answers are given."""
    params = Distill.model_validate({"from": "peers", "sha256": None, "weight": 0.25, "temperature": 2.0})
    criterion = TrainingLoss(np.array([5, 4, 3]), 0.1, params_with().train.imbalance, params)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 12, 3, generator=generator, requires_grad=True)
    targets, weights = torch.arange(12) % 3, torch.rand(12, generator=generator)
    criterion(logits.flatten(0, 1), targets, weights).backward()
    for number, own in enumerate(logits.detach().clone().requires_grad_()):
        others = torch.stack([logits[other].detach() for other in range(3) if other != number]).mean(0)
        own = own.detach().requires_grad_()
        labels = torch.nn.functional.cross_entropy(own, targets, reduction="none", label_smoothing=0.1)
        told = (
            torch.nn.functional.kl_div((own / 2).log_softmax(1), (others / 2).softmax(1), reduction="none").sum(1) * 4
        )
        ((0.75 * labels + 0.25 * told) * weights).mean().div(3).backward()
        torch.testing.assert_close(logits.grad[number], own.grad)


def test_the_teacher_sees_the_views_as_it_was_trained_to(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, though the net learns from smaller ones; in colours and statistics of its own, and its classes sorted."""
    colours = "[{Grayscale: {num_output_channels: 3}}, {Resize: {size: [24, 24]}}]"
    other = (
        "train.backbone=resnet10t", "train.backbone_args={}", "train.stem=adapt", f"train.transforms.eval={colours}",
        f"train.transforms.train={colours}",
    )  # fmt: skip
    named = write_teacher(tmp_path / "teacher", prepared, *other, names=["sad", "angry", "happy"])
    trainer, spec = build(
        prepared, *named, "train.distill.weight=1", "train.transforms.train=[]",
        "train.progressive=[{from: 0.0, size: 8}, {from: 0.5, size: null}]",
    )  # fmt: skip
    batch, seen = first_batch(trainer, prepared), []
    monkeypatch.setattr(trainer.criterion, "forward", lambda logits, *given: seen.append(given) or logits.sum())
    loop.update(trainer, batch, 0, 0)
    net, sidecar = distill.load_model(tmp_path / "teacher")
    probs = Classifier(net, distill.read_spec(sidecar)).eval()(batch.images)
    torch.testing.assert_close(seen[0][2].softmax(1), probs[:, [1, 2, 0]], rtol=1e-4, atol=1e-5)
    assert spec.preprocessing["mean"] != sidecar.preprocessing["mean"]


def test_a_net_becomes_like_its_teacher_on_images_without_labels(prepared: Prepared, tmp_path: Path) -> None:
    named = write_teacher(tmp_path / "teacher", prepared)
    trainer, _ = build(prepared, *named, "train.distill.weight=1", "train.transforms.train=[]", "train.lr=0.05")
    batch = first_batch(trainer, prepared)
    losses = [float(loop.update(trainer, batch, 0, step)[0]) for step in range(30)]
    assert losses[-1] < losses[0] / 2
    before = {name: value.clone() for name, value in trainer.teacher.state_dict().items()}
    other, _ = build(prepared, *named, "train.distill.weight=1", "train.transforms.train=[]", "train.lr=0.05")
    batch = replace(batch, targets=(batch.targets + 1) % 3)
    assert [float(loop.update(other, batch, 0, step)[0]) for step in range(3)] == losses[:3]
    assert all(torch.equal(before[name], value) for name, value in other.teacher.state_dict().items())


def test_peers_all_see_every_sample(prepared: Prepared) -> None:
    trainer, _ = build(prepared, *PEERS, "train.accumulate=2")
    seen: list[list[torch.Tensor]] = [[], [], []]
    for own, member in zip(seen, trainer.model.members):
        member.register_forward_pre_hook(lambda _, given, own=own: own.append(given[0]))
    loss, right = loop.update(trainer, first_batch(trainer, prepared), 0, 0)
    assert [len(own) for own in seen] == [2, 2, 2]
    assert all(torch.equal(one, other) for own in seen[1:] for one, other in zip(seen[0], own))
    assert 0 < loss < 16 * 3
    assert right <= 16


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["train.distill.from=peers"], "peers are the members of an ensemble, and face_resnet_s has none"),
        (["train.distill.from=nowhere", f"train.distill.sha256={'a' * 64}"], "nowhere is no teacher. Give a folder"),
        (["train.distill.from=runs:/abc", f"train.distill.sha256={'a' * 64}"], "runs:/abc is no teacher"),
        (["train.distill.from=models:/hyojo/3", f"train.distill.sha256={'a' * 64}"], "models:/hyojo/3 is no teacher"),
        (["train.distill.from=nowhere"], "sha256 goes with a teacher"),
        ([f"train.distill.sha256={'a' * 64}"], "sha256 goes with a teacher"),
    ],
)
def test_what_cannot_teach_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], said: str
) -> None:
    hasten_training(monkeypatch)
    with pytest.raises(UserError, match=said):
        train(*overrides)
    assert not (project / "models").exists()
    assert not find_runs()


def test_another_teacher_than_was_meant_is_refused(prepared: Prepared, tmp_path: Path) -> None:
    named = write_teacher(tmp_path / "teacher", prepared)
    with pytest.raises(UserError, match=r"train\.distill\.sha256 is a+, but the weights of .* have"):
        build(prepared, named[0], f"train.distill.sha256={'a' * 64}")
    named = write_teacher(tmp_path / "other", prepared, names=["angry", "happy", "sleepy"])
    with pytest.raises(UserError, match="knows the classes angry, happy, sleepy, and the data has angry, happy, sad"):
        build(prepared, *named)


def test_a_run_teaches_and_what_it_taught_does_not_hang_on_where_it_lay(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, scratch = [], tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    with training_in(make_project(tmp_path / "project", empty_store)):
        train()
        shutil.copytree("models/train", "models/teacher")
        digest = f"train.distill.sha256={json.loads(Path('models/teacher/weights.json').read_text())['weights_sha256']}"
        (run,) = find_runs()
        for source in ("models/teacher", f"runs:/{run.info.run_id}"):
            train(f"train.distill.from={source}", digest, "train.seed=1")
            found.append(Path("models/train/weights.pt").read_bytes())
        train("train.seed=1")
    assert not list(scratch.glob("hyojo-teacher-*"))
    assert found[0] == found[1] != Path(tmp_path / "project/models/train/weights.pt").read_bytes()
