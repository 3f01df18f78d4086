"""A classifier as a file without its code: torch.export (``pt2``) and ONNX, and a probe of both.

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

import numpy as np
import torch
from torch import Tensor, nn

FORMATS = ("pt2", "onnx")
INPUT, OUTPUT = "images", "probabilities"
PROBE_BATCHES = (1, 2, 7)
PROBE_TOLERANCE = 1e-3  # the probe's weights are untrained: it looks for broken graphs; export checks closely

Runner = Callable[[np.ndarray], np.ndarray]


def trace(classifier: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """Trace a classifier into a graph whose batch size is free.

    The classifier itself is left as it is: a copy on the CPU is traced.

    Args:
        classifier: From uint8 images (B, H, W, C) to float32 probabilities (B, K).
        example: uint8 (B, H, W, C). A batch of 2 or more: torch.export would fix a batch of 1 as a constant.

    Raises:
        ValueError: If the example's batch is smaller than 2.
        Exception: Whatever torch.export raises for a network that it can't trace.
    """
    if len(example) < 2:
        raise ValueError(f"the example needs a batch of at least 2, and has shape {tuple(example.shape)}")
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


def export_pt2(
    classifier: nn.Module,
    example: Tensor,
    path: str | Path,
    program: torch.export.ExportedProgram | None = None,
) -> None:
    """Write a classifier with torch.export.

    Args:
        classifier: As in ``trace``.
        example: As in ``trace``.
        path: The file to write.
        program: ``trace(classifier, example)`` when it is at hand already.
    """
    program = program or trace(classifier, example)
    with quiet():
        torch.export.save(program, str(path))


def export_onnx(
    classifier: nn.Module,
    example: Tensor,
    path: str | Path,
    opset: int,
    program: torch.export.ExportedProgram | None = None,
    optimize: bool = True,
) -> None:
    """Write a classifier as one ONNX file, weights inside (ONNX allows 2 GB), batch free.

    Args:
        classifier: As in ``trace``.
        example: As in ``trace``.
        path: The file to write.
        opset: ONNX operator set; 18 or more, or the exporter has to convert.
        program: ``trace(classifier, example)`` when it is at hand already.
        optimize: Fold constants and fuse operators; half the exporter's time for a transformer.
    """
    program = program or trace(classifier, example)
    with quiet(), torch.no_grad():
        onnx_program = torch.onnx.export(
            program,
            (example.cpu(),),
            dynamo=True,
            verbose=False,
            optimize=optimize,
            opset_version=opset,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: "batch"},),
        )
        for node in onnx_program.model.graph.all_nodes():
            node.metadata_props.clear()  # the exporter's notes: scopes, fx nodes, stack traces with paths
        onnx_program.save(str(path), external_data=False)


def write(
    fmt: str,
    classifier: nn.Module,
    example: Tensor,
    path: str | Path,
    opset: int,
    program: torch.export.ExportedProgram | None = None,
    optimize: bool = True,
) -> None:
    """Write one of ``FORMATS``; the arguments are those of ``export_onnx``."""
    if fmt == "pt2":
        export_pt2(classifier, example, path, program)
    else:
        export_onnx(classifier, example, path, opset, program, optimize)


def probe(
    classifier: nn.Module, img_size: int, channels: int, formats: Sequence[str], opset: int
) -> dict[str, str | None]:
    """Find which formats a classifier can be exported to, before hours of training are spent on it.

    Each format is written to a temporary folder, loaded, and compared with the classifier itself at batch
    sizes 1, 2 and 7.

    Args:
        classifier: As in ``trace``; its weights may be untrained.
        img_size: Height and width of the images, px.
        channels: 1 or 3.
        formats: Some of ``FORMATS``.
        opset: ONNX operator set.

    Returns:
        For each format None when it works, else the reason in one line.
    """
    if not formats:
        return {}
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (max(PROBE_BATCHES), img_size, img_size, channels), dtype=np.uint8)
    example = torch.from_numpy(images[:2])
    reference = copy.deepcopy(classifier).cpu().eval()
    with torch.inference_mode():
        expected = {size: reference(torch.from_numpy(images[:size])).numpy() for size in PROBE_BATCHES}
    try:
        program = trace(reference, example)
    except Exception as error:
        return dict.fromkeys(formats, one_line(error))
    found: dict[str, str | None] = {}
    with tempfile.TemporaryDirectory(prefix="hyojo-probe-") as folder:
        for fmt in formats:
            path = Path(folder) / f"model.{fmt}"
            try:
                write(fmt, reference, example, path, opset, program, optimize=False)
                with quiet():
                    run = _open(path)
                found[fmt] = _disagreement(run, images, expected)
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


def _open(path: Path) -> Runner:
    """A written file, looked at before training. It is not loaded as served: an edit there must cost no training."""
    if path.suffix == ".pt2":
        module = torch.export.load(str(path)).module()
        return lambda images: module(torch.from_numpy(images)).detach().numpy()
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run([OUTPUT], {INPUT: images})[0]


def _disagreement(
    run: Callable[[np.ndarray], np.ndarray], images: np.ndarray, expected: dict[int, np.ndarray]
) -> str | None:
    """Compare a loaded format with the classifier at every batch size: None, or what is wrong."""
    for size, probs in expected.items():
        try:
            got = run(images[:size])
        except Exception as error:
            return f"fails at batch {size}: {one_line(error)}"
        if got.shape != probs.shape:
            return f"gives shape {got.shape} at batch {size}, and {probs.shape} is right"
        difference = float(np.abs(got - probs).max())
        if not difference <= PROBE_TOLERANCE:  # NaN must fail too
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
