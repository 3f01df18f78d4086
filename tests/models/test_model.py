"""Any timm backbone takes the data; weights come back as they were; a Classifier is timm and torchvision."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from builders import CLASS_NAMES, train_params
from torchvision.transforms.v2 import functional as F

from pipeline.core.errors import UserError
from pipeline.models import model as hyojo
from pipeline.models import transforms
from pipeline.models.model import Classifier, ModelSpec
from pipeline.models.weights import load_classifier, load_model, read_spec, save_weights
from pipeline.train.planning import plan


def planned(backbone: str = "test_resnet", **changes: Any) -> tuple[ModelSpec, list[str]]:
    """The plan of a net for grey pictures of 48 px, and its notes."""
    return plan(train_params(backbone, **changes), CLASS_NAMES, 48, 1)


def make(spec: ModelSpec, seed: int = 0) -> torch.nn.Module:
    """A net with weights of a seed, and batch statistics other than the initial ones."""
    torch.manual_seed(seed)
    net = hyojo.build_model(spec)
    with torch.no_grad():
        net.train()(torch.randn(4, spec.preprocessing["in_chans"], 48, 48))
    return net.eval()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("backbone", ["resnet18", "test_resnet.r160_in1k"])
def test_a_convolutional_net_takes_the_images_as_they_are(backbone: str, channels: int) -> None:
    """48 px: no resizing, and the backbone's statistics, averaged for grey; a name may say which weights."""
    spec, notes = plan(train_params(backbone), CLASS_NAMES, 48, channels)
    assert notes == []
    assert spec.backbone == backbone
    assert spec.model_args == {"num_classes": 3, "in_chans": channels}
    cfg = timm.get_pretrained_cfg(backbone)
    mean, std = ([np.mean(values)] if channels == 1 else list(values) for values in (cfg.mean, cfg.std))
    expected = [{"ToDtype": {}}, {"Normalize": {"mean": pytest.approx(mean), "std": pytest.approx(std)}}]
    assert spec.preprocessing["eval"] == spec.preprocessing["train"] == expected
    assert spec.preprocessing["input_size"] == spec.preprocessing["img_size"] == 48


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "gmlp_ti16_224"])
def test_a_net_of_fixed_size_is_built_for_the_images(backbone: str) -> None:
    """Nets with position tables get ``img_size``, so that they run on what is there, and on nothing else."""
    spec, notes = planned(backbone)
    assert notes == []
    assert spec.model_args == {"num_classes": 3, "in_chans": 1, "img_size": 48}
    net = timm.create_model(spec.backbone, **spec.model_args).eval()
    assert net(torch.randn(1, 1, 48, 48)).shape == (1, 3)
    with pytest.raises((AssertionError, RuntimeError)):
        net(torch.randn(1, 1, 80, 80))


def test_a_net_that_cannot_take_the_size_gets_the_nearest() -> None:
    """HRNet's branches need multiples of 32: 48 px become 64, and that is said."""
    spec, notes = planned("hrnet_w18_small")
    assert spec.preprocessing["input_size"] == 64
    assert notes == ["hrnet_w18_small does not take 48 px; images are resized to 64 px"]
    for split in ("train", "eval"):
        assert spec.preprocessing[split][-1] == {"Resize": {"size": [64, 64]}}


def test_channels_may_change_on_the_way() -> None:
    """Grayscale to 3 in both lists makes a net for three channels; in one list alone it is refused."""
    grey = {"Grayscale": {"num_output_channels": 3}}
    both = train_params(transforms={"train": [grey], "eval": [grey]})
    spec, _ = plan(both, CLASS_NAMES, 48, 1)
    assert spec.model_args["in_chans"] == 3
    assert len(spec.preprocessing["mean"]) == 3
    probs = Classifier(make(spec), spec)(torch.zeros(2, 48, 48, 1, dtype=torch.uint8))
    assert probs.shape == (2, 3)
    with pytest.raises(UserError, match=r"train gives 3 channel\(s\) and eval 1"):
        planned(transforms={"train": [grey], "eval": []})


