"""What a model answered, against what it answered before: for ``hyojo watch``.

Answers are a folder of ``hyojo batch``, a log of ``hyojo serve --log-requests``, or those to the test split, which a
bundle has in ``reference.json``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.core.errors import UserError, telling
from pipeline.core.stage_files import ReferenceFile
from pipeline.inference.bundle import BundleError
from pipeline.inference.descriptors import DESCRIPTORS
from pipeline.metrics.drift import MIN_ANSWERS, Shift, estimate_accuracy, find_shifts
from pipeline.serve import locate

# Columns that are compared, in this order; the last two are made of ``error``.
COLUMNS = ("label", "probability", "abstain", *DESCRIPTORS, "without_face", "failed")
NO_FACE = "no face was found"


@dataclass(frozen=True)
class Answers:
    """Answers to compare.

    Attributes:
        title: What they are.
        table: ``COLUMNS``, as far as they are known; NaN where a picture has no such value.
        reference: What is known of the labels besides, where they are those to a test split.
    """

    title: str
    table: pd.DataFrame
    reference: ReferenceFile | None = None


@dataclass(frozen=True)
class Finding:
    """How answers differ from a reference.

    Attributes:
        least: Size from which a shift counts.
        accuracy: The estimate and its interval; None without a reference that knows labels.
    """

    reference: Answers
    now: Answers
    least: float
    shifts: list[Shift]
    accuracy: tuple[float, float, float] | None

    @property
    def shifted(self) -> list[Shift]:
        """Those that count."""
        return [shift for shift in self.shifts if shift.is_shifted(self.least)]


def watch(scores: str, against: str, least: float) -> Finding:
    """Compare answers with earlier ones.

    Args:
        scores: A folder of ``hyojo batch``, or a log of requests.
        against: The same, or a model as in ``locate.locate``.
        least: Size, from 0 to 1, from which a shift counts.

    Raises:
        UserError: One of them cannot be read, holds too few answers, or has no reference; ``least`` is no size.
    """
    if not 0 <= least < 1:
        raise UserError("--least is a size from 0 to 1.")
    now, reference = read_answers(Path(scores)), _open_reference(against)
    for side in (now, reference):
        if (count := side.table["label"].notna().sum()) < MIN_ANSWERS:
            raise UserError(f"{side.title}: {count} answers say nothing of a distribution; {MIN_ANSWERS} are needed.")
    accuracy, known = None, reference.reference
    if known is not None:
        confidences = (side.table["probability"].dropna().to_numpy() for side in (reference, now))
        before, after = confidences
        accuracy = estimate_accuracy(before, pd.Series(known.columns["right"]).to_numpy(bool), after)
    return Finding(reference, now, least, find_shifts(reference.table, now.table), accuracy)


def read_answers(path: Path) -> Answers:
    """Read a folder of ``hyojo batch`` or a log of requests; raises ``UserError``."""
    if path.is_dir():
        rows = _read_parts(path)
    else:
        try:
            rows = pd.read_json(path, lines=True)
        except FileNotFoundError:
            raise UserError(f"{path} does not exist.") from None
        except (ValueError, OSError) as error:
            raise UserError(f"{path} is no log of `hyojo serve --log-requests` ({error}).") from None
    if missing := {"label", "error"} - set(rows.columns):
        raise UserError(f"{path} has no column {', '.join(sorted(missing))}: no answers of `hyojo batch` or `serve`.")
    said = rows["error"].fillna("")
    rows = rows.assign(without_face=said == NO_FACE, failed=(said != "") & (said != NO_FACE))
    versions = sorted(set(rows.get("version", pd.Series(dtype=str)).dropna()))
    by = f" by {', '.join(versions[:3])}{' and others' if len(versions) > 3 else ''}" if versions else ""
    return Answers(f"{path.name}, {len(rows):,} answers{by}", rows.reindex(columns=_there(rows)))


def _read_parts(folder: Path) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.dataset

    try:
        found = pyarrow.dataset.dataset(folder, format="parquet")
        wanted = [name for name in (*COLUMNS, "error", "version") if name in found.schema.names]
        return found.to_table(columns=wanted).to_pandas()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{folder} is no folder of `hyojo batch` ({str(error).splitlines()[0]}).") from None


def _open_reference(against: str) -> Answers:
    """Earlier answers, or those to a model's test split."""
    path = Path(against)
    if path.exists() and not (path / "bundle.json").exists() and not (path / "MLmodel").exists():
        return read_answers(path)
    found = locate.locate(against)
    if ReferenceFile.FILE not in found.opened.files:
        raise UserError(
            f"{found.title} has no {ReferenceFile.FILE}: it was exported before there was one. `dvc repro` and `hyojo "
            "register` make a version that has it; --against takes earlier scores too."
        )
    with telling(BundleError):
        content = found.opened.read(ReferenceFile.FILE)
    known = ReferenceFile.parse(content, found.title)
    table = pd.DataFrame(known.columns)
    return Answers(f"the test split of {found.title}, {known.images:,} pictures", table[_there(table)], known)


