"""A classifier as a file without its code: torch.export (``pt2``) and ONNX, and a trial of both.

Both formats take uint8 images (B, H, W, C) of one fixed size, with the preprocessing inside, and give
float32 probabilities (B, K). The batch is dynamic. Nothing here names a backbone: whether a network can be
exported is found by exporting it.
"""

import contextlib
import copy
import io
import logging
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.core.errors import UserError

Graph = Callable[[np.ndarray], np.ndarray]
FORMATS = ("pt2", "onnx")
INPUT, OUTPUT = "images", "probabilities"
TRIED_BATCHES = (1, 2, 7)
TRIAL_TOLERANCE = 1e-3  # the trial's weights are untrained: it looks for broken graphs; export checks closely


def trace(classifier: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """Trace a copy, on the CPU, of a classifier into a graph whose batch size is free.

    The example is uint8 (B, H, W, C), a batch of 2 or more: torch.export would fix a batch of 1 as a constant. It
    raises anything for a network that it cannot trace.
    """
    classifier = copy.deepcopy(classifier).cpu().eval()
    for module in classifier.modules():
        # In-place activations cost seconds in ONNX's decomposition under a symbolic batch (MobileNetV3: 7.0 s
        # against 4.4 s), and change nothing in the graph that results.
        if getattr(module, "inplace", False) is True:
            module.inplace = False
    with quiet(), torch.no_grad():
        batch = {0: torch.export.Dim("batch")}
        program = torch.export.export(classifier, (example.cpu(),), dynamic_shapes=(batch,), strict=False)
    for graph_module in program.graph_module.modules():
        for node in getattr(graph_module, "graph", torch.fx.Graph()).nodes:
            node.meta.pop("stack_trace", None)  # paths of the machine that exported, in a file that is hashed
    return program


def write(program: torch.export.ExportedProgram, path: Path, opset: int, optimize: bool = True) -> None:
    """Write what ``trace`` gave in the format of ``FORMATS`` that the path's suffix says.

    ONNX is one file with its weights inside (ONNX allows 2 GB), and a free batch; with an opset below 18 the exporter
    has to convert. Folding constants and fusing operators (``optimize``) is half its time for a transformer. Raises
    ``UserError`` for an opset that it does not know.
    """
    with quiet(), torch.no_grad():
        if path.suffix == ".pt2":
            # Examples would be pickled, and who serves the file would have to unpickle them.
            bare = copy.copy(program)
            bare.example_inputs = None
            torch.export.save(bare, str(path))
            return
        names: dict[str, Any] = {"input_names": [INPUT], "output_names": [OUTPUT], "dynamic_shapes": ({0: "batch"},)}
        settings: dict[str, Any] = {"dynamo": True, "verbose": False, "optimize": optimize, "opset_version": opset}
        onnx_program = torch.onnx.export(program, program.example_inputs[0], **names, **settings)
        assert onnx_program is not None  # by the dynamo exporter
        if (written := onnx_program.model.opset_imports[""]) != opset:  # the exporter falls back in silence
            raise UserError(f"export.opset: torch {torch.__version__} cannot write {opset}, and would write {written}.")
        for node in onnx_program.model.graph.all_nodes():
            node.metadata_props.clear()  # the exporter's notes: scopes, fx nodes, stack traces with paths
        onnx_program.save(str(path), external_data=False)


def check_exportable(
    classifier: nn.Module, img_size: int, channels: int, formats: Sequence[str], opset: int
) -> dict[str, str | None]:
    """Find which formats a classifier can be exported to, before hours of training are spent on it.

    Each of some ``FORMATS`` is written to a temporary folder, loaded, and compared with the classifier itself, whose
    weights may be untrained, at batch sizes 1, 2 and 7. Returns for each None, or in one line why it does not work;
    raises ``UserError`` for an unknown opset.
    """
    shape = (max(TRIED_BATCHES), img_size, img_size, channels)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    reference = copy.deepcopy(classifier).cpu().eval()
    with torch.inference_mode():
        expected = {size: reference(torch.from_numpy(images[:size])).numpy() for size in TRIED_BATCHES}
    try:
        program = trace(reference, torch.from_numpy(images[:2]))
    except Exception as error:
        return dict.fromkeys(formats, one_line(error))
    found: dict[str, str | None] = {}
    with tempfile.TemporaryDirectory(prefix="hyojo-trial-") as folder:
        for fmt in formats:
            path = Path(folder) / f"model.{fmt}"
            try:
                write(program, path, opset, optimize=False)
                with quiet():
                    run = _open_graph(path)
                found[fmt] = _disagreement(run, images, expected)
            except UserError:  # what no other net could mend
                raise
            except Exception as error:
                found[fmt] = one_line(error)
    return found


def one_line(error: BaseException, limit: int = 200) -> str:
    """The root cause of an error in one line, without paths of this machine."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = re.sub(r"(?:/[\w.+-]+){2,}", lambda match: match[0].rsplit("/", 1)[1], lines[0] if lines else "")
    text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _open_graph(path: Path) -> Graph:
    """A file of ``write`` on the CPU; not by what serves it, or train would depend on that: export checks closely."""
    if path.suffix == ".pt2":
        module = torch.export.load(str(path)).module()
        return lambda images: module(torch.from_numpy(images)).detach().numpy()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run([OUTPUT], {INPUT: images})[0]


def _disagreement(run: Graph, images: np.ndarray, expected: dict[int, np.ndarray]) -> str | None:
    """Compare a loaded format with the classifier at every batch size: None, or what is wrong."""
    for size, probs in expected.items():
        try:
            got = run(images[:size])
        except Exception as error:
            return f"fails at batch {size}: {one_line(error)}"
        if got.shape != probs.shape:
            return f"gives shape {got.shape} at batch {size}, and {probs.shape} is right"
        difference = float(np.abs(got - probs).max())
        if not difference <= TRIAL_TOLERANCE:  # NaN must fail too
            return f"differs by {difference:.2g} at batch {size}"
    return None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters' prints, warnings and log lines: a failure comes as an exception."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    sink = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
