"""Sets of twins: found in images made for it, and what is then dropped, by hand."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
from test_duplicates import faces

from pipeline.audit import Record, pixel_digest
from pipeline.twins import drop_twins, find_twins


def records_of(images: np.ndarray, labels: Sequence[str], splits: Sequence[str]) -> list[Record]:
    return [
        Record(f"{i:03}.png", label, split, sha256=pixel_digest(image))
        for i, (image, label, split) in enumerate(zip(images, labels, splits, strict=True))
    ]


def sets(records: list[Record]) -> set[frozenset[str]]:
    """Files that share a group."""
    groups: dict[str, set[str]] = {}
    for record in records:
        groups.setdefault(record.group, set()).add(record.file[:3])
    return {frozenset(files) for files in groups.values() if len(files) > 1}


def test_exact_and_near_twins_make_one_set() -> None:
    mirror = faces()[2, :, ::-1]
    images = np.stack([*faces()[:6], faces()[2], mirror, mirror, faces()[4]])
    records = records_of(images, [*"abcdef", *"ccce"], ["train"] * 10)
    find_twins(records, images)
    assert sets(records) == {frozenset({"002", "006", "007", "008"}), frozenset({"004", "009"})}
    marks = {record.file[:3]: record.marks for record in records if record.marks}
    assert marks == {
        **{key: {"duplicate", "near"} for key in ("002", "006", "007", "008")},
        **{key: {"duplicate"} for key in ("004", "009")},
    }
    assert all(record.group <= record.sha256 for record in records)


def test_labels_that_differ_are_a_conflict() -> None:
    images = np.stack([*faces()[:3], faces()[0], faces()[1, :, ::-1]])
    records = records_of(images, ["a", "a", "b", "b", "a"], ["train", "val", "train", "test", "train"])
    find_twins(records, images)
    assert [record.marks for record in records] == [
        {"duplicate", "conflict"}, {"near"}, set(), {"duplicate", "conflict"}, {"near"},
    ]  # fmt: skip


def test_neither_order_nor_corrupt_nor_blank_images_change_what_is_found() -> None:
    images = np.concatenate([faces()[:20], faces()[3:5, :, ::-1], np.zeros((3, 48, 48, 1), np.uint8)])
    records = records_of(images, ["a"] * 25, ["train"] * 25)
    records[22].problem, records[22].sha256 = "empty file", ""
    for record in records[23:]:
        record.marks |= {"blank"}
    find_twins(records, images)
    expected = {frozenset({"003", "020"}), frozenset({"004", "021"}), frozenset({"023", "024"})}
    assert sets(records) == expected
    assert records[22].group == ""
    groups = {record.file: record.group for record in records}
    shuffled = np.random.default_rng(0).permutation(25)
    again = [records[i] for i in shuffled]
    find_twins(again, images[shuffled])
    assert {record.file: record.group for record in again} == groups


def test_no_usable_image() -> None:
    find_twins([Record("1", "a", "train", problem="empty file")], np.zeros((1, 48, 48, 1), np.uint8))


# What is dropped. A set is written as label, split and exact twin: "happy train 1".


def make(*groups: Sequence[str]) -> list[Record]:
    records = []
    for number, group in enumerate(groups):
        for place, text in enumerate(group):
            label, split, twin = text.split()
            sha256 = hashlib.sha256(f"{number} {twin}".encode()).hexdigest()
            records.append(Record(f"{number}-{place}", label, split, sha256=sha256, group=f"g{number}"))
    return records


def dropped(records: list[Record], duplicates: str, conflicts: str) -> set[str]:
    drop_twins(records, duplicates, conflicts)
    return {record.file for record in records if record.dropped}


def leaking(records: list[Record]) -> set[str]:
    return {record.file for record in records if "leak" in record.marks}


ACROSS = (
    ["sad train 1", "sad train 1", "sad test 1"],
    ["sad train 1", "sad val 2"],
    ["sad train 1"],
    ["sad train 1", "sad train 1", "sad train 2"],
    ["sad val 1", "sad test 1"],
    ["sad train 1", "sad test 1", "sad train 2"],
)


@pytest.mark.parametrize(
    "duplicates, gone, leaks",
    [
        ("drop_from_train", {"0-0", "0-1", "1-0", "5-0", "5-2"}, set()),
        ("drop_exact_from_train", {"0-0", "0-1", "5-0"}, {"1-1", "5-1"}),
        ("keep", set(), {"0-2", "1-1", "5-1"}),
    ],
)
def test_training_twins_of_val_and_test(duplicates: str, gone: set[str], leaks: set[str]) -> None:
    records = make(*ACROSS)
    assert dropped(records, duplicates, "drop") == gone
    assert leaking(records) == leaks


CONFLICTS = (
    ["sad train 1", "happy train 1"],
    ["sad train 1", "happy train 2", "sad train 3"],
    ["sad train 1", "sad train 1", "happy train 1", "happy train 2"],
    ["sad train 1", "fear train 1", "happy train 2"],
    ["sad train 1", "sad train 2"],
)


@pytest.mark.parametrize(
    "conflicts, kept",
    [
        ("drop", {"4-0", "4-1"}),
        ("majority", {"1-0", "1-2", "4-0", "4-1"}),
        ("keep", {"0-0", "0-1", *(f"1-{i}" for i in range(3)), *(f"2-{i}" for i in range(4))}
         | {*(f"3-{i}" for i in range(3)), "4-0", "4-1"}),
    ],
)  # fmt: skip
def test_training_twins_with_different_labels(conflicts: str, kept: set[str]) -> None:
    records = make(*CONFLICTS)
    drop_twins(records, "drop_from_train", conflicts)
    assert {record.file for record in records if record.used} == kept


def test_only_training_images_are_ever_dropped_and_only_they_vote() -> None:
    records = make(["sad train 1", "happy test 1", "happy test 2"], ["sad val 1", "happy val 1"])
    assert dropped(records, "keep", "majority") == set()
    assert leaking(records) == {"0-1", "0-2"}
    records = make(["sad train 1", "happy train 1", "happy test 1"])
    assert dropped(records, "keep", "drop") == {"0-0", "0-1"}
    assert leaking(records) == set()
