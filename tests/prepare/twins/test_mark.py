"""Sets of twins: found in images made for it, and what is then dropped, by hand."""

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from builders import Row, drawn_faces, records_of

from pipeline.prepare.audit import build_audit
from pipeline.prepare.columns import Records, flags
from pipeline.prepare.pixels.picture import pixel_digest
from pipeline.prepare.twins.mark import drop_twins, find_twins


def rows_of(images: np.ndarray, labels: Sequence[str], splits: Sequence[str]) -> list[Row]:
    return [
        Row(f"{i:03}.png", label, split, sha256=pixel_digest(image))
        for i, (image, label, split) in enumerate(zip(images, labels, splits, strict=True))
    ]


def names(records: Records, chosen: np.ndarray) -> set[str]:
    """Names, without suffix, of images for which something is true."""
    return {file.removesuffix(".png") for file in records.files(np.flatnonzero(chosen))}


def sets(records: Records) -> set[frozenset[str]]:
    """Files that share a group."""
    found = {frozenset(names(records, records.twins == group)) for group in set(records.twins.tolist()) - {-1}}
    return {files for files in found if len(files) > 1}


def marks(records: Records) -> list[str]:
    return [flags(marks) for marks in records.marks]


def test_exact_and_near_twins_make_one_set() -> None:
    mirror = drawn_faces()[2, :, ::-1]
    images = np.stack([*drawn_faces()[:6], drawn_faces()[2], mirror, mirror, drawn_faces()[4]])
    records = records_of(rows_of(images, [*"abcdef", *"ccce"], ["train"] * 10))
    find_twins(records, images)
    assert sets(records) == {frozenset({"002", "006", "007", "008"}), frozenset({"004", "009"})}
    assert {file[:3]: mark for file, mark in zip(records.files(range(10)), marks(records)) if mark} == {
        **dict.fromkeys(("002", "006", "007", "008"), "duplicate;near"),
        **dict.fromkeys(("004", "009"), "duplicate"),
    }
    # Numbered in order of the smallest digest in each.
    smallest = [min(records.digests[i].tobytes() for i in np.flatnonzero(records.twins == g)) for g in range(6)]
    assert smallest == sorted(smallest)


def test_labels_that_differ_are_a_conflict() -> None:
    images = np.stack([*drawn_faces()[:3], drawn_faces()[0], drawn_faces()[1, :, ::-1]])
    rows = rows_of(images, ["a", "a", "b", "b", "a"], ["train", "val", "train", "test", "train"])
    records = records_of(rows)
    find_twins(records, images)
    assert marks(records) == ["duplicate;conflict", "near", "", "duplicate;conflict", "near"]


def test_neither_order_nor_corrupt_nor_blank_images_change_what_is_found() -> None:
    images = np.concatenate([drawn_faces()[:20], drawn_faces()[3:5, :, ::-1], np.zeros((3, 48, 48, 1), np.uint8)])
    rows = rows_of(images, ["a"] * 25, ["train"] * 25)
    rows[22].problem, rows[22].sha256 = "empty file", ""
    for row in rows[23:]:
        row.marks = {"blank"}
    records = records_of(rows)
    find_twins(records, images)
    expected = {frozenset({"003", "020"}), frozenset({"004", "021"}), frozenset({"023", "024"})}
    assert sets(records) == expected
    assert records.twins[22] == -1
    shuffled = np.random.default_rng(0).permutation(25)
    again = records_of([rows[i] for i in shuffled])
    find_twins(again, images[shuffled])
    assert again.twins.tolist() == records.twins[shuffled].tolist()


def test_no_usable_image() -> None:
    records = records_of([Row("1", "a", "train", problem="empty file")])
    find_twins(records, np.zeros((1, 48, 48, 1), np.uint8))
    assert records.twinned.size == 0


def test_twins_and_audit_take_a_few_bytes_of_each_image(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "pipeline.prepare.ordering._PART",
        "pipeline.prepare.ordering._BLOCK",
        "pipeline.prepare.twins.mark._BLOCK",
    ):
        monkeypatch.setattr(name, 2**12)
    monkeypatch.setattr("pipeline.prepare.twins.mark.near_pairs", lambda *_: (np.array([[0, 1]]), np.ones(1)))
    peaks = []
    for count in (100_000, 200_000):
        rng = np.random.default_rng(0)
        labels, splits = rng.integers(0, 2, count, np.int16), rng.integers(0, 3, count, np.int8)
        records = Records(lambda numbers: map(str, numbers), ["a", "b"], labels, splits)
        records.digests[:] = rng.integers(0, 256, (count, 32), np.uint8)
        tracemalloc.start()
        find_twins(records, np.empty(0))
        drop_twins(records, "drop_from_train", "majority")
        assert build_audit(records)["near"]["groups"] == 1
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 22 * 100_000


# What is dropped. A set is written as label, split and exact twin: "happy train 1".


def make(*groups: Sequence[str]) -> Records:
    rows = []
    for number, group in enumerate(groups):
        for place, text in enumerate(group):
            label, split, twin = text.split()
            rows.append(Row(f"{number}-{place}", label, split, sha256=f"{number} {twin}", twins=f"g{number}"))
    return records_of(rows)


def dropped(records: Records, duplicates: str, conflicts: str) -> set[str]:
    drop_twins(records, duplicates, conflicts)
    assert {*records.files(records.drops)} == names(records, records.have("dropped"))
    return names(records, records.have("dropped"))


def leaking(records: Records) -> set[str]:
    return names(records, records.have("leak"))


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
    assert names(records, records.used) == kept


def test_only_training_images_are_ever_dropped_and_only_they_vote() -> None:
    records = make(["sad train 1", "happy test 1", "happy test 2"], ["sad val 1", "happy val 1"])
    assert dropped(records, "keep", "majority") == set()
    assert leaking(records) == {"0-1", "0-2"}
    records = make(["sad train 1", "happy train 1", "happy test 1"])
    assert dropped(records, "keep", "drop") == {"0-0", "0-1"}
    assert leaking(records) == set()