def _there(table: pd.DataFrame) -> list[str]:
    return [name for name in COLUMNS if name in table.columns]


def describe(found: Finding) -> str:
    """The finding as text."""
    lines = [f"{found.now.title}", f"against {found.reference.title}", ""]
    for row in (["", "reference", "now", "size", "p", ""], *shift_rows(found)):
        lines.append("{:14}{:>10}{:>10}{:>7}  {:6}  {}".format(*row).rstrip())
    lines += ["", "answers: " + ", ".join(f"{name} {a:.1%} -> {b:.1%}" for name, a, b in count_labels(found))]
    if found.accuracy:
        lines.append(describe_accuracy(found))
    return "\n".join([*lines, describe_verdict(found)])


def shift_rows(found: Finding) -> list[list[str]]:
    """Cells of the shifts: name, mean of the reference and now, size, p, and whether it counts."""
    return [
        [
            shift.name,
            *("" if value != value else f"{value:.3f}" for value in (shift.reference, shift.now)),
            f"{shift.size:.3f}",
            f"{shift.p:.3f}" if shift.p >= 0.001 else "<0.001",
            "SHIFTED" if shift in found.shifted else "",
        ]
        for shift in found.shifts
    ]


def describe_verdict(found: Finding) -> str:
    """What is shifted, in a sentence."""
    names = ", ".join(shift.name for shift in found.shifted)
    return f"Shifted: {names}." if names else f"Nothing is shifted by {found.least:g} or more, beyond chance."


def describe_accuracy(found: Finding) -> str:
    """A sentence on the estimated accuracy; empty if there is none."""
    if not (found.accuracy and (known := found.reference.reference)):
        return ""
    estimate, low, high = found.accuracy
    text = (
        f"accuracy, estimated without labels: {estimate:.3f} [{low:.3f}, {high:.3f}]; {known.accuracy:.3f} on the test "
        "split"
    )
    if known.estimate_off:
        text += (
            f". On that split made worse by corruptions such estimates were off by {known.estimate_off['mean']:.3f} on "
            f"average, by {known.estimate_off['most']:.3f} at most"
        )
    return text


def count_labels(found: Finding) -> list[tuple[str, float, float]]:
    """The share of each label in the reference and now, the most frequent first."""
    before, after = (side.table["label"].value_counts(normalize=True) for side in (found.reference, found.now))
    return [(name, float(before.get(name, 0)), float(after.get(name, 0))) for name in before.index.union(after.index)]


def summarise(found: Finding) -> dict[str, Any]:
    """The finding as plain values, for JSON."""
    estimate = dict(zip(("estimate", "low", "high"), found.accuracy)) if found.accuracy else None
    return {
        "scores": found.now.title,
        "against": found.reference.title,
        "least": found.least,
        "shifted": [shift.name for shift in found.shifted],
        "shifts": {
            shift.name: {"size": shift.size, "p": shift.p}
            | ({} if shift.now != shift.now else {"reference": shift.reference, "now": shift.now})
            for shift in found.shifts
        },
        "labels": {name: {"reference": before, "now": after} for name, before, after in count_labels(found)},
        "accuracy": estimate,
    }
