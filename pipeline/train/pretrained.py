"""Weights to start from: a local state_dict, or timm's own from the cache or the hub.

A local file is checked against the digest in params, so that another file is another result. A head for other classes
starts at zero (Dosovitskiy et al., 2021, https://arxiv.org/abs/2010.11929, section 3.2): one that starts at random, as
timm makes it, sends large gradients without meaning through all layers, which then forget what they knew.
"""

import hashlib
import io
import logging
import socket
import threading
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from pipeline.core.errors import UserError

HUB_TIMEOUT_S = 3.0
log = logging.getLogger(__name__)


def load_file(backbone: str, model_args: dict[str, Any], path: str, sha256: str | None) -> nn.Module:
    """Build a net from a local state_dict; stem and head are adapted to the data's channels and classes.

    The file is one for ``torch.load(weights_only=True)``, or ``.safetensors``. Its names are timm's, or its tensors
    have, in order, the shapes of timm's. ``model_args`` has ``in_chans`` and ``num_classes`` among others.

    Raises:
        UserError: The file is missing, is another than the digest says, or does not fit the backbone.
    """
    state = _read_state(path, sha256)
    template = timm.create_model(backbone, pretrained=False, **model_args)
    cfg = template.pretrained_cfg
    heads = _names(cfg.get("classifier"))
    state = _in_timm_names(state, template, path, backbone)
    first_convs = [name for name in _names(cfg.get("first_conv")) if f"{name}.weight" in state]
    in_chans = state[f"{first_convs[0]}.weight"].shape[1] if first_convs else model_args["in_chans"]
    classes = next((len(state[f"{head}.weight"]) for head in heads if f"{head}.weight" in state), 0)
    # timm itself sums or repeats the stem's channels, resamples position tables and drops another head.
    input_size = (in_chans, *cfg["input_size"][1:])
    overlay = {"state_dict": state, "num_classes": classes, "label_offset": 0, "input_size": input_size}
    try:
        net = timm.create_model(backbone, pretrained=True, pretrained_cfg_overlay=overlay, **model_args)
    except RuntimeError as error:
        raise UserError(f"train.weights: {path} does not fit {backbone}: {error}") from None
    return _with_new_head(net, classes, model_args)


def load_hub(backbone: str, model_args: dict[str, Any]) -> nn.Module:
    """Build a net with timm's pretrained weights, from the local cache or else from the hub.

    Raises:
        UserError: No such weights; or no cache and no network (told within seconds).
    """
    from huggingface_hub import constants

    cfg = timm.get_pretrained_cfg(backbone, allow_unregistered=True)
    if cfg is None or not cfg.has_weights:  # None for our own nets
        raise UserError(f"train.pretrained: timm has no weights for {backbone}; set train.pretrained to false")
    # The hub's client tries for minutes without a network, so the cache is asked first, with the client offline.
    was_offline, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        net = timm.create_model(backbone, pretrained=True, **model_args)
    except Exception as error:
        log.debug("not in the local cache: %s", error)
        constants.HF_HUB_OFFLINE = was_offline
        if was_offline or not _reachable(constants.ENDPOINT):
            raise UserError(
                f"train.pretrained: the weights of {backbone} are not in the local cache and the hub "
                f"({constants.ENDPOINT}) cannot be reached. Give a local file instead: train.weights: "
                "path/to/state_dict with train.weights_sha256; or set train.pretrained to false."
            ) from None
        net = timm.create_model(backbone, pretrained=True, **model_args)
    finally:
        constants.HF_HUB_OFFLINE = was_offline
    return _with_new_head(net, cfg.num_classes, model_args)


def _with_new_head(net: nn.Module, classes: int, model_args: dict[str, Any]) -> nn.Module:
    """Set a head that was made for others than the ``classes`` of the weights to zero. Returns the net."""
    if classes != model_args["num_classes"]:
        for name in _names(net.pretrained_cfg.get("classifier")):
            for parameter in net.get_submodule(name).parameters():
                nn.init.zeros_(parameter)
    return net


def _read_state(path: str, sha256: str | None) -> dict[str, Tensor]:
    """The tensors of a local file whose digest is checked."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"train.weights: {path} cannot be read: {error.strerror}") from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise UserError(f"train.weights_sha256 is {sha256}, but {path} has {digest}. Correct one of the two.")
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load

            return load(data)
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        state = next((state[key] for key in ("state_dict", "model") if isinstance(state.get(key), dict)), state)
        if not state or not all(isinstance(tensor, Tensor) for tensor in state.values()):
            raise TypeError("it holds other things than named tensors")
    except Exception as error:
        raise UserError(f"train.weights: {path} is not a plain state_dict: {error}") from None
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _in_timm_names(state: dict[str, Tensor], template: nn.Module, path: str, backbone: str) -> dict[str, Tensor]:
    """Give tensors timm's names: as they are, or in order where every shape agrees."""
    expected = template.state_dict()
    cfg = template.pretrained_cfg
    adaptable = {f"{name}.weight" for name in _names(cfg.get("first_conv"))}
    adaptable |= {f"{name}.{kind}" for name in _names(cfg.get("classifier")) for kind in ("weight", "bias")}
    if set(expected) - set(state) <= adaptable and set(state) <= set(expected):
        return state
    pairs = list(zip(expected.items(), state.values()))
    if len(state) == len(expected) and all(
        name in adaptable or tensor.shape == found.shape for (name, tensor), found in pairs
    ):
        log.warning("%s: names are not timm's; its %d tensors have their shapes in order", path, len(pairs))
        return {name: found for (name, _), found in pairs}
    missing, extra = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    raise UserError(
        f"train.weights: {path} is not a state_dict of {backbone}: {len(missing)} tensors missing (first: "
        f"{missing[:3]}), {len(extra)} unknown (first: {extra[:3]}). Rename its tensors to timm's names."
    )


def _names(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


def _reachable(url: str) -> bool:
    """Whether a host, or the proxy in front of it, takes a connection within a few seconds."""
    address = urllib.parse.urlparse(urllib.request.getproxies().get("https") or url)
    found: list[bool] = []

    def connect() -> None:
        try:
            socket.create_connection((address.hostname, address.port or 443), timeout=HUB_TIMEOUT_S).close()
            found.append(True)
        except OSError:
            pass

    # In a thread, because looking a name up has no time limit of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(HUB_TIMEOUT_S)
    return bool(found)
