"""Weights to start from: what is taken over, what is dropped, and what is refused. No network."""

import hashlib
import io
import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from builders import scramble
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor

import pipeline.models.backbones  # noqa: F401  (registers our nets with timm)
from pipeline.core.errors import UserError
from pipeline.train import pretrained

BACKBONE = "test_resnet"
ARGS = {"num_classes": 3, "in_chans": 1}


def donor(in_chans: int = 3, num_classes: int = 10, backbone: str = BACKBONE) -> dict[str, Tensor]:
    """Weights of a net trained elsewhere: no tensor is at its initial value."""
    return scramble(timm.create_model(backbone, in_chans=in_chans, num_classes=num_classes).state_dict())


def store(path: Path, state: Any) -> tuple[str, str]:
    """Write weights; their path and digest."""
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return str(path), hashlib.sha256(path.read_bytes()).hexdigest()


def check_taken_over(net: torch.nn.Module, state: dict[str, Tensor]) -> None:
    """Every tensor but stem and head is the donor's."""
    found = net.state_dict()
    assert set(found) == set(state)
    for name in set(state) - {"conv1.0.weight", "fc.weight", "fc.bias"}:
        assert torch.equal(found[name], state[name]), name


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_colour_weights_for_grey_images(name: str, tmp_path: Path) -> None:
    """The stem's channels are summed, a head for other classes starts at zero, the rest is as it was."""
    state = donor()
    net = pretrained.load_file(BACKBONE, ARGS, *store(tmp_path / name, state))
    check_taken_over(net, state)
    r, g, b = state["conv1.0.weight"].unbind(1)
    torch.testing.assert_close(net.conv1[0].weight.detach(), (r + g + b)[:, None])
    assert net.fc.weight.shape == (3, 96)
    assert not net.fc.weight.any()
    assert not net.fc.bias.any()

    # A grey picture, once as one channel and once as three, gives the same map.
    colour = timm.create_model(BACKBONE, num_classes=10)
    colour.load_state_dict(state)
    grey = torch.rand(1, 1, 16, 16)
    with torch.no_grad():
        expected = colour.conv1[0](grey.expand(1, 3, 16, 16))
        torch.testing.assert_close(net.conv1[0](grey), expected, atol=1e-5, rtol=1e-5)


def test_grey_weights_for_colour_images(tmp_path: Path) -> None:
    """The stem's one channel is repeated, and its sum over channels stays what it was."""
    state = donor(in_chans=1)
    path, digest = store(tmp_path / "w.pt", state)
    net = pretrained.load_file(BACKBONE, {"num_classes": 3, "in_chans": 3}, path, digest)
    check_taken_over(net, state)
    torch.testing.assert_close(net.conv1[0].weight.detach().sum(1, keepdim=True), state["conv1.0.weight"])


def test_a_file_without_a_head_will_do(tmp_path: Path) -> None:
    """Encoders are often shared without one."""
    state = donor()
    shared = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    net = pretrained.load_file(BACKBONE, ARGS, *store(tmp_path / "w.pt", shared))
    check_taken_over(net, state)
    with torch.no_grad():  # all classes are alike to it before it has seen any
        assert not net.eval()(torch.rand(2, 1, 16, 16)).any()


@pytest.mark.parametrize("backbone, classes", [(BACKBONE, 3), ("face_resnet_s", 8)])
def test_weights_that_fit_are_taken_whole(backbone: str, classes: int, tmp_path: Path) -> None:
    """As many channels and classes: head and stem come too; of a net of ours for other classes, all but the head."""
    state = donor(in_chans=1, num_classes=classes, backbone=backbone)
    net = pretrained.load_file(backbone, ARGS, *store(tmp_path / "w.pt", state))
    for name, tensor in net.state_dict().items():
        assert (classes != 3 and name.startswith("fc.")) or torch.equal(tensor, state[name]), name


