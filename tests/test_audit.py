"""Blank and odd pictures, digests and counts, against pictures made to be so and counts by hand."""

import hashlib

import numpy as np
import pytest

from pipeline.audit import FLAGS, Record, build_audit, flags, grouped, headline, look_at, pixel_digest

RNG = np.random.default_rng(3)
FACE = RNG.integers(40, 220, (48, 48, 1), dtype=np.uint8)


def constant(value: int | tuple[int, ...], size: int = 48, channels: int = 1) -> np.ndarray:
    return np.broadcast_to(np.uint8(value), (size, size, channels)).copy()


def is_blank(image: np.ndarray) -> bool:
    return "blank" in look_at(image, 1)


@pytest.mark.parametrize("value", [0, 127, 255])
def test_constant_images_are_blank(value: int) -> None:
    assert is_blank(constant(value))
    assert is_blank(constant(value, 2000))
    assert is_blank(constant(value, 1))


def test_one_colour_is_blank_though_its_channels_differ() -> None:
    assert is_blank(constant((250, 10, 90), channels=3))


def test_faint_noise_is_blank_and_a_faint_face_is_not() -> None:
    assert is_blank((128 + RNG.integers(-2, 3, (48, 48, 1))).astype(np.uint8))
    speck = constant(0)
    speck[10, 10] = 90
    assert is_blank(speck)
    faint = (128 + (FACE.astype(int) - 128) // 8).astype(np.uint8)  # an eighth of the contrast
    assert not is_blank(faint)
    assert not is_blank(FACE)


def test_an_image_with_colour_in_one_channel_only_is_not_blank() -> None:
    image = constant((0, 0, 0), channels=3)
    image[:, :24, 2] = 255
    assert not is_blank(image)


def test_exposure() -> None:
    half = FACE // 2
    assert look_at(FACE, 48) == look_at(half, 48) == look_at(half + 127, 48) == set()
    assert look_at(FACE // 4, 48) == {"dark"}
    assert look_at(255 - FACE // 4, 48) == {"bright"}
    lit = (FACE // 4).copy()
    lit[:8] = 200  # a sixth of it
    assert look_at(lit, 48) == set()
    assert look_at(constant(0), 48) == {"blank", "dark"}


def test_sizes() -> None:
    picture = RNG.integers(40, 220, (60, 80, 3), dtype=np.uint8)
    assert look_at(picture, 48) == set()
    assert look_at(picture, 60) == set()
    assert look_at(picture, 61) == {"enlarged"}
    assert look_at(picture[:50], 48) == {"stretched"}
    assert look_at(picture.transpose(1, 0, 2)[:, :50], 64) == {"enlarged", "stretched"}


def test_digest_is_of_shape_and_pixels() -> None:
    assert pixel_digest(FACE) == hashlib.sha256(b"(48, 48, 1)" + FACE.tobytes()).hexdigest()
    others = [FACE.reshape(24, 96, 1), np.repeat(FACE, 3, axis=-1), FACE[::-1], np.rot90(FACE)]
    changed = FACE.copy()
    changed[47, 47, 0] ^= 1
    assert len({pixel_digest(image) for image in [FACE, *others, changed]}) == 6
    assert pixel_digest(np.rot90(FACE, 4)) == pixel_digest(FACE)


def test_flags_have_one_order() -> None:
    marks = {"leak", "blank", "near", "conflict", "duplicate"}
    assert flags(Record("1", "sad", "test", marks=marks)) == "blank;duplicate;near;conflict;leak"
    assert flags(Record("1", "sad", "train", problem="empty file")) == "corrupt"
    assert flags(Record("1", "sad", "train", marks={"duplicate"}, dropped="twin")) == "duplicate;dropped"
    assert flags(Record("1", "sad", "train")) == ""
    assert next(iter(FLAGS)) == "corrupt"


def records() -> list[Record]:
    """By hand: exact twins a (three, over two splits) and b (two); c is a near twin of a, and d and e of each other."""

    def record(file: str, label: str, split: str, sha256: str, group: str, **more: object) -> Record:
        return Record(file, label, split, sha256=sha256, group=group, size=(48, 48), **more)

    return [
        record("1", "happy", "train", "a", "a"),
        record("2", "sad", "train", "a", "a", dropped="twin of a test image"),
        record("3", "sad", "test", "a", "a"),
        record("4", "sad", "val", "b", "b", marks={"blank", "dark"}),
        record("5", "sad", "val", "b", "b", marks={"blank", "dark"}),
        record("6", "happy", "test", "c", "a"),
        record("7", "happy", "val", "d", "d", marks={"enlarged"}),
        record("8", "happy", "train", "e", "d"),
        record("9", "happy", "train", "f", "f"),
        Record("x", "happy", "test", problem="empty file"),
        Record("y", "sad", "train", problem="not a picture"),
    ]


def test_groups_by_hand() -> None:
    def names(key: str) -> list[list[str]]:
        return [[record.file for record in group] for group in grouped(records(), key)]

    assert names("sha256") == [["1", "2", "3"], ["4", "5"]]  # what is corrupt, without a digest, is no twin
    assert names("group") == [["1", "2", "3", "6"], ["4", "5"], ["7", "8"]]


def test_audit_by_hand() -> None:
    audit = build_audit(records(), ["happy", "sad"])
    assert audit == {
        "images": 11,
        "splits": {
            "train": {"happy": 3, "sad": 0},
            "val": {"happy": 1, "sad": 2},
            "test": {"happy": 1, "sad": 1},
        },
        "corrupt": 2,
        "dropped": 1,
        "blank": 2,
        "dark": 2,
        "bright": 0,
        "enlarged": 1,
        "stretched": 0,
        "sizes": {"48x48": 9},
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


def test_sizes_are_counted_as_width_and_height() -> None:
    portrait = Record("1", "sad", "train", sha256="a", group="a", size=(200, 100))
    assert build_audit([portrait], ["sad"])["sizes"] == {"100x200": 1}
