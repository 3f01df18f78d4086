"""Names of classes: what sources call them, and what ``stage.class_map`` makes of that."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping

from pipeline.core.errors import UserError, suggest

# What FER2013's numbers stand for, in their order, and the columns of FER+ that are faces, in theirs.
FER_NAMES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
FERPLUS_NAMES = {
    "neutral": "neutral", "happiness": "happy", "surprise": "surprise", "sadness": "sad", "anger": "angry",
    "disgust": "disgust", "fear": "fear", "contempt": "contempt",
}  # fmt: skip
# By these, a level of folders is known to be the classes and not people or data sets.
EXPRESSIONS = frozenset(
    {
        "afraid", "anger", "angry", "annoyance", "annoyed", "bored", "boredom", "calm", "contempt", "contemptuous",
        "disgust", "disgusted", "embarrassed", "embarrassment", "excited", "excitement", "fear", "fearful",
        "happiness", "happy", "joy", "joyful", "laughing", "natural", "neutral", "sad", "sadness", "scared", "sleepy",
        "smile", "smiling", "sorrow", "surprise", "surprised", "unhappy", "worried",
    }
)  # fmt: skip
MAX_CLASSES = 1000
# Labels in names of files, as data sets have them: JAFFE's KA.AN1.39.tiff, KDEF's AF01AFS.JPG.
_PATTERNS = (r"\.(AN|DI|FE|HA|NE|SA|SU)\d", r"^[AB][FM]\d\d(AF|AN|DI|HA|NE|SA|SU)")
# More expressions than this nobody tells apart; names of another kind: numbers behind letters or with leading zeros.
_MOST_EXPRESSIONS = 30
_NUMBERED = re.compile(r"([^\W\d_]*)[ _.-]*(\d+)[a-z]?")
_CLASS_WORDS = {"", "au", "c", "class", "cls", "emo", "emotion", "expr", "expression", "label", "y"}
_ARRANGEMENT = re.compile(
    "(align|annot|batch|colou?r|crop|face|fold|gr[ae]y|image|img|label|landmark|mask|meta|orig|part|picture|raw|sample)"
    "\\w*"
)
CLASS_FOLDERS = (
    "Class folders go one a class (happy/a.png, sad/b.png, ...), either directly or inside split folders "
    "(train/happy/a.png, val/happy/b.png, test/happy/c.png). Labels in the names of files are found by prepare.label."
)


def fold(label: str) -> str:
    """What two spellings of one label have in common: letters composed, no case, no blanks around."""
    return unicodedata.normalize("NFC", label).strip().casefold()


def name_classes(
    labels: Iterable[str],
    class_map: Mapping[str, str | None],
    numbers_are_names: bool = True,
    others: Iterable[str] = (),
    source: object = "the source",
) -> dict[str, str | None]:
    """Settle the class of every label.

    Labels that differ in case only are one class; if it is spelt in several ways, it goes by lower case.

    Args:
        labels: All labels of the source, as it spells them, in composed letters (NFC).
        class_map: A class for a label, in any case; None leaves its images out. Others keep their name.
        numbers_are_names: Whether a whole number may stay the name of its class.
        others: Labels that no image may have as its own: empty folders, and what votes may be for.
        source: For the messages.

    Returns:
        For each label, the others too, its class or None.

    Raises:
        UserError: The map names a label that is not there; a number has no name; fewer than two classes are left,
            or more than ``MAX_CLASSES``.
    """
    labels = set(labels)
    spellings: dict[str, set[str]] = defaultdict(set)
    for label in labels | set(others):
        spellings[fold(label)].add(label)
    mapped = {fold(key): value for key, value in class_map.items()}
    for key in class_map:
        if fold(key) not in spellings:
            there = f"it has {', '.join(sorted(map(min, spellings.values()))[:20])}."
            hint = suggest(fold(key), spellings, there)
            raise UserError(f"prepare.class_map: {source} has no label {key!r}; {hint}")
    unnamed = sorted((key for key in spellings if re.fullmatch("-?[0-9]+", key) and key not in mapped), key=int)
    if unnamed and not numbers_are_names:
        raise UserError(
            f"prepare.source: the labels of {source} are numbers ({', '.join(unnamed[:10])}). Say what they stand for, "
            f"such as prepare.class_map: {{{unnamed[0]}: angry, ...}}; null leaves a label out."
        )
    # A class goes by its (first) name in the map, also for labels that come to the same by themselves.
    given = {fold(name): unicodedata.normalize("NFC", name) for name in [*class_map.values()][::-1] if name}
    classes: dict[str, str | None] = {}
    for key, ways in spellings.items():
        target = mapped.get(key, key)
        own = key if len(ways) > 1 else min(ways)
        classes |= dict.fromkeys(ways, None if target is None else given.get(fold(target), own))
    names = sorted({name for label, name in classes.items() if label in labels and name is not None})
    if len(names) < 2:
        left = f"only one class, {names[0]!r}" if names else "no class left"
        where = f" {CLASS_FOLDERS}" if numbers_are_names else ""
        after = " after prepare.class_map" if class_map else ""
        raise UserError(f"prepare.source: {source} has {left}{after}; it takes two.{where}")
    if len(names) > MAX_CLASSES:
        raise UserError(
            f"prepare.source: {source} has {len(names)} different labels, such as {', '.join(names[:3])}: no classes. "
            "Name the right column in prepare.columns, or give a folder for each class."
        )
    return classes


def check_kind(labels: Collection[str], known: Collection[str], source: object, names: Iterable[str]) -> None:
    """Raise ``UserError`` for labels that look like people or parts of a data set, and not like expressions.

    Args:
        labels: Those of the images of a source.
        known: Those that are known to be classes, besides ``EXPRESSIONS``.
        source: For the message.
        names: Of some of its files, likewise.
    """
    folded = set(map(fold, labels))
    if folded & (EXPRESSIONS | set(map(fold, known))):
        return
    numbered = [_NUMBERED.fullmatch(label) for label in folded]
    words = {found[1] for found in numbered if found}
    if all(numbered) and not words <= _CLASS_WORDS:
        kind = "numbered people or parts"
    elif all(numbered) and any(re.fullmatch(r"0\d\d+", label) for label in folded):
        kind = "numbers of people"
    elif len(folded) > _MOST_EXPRESSIONS:
        kind = "people or other ids"
    elif len(folded) > 1 and all(map(_ARRANGEMENT.fullmatch, folded)):
        kind = "parts of a data set"
    else:
        return
    shown, pattern = sorted(labels), suggest_pattern(names) or r"_([a-z]+)\."
    first = f"{', '.join(shown[:5])}{', ...' if len(shown) > 5 else ''}"
    raise UserError(
        f"prepare.source: the {len(shown)} labels of {source} look like {kind} ({first}), not like expressions. If the "
        f"files' names have the labels in them, say where: prepare.label='{pattern}'; if these are people, "
        "prepare.person takes such a pattern. If they are the classes, say so of one: "
        f"prepare.class_map={{{shown[0]}: {shown[0]}}}."
    )


def suggest_pattern(names: Iterable[str]) -> str | None:
    """A pattern of labels in the names of most of some files, if they have them in a usual way."""
    names = [name.rpartition("/")[2] for name in names]
    words = Counter(word for name in names for word in set(re.findall("[a-z]+", name.casefold())) & EXPRESSIONS)
    for pattern in (*_PATTERNS, f"(?i)({'|'.join(sorted(words, key=lambda word: (-len(word), word)))})"):
        found = [match[1].casefold() for name in names if (match := re.search(pattern, name))]
        if len(set(found)) > 1 and len(found) > 0.9 * len(names):
            return pattern
    return None