@pytest.mark.parametrize("wrapper", ["state_dict", "model", None])
def test_wrappings_and_other_names(wrapper: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A checkpoint's key around the weights, and what DataParallel puts before their names, are taken off.

    Names that are not timm's are no hindrance where every shape agrees, and that is said.
    """
    state = donor()
    found: dict[str, Any] = {f"encoder.{i}": tensor for i, tensor in enumerate(state.values())}
    if wrapper:
        found = {wrapper: {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3}
    check_taken_over(pretrained.load_file(BACKBONE, ARGS, *store(tmp_path / "w.pt", found)), state)
    assert ("names are not timm's" in caplog.text) == (wrapper is None)


class Runs:
    """A pickle of this makes a folder when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    """Neither as torch writes it nor as pickle does."""
    mark = tmp_path / "ran"
    by_torch = store(tmp_path / "w.pt", {"fc.weight": Runs(mark)})
    plain = tmp_path / "w.pkl"
    plain.write_bytes(pickle.dumps({"fc.weight": Runs(mark)}, 2))
    for path, digest in (by_torch, (str(plain), hashlib.sha256(plain.read_bytes()).hexdigest())):
        with pytest.raises(UserError, match=r"train\.weights: .* is not a plain state_dict"):
            pretrained.load_file(BACKBONE, ARGS, path, digest)
    assert not mark.exists()


def saved(content: Any) -> bytes:
    """What ``torch.save`` writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"garbage", b"PK\x03\x04"),
        *(pickle.dumps(content, 2) for content in ({}, [1, 2], {"epoch": 1})),
        # A whole model is code; a list of tensors has no names.
        *(saved(content) for content in (torch.nn.Linear(2, 2), [torch.ones(2)], torch.ones(2), {"state_dict": {}})),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_holds_no_tensors_is_refused(suffix: str, content: bytes, tmp_path: Path) -> None:
    """An empty file, a torn one, and files of other things."""
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"train\.weights: .* is not a plain state_dict"):
        pretrained.load_file(BACKBONE, ARGS, str(path), hashlib.sha256(content).hexdigest())


def test_another_file_than_the_digest_says(tmp_path: Path) -> None:
    """Both digests are shown, so that the right one can be put right."""
    path, digest = store(tmp_path / "w.pt", donor())
    with pytest.raises(UserError, match=rf"train\.weights_sha256 is {'0' * 64}, but {path} has {digest}"):
        pretrained.load_file(BACKBONE, ARGS, path, "0" * 64)
    with pytest.raises(UserError, match=r"train\.weights: .*none\.pt cannot be read: No such file"):
        pretrained.load_file(BACKBONE, ARGS, str(tmp_path / "none.pt"), digest)


def test_weights_of_another_backbone_are_refused(tmp_path: Path) -> None:
    """The message counts and shows the tensors that do not match; half a file counts as another."""
    vit = store(tmp_path / "vit.pt", donor(backbone="test_vit"))
    with pytest.raises(UserError, match=r"is not a state_dict of test_resnet: \d+ tensors missing.*unknown"):
        pretrained.load_file(BACKBONE, ARGS, *vit)
    state, name = donor(), "layer1.0.conv1.weight"
    other = state | {name: state.pop(name)[:1]}  # the right names with another width are another net
    with pytest.raises(UserError, match=r"(?s)does not fit test_resnet: .*layer1\.0\.conv1\.weight"):
        pretrained.load_file(BACKBONE, ARGS, *store(tmp_path / "w.pt", other))
    with pytest.raises(UserError, match=r"1 tensors missing \(first: \['layer1\.0\.conv1\.weight'\]"):
        pretrained.load_file(BACKBONE, ARGS, *store(tmp_path / "half.pt", state))


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, and a hub that answers nobody: an address that is kept for documentation."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "https://192.0.2.1")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("offline")
def test_without_a_network_it_is_told_within_seconds() -> None:
    """The hub's own client would try for minutes; the message says what to do instead."""
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        pretrained.load_hub("test_resnet", ARGS)
    assert time.monotonic() - start < 5
    for remedy in ("test_resnet", "192.0.2.1", "train.weights", "train.weights_sha256", "train.pretrained"):
        assert remedy in str(caught.value)
    assert constants.HF_HUB_OFFLINE is False


def test_a_head_is_new_only_for_other_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """From timm's own cache: its 1,000 classes come whole, other classes start alike."""
    state = donor(num_classes=1000)
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", lambda *_, **__: dict(state))
    whole = pretrained.load_hub(BACKBONE, {"num_classes": 1000, "in_chans": 3})
    assert torch.equal(whole.fc.weight, state["fc.weight"])
    net = pretrained.load_hub(BACKBONE, ARGS)
    check_taken_over(net, state)
    assert not net.fc.weight.any()


@pytest.mark.usefixtures("offline")
def test_nobody_is_called_where_the_client_is_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """``HF_HUB_OFFLINE`` holds, and stays as it was set."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(pretrained, "_reachable", lambda _url: pytest.fail("it was tried"))
    with pytest.raises(UserError, match="not in the local cache"):
        pretrained.load_hub("test_resnet", ARGS)
    assert constants.HF_HUB_OFFLINE is True


def test_a_net_without_published_weights_says_so() -> None:
    """Our own have none."""
    with pytest.raises(UserError, match=r"timm has no weights for face_resnet_s; set train\.pretrained to false"):
        pretrained.load_hub("face_resnet_s", ARGS)
