"""A bundle's graph: which file is run, and by what."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

# What runs a graph, and the file that it wants; the first that is there runs where nothing else is asked for.
RUNTIMES = {"onnx": "model.onnx", "torch": "model.pt2", "int8": "model.int8.onnx"}

Graph = Callable[[np.ndarray], np.ndarray]


def served_file(folder: Path, runtime: str | None = None) -> tuple[str, Path]:
    """Say what runs a bundle, one of ``RUNTIMES``, and the file that it runs.

    Args:
        folder: A bundle.
        runtime: One of ``RUNTIMES``; None: the first whose file is there.

    Raises:
        FileNotFoundError: The bundle has no such file.
    """
    wanted = RUNTIMES if runtime is None else {runtime: RUNTIMES[runtime]}
    for name, file in wanted.items():
        if (folder / file).exists():
            return name, folder / file
    raise FileNotFoundError(f"{folder} holds no {' and no '.join(wanted.values())}")


def load_graph(path: Path, threads: int | None = None, content: bytes | None = None, trust: bool = False) -> Graph:
    """Load a classifier that export wrote, as it is served.

    Args:
        path: Of an ONNX file, or with the suffix ``.pt2`` one of torch.export.
        threads: That compute one batch; None: as many as ONNX Runtime or torch takes by itself.
        content: The file's bytes, where they were read and checked before.
        trust: Whether a file of torch.export may run code of its own.

    Returns:
        A function from uint8 images (B, S, S, C) to probabilities, float32 (B, K).

    Raises:
        BundleError: The file would run code of its own, and is not trusted.
    """
    content = path.read_bytes() if content is None else content
    if path.suffix == ".pt2":
        from .torch_graph import load_pt2

        return load_pt2(path, content, threads, trust)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    # Threads that wait by spinning take the cores from other requests, which decode meanwhile.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]
