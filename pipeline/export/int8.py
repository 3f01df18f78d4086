"""An ONNX classifier in 8-bit integers: a quarter of its size, and faster where the CPU multiplies such (VNNI).

Static quantization by ONNX Runtime, after Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference" (2018): the ranges of activations are those seen on calibration images.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.dataset import Prepared
from pipeline.inference.graphs import RUNTIMES, load_graph
from pipeline.models import formats

if TYPE_CHECKING:
    from onnx import GraphProto

CALIBRATION_IMAGES = 512
CHECK_IMAGES = 5000
BATCH_SIZE = 64
OPERATORS = ["Conv", "Gemm", "MatMul"]


def offer_int8(prepared: Prepared, folder: Path, most: float | None) -> dict[str, Any]:
    """Quantize ``model.onnx``, and keep the result where it costs little accuracy on the val split.

    Args:
        prepared: Its train split calibrates, its val split judges.
        folder: Holds ``model.onnx``; ``model.int8.onnx`` is put beside it.
        most: The accuracy that it may cost, a part of 1; None: none is made.

    Returns:
        ``absent`` (why, or None) and, where it was made, ``images`` of val, ``accuracy`` on them, ``float_accuracy``
        of ``model.onnx``, and ``size_bytes``.
    """
    source, dest = folder / RUNTIMES["onnx"], folder / RUNTIMES["int8"]
    if most is None:
        return {"absent": "export.int8_drop is null"}
    if not source.exists():
        return {"absent": "it is made of model.onnx, which is absent"}
    train, val = prepared.split("train").images, prepared.split("val")
    rows = pick_rows(len(val.targets), CHECK_IMAGES)
    if not len(rows):
        return {"absent": "there are no val images to check it on"}
    try:
        quantize(source, dest, train[pick_rows(len(train), CALIBRATION_IMAGES)])
        images, targets = val.images[rows], val.targets[rows]
        before, after = (_accuracy(path, images, targets) for path in (source, dest))
    except Exception as error:  # as with the other formats: whatever a graph makes the quantizer raise
        dest.unlink(missing_ok=True)
        return {"absent": formats.one_line(error)}
    size = dest.stat().st_size
    found = {"images": len(rows), "accuracy": after, "float_accuracy": before, "size_bytes": size}
    if before - after <= most:
        return {"absent": None} | found
    dest.unlink()
    return {"absent": f"it costs {before - after:.4f} of accuracy, and export.int8_drop is {most:g}"} | found


def quantize(source: Path, dest: Path, images: np.ndarray) -> None:
    """Write an int8 version of an ONNX classifier; preprocessing and softmax stay in floats.

    Weights are quantized by channel, symmetrically, to 7 bits: x86 processors without VNNI add pairs of products in 16
    bits, which those of 8 overflow, and so would answer otherwise than the machine that checked the net
    (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html). Activations are unsigned integers,
    the kind that ONNX Runtime's integer kernels are fast for.

    Args:
        source: A file of ``formats.write``.
        dest: The file to write.
        images: Calibration images, uint8 (N, H, W, C), of the training split.

    Raises:
        Exception: Whatever ONNX Runtime raises for a graph that it can't quantize.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        batches = ({formats.INPUT: batch} for batch in _batches(images))

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    prepared = dest.with_suffix(".prepared")
    try:
        with formats.quiet():
            # Folds batch norm into the convolutions. Its symbolic shapes are for graphs of several free dimensions.
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            model = onnx.load(str(prepared))
            quantize_static(
                model,
                str(dest),
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                reduce_range=True,
                op_types_to_quantize=OPERATORS,
                nodes_to_exclude=_fold_pools(model.graph),
            )
    finally:
        prepared.unlink(missing_ok=True)


def pick_rows(count: int, most: int) -> np.ndarray:
    """Pick at most so many of ``count`` row numbers, ascending; the same ones every time."""
    return np.sort(np.random.default_rng(0).permutation(count)[:most])


def _accuracy(path: Path, images: np.ndarray, targets: np.ndarray) -> float:
    """Accuracy of an ONNX file on images, uint8 (N, H, W, C), with class indices (N,)."""
    run = load_graph(path)
    preds = np.concatenate([run(batch).argmax(1) for batch in _batches(images)])
    return float((preds == targets).mean())


def _batches(images: np.ndarray) -> Iterator[np.ndarray]:
    return (np.ascontiguousarray(images[i : i + BATCH_SIZE]) for i in range(0, len(images), BATCH_SIZE))


def _fold_pools(graph: "GraphProto") -> list[str]:
    """Make one convolution of an average pool and the 1x1 one behind it: such a pool takes longer than both.

    A pool that rounds its size up stays. What follows it is named, to stay in floats: ONNX Runtime 1.32 runs such a
    pool in integers when what follows is, and gets its border wrong: of a net of ours 6 % of the answers changed,
    against 1 % without it.
    """
    from onnx import helper, numpy_helper

    sides = {value.name: [side.dim_value for side in value.type.tensor_type.shape.dim] for value in graph.value_info}
    weights = {one.name: one for one in graph.initializer}
    pools = {node.output[0]: node for node in graph.node if node.op_type == "AveragePool"}
    behind = []
    for node in graph.node:
        if node.op_type != "Conv" or node.input[0] not in pools:
            continue
        pool = pools[node.input[0]]
        given, own = ({one.name: helper.get_attribute_value(one) for one in each.attribute} for each in (pool, node))
        kernel, weight = given["kernel_shape"], weights.get(node.input[1])
        tiles = given.get("strides") == kernel and not any(given.get("pads", []))
        whole = all(side and side % by == 0 for side, by in zip(sides.get(pool.input[0], [])[2:] or [0], kernel))
        single = own["kernel_shape"] == own["strides"] == [1, 1] and own["group"] == 1 and not any(own["pads"])
        if weight is not None and tiles and whole and single:
            values = numpy_helper.to_array(weight)  # (out, in, 1, 1)
            values = np.tile(values / np.float32(np.prod(kernel)), (1, 1, *kernel))
            graph.initializer.append(numpy_helper.from_array(values, f"{node.input[1]}.pooled"))
            node.CopyFrom(
                helper.make_node(
                    "Conv", [pool.input[0], f"{node.input[1]}.pooled", *node.input[2:]], node.output, node.name,
                    kernel_shape=kernel, strides=kernel,
                )
            )  # fmt: skip
        elif given.get("ceil_mode"):
            behind.append(node.name)
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for holder, unused in (
        (graph.node, [node for node in pools.values() if node.output[0] not in used]),
        (graph.initializer, [one for name, one in weights.items() if name not in used]),
    ):
        for one in unused:
            holder.remove(one)
    return behind