def test_sizes_of_both_lists_are_brought_together() -> None:
    """A training crop smaller than the eval image stays as it is where the net takes it; else it is resized."""
    crop = {"RandomCrop": {"size": 32}}
    lists = {"train": [crop], "eval": []}
    spec, _ = planned(transforms=lists)
    assert [next(iter(step)) for step in spec.preprocessing["train"]] == ["RandomCrop", "ToDtype", "Normalize"]
    fixed, _ = planned("vit_tiny_patch16_224", transforms=lists)
    assert fixed.preprocessing["train"][-1] == {"Resize": {"size": [48, 48]}}
    assert "Resize" not in fixed.preprocessing["eval"][-1]
    chosen, notes = planned(input_size=40)
    assert notes == []
    assert chosen.preprocessing["eval"][-1] == {"Resize": {"size": [40, 40]}}


@pytest.mark.parametrize(
    "img_size, backbone, changes, evaluation, cut, side",
    [
        (48, "test_resnet", {}, [], 48, 48),
        (112, "test_resnet", {}, [], 112, 112),
        (48, "test_resnet", {"input_size": 40}, [], 48, 40),
        (48, "hrnet_w18_small", {}, [], 48, 64),
        (64, "test_resnet", {"input_size": 56}, [{"CenterCrop": {"size": "auto"}}], 56, 56),
        (48, "test_resnet", {"progressive": [{"from": 0.0, "size": 24}]}, [], 48, 48),
    ],
)
def test_plan_fills_in_the_size_that_evaluation_sees(
    img_size: int, backbone: str, changes: dict[str, Any], evaluation: list[Any], cut: int, side: int
) -> None:
    """What is saved has numbers, and training's pictures are as large as evaluation's."""
    lists = {"train": [{"RandomCrop": {"size": "auto", "padding": 4}}, "RandomHorizontalFlip"], "eval": evaluation}
    spec, _ = plan(train_params(backbone, transforms=lists, **changes), CLASS_NAMES, img_size, 1)
    assert spec.preprocessing["train"][0] == {"RandomCrop": {"size": cut, "padding": 4}}
    assert "auto" not in json.dumps(spec.preprocessing)
    picture = torch.zeros(1, img_size, img_size, dtype=torch.uint8)
    assert transforms.build_train(spec.preprocessing["train"])(picture).shape == (1, side, side)
    assert transforms.build_eval(spec.preprocessing["eval"])(picture).shape == (1, side, side)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"backbone": "resnet19"}, r"no model 'resnet19'; did you mean .*resnet18"),
        ({"backbone": "face_resnet_small"}, "face_resnet_s"),
        ({"backbone": "resnet18.a1_in2k"}, r"no model 'resnet18\.a1_in2k'; these it has: .*resnet18\.a1_in1k"),
        ({"backbone_args": {"widths": [8]}}, r"train\.backbone_args do not fit test_resnet: .*widths"),
        ({"backbone": "test_vit", "backbone_args": {"widths": [8]}}, r"train\.backbone_args do not fit test_vit"),
        ({"backbone": "hrnet_w18_small", "input_size": 48}, r"takes none of these sizes: 48 px .*train\.input_size"),
        ({"eval": ["RandomHorizontalFlip"]}, r"train\.transforms\.eval: evaluation must not be random"),
        ({"eval": [{"RandomCrop": {"size": 40}}]}, r"evaluation must not be random"),
        ({"eval": [{"RandomResize": {"min_size": 32, "max_size": 48}}]}, r"evaluation must not be random"),
        ({"eval": [{"CenterCrop": {"size": [32, 40]}}]}, r"train\.transforms\.eval gives images of 32x40"),
        ({"train": ["RandomFlip"]}, r"train\.transforms\.train\.0: unknown transform 'RandomFlip'"),
        ({"train": [{"RandomCrop": {"size": 64}}]}, r"train\.transforms\.train fails on a 48 px image"),
    ],
)
def test_what_cannot_work_is_refused_before_training(changes: dict[str, Any], said: str) -> None:
    """The message names the key and, where there is one, the nearest thing that works."""
    lists = {name: changes.pop(name, []) for name in ("train", "eval")}
    with pytest.raises(UserError, match=said):
        planned(**({"transforms": lists} | changes))


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, ModelSpec, torch.nn.Module]:
    """A net saved in a folder, with its spec."""
    spec, _ = planned()
    net = make(spec)
    save_weights(tmp_path, net, spec, "d" * 64, kept_epoch=3)
    return tmp_path, spec, net


