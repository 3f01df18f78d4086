"""What ``hyojo watch`` finds, as a page and on an MLflow run."""

from markupsafe import Markup
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from pipeline.reporting import html, plots, shift_figures
from pipeline.serve.watch import Finding, count_labels, describe_accuracy, describe_verdict, shift_rows


def render(found: Finding) -> str:
    """The page, HTML, with a figure of every column that is compared."""
    figures = []
    for shift in found.shifts:
        before, after = (side.table[shift.name].dropna() for side in (found.reference, found.now))
        if is_bool_dtype(before) or is_bool_dtype(after):
            continue  # a share, which the table has
        figure = (
            shift_figures.numbers(before.to_numpy(float), after.to_numpy(float), shift.name)
            if is_numeric_dtype(before)
            else shift_figures.labels(count_labels(found))
        )
        about = f"Distribution of {shift.name}, reference and now; size of the shift {shift.size:.3f}"
        height = 3.2 if shift.name == "label" else 2.2
        figures.append((shift.name, Markup(plots.to_svg(figure, shift.name.replace("_", ""), about, height))))
    return html.render(
        "watch.html",
        title="Answers, watched",
        now=found.now.title,
        reference=found.reference.title,
        verdict=describe_verdict(found),
        accuracy=describe_accuracy(found),
        rows=shift_rows(found),
        figures=figures,
    )


def log(found: Finding) -> None:
    """Put sizes, the estimate and the page onto an MLflow run of their own."""
    from pipeline.tracking.watches import log_watch

    figures = {f"size/{shift.name}": shift.size for shift in found.shifts}
    if found.accuracy:
        figures |= dict(zip(("accuracy", "accuracy_low", "accuracy_high"), found.accuracy))
    log_watch(figures, render(found), found.now.title, found.reference.title)
