"""What depends on the kind of device: which there are, how they draw, copy, wait and talk to one another.

All branches on a device's kind are here. CUDA has its own; every other kind is treated as the CPU is.
"""

import os
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from pipeline.core.errors import UserError


def resolve_device(name: str, local_rank: int = 0) -> torch.device:
    """Turn ``train.device`` into a device; ``auto`` takes CUDA when there is one. ``UserError`` if none is here.

    The local rank is which of this machine's CUDA devices, where the name does not say.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"train.device: {name!r} is not to be had here ({reason}); set auto or cpu") from None
    return device


def check_count(device: torch.device, wanted: int) -> None:
    """Raise ``UserError`` if there are fewer devices of a kind than wanted; a CPU takes any number of ranks."""
    if _is_cuda(device) and torch.cuda.device_count() < wanted:
        raise UserError(f"train.devices: {wanted} CUDA devices are wanted and {torch.cuda.device_count()} are here")


def set_determinism(wanted: bool, device: torch.device) -> None:
    """Have CUDA compute alike every time, at some cost in speed; the CPU always does."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = _is_cuda(device) and not wanted


def seed_draws(seed: int, device: torch.device) -> None:
    """Seed what modules draw from, such as dropout and stochastic depth."""
    # Not torch.manual_seed: that also records a stack trace for every device, at 20 times the cost.
    torch.default_generator.manual_seed(seed)
    if _is_cuda(device):
        torch.cuda.default_generators[device.index].manual_seed(seed)


def list_precisions(device: torch.device) -> list[str]:
    """The values of ``train.amp`` that are of use on a device."""
    if not _is_cuda(device):
        return ["none", "bf16"] if device.type == "cpu" else ["none"]
    return ["none", "bf16", "fp16"] if torch.cuda.is_bf16_supported() else ["none", "fp16"]


def has_room(device: torch.device, size_bytes: int, share: float) -> bool:
    """Whether so much fits into a share of a device's free memory; in the host's own, where it lies, it always does."""
    return not _is_cuda(device) or size_bytes < share * torch.cuda.mem_get_info(device)[0]


def copy_to(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to a device without waiting for it."""
    return (tensor.pin_memory() if _is_cuda(device) else tensor).to(device, non_blocking=True)


@lru_cache(maxsize=256)
def get_constant(values: tuple[Any, ...], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Give a tensor that is copied to its device once: copying one for every batch would wait for the device."""
    return torch.tensor(values, device=device, dtype=dtype)


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all that it was given."""
    if _is_cuda(device):
        torch.cuda.synchronize(device)


def choose_backend(device: torch.device) -> str:
    """The backend by which processes exchange tensors of a device."""
    # The CPU's backend is there under CUDA, too: what steers a run must not wait for the GPU.
    return "cpu:gloo,cuda:nccl" if _is_cuda(device) else "gloo"


def list_ids(device: torch.device) -> list[int] | None:
    """The ids that torch's ``DistributedDataParallel`` wants of a rank's device; None for a CPU, which has none."""
    return [device.index] if _is_cuda(device) else None


def _is_cuda(device: torch.device) -> bool:
    return device.type == "cuda"
