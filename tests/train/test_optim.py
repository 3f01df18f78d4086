"""Parameter groups: layer-wise rates under every schedule, frozen parts, and settings that are refused."""

import copy
import functools
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import timm
import torch
from builders import params_with
from torch import nn

import pipeline.models.backbones  # noqa: F401  (registers our nets)
from pipeline.core.errors import UserError
from pipeline.train import muon, optim
from pipeline.train.muon import Muon
from pipeline.train.schedule import LRSchedule

EPOCHS, UPDATES = 6, 5


def vit() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=3
    )


def face_net() -> nn.Module:
    return timm.create_model("face_resnet_s", widths=(8, 8, 8), depths=(1, 1, 1), stem_width=8, num_classes=3)


def scales(net: nn.Module, optimizer: torch.optim.Optimizer, key: str = "lr_scale") -> dict[str, float]:
    """The part of the learning rate that each parameter learns at, or another setting of it."""
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    return {names[id(parameter)]: group[key] for group in optimizer.param_groups for parameter in group["params"]}


def test_each_earlier_layer_learns_at_a_part_of_the_next_ones_rate() -> None:
    net = vit()
    found = scales(net, optim.build_optimizer(net, params_with("train.layer_decay=0.5").train))
    assert set(found) == {name for name, _ in net.named_parameters()}
    layers: dict[str, set[float]] = {}
    for name, scale in found.items():
        parts = name.split(".")
        layers.setdefault(".".join(parts[:2]) if parts[0] == "blocks" else parts[0], set()).add(scale)
    assert all(len(values) == 1 for values in layers.values())
    rates = {name: values.pop() for name, values in layers.items()}
    assert rates["head"] == 1
    assert rates["blocks.1"] == 2 * rates["blocks.0"] < 1
    assert rates["patch_embed"] == rates["pos_embed"] == rates["cls_token"] == rates["blocks.0"] / 2


def test_our_own_nets_learn_layer_by_layer_too() -> None:
    net = face_net()
    found = scales(net, optim.build_optimizer(net, params_with("train.layer_decay=0.8").train))
    assert set(found) == {name for name, _ in net.named_parameters()}
    assert found["fc.weight"] == 1
    order = ["stem.0.weight", "stages.0.conv1.weight", "stages.1.conv1.weight", "stages.2.conv1.weight", "fc.weight"]
    rates = [found[name] for name in order]
    assert rates == sorted(rates)
    assert len(set(rates)) == len(rates)


def rates(decay: float, schedule: str, net: Callable[[], nn.Module] = vit) -> list[dict[float, float]]:
    """For each update, each part of the rate with the rate of the groups that have it."""
    section = params_with(
        f"train.layer_decay={decay}", f"train.schedule.name={schedule}", f"train.schedule.warmup={2 / EPOCHS}",
        f"train.epochs={EPOCHS}", f"train.schedule.decay={1 / EPOCHS}", "train.schedule.min_lr=0.0",
    ).train  # fmt: skip
    optimizer = optim.build_optimizer(net(), section)
    sched = LRSchedule(optimizer, section.schedule, lr=section.lr, epochs=EPOCHS, steps=UPDATES, mode="max")
    found = []
    for update in range(EPOCHS * UPDATES):
        found.append({group.get("lr_scale", 1.0): group["lr"] for group in optimizer.param_groups})
        optimizer.step()
        sched.step_update(update + 1)
        if (update + 1) % UPDATES == 0:
            sched.step_epoch(0.5)
    return found


@pytest.mark.parametrize("schedule", ["cosine", "onecycle", "step", "plateau"])
def test_every_schedule_keeps_the_layers_apart(schedule: str) -> None:
    plain, layered = rates(1.0, schedule), rates(0.5, schedule)
    values = [one[1.0] for one in plain]
    assert len({round(value, 9) for value in values}) > 3  # it does move
    assert max(values) == pytest.approx(0.4)
    for one, many in zip(values, layered):
        assert len(many) >= 4
        for scale, rate in many.items():
            # OneCycle and plateau end at their own tiny floors, which are not scaled.
            assert rate == pytest.approx(one * scale, rel=1e-6, abs=1e-6)


