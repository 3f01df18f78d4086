"""Nets for large pictures on small faces: a last map that is large enough, the same weights, and a clear refusal."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from builders import CLASS_NAMES, scramble, train_params
from timm.layers import resample_patch_embed
from torch import Tensor, nn

from pipeline.core.errors import UserError
from pipeline.core.params import TrainParams
from pipeline.evaluate import explanations
from pipeline.models import costs, formats, maps, model, stem
from pipeline.models.model import Classifier, ModelSpec
from pipeline.models.weights import load_model, read_spec, save_weights
from pipeline.train import planning
from pipeline.train.planning import plan

PLAIN = {"num_classes": 3, "in_chans": 1}
# One of a family of nets; all but the first line's are slow to build or to run.
FAMILIES = {
    False: timm.list_models("test_*"),
    True: [
        "botnet26t_256", "cait_xxs24_224", "coat_tiny", "convmixer_768_32", "crossvit_tiny_240", "cspresnet50",
        "darknet17", "davit_tiny", "dla34", "edgenext_xx_small", "efficientvit_b0", "eva02_tiny_patch14_224",
        "fastvit_t8", "gcvit_xxtiny", "gmlp_ti16_224", "hgnetv2_b0", "hrnet_w18_small", "inception_v3",
        "maxvit_pico_rw_256", "mixer_s32_224", "mvitv2_tiny", "nest_tiny", "pnasnet5large", "poolformer_s12",
        "pvt_v2_b0", "repvgg_a0", "res2net50_14w_8s", "resnest14d", "resnetblur18", "rexnet_100", "selecsls42b",
        "sequencer2d_s", "skresnet18", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "tresnet_m",
        "twins_svt_small", "vgg11_bn", "visformer_tiny", "xcit_nano_12_p16_224", "xception41",
    ],
}  # fmt: skip


def planned(backbone: str, size: int = 48, **changes: Any) -> tuple[ModelSpec, list[str]]:
    """The plan of a net for grey pictures of a size, and its notes."""
    return plan(train_params(backbone, **changes), CLASS_NAMES, size, 1)


def adapted(backbone: str, size: int = 48, **changes: Any) -> tuple[TrainParams, ModelSpec, list[str]]:
    """Params with ``stage.stem: adapt``, and the plan for grey pictures of a size."""
    params = train_params(backbone, stem="adapt", **changes)
    return params, *plan(params, CLASS_NAMES, size, 1)


def sides(net: nn.Module, size: int) -> tuple[int, ...]:
    """Height and width of what a net makes of a grey picture before it pools; channels come first."""
    with torch.no_grad():
        return tuple(net.eval().forward_features(torch.randn(1, 1, size, size)).shape[2:])


def shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights, in order."""
    return {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}


def dear(note: str) -> float:
    """How many times the operations adapting takes, by the log."""
    return float(re.search(r"train\.stem: adapt\) .* needs ([\d.]+) times the operations", note)[1])


def cost(of: ModelSpec, against: ModelSpec) -> float:
    """How many times the operations of one net another has at 48 px."""
    here, there = (model.build_model(each).eval() for each in (of, against))
    return np.divide(*(costs.count_flops(net, torch.zeros(1, 1, 48, 48)) for net in (there, here)))


