"""Our own nets for small faces, registered in timm: ``timm.create_model("face_resnet_s")``.

Residual nets (He et al., 2016, https://arxiv.org/abs/1512.03385) that keep a 48 px face's detail: the stem
does not stride, and three stages end in a map of 6x6 where a stock net would be down to 2x2 or 1x1.

And ``ensemble``, several nets of any one name in timm that learn side by side.
"""

from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import DropPath, calculate_drop_path_rates
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm; the shortcut is pooled and projected where shapes change."""

    def __init__(self, in_channels: int, channels: int, stride: int, drop_path: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.shortcut = nn.Identity()
        if stride > 1 or in_channels != channels:
            # ResNet-D: average before projecting, so that no pixel is skipped (https://arxiv.org/abs/1812.01187).
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity(),
                nn.Conv2d(in_channels, channels, 1, bias=False),
                nn.BatchNorm2d(channels),
            )

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C', H / stride, W / stride)
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return F.relu(self.drop_path(out) + self.shortcut(x))


class FaceResNet(nn.Module):
    """Stem without stride, stages of residual blocks each halving the map, average pooling, linear head."""

    def __init__(
        self,
        widths: tuple[int, ...],
        depths: tuple[int, ...],
        num_classes: int = 1000,
        in_chans: int = 3,
        stem_width: int = 16,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes, self.drop_rate = num_classes, drop_rate
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, stem_width, 3, 1, 1, bias=False), nn.BatchNorm2d(stem_width), nn.ReLU(inplace=True)
        )
        stages, in_channels = [], stem_width
        for width, rates in zip(widths, calculate_drop_path_rates(drop_path_rate, depths, stagewise=True)):
            for i, rate in enumerate(rates):
                stages.append(ResidualBlock(in_channels, width, 2 if i == 0 else 1, rate))
                in_channels = width
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(in_channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """What timm takes for layers, from the input up."""
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)"}

    def forward_features(self, x: Tensor) -> Tensor:
        """Faces (B, C, H, W) to the last feature map (B, F, H', W')."""
        return self.stages(self.stem(x))

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, K)
        pooled = self.forward_features(x).mean((2, 3))
        return self.fc(F.dropout(pooled, self.drop_rate, self.training))


class Ensemble(nn.Module):
    """Nets whose mean logits are the answer (deep ensembles, https://arxiv.org/abs/1612.01474).

    In training each of M members answers every sample: logits (M * B, K), member after member.
    """

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.num_classes = members[0].num_classes
        self.pretrained_cfg = members[0].pretrained_cfg  # where timm looks for mean and std

    def forward_features(self, x: Tensor) -> Tensor:
        """What the first member makes of faces; all members' maps have its shape."""
        return self.members[0].forward_features(x)

    def forward(self, x: Tensor) -> Tensor:
        answers = [member(x) for member in self.members]
        return torch.cat(answers) if self.training else torch.stack(answers).mean(0)


def _create(
    name: str, widths: tuple[int, ...], depths: tuple[int, ...], pretrained: bool, kwargs: dict[str, Any]
) -> nn.Module:
    """Build through timm, so that its arguments and pretrained logic hold here too."""
    cfg = {
        "url": "", "num_classes": 7, "input_size": (1, 48, 48), "pool_size": (6, 6), "interpolation": "bilinear",
        "mean": (0.5,), "std": (0.25,), "first_conv": "stem.0", "classifier": "fc", "license": "apache-2.0",
    }  # fmt: skip
    kwargs = {"widths": widths, "depths": depths, **kwargs}
    kwargs.pop("pretrained_cfg", None)
    cfg |= kwargs.pop("pretrained_cfg_overlay", None) or {}
    return build_model_with_cfg(FaceResNet, name, pretrained, pretrained_cfg=cfg, **kwargs)


@register_model
def face_resnet_s(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Small: 0.7 M parameters."""
    return _create("face_resnet_s", (32, 64, 128), (1, 2, 2), pretrained, kwargs)


@register_model
def face_resnet_m(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Medium: 1.5 M parameters."""
    return _create("face_resnet_m", (48, 96, 192), (2, 2, 2), pretrained, kwargs)


@register_model
def face_resnet_l(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Large: 2.7 M parameters."""
    return _create("face_resnet_l", (64, 128, 256), (2, 2, 2), pretrained, kwargs)


@register_model
def ensemble(pretrained: bool = False, of: str = "face_resnet_m", members: int = 3, **kwargs: Any) -> nn.Module:
    """So many ``members`` of the net ``of`` that name; further arguments are theirs."""
    if members < 1 or not timm.is_model(of):
        raise TypeError(f"an ensemble has at least one member, of a name that timm knows, not {members} of {of!r}")
    for key in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):  # of this name, which has no weights
        kwargs.pop(key, None)
    return Ensemble([timm.create_model(of, pretrained=pretrained, **kwargs) for _ in range(members)])
