"""Our own nets: timm knows them, and they are what their docstrings say."""

import pytest
import timm
import torch
from builders import CLASS_NAMES, train_params
from torch import nn

from pipeline.core.errors import UserError
from pipeline.models import backbones
from pipeline.train.planning import plan


def test_parameter_counts_are_those_of_the_docstrings() -> None:
    """Counted by hand, convolution by convolution: no bias, batch norm of 2 a channel; timm lists and builds them."""
    assert timm.list_models("face_resnet_*") == ["face_resnet_l", "face_resnet_m", "face_resnet_s"]

    def block(into: int, out: int, stride: int) -> int:
        main = 9 * into * out + 9 * out * out + 4 * out
        return main + (into * out + 2 * out if stride > 1 or into != out else 0)

    for name, widths, depths, said in (
        ("face_resnet_s", (32, 64, 128), (1, 2, 2), "0.7 M"),
        ("face_resnet_m", (48, 96, 192), (2, 2, 2), "1.5 M"),
        ("face_resnet_l", (64, 128, 256), (2, 2, 2), "2.7 M"),
    ):
        count, into = 9 * 16 + 2 * 16, 16
        for width, depth in zip(widths, depths):
            count += block(into, width, 2) + (depth - 1) * block(width, width, 1)
            into = width
        count += into * 7 + 7
        model = timm.create_model(name, in_chans=1, num_classes=7)
        assert sum(p.numel() for p in model.parameters()) == count
        assert f"{count / 1e6:.1f} M" == said
        assert said in getattr(backbones, name).__doc__


def test_maps_and_logits_have_their_shapes() -> None:
    """48 px end in 6x6; odd sizes round up; grey and colour; any number of classes."""
    model = timm.create_model("face_resnet_s", in_chans=1, num_classes=7).eval()
    faces = torch.randn(2, 1, 48, 48)
    assert model.forward_features(faces).shape == (2, 128, 6, 6)
    assert model.forward_features(faces[:, :, :45, :45]).shape == (2, 128, 6, 6)
    assert model(faces).shape == (2, 7)
    colour = timm.create_model("face_resnet_m", in_chans=3, num_classes=3).eval()
    assert colour(torch.randn(1, 3, 16, 16)).shape == (1, 3)


def test_logits_are_pooled_features_through_the_head() -> None:
    """The mean over the map, then the linear layer; dropout in training only."""
    model = timm.create_model("face_resnet_s", in_chans=1, num_classes=4, drop_rate=0.5).eval()
    faces = torch.randn(3, 1, 24, 24)
    with torch.no_grad():
        pooled = model.forward_features(faces).flatten(2).sum(2) / 9
        torch.testing.assert_close(model(faces), pooled @ model.fc.weight.T + model.fc.bias)
        model.forward_features, model.fc = lambda x: torch.ones(1, 128, 3, 3), nn.Identity()
        assert set(model.train()(faces).unique().tolist()) == {0.0, 2.0}


def test_a_block_adds_its_shortcut() -> None:
    """With its second norm at 0, a block is its shortcut: the identity, or the pooled projection."""
    same = backbones.ResidualBlock(4, 4, 1, 0.0).eval()
    halving = backbones.ResidualBlock(4, 6, 2, 0.0).eval()
    x = torch.rand(2, 4, 6, 6)
    for block in (same, halving):
        nn.init.zeros_(block.bn2.weight)
    with torch.no_grad():
        torch.testing.assert_close(same(x), x)
        pooled = (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4
        projected = torch.einsum("oi,bihw->bohw", halving.shortcut[1].weight[:, :, 0, 0], pooled)
        expected = projected.relu() / (1 + halving.shortcut[2].eps) ** 0.5
        torch.testing.assert_close(halving(x), expected)


def test_drop_path_grows_with_depth() -> None:
    """Stochastic depth from 0 in the first block to its rate in the last, evenly by stages of one block."""
    model = timm.create_model("face_resnet_s", widths=(8, 8, 8), depths=(1, 1, 1), drop_path_rate=0.2)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in model.stages]
    torch.testing.assert_close(torch.tensor(rates), torch.tensor([0.0, 0.1, 0.2]))


def build_ensemble(**kwargs: object) -> nn.Module:
    """Of small nets for grey pictures and four classes."""
    return timm.create_model("ensemble", of="face_resnet_s", in_chans=1, num_classes=4, **kwargs)


def test_an_ensemble_answers_with_the_mean_logits_of_nets_that_began_apart() -> None:
    """Each member is the net that it is of, and no two start alike."""
    model = build_ensemble(members=3).eval()
    faces = torch.randn(5, 1, 24, 24)
    assert [type(member) for member in model.members] == [backbones.FaceResNet] * 3
    with torch.no_grad():
        answers = [member(faces) for member in model.members]
        torch.testing.assert_close(model(faces), (answers[0] + answers[1] + answers[2]) / 3)
    assert not torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[1], answers[2])


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"members": 0}, "at least one member.* not 0 of 'face_resnet_m'"),
        ({"of": "face_resnet_xxl"}, "that timm knows, not 3 of 'face_resnet_xxl'"),
        ({"off": "face_resnet_s"}, "unexpected keyword argument 'off'"),
    ],
)
def test_an_ensemble_of_nothing_is_refused(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=rf"train\.backbone_args do not fit ensemble: .*{said}"):
        plan(train_params("ensemble", backbone_args=arguments), CLASS_NAMES, 48, 1)


def test_an_ensemble_of_stock_nets_is_adapted_member_by_member() -> None:
    """Stems, and the mean and std of its members."""
    arguments = {"of": "convnext_atto", "members": 2}
    spec, _ = plan(train_params("ensemble", stem="adapt", backbone_args=arguments), CLASS_NAMES, 48, 1)
    single, _ = plan(train_params("convnext_atto", stem="adapt"), CLASS_NAMES, 48, 1)
    assert spec.stem == {f"members.{i}.{name}": change for i in (0, 1) for name, change in single.stem.items()}
    assert spec.preprocessing == single.preprocessing