def test_weights_come_back_as_they_were(saved: tuple[Path, ModelSpec, torch.nn.Module]) -> None:
    """Every tensor, every entry of the sidecar; in eval mode; the file is a plain state_dict."""
    folder, spec, net = saved
    loaded, sidecar = load_model(folder)
    state = torch.load(folder / "weights.pt", weights_only=True)
    assert not loaded.training
    assert list(state) == list(net.state_dict())
    for name, tensor in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
        assert torch.equal(state[name], tensor), name
    assert read_spec(sidecar) == spec
    assert sidecar.kept_epoch == 3
    assert sidecar.weights_sha256 == hashlib.sha256((folder / "weights.pt").read_bytes()).hexdigest()


def test_equal_weights_are_equal_bytes(tmp_path: Path, saved: tuple[Path, ModelSpec, torch.nn.Module]) -> None:
    """Neither the folder's name nor whether gradients are wanted shows in the file; another weight does."""
    folder, spec, _ = saved
    other = tmp_path / "elsewhere" / "deeper"
    other.mkdir(parents=True)
    twin = make(spec).requires_grad_(False)
    digest = save_weights(other, twin, spec, "d" * 64)
    assert (other / "weights.pt").read_bytes() == (folder / "weights.pt").read_bytes()
    with torch.no_grad():
        next(twin.parameters()).view(-1)[0] += 1e-6
    assert save_weights(other, twin, spec, "d" * 64) != digest


def test_other_files_than_the_saved_are_refused(saved: tuple[Path, ModelSpec, torch.nn.Module]) -> None:
    """One changed byte, a missing file or none at all: each is told, with what to run."""
    folder, *_ = saved
    data = bytearray((folder / "weights.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "weights.pt").write_bytes(data)
    with pytest.raises(UserError, match=r"weights\.pt is not the file .*`dvc checkout"):
        load_model(folder)
    (folder / "weights.pt").unlink()
    with pytest.raises(UserError, match=r"weights\.pt is not the file"):
        load_model(folder)
    with pytest.raises(UserError, match=r"weights\.json not found.*`dvc repro train`"):
        load_model(folder / "nowhere")


def test_loading_is_strict(saved: tuple[Path, ModelSpec, torch.nn.Module]) -> None:
    """A file with its right digest that lacks a tensor does not become a net with a random layer."""
    folder, *_ = saved
    state = torch.load(folder / "weights.pt", weights_only=True)
    state.pop("fc.weight")
    torch.save(state, folder / "weights.pt")
    sidecar = json.loads((folder / "weights.json").read_text())
    del sidecar["sha256"]  # as an older version wrote it
    sidecar["weights_sha256"] = hashlib.sha256((folder / "weights.pt").read_bytes()).hexdigest()
    (folder / "weights.json").write_text(json.dumps(sidecar))
    with pytest.raises(RuntimeError, match=r"fc\.weight"):
        load_model(folder)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_classifier_is_timm_and_torchvision(channels: int, tmp_path: Path) -> None:
    """Saved, loaded and called, it gives what both give by hand: crop, scale, normalise, resize, net, softmax."""
    lists = {"train": [], "eval": [{"CenterCrop": {"size": 40}}]}
    spec, _ = plan(train_params(transforms=lists, input_size=48), CLASS_NAMES, 44, channels)
    net = make(spec)
    save_weights(tmp_path, net, spec, "d" * 64)
    images = np.random.default_rng(0).integers(0, 256, (5, 44, 44, channels), dtype=np.uint8)

    by_hand = timm.create_model("test_resnet", num_classes=3, in_chans=channels).eval()
    by_hand.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    x = torch.from_numpy(images[:, 2:42, 2:42].transpose(0, 3, 1, 2).astype(np.float32)) / 255
    cfg = timm.get_pretrained_cfg("test_resnet")
    mean, std = (torch.tensor(values) for values in (cfg.mean, cfg.std))
    if channels == 1:
        mean, std = mean.mean().reshape(1), std.mean().reshape(1)
    x = F.resize((x - mean[:, None, None]) / std[:, None, None], [48, 48], antialias=True)
    with torch.no_grad():
        logits = by_hand(x).double()
        expected = logits.exp() / logits.exp().sum(1, keepdim=True)
        found = load_classifier(tmp_path)(torch.from_numpy(images))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.sum(1), torch.ones(5))
