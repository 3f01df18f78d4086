"""The model card of a bundle, as Markdown, after Mitchell et al., "Model Cards for Model Reporting" (2019).

Its text is ``templates/card.md``.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from pipeline.reporting import html


def render(
    bundle: Mapping[str, Any],
    counts: Mapping[str, Mapping[str, int]],
    params: Mapping[str, Any],
    per_class: Sequence[Mapping[str, str]] = (),
) -> str:
    """Write the card: Markdown, without dates and without paths of this machine.

    Args:
        bundle: What ``bundle.json`` holds; before there is a bundle, without ``formats``, ``digest`` and ``run_id``,
            and the card says nothing of files.
        counts: Images by split and class.
        params: Flat ``prepare.*`` and ``train.*`` parameters of the training.
        per_class: Rows of ``reports/per_class.csv``, on the test split.
    """
    counted = [[name, *(split.get(name, 0) for split in counts.values())] for name in bundle["class_names"]]
    counted.append(["**all**", *(sum(split.values()) for split in counts.values())])
    parts = [(part, *score) for part, scores in bundle["metrics"].items() for score in scores.items()]
    card = html.render(
        "card.md",
        table=_table,
        bundle=bundle,
        source=PurePath(str(params.get("prepare.source", "unknown"))).name,
        counts=counts,
        counted=counted,
        scores=[(part, name, f"{value:.4f}" if isinstance(value, float) else value) for part, name, value in parts],
        per_class=per_class,
        rounded=[[_round(name, cell) for name, cell in row.items()] for row in per_class],
        training=list(_training_rows(params)),
        files=list(_file_rows(bundle.get("formats", {}), bundle.get("int8", {}))),
    )
    # Its own text has neither: names of classes and files shall bring no HTML, no links and no pictures.
    return card.replace("<", "&lt;").replace("](", "]\\(")


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; bars and line breaks in cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def _round(name: str, cell: str) -> str:
    """A cell of the per-class table; fractions to three digits."""
    return f"{float(cell):.3f}" if "." in cell and name != "class" else cell


def _training_rows(params: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The train parameters; of a weights file only the name, as its folder belongs to one machine."""
    for key, value in params.items():
        if key.startswith("train."):
            shown = PurePath(value).name if key == "train.weights" and value else value
            yield key.removeprefix("train."), f"`{shown}`"


def _file_rows(formats: Mapping[str, str | None], int8: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each format, and why it is not there; of the int8 one also what it costs."""
    yield "weights.safetensors", "present"
    for name, why in formats.items():
        yield f"model.{name}", f"absent: {why}" if why else "present"
    if int8:
        cost = "present: accuracy {accuracy:.4f} on {images:,} val images, where model.onnx has {float_accuracy:.4f}"
        yield "model.int8.onnx", f"absent: {int8['absent']}" if int8.get("absent") else cost.format(**int8)
