"""Tables of whatever kind: what their columns mean, and what stands in their cells.

Columns are found by their usual names, whatever their case, blanks and underscores, or as ``prepare.columns`` says.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from pipeline.core.errors import UserError, suggest

ROLES = {
    "path": (
        "path", "file", "filename", "filepath", "fname", "image", "imagepath", "imagename", "imagefile",
        "imagefilename", "imageid", "img", "imgpath", "imgname", "imgfile", "imgid", "picture", "photo", "pth",
        "subdirectoryfilepath",
    ),
    "label": ("label", "labels", "emotion", "expression", "class", "classname", "target", "category", "labelname"),
    "split": ("split", "usage", "set", "subset", "partition", "phase", "datasplit", "splitname"),
    "person": (
        "subject", "subjectid", "person", "personid", "identity", "participant", "participantid", "actor", "group",
    ),
    "weight": ("weight", "weights", "sampleweight"),
}  # fmt: skip
# Labels have more names than can be listed, such as facial_expression or emotion_label_id.
_LABEL = re.compile(
    "(facial|face|image|img|dominant|primary|main|basic|true|final|human|gt)?"
    "(emotion|emo|expression|expr|label|class|category|target|mood|feeling|affect)(e?s)?"
    "(label|class|category|type|name|text|string|id|idx|index|code|number|num)*"
)
_NUMBERED = re.compile("(id|idx|index|code|number|num)$")
_NOTHING = {"", "nan", "null", "n/a"}

Opener = Callable[[], IO[bytes]]


class Table(ABC):
    """A file of rows; its columns are named without blanks around.

    Args:
        path: Where it is, for messages and for its name; inside an archive no such file exists.
        opener: Opens its bytes.
    """

    columns: list[str]

    def __init__(self, path: Path, opener: Opener) -> None:
        self.path, self.open_bytes = path, opener

    @abstractmethod
    def rows(
        self, columns: Sequence[str], bad: Callable[[UserError], None] | None = None
    ) -> Iterator[tuple[str, list[str]]]:
        """Each row: where it is, for messages, and its cells in ``columns`` as text without blanks around.

        A row that has not as many cells as there are columns is handed to ``bad``, or raised.

        Raises:
            UserError: The file is damaged; the message says where.
        """

    def headless(self) -> "Table | None":
        """The same file with its first row for a row and not for names, where that can be."""
        return None

    def names(self, column: str) -> list[str] | None:
        """What the numbers in a column stand for, if the file says."""
        return None

    def roles(self, given: Mapping[str, str], person: str | None) -> dict[str, str]:
        """The column of every role that has one; ``given`` and ``person`` are as in ``Reading``.

        Raises:
            UserError: A column that is given is not there.
        """
        by_name = {_plain(name): name for name in reversed(self.columns)}
        found = {}
        for role, usual in ROLES.items():
            if role in given:
                found[role] = column = given[role].strip()
                if column not in self.columns:
                    hint = suggest(column, self.columns, f"it has {self.named}.")
                    raise UserError(f"prepare.columns.{role}: {self.path} has no column {column!r}; {hint}")
            elif name := next((by_name[name] for name in usual if name in by_name), None):
                found[role] = name
        if "label" not in found and (labels := [name for name in by_name if _LABEL.fullmatch(name)]):
            # Names before numbers.
            found["label"] = by_name[min(reversed(labels), key=lambda name: bool(_NUMBERED.search(name)))]
        if person is None:
            found.pop("person", None)
        elif _plain(person) in by_name and person != "auto":
            found["person"] = by_name[_plain(person)]
        return found

    @property
    def text_columns(self) -> list[str]:
        """The columns whose cells may say something; those of pictures are long, and no text."""
        return self.columns

    @property
    def named(self) -> str:
        """The first columns, for a message; what stands for a name may be a row of pixels."""
        return ", ".join(name if len(name) <= 40 else f"{name[:37]}..." for name in self.columns[:20])


def read_label(cell: str, names: Sequence[str] | None, where: str) -> str:
    """The label in a cell in lower case, by name if a number has one; raises ``UserError`` if there is none."""
    if cell.lower() in _NOTHING or (cell == "-1" and names):
        raise UserError(
            f"{where}: no label. Add one or take the row out; `hyojo predict` classifies pictures without labels."
        )
    cell = whole(cell)
    if names is None or not cell.isdecimal():
        return cell.lower()
    if int(cell) >= len(names):
        raise UserError(f"{where}: label {cell} has no name; there are names for 0 to {len(names) - 1}.")
    return names[int(cell)].lower()


def read_weight(cell: str, where: str) -> float | None:
    """The weight in a cell, None for an empty one; raises ``UserError`` for what is no number from 0."""
    if not cell:
        return None
    try:
        weight = float(cell)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise UserError(f"{where}: weight {cell!r} is not a number from 0.")
    return weight


def whole(cell: str) -> str:
    """A whole number without its point: those in a column with gaps become 3.0 in many programs."""
    return re.sub(r"^(\d+)\.0*$", r"\1", cell)


def cell_text(value: Any) -> str:
    """A value as the text of a cell; whole numbers without a point."""
    if value is None:
        return ""
    if isinstance(value, float):
        return "" if math.isnan(value) else str(int(value)) if value.is_integer() else repr(value)
    return str(value).strip()


def _plain(name: str) -> str:
    """A column's name as it is looked up."""
    return re.sub(r"[\W_]", "", name.casefold())
