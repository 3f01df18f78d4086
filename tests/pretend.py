"""A device that pretends, for tests of the way to an accelerator where there is none.

Its tensors say that they are on ``pretend:0`` and hold the CPU's values. Every op is checked and counted: one that
mixes devices raises, as on CUDA; one for which the host would wait is noted with the line that asks for it; the others
are launches. Autograd, autocast, GradScaler and the optimizers are torch's own. It knows nothing of kernels, of memory,
of TF32, or of how fast anything is. The place in torch for devices written in Python is experimental.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch._dynamo  # before anything of torch is patched
from torch import Tensor
from torch.optim import optimizer as optimizers
from torch.utils import _foreach_utils as foreach
from torch.utils import backend_registration as registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "pretend"
COUNT = 1
# What launches nothing: a view, or an empty tensor.
FREE = {
    "view", "_unsafe_view", "t", "transpose", "permute", "expand", "slice", "select", "unsqueeze", "squeeze", "detach",
    "alias", "as_strided", "split", "split_with_sizes", "unbind", "unfold", "_reshape_alias", "diagonal", "lift_fresh",
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "is_same_size",
    "_has_compatible_shallow_copy_type", "_local_scalar_dense",
}  # fmt: skip
# The shape of the answer, or the answer itself, is known when the device has computed it.
AWAITED = {
    "nonzero", "masked_select", "unique_dim", "_unique2", "unique_consecutive", "equal", "is_nonzero", "bincount",
    "repeat_interleave", "_local_scalar_dense",
}  # fmt: skip
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
ON_HOST = {"_local_scalar_dense", "equal", "is_nonzero", "is_same_size"}
# What autocast computes at the lower precision, and what in float32, of CUDA's lists.
LOWERED = [
    "conv1d", "conv2d", "conv3d", "linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "mv",
    "scaled_dot_product_attention",
]  # fmt: skip
KEPT = [
    "log_softmax.int", "softmax.int", "nll_loss", "cross_entropy_loss", "layer_norm", "prod", "pow.Tensor_Scalar",
    "exp", "log",
]  # fmt: skip


class MixedDevices(RuntimeError):
    """An op got tensors of two devices."""


@dataclass
class Ledger:
    """What happened since it was cleared: launches by op, waits by kind and line, seeds of the device's generator."""

    launches: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    seeds: list[int] = field(default_factory=list)

    def clear(self) -> None:
        for part in vars(self).values():
            part.clear()

    def wait(self, kind: str) -> None:
        self.waits[f"{kind} at {_find_line()}"] += 1


LEDGER = Ledger()


def _find_line() -> str:
    """The innermost line of the pipeline, or else of anything but torch, that is running."""
    frame: Any = sys._getframe(1)
    other = "?"
    while frame:
        name = frame.f_code.co_filename
        if "/pipeline/" in name:
            return f"{name.split('/pipeline/')[-1]}:{frame.f_lineno}"
        if other == "?" and "/torch/" not in name and name != __file__:
            other = f"{name.split('/')[-1]}:{frame.f_lineno}"
        frame = frame.f_back
    return other


class Pretended(Tensor):
    """A tensor of the device, with its values in ``inner``."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, index: int = 0) -> "Pretended":
        with torch.inference_mode(False):  # torch takes a view of another tensor for one of its own kind
            made = Tensor._make_wrapper_subclass(
                cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
                layout=inner.layout, device=torch.device(NAME, index), requires_grad=False,
            )  # fmt: skip
        made.inner = inner.detach()
        return made

    def __init__(self, *_: Any) -> None:
        pass

    def __repr__(self, **_: Any) -> str:
        return f"Pretended({self.inner!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.inner.__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Everything(TorchDispatchMode):
    """Sees ops that make tensors of the device out of nothing, too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        composite = torch._C.DispatchKey.CompositeImplicitAutograd
        if torch.is_inference_mode_enabled() and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), composite):
            with self:
                return func.decompose(*args, **(kwargs or {}))
        return _run(func, args, kwargs or {})


