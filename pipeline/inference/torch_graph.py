"""A graph of torch.export, opened as data; the one module of this folder that needs torch.

``torch.export.load`` runs what a file says: it unpickles (and falls back to ``weights_only=False``), evaluates
expressions and guards as Python, calls any function below ``torch``, and loads compiled libraries. So a file is opened
only if every entry and every text in it is of a kind known to be harmless; others need the user's trust.
"""

import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export.pt2_archive import PT2ArchiveReader
from torch.export.pt2_archive._package import load_pt2 as read_archive

from .bundle import BundleError

_PROGRAM, _EXAMPLE = "models/model.json", "data/sample_inputs/model.pt"
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
# Entries of an archive: numbers in plain bytes, and JSON.
_ENTRY = re.compile(
    r"archive_format|archive_version|byteorder|\.data/\w+|data/weights/weight_\d+|data/constants/tensor_\d+|"
    + "|".join(map(re.escape, (_PROGRAM, _EXAMPLE, *_CONFIGS)))
)
_WORD = re.compile(r"[\w.]*")
_LINE = re.compile(r".*")
_CALLED = re.compile(
    r"torch\.ops\.aten\.(?!__)\w+\.(?!__)\w+|torch\.ops\.higher_order\.wrap_with_(autocast|set_grad_enabled)|"
    r"_operator\.(add|sub|mul|floordiv|mod|neg|getitem|eq|ne|lt|le|gt|ge)|math\.(ceil|floor|trunc)|"
    r"torch\.sym_(max|min|int|not)"
)
_EXPRESSION = re.compile(
    r"([ ,()]|-?\d+|Symbol\('[su]\d+'|(Integer|Add|Mul|Pow|Mod|PythonMod|FloorDiv|CeilDiv|Max|Min)\(|"
    r"(positive|nonnegative|integer)=(True|False))*"
)
# Few, for some operators of torch.ops.aten take the name of a file.
_OPTION = re.compile(r"none|tanh|floor|trunc|constant|reflect|replicate|circular|cpu")
_STRUCTURE = re.compile(r'([\d\s\[\]{},:]|null|"(type|context|children_spec|builtins\.\w+|null|\[\])")*')
# Texts that are no mere names, by their key.
_TEXTS = {
    "target": _CALLED,
    "as_operator": _CALLED,
    "expr_str": _EXPRESSION,
    "as_string": _OPTION,
    "as_strings": _OPTION,
    "in_spec": _STRUCTURE,
    "out_spec": _STRUCTURE,
    "path_name": re.compile(r"(weight|tensor)_\d+"),
    "torch_version": re.compile(r"[\w.+]*"),
    "nn_module_stack": _LINE,  # where a node comes from; nothing runs it
    "torch_fn": _LINE,
}
_DENIED = ("guards_code", "stack_trace", "source_fn_stack", "custom", "from_node", "use_pickle", "as_custom_obj")


def load_pt2(path: Path, content: bytes, threads: int | None, trust: bool) -> Callable[[np.ndarray], np.ndarray]:
    """Load a file of torch.export on the CPU; arguments, result and errors as of ``graphs.load_graph``."""
    if not trust and (found := find_code(content)):
        raise BundleError(
            f"{path} could run code of its own: it has {found}. If you know who made it, --trust opens it; "
            "--runtime onnx needs no trust where there is a model.onnx."
        )
    if threads:
        torch.set_num_threads(threads)
    # Not by torch.export.load, which tries older formats on a file of another kind than the one that was looked at.
    program = read_archive(io.BytesIO(content)).exported_programs["model"]
    module = program.module(check_guards=False)  # guards are Python

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            probs: np.ndarray = module(torch.from_numpy(images)).numpy()
        return probs

    return run


def find_code(content: bytes) -> str | None:
    """Find what in a file of torch.export could run code when it is opened; None: nothing.

    The archive is read by the reader that opens it, so that both see the same entries.
    """
    try:
        reader = PT2ArchiveReader(io.BytesIO(content))  # type: ignore[no-untyped-call]
        for name in reader.get_file_names():
            if not _ENTRY.fullmatch(name):
                return f"an entry {name!r}"
        if reader.read_bytes(_EXAMPLE):
            return f"pickled examples in {_EXAMPLE}"
        records = [json.loads(reader.read_bytes(name)) for name in (_PROGRAM, *_CONFIGS)]
        return next(_strange_texts(records), None)
    except (RuntimeError, ValueError, AssertionError, RecursionError) as error:
        return f"a form that cannot be read ({str(error).splitlines()[0]})"


def _strange_texts(value: Any, key: str = "") -> Iterator[str]:
    """Texts in a JSON value that are not of a known kind; ``key`` is what the value stands under."""
    if key in _DENIED and value:
        yield f"{key} {str(value)[:60]!r}"
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _strange_texts(inner, name)
            if not _WORD.fullmatch(name):
                yield f"a name {name[:60]!r}"
    elif isinstance(value, list):
        for inner in value:
            yield from _strange_texts(inner, key)
    elif isinstance(value, str) and not _TEXTS.get(key, _WORD).fullmatch(value):
        yield f"{key} {value[:60]!r}"