def store(path: Path, state: dict[str, Tensor]) -> dict[str, str]:
    """Write weights; the params that name them."""
    torch.save(state, path)
    return {"weights": str(path), "weights_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


@pytest.mark.parametrize(
    "backbone, before, changes",
    [
        ("resnet18", 2, {"conv1": 1}),
        ("resnet18d", 2, {"conv1.0": 1}),
        ("tf_efficientnet_lite0", 2, {"conv_stem": 1}),
        ("mobilenetv3_small_100", 2, {"conv_stem": 1}),
        ("mobilenetv4_conv_small", 2, {"conv_stem": 1}),
        ("regnetx_002", 2, {"stem.conv": 1}),
        ("densenet121", 1, {"features.conv0": 1}),
        ("convnext_atto", 1, {"stem.0": 2}),
        pytest.param("ghostnet_100", 2, {"conv_stem": 1}, marks=pytest.mark.slow),
        pytest.param("resnetblur18", 2, {"conv1": 1}, marks=pytest.mark.slow),
        pytest.param("poolformer_s12", 2, {"stem.conv": 2}, marks=pytest.mark.slow),
    ],
)
def test_the_first_halving_goes_and_every_weight_stays(backbone: str, before: int, changes: dict[str, int]) -> None:
    """A map of 3x3 at 48 px where timm's net leaves 2x2 or 1x1; the same names and shapes; weights load strictly."""
    stock = timm.create_model(backbone, **PLAIN)
    assert sides(stock, 48) == (before, before)
    _, spec, notes = adapted(backbone)
    assert {name: change["stride"] for name, change in spec.stem.items()} == {
        name: [stride, stride] for name, stride in changes.items()
    }
    assert spec.model_args == PLAIN
    assert spec.preprocessing["input_size"] == 48
    net = model.build_model(spec)
    assert sides(net, 48) == (3, 3)
    assert shapes(net) == shapes(stock)
    net.load_state_dict(stock.state_dict(), strict=True)
    (said,) = notes
    assert f"{backbone} would end in a map of {before}x{before} at 48 px as it is, and now ends in a map of 3x3" in said
    assert all(f"{name} strides by {stride}" in said for name, stride in changes.items())


def test_on_24_px_a_resnet_becomes_that_for_cifar() -> None:
    """Two halvings fewer: the first convolution without stride and no pool after it, as built by hand."""
    _, spec, _ = adapted("resnet18", 24)
    net = model.build_model(spec).eval()
    reference = timm.create_model("resnet18", **PLAIN).eval()
    reference.conv1 = nn.Conv2d(1, 64, 7, 1, 3, bias=False)
    reference.maxpool = nn.Identity()
    reference.load_state_dict(net.state_dict())
    faces = torch.randn(2, 1, 24, 24)
    assert sides(net, 24) == (3, 3)
    with torch.no_grad():
        assert torch.equal(net(faces), reference(faces))


def test_patches_come_to_overlap() -> None:
    """ConvNeXt's kernel of 4x4 stays; by 2 it needs a border of 1, by 1 one of 2, which makes 25 of 24."""
    for size, stride, border, side in ((48, 2, 1, 24), (24, 1, 2, 25)):
        _, spec, _ = adapted("convnext_atto", size)
        conv = model.build_model(spec).stem[0]
        faces = torch.randn(1, 1, size, size)
        with torch.no_grad():
            expected = F.conv2d(F.pad(faces, [border] * 4), conv.weight, conv.bias, stride)
            torch.testing.assert_close(conv(faces), expected)
        assert expected.shape[2:] == (side, side)


def test_a_convolution_that_pads_itself_is_left_to_do_so() -> None:
    """TensorFlow's "same": at stride 1 a kernel of 3x3 has a border of 1 on each side."""
    _, spec, _ = adapted("tf_efficientnet_lite0")
    assert spec.stem == {"conv_stem": {"stride": [1, 1]}}
    conv = model.build_model(spec).conv_stem
    faces = torch.randn(1, 1, 48, 48)
    torch.testing.assert_close(conv(faces), F.conv2d(faces, conv.weight, padding=1))


@pytest.mark.parametrize(
    "backbone, added, side",
    [
        ("vit_tiny_patch16_224", {"img_size": 48, "patch_size": 8}, 6),  # 36 patches for 9
        ("mobilevit_xxs", {"img_size": 96}, 3),
        ("levit_128s", {"img_size": 192}, 3),  # two halvings fewer
    ],
)
def test_nets_of_one_size_are_built_for_the_grid_that_comes(backbone: str, added: dict[str, int], side: int) -> None:
    """Patches of half the side; or tables for the larger picture that a stem without stride makes believe."""
    _, spec, (said,) = adapted(backbone)
    assert spec.model_args == PLAIN | added
    net = model.build_model(spec).eval()
    assert maps.find_last_side(net, 48, 1) == side
    assert net(torch.randn(2, 1, 48, 48)).shape == (2, 3)
    assert all(f"{key} {value}" in said for key, value in added.items() if value != 48)
    if backbone == "vit_tiny_patch16_224":
        assert net.forward_features(torch.randn(1, 1, 48, 48)).shape[1] == 6 * 6 + 1
        assert net.patch_embed.proj.kernel_size == (8, 8)


def test_weights_of_the_stock_net_are_taken_over(tmp_path: Path) -> None:
    """`train.weights` of a net with its strides starts one without, tensor by tensor."""
    state = scramble(timm.create_model("mobilenetv3_small_100", **PLAIN).state_dict())
    params, spec, _ = adapted("mobilenetv3_small_100", **store(tmp_path / "w.pt", state))
    net = planning.build_initial_model(spec, params)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert net.conv_stem.stride == (1, 1)


def test_patches_of_a_vision_transformer_are_resampled(tmp_path: Path) -> None:
    """Weights for patches of 16 px start a net with patches of 8, by timm's own resampling; other weights stay."""
    backbone = "vit_tiny_patch16_224"
    state = scramble(timm.create_model(backbone, **PLAIN).state_dict())
    params, spec, _ = adapted(backbone, **store(tmp_path / "w.pt", state))
    found = planning.build_initial_model(spec, params).state_dict()
    expected = resample_patch_embed(state["patch_embed.proj.weight"], [8, 8])
    torch.testing.assert_close(found["patch_embed.proj.weight"], expected)
    assert found["pos_embed"].shape == (1, 37, 192)
    for name in set(state) - {"patch_embed.proj.weight", "pos_embed"}:
        assert torch.equal(found[name], state[name]), name


@pytest.mark.parametrize(
    "backbone, size",
    [("resnet18", 96), ("convnext_atto", 224), ("mobilenetv3_small_100", 224), ("vit_tiny_patch16_224", 96),
     ("face_resnet_s", 48), ("face_resnet_m", 32)],
)  # fmt: skip
def test_what_suits_its_input_is_left_alone(backbone: str, size: int) -> None:
    """Large inputs, and our own nets on small ones: no change and no note, whatever ``stage.stem`` says."""
    kept, _ = planned(backbone, size, stem="keep")
    for choice in ("adapt", "auto"):
        spec, notes = planned(backbone, size, stem=choice)
        assert spec == kept
        assert (spec.stem, notes) == ({}, [])


@pytest.mark.parametrize(
    "backbone, choice",
    [("mobilenetv3_small_100", "adapt"), ("regnetx_002", "adapt"), ("levit_128s", "adapt"), ("resnet18", "keep"),
     ("vit_tiny_patch16_224", "keep")],
)  # fmt: skip
def test_left_to_choose_it_adapts_what_is_cheap(backbone: str, choice: str) -> None:
    """Large nets stay, and the log says what adapting costs; LeViT's map of 1x1 has no other remedy."""
    spec, notes = planned(backbone, stem="auto")
    chosen, said = planned(backbone, stem=choice)
    assert spec == chosen
    if choice == "adapt":
        assert notes == said
        return
    assert (chosen.stem, said) == ({}, [])  # poor, but what timm builds is what was asked for
    (note,) = notes
    assert note.startswith(f"{backbone} ends in a map of ")
    assert dear(note) == pytest.approx(cost(chosen, adapted(backbone)[1]), abs=0.05)


@pytest.mark.parametrize(
    "backbone, changes",
    [
        ("convnext_atto", {"stages.3.downsample.1": {"padding": [1, 1]}}),
        ("densenet121", {"features.transition3.pool": {"ceil_mode": True}}),
    ],
)
def test_a_large_net_keeps_its_last_map_by_rounding_up(backbone: str, changes: dict[str, Any]) -> None:
    """A map of 3x3 is halved to 2x2, where timm's net drops a row and a column; the weights and the other maps stay."""
    spec, (note,) = planned(backbone, stem="auto")
    stock = timm.create_model(backbone, **PLAIN).eval()
    net = model.build_model(spec).eval()
    assert (spec.stem, spec.model_args) == (changes, PLAIN)
    assert (sides(stock, 48), sides(net, 48)) == ((1, 1), (2, 2))
    assert shapes(net) == shapes(stock)
    net.load_state_dict(stock.state_dict())

    (name,) = changes
    before = []
    hook = net.get_submodule(name).register_forward_hook(lambda _, inputs, out: before.append((inputs[0], out)))
    with torch.no_grad():
        net(torch.randn(1, 1, 48, 48))
        hook.remove()
        ((three, two),) = before
        layer = stock.get_submodule(name)
        if backbone == "convnext_atto":
            expected = layer(F.pad(three, [1] * 4))
        else:  # what lies beyond the edge does not count
            expected = layer(F.pad(three, [0, 1, 0, 1])) * torch.tensor([[1.0, 2.0], [2.0, 4.0]])
    assert three.shape[2:] == (3, 3)
    torch.testing.assert_close(two, expected)

    assert f"1x1 at 48 px as it is, and now ends in a map of 2x2: {name} rounds up (train.stem)" in note
    assert dear(note) == pytest.approx(cost(spec, adapted(backbone)[1]), abs=0.05)


@pytest.mark.parametrize(
    "backbone, size, changes, larger",
    [
        ("convnext_atto", 48, {"stem": "keep"}, 96),
        ("vit_tiny_patch16_224", 64, {"stem": "keep", "backbone_args": {"patch_size": 64}}, 128),
        ("levit_128s", 48, {"stem": "keep"}, 96),
        # The user's own patch stays, so nothing is left to change.
        ("vit_tiny_patch16_224", 32, {"stem": "adapt", "backbone_args": {"patch_size": 32}}, 96),
    ],
)  # fmt: skip
def test_a_collapsed_map_is_refused_with_the_remedy(
    backbone: str, size: int, changes: dict[str, Any], larger: int
) -> None:
    """One cell for the whole face; and what the message says helps."""
    remedy = "train.stem to adapt, or " if changes["stem"] == "keep" else ""
    remedy = rf"Set {remedy}train\.input_size to a larger one, such as {larger}\."
    said = rf"train\.backbone: {backbone} shrinks pictures of {size} px to a map of 1x1, .* {remedy}$"
    with pytest.raises(UserError, match=said):
        planned(backbone, size, **changes)
    spec, _ = planned(backbone, size, **changes, input_size=larger)
    assert spec.preprocessing["input_size"] == larger


def test_adapting_comes_before_resizing() -> None:
    """HRNet does not take 48 px as timm builds it; with a halving less it does."""
    _, spec, notes = adapted("hrnet_w18_small")
    assert spec.preprocessing["input_size"] == 48
    assert spec.preprocessing["eval"][-1].keys() == {"Normalize"}
    assert notes == [
        "hrnet_w18_small does not take 48 px as it is, and now ends in a map of 3x3: conv1 strides by 1 (train.stem)"
    ]


def test_an_adapted_net_comes_back_from_its_files(tmp_path: Path) -> None:
    """Weights and sidecar hold all; a sidecar from before there was a stem means the net as timm builds it."""
    _, spec, _ = adapted("convnext_atto", 24)
    net = model.build_model(spec).eval()
    save_weights(tmp_path, net, spec, "d" * 64)
    loaded, sidecar = load_model(tmp_path)
    assert read_spec(sidecar) == spec
    faces = torch.randn(2, 1, 24, 24)
    with torch.no_grad():
        assert torch.equal(loaded(faces), net(faces))
    assert sidecar.stem == {"stem.0": {"stride": [1, 1], "padding": [2, 2]}}

    older = {name: value for name, value in sidecar.as_dict().items() if name not in ("stem", "sha256")}
    (tmp_path / "weights.json").write_text(json.dumps(older))
    old, _ = load_model(tmp_path)
    assert old.stem[0].stride == (4, 4)


def test_planning_draws_nothing_and_building_is_seeded() -> None:
    """Initial weights are those of the stock net of the same seed, however many nets planning built."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    _, spec, _ = adapted("test_resnet", transforms={"train": ["RandomHorizontalFlip"], "eval": []})
    assert spec.stem
    assert torch.equal(torch.get_rng_state(), before)
    net = model.build_model(spec)
    torch.manual_seed(5)
    stock = timm.create_model("test_resnet", **PLAIN)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), stock.state_dict().values()))


@pytest.mark.parametrize("backbone", ["resnet18", "convnext_atto"])
def test_what_an_answer_takes_is_that_of_twice_the_side(backbone: str) -> None:
    """With a halving less, 48 px cost the operations that the stock net has at 96 px, to the last one."""
    _, spec, _ = adapted(backbone)
    stock, _ = planned(backbone, 96, stem="keep")
    here, there = (Classifier(model.build_model(each), each).eval() for each in (spec, stock))
    assert costs.count_costs(here, 48, 1) == costs.count_costs(there, 96, 1)


@pytest.mark.parametrize(
    "backbone, size, wanted",
    [
        ("test_convnext", 48, ["pt2"]),
        pytest.param("test_convnext", 24, ["onnx"], marks=pytest.mark.slow),
        pytest.param("test_efficientnet", 24, ["onnx", "pt2"], marks=pytest.mark.slow),
        pytest.param("mobilevit_xxs", 48, ["onnx", "pt2"], marks=pytest.mark.slow),
        pytest.param("tf_efficientnet_lite0", 48, ["onnx", "pt2"], marks=pytest.mark.slow),
    ],
)
def test_adapted_nets_are_exported_and_explained(backbone: str, size: int, wanted: list[str]) -> None:
    """Both formats, from a probe that compares their answers; heat maps of the picture's size."""
    _, spec, _ = adapted(backbone, size)
    assert spec.stem
    classifier = Classifier(model.build_model(spec), spec).eval()
    assert formats.check_exportable(classifier, size, 1, wanted, 18) == dict.fromkeys(wanted)
    maps = explanations.HeatMaps(classifier)
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 1), dtype=np.uint8)
    assert maps.explain(maps.prepare(images), np.array([0, 1])).shape == (2, size, size)
    assert maps.method == "Grad-CAM"


@pytest.mark.parametrize(
    "backbone",
    [pytest.param(name, marks=[pytest.mark.slow] * slow) for slow, names in FAMILIES.items() for name in names],
)
def test_every_family_is_adapted_left_or_refused(backbone: str) -> None:
    """Never a traceback; and what comes out gives a row of logits a face, in both modes."""
    try:
        _, spec, notes = adapted(backbone)
    except UserError as error:
        if re.search(r"train\.input_size to (one that it takes|a larger one)", str(error)):
            return
        raise
    size = spec.preprocessing["input_size"]
    net = model.build_model(spec)
    side = maps.find_last_side(net, size, 1)
    assert side is None or side >= stem.SIDE
    assert planning.find_run_failure(net, size, 1) == ""
    stock = {"img_size"} | set(PLAIN)
    if spec.stem or set(spec.model_args) - stock:
        assert any(f"{backbone} would end" in said or f"{backbone} does not take" in said for said in notes)