def test_frozen_parameters_are_not_optimized_whatever_the_layers() -> None:
    for decay in ("1.0", "0.5"):
        net = vit()
        optim.freeze_parts(net, ["patch_embed", "blocks.0"])
        optimizer = optim.build_optimizer(net, params_with(f"train.layer_decay={decay}").train)
        kept = {id(p) for group in optimizer.param_groups for p in group["params"]}
        wanted = {id(p) for n, p in net.named_parameters() if not n.startswith(("patch_embed", "blocks.0"))}
        assert kept == wanted


@pytest.mark.parametrize(
    "names, part",
    [
        (["stage.0"], "did you mean stages.0"),
        (["stages.9"], "did you mean stages."),
        (["zzzz"], "it has stem, stages, fc"),
        ([""], "no module ''"),
        (["stem", "stages", "fc"], "no parameter is left"),
    ],
)
def test_parts_that_are_not_there_are_refused(names: list[str], part: str) -> None:
    with pytest.raises(UserError, match=r"train\.freeze") as caught:
        optim.freeze_parts(face_net(), names)
    assert part in str(caught.value)


def test_fused_kernels_are_used_where_there_are_any() -> None:
    for name, fused in (("adamw", True), ("sgd", True), ("lamb", None)):
        optimizer = optim.build_optimizer(face_net(), params_with(f"train.optimizer={name}").train)
        assert optimizer.defaults.get("fused") is fused


def test_what_an_optimizer_does_not_take_is_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'adamw'"):
        optim.build_optimizer(face_net(), params_with("train.optimizer=adamww").train)
    with pytest.raises(UserError, match=r"train\.optimizer: sgd does not take these settings"):
        optim.build_optimizer(face_net(), params_with("train.momentum=0.0").train)
    with pytest.raises(UserError, match=r"train\.optimizer: adahessian does not take .* an ordinary update"):
        optim.build_optimizer(face_net(), params_with("train.optimizer=adahessian").train)


def test_norms_and_biases_do_not_decay() -> None:
    net = face_net()
    decayed = scales(net, optim.build_optimizer(net, params_with().train), "weight_decay")
    for name, parameter in net.named_parameters():
        assert decayed[name] == (0.0005 if parameter.ndim > 1 else 0.0)


@pytest.mark.parametrize("name", ["muon", "nmuon"])
@pytest.mark.parametrize("layer_decay, together", [(1.0, False), (0.8, False), (1.0, True)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_muon_is_timms(
    monkeypatch: pytest.MonkeyPatch, name: str, layer_decay: float, together: bool, dtype: torch.dtype
) -> None:
    """With tall, wide and equal shapes, vectors, a weight without a gradient, other rates, and from a checkpoint.

    Bit for bit on the CPU, in float32 where it has no instructions for bf16; by shapes together but for rounding.
    """
    found = ["none", "bf16"] if dtype == torch.bfloat16 else ["none"]
    pretended = SimpleNamespace(is_accelerator=lambda _: together, list_precisions=lambda _: found)
    monkeypatch.setattr(muon, "devices", pretended)
    orthogonalize, told = muon.timms.zeropower_via_newtonschulz, []

    def record(*given: object, **settings: object) -> torch.Tensor:
        told.append(settings.get("dtype"))
        return orthogonalize(*given, **{"dtype": dtype, **settings})

    monkeypatch.setattr(muon.timms, "zeropower_via_newtonschulz", record)
    net = face_net().to(memory_format=torch.channels_last)
    net.extra = nn.ModuleList(nn.Linear(*size) for size in ((5, 9), (9, 5), (9, 5)))
    nets = [net, copy.deepcopy(net)]
    params = params_with(f"train.optimizer={name}", "train.weight_decay=0.1", f"train.layer_decay={layer_decay}").train
    ours, timms = optim.build_optimizer(net, params), optim.build_optimizer(nets[1], params)
    timms.step = functools.partial(timm.optim.Muon.step, timms)
    assert type(ours) is Muon
    for update in range(6):
        for each, optimizer in zip(nets, (ours, timms), strict=True):
            generator = torch.Generator().manual_seed(update)
            for place, parameter in enumerate(each.parameters()):
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter)
                if place == update:
                    parameter.grad = None
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * (update + 1)
            optimizer.step()
        if update == 3:
            ours.load_state_dict(copy.deepcopy(ours.state_dict()))
    assert set(told) == {None, dtype}  # timm tells none
    for one, other in zip(*(each.parameters() for each in nets), strict=True):
        assert together or torch.equal(one, other)
        torch.testing.assert_close(one, other, atol=5e-4, rtol=0)