def _is_ours(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Check and count an op, and let the CPU compute it."""
    name = func._schema.name.split("::")[1]
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, Pretended)]
    device = kwargs.get("device")
    if not ours and not _is_ours(device):
        return func(*args, **kwargs)
    if name in ("_to_copy", "copy_"):
        _note_copy(name, args, kwargs)
    else:
        _check(name, args, tensors, ours)
    if name not in FREE:
        LEDGER.launches[name] += 1
    plain_args, plain = tree_map(_unwrap, (args, kwargs))
    plain |= {key: value for key, value in (("device", "cpu"), ("non_blocking", False)) if key in plain}
    plain |= {"pin_memory": False} if plain.get("pin_memory") else {}
    out = func(*plain_args, **plain)
    if name in ON_HOST or (device is not None and not _is_ours(device)):
        return out
    changed = [argument for argument in func._schema.arguments if argument.alias_info and argument.alias_info.is_write]
    if changed and func._schema.returns:  # changed in place: it comes back as itself
        places = {argument.name: place for place, argument in enumerate(func._schema.arguments)}
        found = [kwargs[one.name] if one.name in kwargs else args[places[one.name]] for one in changed]
        return found[0] if len(func._schema.returns) == 1 else tuple(found)
    index = ours[0].device.index if ours else torch.device(device).index or 0
    return tree_map(lambda value: Pretended(value, index) if isinstance(value, Tensor) else value, out)


def _unwrap(value: Any) -> Any:
    return value.inner if isinstance(value, Pretended) else value


def _note_copy(name: str, args: Any, kwargs: dict[str, Any]) -> None:
    """Note a copy between host and device for which the host waits: one back, or one of what is not pinned."""
    source = args[1] if name == "copy_" else args[0]
    device = args[0].device if name == "copy_" else kwargs.get("device") or source.device
    if isinstance(source, Pretended) and not _is_ours(device):
        LEDGER.wait("copy to the host")  # not blocking, too: who reads it must wait
    elif not isinstance(source, Pretended) and _is_ours(device) and source.numel():
        quick = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
        if not quick and not (name == "copy_" and source.ndim == 0):
            LEDGER.wait("blocking copy to the device")
        elif quick and not hasattr(source, "pinned"):
            LEDGER.wait("copy of pageable memory to the device")


def _check(name: str, args: Any, tensors: list[Tensor], ours: list[Tensor]) -> None:
    """Raise where devices are mixed, and note what is waited for."""
    others = [tensor for tensor in tensors if not isinstance(tensor, Pretended)]
    if len({tensor.device.index for tensor in ours}) > 1 or (
        any(tensor.ndim for tensor in others) and (name not in INDEXING or not isinstance(args[0], Pretended))
    ):
        raise MixedDevices(f"{name}: {[(tuple(one.shape), str(one.device)) for one in tensors]} at {_find_line()}")
    if name in AWAITED and ours:
        LEDGER.wait(name)
    if name in INDEXING:
        indices = [index for index in args[1] if isinstance(index, Tensor)]
        if any(not isinstance(index, Pretended) for index in indices):
            LEDGER.wait("index copied to the device")
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            LEDGER.wait("index of truth values")


class _Generator:
    """What is drawn by modules comes from the CPU's; that of the device only notes how it was seeded."""

    def manual_seed(self, seed: int) -> None:
        LEDGER.seeds.append(seed)


class Module(registration._DummyBackendModule):
    """``torch.pretend``."""

    default_generators = tuple(_Generator() for _ in range(COUNT))

    def device_count(self) -> int:
        return COUNT

    def set_device(self, device: torch.device) -> None:
        pass

    def mem_get_info(self, _device: Any = None) -> tuple[int, int]:
        return 80 * 2**30, 80 * 2**30

    def synchronize(self, _device: Any = None) -> None:
        LEDGER.wait("synchronize")

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]

    def is_bf16_supported(self, including_emulation: bool = True) -> bool:
        return True

    def manual_seed(self, seed: int) -> None:
        pass


def _register_autocast() -> list[torch.library.Library]:
    key = "AutocastPrivateUse1"
    rest, library = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    rest.fallback(torch.library.fallthrough_kernel, key)
    hidden = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def casting(op: Any, dtype: torch.dtype | None) -> Callable:
        def cast(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == torch.float64:
                return value
            return value.to(dtype or torch.get_autocast_dtype(NAME))

        def run(*args: Any, **kwargs: Any) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(hidden):
                return op(*tree_map(cast, args), **tree_map(cast, kwargs))

        return run

    for name, dtype in [(name, None) for name in LOWERED] + [(name, torch.float32) for name in KEPT]:
        packet, _, overload = name.partition(".")
        op = getattr(getattr(torch.ops.aten, packet), overload or "default")
        library.impl(f"aten::{name}", casting(op, dtype), key)
    return [rest, library]


# Before the first backward pass of the process, which starts a thread for each device that torch knows then. The device
# is used only within ``pretending``.
registration._setup_privateuseone_for_python_backend(NAME, backend_module=Module())
for _supported in (foreach._foreach_supported_types, optimizers._foreach_supported_types):
    _supported.append(Pretended)
_libraries = _register_autocast()


@contextmanager
def pretending() -> Iterator[Ledger]:
    """Have the device in this process while this lasts; yields what happens on it."""
    tensor, as_tensor, tolist, generator = torch.tensor, torch.as_tensor, Tensor.tolist, torch.Generator

    def pin_memory(self: Tensor, _device: Any = None) -> Tensor:
        copied = self.clone()
        copied.pinned = True
        return copied

    def make(data: Any, *, device: Any = None, **named: Any) -> Tensor:
        made = tensor(data, device=None if _is_ours(device) else device, **named)
        return made.to(device) if _is_ours(device) else made

    def make_as(data: Any, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
        if isinstance(data, Tensor):
            return data.to(device=device or data.device, dtype=dtype or data.dtype)
        made = as_tensor(data, dtype=dtype)
        return made.to(device) if device is not None else made

    def to_list(self: Tensor) -> Any:
        if isinstance(self, Pretended):
            LEDGER.wait("tolist")
        return tolist(_unwrap(self))

    with pytest.MonkeyPatch.context() as patch, _Everything():
        patch.setattr(Tensor, "pin_memory", pin_memory)
        patch.setattr(Tensor, "tolist", to_list)
        patch.setattr(torch, "tensor", make)
        patch.setattr(torch, "as_tensor", make_as)
        patch.setattr(torch, "Generator", lambda device=None: generator())
        LEDGER.clear()
        yield LEDGER
        LEDGER.clear()
