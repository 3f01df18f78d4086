"""What depends on the kind of device: which there are, how they draw, copy, wait and talk to one another.

All branches on a device's kind are here. What has memory and a queue of its own, as CUDA has, is an accelerator, and is
asked through torch's module of its kind; every other kind is treated as the CPU is.
"""

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.core.errors import UserError


def resolve_device(name: str, local_rank: int = 0, local_world: int = 1) -> torch.device:
    """Turn ``train.device`` into this process's device; ``auto`` takes CUDA when there is one.

    It becomes the current one: else libraries would open a context on the first of its kind, of 0.5 GB and more, and
    ask that one what it can do. From here on float32 is IEEE's, but within ``use_tf32``.

    Args:
        name: Of a kind, or of one device.
        local_rank: Which of this machine's devices, where the name does not say.
        local_world: How many processes of this machine train together.

    Raises:
        UserError: It is not here, or is one device for several processes.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if is_accelerator(device):
            if device.index is None:
                device = torch.device(device.type, local_rank)
            elif local_world > 1:
                raise UserError(
                    f"train.device: {name} is one device, and {local_world} processes train here: set {device.type}"
                )
            torch.get_device_module(device).set_device(device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"train.device: {name!r} is not to be had here ({reason}); set auto or cpu") from None
    _set_tf32(False)
    return device


def is_accelerator(device: torch.device) -> bool:
    """Whether a device has memory, a queue and a generator of its own, of which torch's module of its kind tells."""
    return device.type not in ("cpu", "mps")  # the memory of Apple's is the host's


def describe_device(device: torch.device) -> str:
    """Say what a device is, and how much memory it has if that is its own."""
    if not is_accelerator(device):
        return device.type.upper()
    module = torch.get_device_module(device)
    return f"{module.get_device_name(device)}, {module.mem_get_info(device)[1] / 2**30:.0f} GB"


def check_count(device: torch.device, wanted: int) -> None:
    """Raise ``UserError`` if there are fewer devices of a kind than wanted; a CPU takes any number of ranks."""
    if is_accelerator(device) and (count := torch.get_device_module(device).device_count()) < wanted:
        raise UserError(f"train.devices: {wanted} {device.type.upper()} devices are wanted and {count} are here")


def check_compiler(device: torch.device) -> None:
    """Raise ``UserError`` without what ``train.compile`` needs: Inductor a C++ compiler, Triton a C compiler."""
    cpp = "clang++" if sys.platform == "darwin" else "g++"
    variable, usual = ("CC", ["gcc", "clang"]) if is_accelerator(device) else ("CXX", [cpp])
    named = os.environ.get(variable)
    if not any(map(shutil.which, [named] if named else usual)):
        raise UserError(
            f"train.compile: torch.compile needs a compiler, and there is no {named or ' or '.join(usual)} here. "
            f"Install one, name it in the variable {variable}, or set train.compile: none."
        )
    header = Path(sysconfig.get_path("include", "posix_prefix"), "Python.h")
    if not header.exists():
        raise UserError(
            f"train.compile: torch.compile needs {header}. Install Python's headers (python3-dev, say), or set "
            "train.compile: none."
        )


def set_determinism(wanted: bool, device: torch.device) -> None:
    """Have CUDA compute alike every time, at some cost in speed; the CPU always does."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        torch.use_deterministic_algorithms(True)  # Inductor's too: it no longer chooses kernels by the clock
    torch.backends.cudnn.benchmark = is_accelerator(device) and not wanted


@contextmanager
def use_tf32(wanted: bool) -> Iterator[None]:
    """Whether CUDA may multiply float32 as TF32, with 10 bits after the point in place of 23, while this lasts."""
    _set_tf32(wanted)
    try:
        yield
    finally:
        _set_tf32(False)


def _set_tf32(wanted: bool) -> None:
    # The older of torch's two ways to say it: Inductor reads these, and torch refuses a mix of both.
    torch.backends.cudnn.allow_tf32 = wanted
    torch.backends.cuda.matmul.allow_tf32 = wanted


def seed_draws(seed: int, device: torch.device) -> None:
    """Seed what modules draw from, such as dropout and stochastic depth."""
    # Not torch.manual_seed: that also records a stack trace for every device, at 20 times the cost.
    torch.default_generator.manual_seed(seed)
    if is_accelerator(device):
        torch.get_device_module(device).default_generators[device.index].manual_seed(seed)


def list_precisions(device: torch.device) -> list[str]:
    """The values of ``train.amp`` for which a device has instructions."""
    if not is_accelerator(device):
        instructions = torch.cpu.get_capabilities() if device.type == "cpu" else {}
        return ["none", "bf16"] if any(instructions[name] for name in instructions if "bf16" in name) else ["none"]
    supported = torch.get_device_module(device).is_bf16_supported(including_emulation=False)
    return ["none", "bf16", "fp16"] if supported else ["none", "fp16"]


@contextmanager
def explain_full_memory(remedy: str) -> Iterator[None]:
    """Raise ``UserError``, with what was needed and a remedy, where a device's memory, or the host's, is too small."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        # torch has no class of its own for the host's memory, that of cuBLAS, or what fails in compiled code.
        if not any(sign in text for sign in ("out of memory", "DefaultCPUAllocator", "STATUS_ALLOC_FAILED")):
            raise
        needed = " ".join(text.split("Including non-PyTorch memory")[0].split()).rstrip(".")
        raise UserError(f"the memory is full: {needed}. {remedy}") from None


def has_room(device: torch.device, size_bytes: int, share: float) -> bool:
    """Whether so much fits into a share of a device's free memory; in the host's own, where it lies, it always does."""
    return not is_accelerator(device) or size_bytes < share * torch.get_device_module(device).mem_get_info(device)[0]


def copy_to(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to a device without waiting for it; one that is there stays as it is."""
    leaves = is_accelerator(device) and not is_accelerator(tensor.device)
    return (tensor.pin_memory() if leaves else tensor).to(device, non_blocking=True)


@lru_cache(maxsize=256)
def get_constant(values: tuple[Any, ...], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Give a tensor that is copied to its device once: copying one for every batch would wait for the device."""
    return torch.tensor(values, device=device, dtype=dtype)


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all that it was given."""
    if is_accelerator(device):
        torch.get_device_module(device).synchronize(device)


@contextmanager
def watch_waits(device: torch.device, reaction: str = "error") -> Iterator[None]:
    """While this lasts, ``error`` or ``warn`` where the host waits for CUDA; other kinds of device cannot tell."""
    module = torch.get_device_module(device)
    watch = getattr(module, "set_sync_debug_mode", lambda _: None)
    watch(reaction)
    try:
        yield
    finally:
        watch("default")


def choose_backend(device: torch.device) -> str:
    """The backend by which processes exchange tensors of a device."""
    # The CPU's backend is there under CUDA, too: what steers a run must not wait for the GPU.
    return "cpu:gloo,cuda:nccl" if is_accelerator(device) else "gloo"


def list_ids(device: torch.device) -> list[int] | None:
    """The ids that torch's ``DistributedDataParallel`` wants of a rank's device; None for a CPU, which has none."""
    return [device.index] if is_accelerator(device) else None
