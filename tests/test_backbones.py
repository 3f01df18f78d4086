"""Our own nets: timm knows them, and they are what their docstrings say."""

import timm
import torch
from torch import nn

from pipeline import backbones


def test_timm_lists_them_and_builds_them() -> None:
    """They are asked for as any backbone is, by name, through timm."""
    assert timm.list_models("face_resnet_*") == ["face_resnet_l", "face_resnet_m", "face_resnet_s"]
    assert isinstance(timm.create_model("face_resnet_s"), backbones.FaceResNet)


def test_parameter_counts_are_those_of_the_docstrings() -> None:
    """Counted by hand, convolution by convolution: no bias, batch norm of 2 a channel."""

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
    assert model.forward_head(model.forward_features(faces), pre_logits=True).shape == (2, 128)
    colour = timm.create_model("face_resnet_m", in_chans=3, num_classes=3).eval()
    assert colour(torch.randn(1, 3, 16, 16)).shape == (1, 3)


def test_logits_are_pooled_features_through_the_head() -> None:
    """The mean over the map, then the linear layer; dropout in training only."""
    model = timm.create_model("face_resnet_s", in_chans=1, num_classes=4, drop_rate=0.5).eval()
    faces = torch.randn(3, 1, 24, 24)
    with torch.no_grad():
        pooled = model.forward_features(faces).flatten(2).sum(2) / 9
        torch.testing.assert_close(model(faces), pooled @ model.fc.weight.T + model.fc.bias)
        features = torch.ones(1, 128, 3, 3)
        dropped = model.train().forward_head(features, pre_logits=True)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}


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


def test_reset_classifier_changes_the_head_alone() -> None:
    """As timm's nets do it: another number of classes, the same features."""
    model = timm.create_model("face_resnet_s", in_chans=1, num_classes=7).eval()
    faces = torch.randn(1, 1, 16, 16)
    before = model.forward_features(faces)
    model.reset_classifier(3)
    assert model.get_classifier() is model.fc
    assert model.num_classes == 3
    assert model(faces).shape == (1, 3)
    assert torch.equal(model.forward_features(faces), before)


def test_drop_path_grows_with_depth() -> None:
    """Stochastic depth from 0 in the first block to its rate in the last, evenly by stages of one block."""
    model = timm.create_model("face_resnet_s", widths=(8, 8, 8), depths=(1, 1, 1), drop_path_rate=0.2)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in model.stages]
    torch.testing.assert_close(torch.tensor(rates), torch.tensor([0.0, 0.1, 0.2]))
