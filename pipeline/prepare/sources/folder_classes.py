"""What the folders of a tree stand for: classes, splits, and several data sets side by side.

Classes are the first level at which folders part, below folders of splits if there are any.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from pipeline.core.errors import UserError
from pipeline.prepare.sources.archive import Parts
from pipeline.prepare.sources.labels import fold
from pipeline.prepare.sources.source import printable, split_name


class FolderClass(NamedTuple):
    """What a folder stands for."""

    label: str
    split: str | None
    root: str | None


def find_classes(path: Path, counts: Mapping[Parts, int], known: Collection[str]) -> dict[Parts, FolderClass]:
    """What each folder stands for, by the number of files directly in every folder; those outside are not in it."""
    around = {folder[:depth] for folder in counts for depth in range(len(folder))}
    counts = {folder: count for folder, count in counts.items() if count or folder not in around}
    classes: dict[Parts, FolderClass] = {}
    for root, folders in _roots(path, counts, known).items():
        for folder, (split, label) in _read_level(path, {folder: counts[folder] for folder in folders}).items():
            classes[folder] = FolderClass(label, split, printable(root) or None)
    return classes


def _roots(path: Path, counts: Mapping[Parts, int], known: Collection[str]) -> dict[Parts, list[Parts]]:
    """The folders of each of several data sets, by what lies around their class folders; else all of one."""
    above: dict[Parts, Parts] = {}
    for folder, count in counts.items():
        level = next((i for i, name in enumerate(folder) if fold(name) in known), None)
        if count and level is not None:
            above[folder] = tuple(name for name in folder[:level] if not split_name(name))
    names = set(above.values())
    if len(names) < 2 or () in names:
        return {(): list(counts)}
    roots = defaultdict(list)
    for folder in counts:
        plain = tuple(name for name in folder if not split_name(name))
        root = above.get(folder) or next((name for name in names if plain[: len(name)] == name), None)
        if root:
            roots[root].append(folder)
        elif counts[folder] and len(plain) > 1:
            raise UserError(
                f"prepare.source: {path} holds several data sets ({', '.join(sorted(map('/'.join, names))[:3])}, "
                f"...), but the folders in {printable(plain[:-1])} have no usual names of expressions, such as "
                f"{printable(plain[-1:])!r}. Say in prepare.class_map what they are, or take them away."
            )
    return roots


def _read_level(path: Path, counts: Mapping[Parts, int]) -> dict[Parts, tuple[str | None, str]]:
    """Split and class of the folders of one data set: classes are the first level at which folders part."""
    places = {folder: _split_place(folder) for folder in counts}
    if any(split and rest and counts[folder] for folder, (split, rest) in places.items()):
        places = {folder: (split, rest if split else ()) for folder, (split, rest) in places.items()}
    else:
        places = {folder: (None, folder) for folder in places}
    wrapper = _wrapper([rest for folder, (_, rest) in places.items() if counts[folder] and rest])
    found = {}
    for folder, (split, rest) in places.items():
        if len(rest) > len(wrapper) and rest[: len(wrapper)] == wrapper:
            found[folder] = split, printable(rest[len(wrapper) :][:1])
    # Split folders without class folders in them.
    return {} if all(split is None and split_name(label) for split, label in found.values()) else found


def _split_place(folder: Parts) -> tuple[str | None, Parts]:
    """The split of a folder, and the path below its last split folder that has a folder in it."""
    for i in reversed(range(len(folder) - 1)):
        if split := split_name(folder[i]):
            return split, folder[i + 1 :]
    return None, folder


def _wrapper(rests: list[Parts]) -> Parts:
    """The folders that lie around all class folders."""
    depth = 0
    while len({rest[depth] for rest in rests if len(rest) > depth}) == 1:
        if all(len(rest) <= depth + 1 for rest in rests):
            break  # the last level is the class, even if there is only one
        depth += 1
    return max(rests, key=len)[:depth] if rests else ()
