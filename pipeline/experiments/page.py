"""A comparison to read, of models or of families: as text for the terminal, and as a page.

A page of two models has the pictures that they disagree about.

The pictures are faces: the page is no output of a stage, and never goes into git.
"""

from typing import Any

from markupsafe import Markup

from pipeline.core.dataset import load_prepared
from pipeline.core.errors import UserError
from pipeline.core.paths import PREPARED
from pipeline.experiments.two_families import FamilyComparison
from pipeline.experiments.two_models import Comparison
from pipeline.metrics.seed_anova import mean_interval
from pipeline.reporting import html, plots, training_figures

SHOWN = 24  # of each kind
CLASS_HEADER = ["recall", "images", "A", "B", "B - A", "95 % interval", "p (Holm)"]
TITLES = {
    "fixed": ("Fixed", "A was wrong and B is right."),
    "broken": ("Broken", "A was right and B is wrong."),
    "still wrong": ("Still wrong", "Both are wrong; those of which B is surest."),
}


def text(found: Comparison) -> str:
    """The comparison as aligned text."""
    blocks = [
        [f"A  {found.a.name}", f"B  {found.b.name}", "", found.verdict],
        _table(["", "A", "B", "B - A", "95 % interval"], score_rows(found)),
        _table(CLASS_HEADER, class_rows(found)),
        _table(["cost", "A", "B", "B / A"], cost_rows(found)),
        _params_table(found),
        _corrections_table(found),
        [", ".join(f"{len(rows):,} {name}" for name, rows in found.samples.items())],
    ]
    return _join(blocks)


def page(found: Comparison) -> str:
    """The comparison as a page, HTML, with pictures if those that were compared are prepared."""
    images, missing = _pictures(found)
    exhibits = []
    for name, (title, about) in TITLES.items():
        rows = found.samples[name]
        shown = [_face(found, row, images[row]) for row in rows[:SHOWN]] if images is not None else []
        exhibits.append({"title": title, "about": about, "total": len(rows), "faces": shown})
    return html.render(
        "compare.html",
        title="Two models",
        found=found,
        images=len(found.a.targets),
        scores=score_rows(found),
        classes=class_rows(found),
        costs=cost_rows(found),
        params=found.params,
        corrections=correction_rows(found),
        exhibits=exhibits,
        missing=missing,
        tiles=[(len(found.samples[name]), title.lower(), name == "broken") for name, (title, _) in TITLES.items()],
    )


def families_text(found: FamilyComparison) -> str:
    """The comparison of two families as aligned text."""
    blocks = [found.summary(), _table(CLASS_HEADER, class_rows(found)), _params_table(found), _corrections_table(found)]
    return _join(blocks)


def families_page(found: FamilyComparison) -> str:
    """The comparison of two families as a page, HTML."""
    scores = {f"{side}: {one.name}": one.accuracies for side, one in (("A", found.a), ("B", found.b))}
    spreads = {name: mean_interval(values, highest=1.0) for name, values in scores.items()}
    figure = training_figures.seed_scores(
        {name: list(values) for name, values in scores.items()},
        {name: (spread.mean, spread.low, spread.high) for name, spread in spreads.items()},
        "test accuracy: seeds, mean, 95 % t interval",
    )
    return html.render(
        "families.html",
        title="Two families of seeds",
        found=found,
        lines=found.summary(),
        figure=Markup(plots.to_svg(figure, "seeds", "test accuracy of each seed", height_in=2)),
        images=len(found.a.samples),
        classes=class_rows(found),
        params=found.params,
        corrections=correction_rows(found),
    )


def score_rows(found: Comparison) -> list[list[str]]:
    """Cells of the scores: name, A, B, difference, interval."""
    return [[name, *_figures(row)] for name, row in found.scores.items()]


def class_rows(found: Comparison | FamilyComparison) -> list[list[str]]:
    """Cells of the recalls: class, images, A, B, difference, interval, p."""
    return [[row["class"], f"{row['images']:,}", *_figures(row), f"{row['p']:.2g}"] for row in found.classes]


def cost_rows(found: Comparison) -> list[list[str]]:
    """Cells of the costs: name, A, B, ratio; none where neither side has any."""
    return [
        [name, _figure(a), _figure(b), "" if ratio is None else f"{ratio:.2f}"]
        for name, a, b, ratio in found.costs
        if (a, b) != (None, None)
    ]


def correction_rows(found: Comparison | FamilyComparison) -> list[list[str]]:
    """Cells of what decisions of people did to labels: name, A, B."""
    return [[name, _figure(a), _figure(b)] for name, a, b in found.corrections]


def _pictures(found: Comparison) -> tuple[Any, str]:
    """The images of the test split, uint8 (N, H, W, C), or None and why they are not there."""
    try:
        prepared = load_prepared()
        split = prepared.split("test")
    except UserError as error:
        return None, str(error).splitlines()[0].rstrip(".")
    digest = found.a.test_digest or found.b.test_digest
    if split.files != found.a.files or (digest and digest != prepared.split_digests["test"]):
        return None, f"{PREPARED} holds another test split now"
    return split.images, ""


def _face(found: Comparison, row: int, image: Any) -> dict[str, Any]:
    """What is shown of a sample."""
    names = found.a.class_names
    answers = []
    for side in (found.a, found.b):
        pred = side.preds[row]
        answers.append({"label": names[pred], "prob": float(side.probs[row, pred]), "right": bool(side.right[row])})
    about = {"file": found.a.files[row], "label": names[found.a.targets[row]]}
    return about | {"picture": html.thumbnail(image), "answers": answers}


def _figures(row: dict[str, Any]) -> list[str]:
    """Cells of A, B, difference, interval."""
    interval = f"{row['low']:+.4f} to {row['high']:+.4f}"
    return [f"{row['a']:.4f}", f"{row['b']:.4f}", f"{row['difference']:+.4f}", interval]


def _figure(value: float | None) -> str:
    if value is None:
        return "not recorded"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _params_table(found: Comparison | FamilyComparison) -> list[str]:
    """Lines of the params that differ, long values cut."""
    rows = [[name, *(one if len(one) <= 40 else f"{one[:37]}..." for one in sides)] for name, *sides in found.params]
    return _table(["params that differ", "A", "B"], rows)


def _corrections_table(found: Comparison | FamilyComparison) -> list[str]:
    return _table(["labels by decision", "A", "B"], correction_rows(found))


def _join(blocks: list[list[str]]) -> str:
    """Blocks of lines, with an empty line between; empty ones vanish."""
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Aligned lines, the first column and text to the left and figures to the right; none without rows."""
    if not rows:
        return []
    numeric, columns = header[0] != "params that differ", []
    for i, column in enumerate(zip(header, *rows, strict=True)):
        width = max(map(len, column))
        columns.append([cell.rjust(width) if i and numeric else cell.ljust(width) for cell in column])
    return ["  ".join(line).rstrip() for line in zip(*columns)]
