"""Blank and odd pictures, digests and counts, against pictures made to be so and counts by hand."""

import hashlib
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from builders import Row, records_of

from pipeline.prepare.audit import build_audit, headline
from pipeline.prepare.columns import FLAGS, Records, bits, flags, sets_of
from pipeline.prepare.ordering import count_values, number_distinct, repeated, rows_by_value
from pipeline.prepare.pixels.picture import look_at, pixel_digest
from pipeline.prepare.twins.mark import TWIN

RNG = np.random.default_rng(3)
FACE = RNG.integers(40, 220, (48, 48, 1), dtype=np.uint8)


def constant(value: int | tuple[int, ...], size: int = 48, channels: int = 1) -> np.ndarray:
    return np.broadcast_to(np.uint8(value), (size, size, channels)).copy()


SPECK, ONE_CHANNEL = constant(0), constant((0, 0, 0), channels=3)
SPECK[10, 10], ONE_CHANNEL[:, :24, 2] = 90, 255


LIT = FACE // 4
LIT[:8] = 200  # a sixth of it
PICTURE = RNG.integers(40, 220, (60, 80, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "image, size, looks",
    [
        *((constant(0, size), 1, "blank dark") for size in (1, 48, 2000)),
        *((constant(127, size), 1, "blank") for size in (1, 48, 2000)),
        *((constant(255, size), 1, "blank bright") for size in (1, 48, 2000)),
        (constant((250, 10, 90), channels=3), 1, "blank"),
        ((128 + RNG.integers(-2, 3, (48, 48, 1))).astype(np.uint8), 1, "blank"),  # faint noise
        (SPECK, 1, "blank dark"),
        ((128 + (FACE.astype(int) - 128) // 8).astype(np.uint8), 1, ""),  # a face of an eighth of the contrast
        (ONE_CHANNEL, 1, ""),
        *((image, 48, "") for image in (FACE, FACE // 2, FACE // 2 + 127, LIT)),
        (FACE // 4, 48, "dark"),
        (255 - FACE // 4, 48, "bright"),
        (PICTURE, 60, ""),
        (PICTURE, 61, "enlarged"),
        (PICTURE[:50], 48, "stretched"),
        (PICTURE.transpose(1, 0, 2)[:, :50], 64, "enlarged stretched"),
    ],
)
def test_look_at(image: np.ndarray, size: int, looks: str) -> None:
    assert look_at(image, size) == set(looks.split())


def test_digest_is_of_shape_and_pixels() -> None:
    assert pixel_digest(FACE) == hashlib.sha256(b"(48, 48, 1)" + FACE.tobytes()).hexdigest()
    others = [FACE.reshape(24, 96, 1), np.repeat(FACE, 3, axis=-1), FACE[::-1], np.rot90(FACE)]
    changed = FACE.copy()
    changed[47, 47, 0] ^= 1
    assert len({pixel_digest(image) for image in [FACE, *others, changed]}) == 6
    assert pixel_digest(np.rot90(FACE, 4)) == pixel_digest(FACE)


def test_flags_have_one_order() -> None:
    marks = {"leak", "blank", "near", "conflict", "duplicate"}
    assert flags(bits(marks)) == "blank;duplicate;near;conflict;leak"
    assert flags(bits({"dropped", "duplicate"})) == "duplicate;dropped"
    assert flags(0) == ""
    assert flags(bits(FLAGS)) == ";".join(FLAGS)
    assert next(iter(FLAGS)) == "corrupt"


def records() -> Records:
    """By hand: exact twins a (three, over two splits) and b (two); c is a near twin of a, and d and e of each other."""

    def row(file: str, label: str, split: str, sha256: str, twins: str, **more: object) -> Row:
        return Row(file, label, split, sha256=sha256, twins=twins, **({"size": (48, 48)} | more))

    return records_of(
        [
            row("1", "happy", "train", "a", "a"),
            row("2", "sad", "train", "a", "a", dropped=TWIN),
            row("3", "sad", "test", "a", "a"),
            row("4", "sad", "val", "b", "b", marks={"blank", "dark"}),
            row("5", "sad", "val", "b", "b", marks={"blank", "dark"}),
            row("6", "happy", "test", "c", "a"),
            row("7", "happy", "val", "d", "d", marks={"enlarged"}),
            row("8", "happy", "train", "e", "d"),
            row("9", "happy", "train", "f", "f", size=(200, 100)),  # upright
            Row("x", "happy", "test", problem="empty file"),
            Row("y", "sad", "train", problem="not a picture"),
        ]
    )


def test_sets_by_hand() -> None:
    made = records()
    assert made.copies.tolist() == [0, 0, 0, 1, 1, 2, 3, 4, 5, -1, -1]
    assert made.twinned.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert [members.tolist() for members in sets_of(made.copies)] == [[0, 1, 2], [3, 4]]
    assert [members.tolist() for members in sets_of(made.twins)] == [[0, 1, 2, 5], [3, 4], [6, 7]]
    assert list(sets_of(np.empty(0, np.int64))) == []
    assert [members.tolist() for members in sets_of(np.array([5, 2, -1, 5, 2, -1]))] == [[0, 3], [1, 4]]


@pytest.mark.parametrize("part", [1, 7, 64, 2**17])
def test_digests_are_numbered_as_python_sorts_them(monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    monkeypatch.setattr("pipeline.prepare.ordering._PART", part)
    few = RNG.integers(0, 3, (200, 32), dtype=np.uint8) * 127
    few[:, 4:] = 0
    many = RNG.integers(0, 256, (500, 32), dtype=np.uint8)
    many[100:150], many[200:300, :2] = many[:50], many[0, :2]
    for keys in (few, many, many[:0]):
        ranks = {text: i for i, text in enumerate(sorted({key.tobytes() for key in keys}))}
        assert number_distinct(keys).tolist() == [ranks[key.tobytes()] for key in keys]


def test_audit_by_hand() -> None:
    audit = build_audit(records())
    assert audit == {
        "images": 11,
        "splits": {"train": {"happy": 3, "sad": 0}, "val": {"happy": 1, "sad": 2}, "test": {"happy": 1, "sad": 1}},
        "corrupt": 2,
        "dropped": {"twins": 1, "conflicts": 0},
        "blank": 2,
        "dark": 2,
        "bright": 0,
        "enlarged": 1,
        "stretched": 0,
        "sizes": {"48x48": 8, "100x200": 1},
        "imbalance": 3.0,
        "conflicting_groups": 1,
        "exact": {"groups": 2, "redundant": 3, "conflicting_groups": 1},
        # 3 has 1 and 2 in train, dropped or not.
        "leaks": {"test_in_train": 1, "val_in_train": 0, "test_in_val": 0},
        # a with c, and d with e: one picture too many in each. 6 looks like 1, and 7 like 8.
        "near": {
            "groups": 2,
            "redundant": 2,
            "conflicting_groups": 1,
            "leaks": {"test_in_train": 1, "val_in_train": 1, "test_in_val": 0},
        },
        "bad_files": [{"file": "x", "reason": "empty file"}, {"file": "y", "reason": "not a picture"}],
    }
    assert headline(audit) == {"redundant": 5, "conflicting_groups": 1, "test_in_train": 2}


def test_numbering_digests_takes_a_few_bytes_of_each() -> None:
    peaks = []
    for count in (300_000, 600_000):
        keys = RNG.integers(0, 256, (count, 32), dtype=np.uint8)
        tracemalloc.start()
        number_distinct(keys)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 12 * 300_000


def test_rows_come_in_the_order_of_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.prepare.ordering._PART", 50)
    monkeypatch.setattr("pipeline.prepare.ordering._BLOCK", 64)
    values = RNG.integers(0, 40, 700).astype(np.uint16)
    values[:100] = 7
    parts = list(rows_by_value(values))
    assert np.concatenate(parts).tolist() == np.argsort(values, kind="stable").tolist()
    assert sorted(map(len, parts))[-1] >= 100 > sorted(map(len, parts))[-2]
    assert count_values(values).tolist() == np.bincount(values).tolist()
    assert list(rows_by_value(values[:0])) == []


def test_repeated_values_are_found_and_none_is_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.prepare.ordering._BLOCK", 64)
    values = RNG.integers(-1, 300, 400).astype(np.int32)
    counts = Counter(values[values >= 0].tolist())
    assert repeated(values).tolist() == [i for i, value in enumerate(values.tolist()) if counts[value] > 1]
    assert repeated(values[:0]).tolist() == repeated(np.full(3, -1)).tolist() == []
