"""What depends on the kind of device, asked of stand-ins for torch's modules: no device is needed."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from builders import params_with
from torch._inductor import config

from pipeline.core.dataset import Split
from pipeline.core.errors import UserError
from pipeline.core.signals import StopRequest
from pipeline.models import devices

CPU = torch.device("cpu")
META = torch.device("meta:1")  # tensors can be made there, and it is not the CPU
FULL = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.79 GiB of which 5.06 MiB is free."
)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Torch's module of every kind of device."""
    module = SimpleNamespace()
    monkeypatch.setattr(torch, "get_device_module", lambda _device: module)
    return module


@pytest.fixture
def _undone() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)
    config.deterministic = False
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@pytest.mark.parametrize("name, local", [("meta:1", 0), ("meta", 1)])
def test_resolve_device_makes_it_the_current_one(module: SimpleNamespace, name: str, local: int) -> None:
    seen: list[torch.device] = []
    module.set_device = seen.append
    assert devices.resolve_device(name, local) == META
    assert seen == [META]


def test_resolve_device_leaves_no_tf32() -> None:
    torch.backends.cudnn.allow_tf32 = True  # as torch has it
    devices.resolve_device("cpu")
    with devices.use_tf32(True):
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (True, True)
        assert torch.backends.cudnn.conv.fp32_precision == "tf32"
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (False, False)
    assert torch.backends.cudnn.conv.fp32_precision != "tf32"


@pytest.mark.parametrize("native", [True, False])
def test_list_precisions_without_emulated_ones(module: SimpleNamespace, native: bool) -> None:
    module.is_bf16_supported = lambda including_emulation=True: including_emulation or native
    assert ("bf16" in devices.list_precisions(META)) == native


@pytest.mark.parametrize(
    "instructions, native",
    [({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, False), ({"avx512_bf16": True}, True), ({}, False)],
)
def test_list_precisions_of_processors(
    monkeypatch: pytest.MonkeyPatch, instructions: dict[str, bool], native: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    assert ("bf16" in devices.list_precisions(CPU)) == native


@pytest.mark.usefixtures("_undone")
def test_set_determinism_reaches_compiled_code() -> None:
    devices.set_determinism(False, CPU)
    assert not config.deterministic
    devices.set_determinism(True, CPU)
    assert config.deterministic
    assert torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    "device, variable, name",
    [(CPU, "CXX", "clang++" if sys.platform == "darwin" else "g++"), (META, "CC", "gcc"), (META, "CC", "clang")],
)
def test_check_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: torch.device, variable: str, name: str
) -> None:
    there = {name}
    monkeypatch.setattr(devices.shutil, "which", lambda sought: sought if sought in there else None)
    monkeypatch.setattr(devices.sysconfig, "get_path", lambda *_: str(tmp_path))
    for unset in ("CC", "CXX"):
        monkeypatch.delenv(unset, raising=False)
    with pytest.raises(UserError, match=r"train\.compile.*/Python\.h"):
        devices.check_compiler(device)
    (tmp_path / "Python.h").touch()
    devices.check_compiler(device)
    monkeypatch.setenv(variable, "mine")
    with pytest.raises(UserError, match=rf"train\.compile.*no mine here.*{variable}"):
        devices.check_compiler(device)
    there.add("mine")
    devices.check_compiler(device)
    monkeypatch.delenv(variable)
    there.clear()
    with pytest.raises(UserError, match=rf"train\.compile.*{re.escape(name)}.*{variable}"):
        devices.check_compiler(device)


def test_explain_full_memory_says_what_was_needed() -> None:
    with (
        pytest.raises(UserError, match=r"Tried to allocate 2\.00 GiB\..* 5\.06 MiB is free\. Buy more\."),
        devices.explain_full_memory("Buy more."),
    ):
        raise torch.OutOfMemoryError(f"{FULL} Including non-PyTorch memory, this process has 7 GiB in use.")
    with pytest.raises(UserError, match=r"4000000000000000 bytes"), devices.explain_full_memory(""):
        torch.empty(10**15)
    with pytest.raises(RuntimeError, match="else"), devices.explain_full_memory(""):
        raise RuntimeError("something else")


@pytest.mark.parametrize(
    "module, function, call, keys",
    [
        ("train.stage", "load_prepared", lambda m: m.train(params_with(), StopRequest()), "batch_size accumulate amp"),
        ("evaluate.stage", "load_prepared", lambda m: m.evaluate(params_with().evaluate, "cpu"), "evaluate.batch_size"),
        ("experiments.tuning", "load_prepared", lambda m: m.lr_range(params_with().train, 1, 2, 3), "batch_size amp"),
        ("experiments.suspects", "train_on", lambda m: judge(m), "batch_size accumulate amp"),
    ],
)
def test_full_memory_is_an_error_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, module: str, function: str, call: Callable, keys: str
) -> None:
    def fill(*_: object) -> None:
        raise torch.OutOfMemoryError(FULL)

    tested = import_module(f"pipeline.{module}")
    monkeypatch.setattr(tested, function, fill)
    with pytest.raises(UserError, match=r"2\.00 GiB") as raised:
        call(tested)
    assert all(key in str(raised.value) for key in keys.split())


def judge(suspects: Any) -> None:
    """Have every image judged by a net that has not seen it."""
    split = Split(np.zeros((8, 16, 16, 1), np.uint8), np.arange(8) % 2, [str(row) for row in range(8)])
    prepared = SimpleNamespace(class_names=["a", "b"])
    suspects.held_out_probs(params_with().train, prepared, split, np.arange(8), 2)
