"""Blank images, twins and counts, against pictures made to be so and counts by hand."""

import hashlib

import numpy as np
import pytest

from pipeline.audit import Record, build_audit, count_twins, flags, is_blank, pixel_digest

RNG = np.random.default_rng(3)
FACE = RNG.integers(60, 200, (48, 48, 1), dtype=np.uint8)


def constant(value: int | tuple[int, ...], size: int = 48, channels: int = 1) -> np.ndarray:
    return np.broadcast_to(np.uint8(value), (size, size, channels)).copy()


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


def test_digest_is_of_shape_and_pixels() -> None:
    assert pixel_digest(FACE) == hashlib.sha256(b"(48, 48, 1)" + FACE.tobytes()).hexdigest()
    others = [FACE.reshape(24, 96, 1), np.repeat(FACE, 3, axis=-1), FACE[::-1], np.rot90(FACE)]
    changed = FACE.copy()
    changed[47, 47, 0] ^= 1
    assert len({pixel_digest(image) for image in [FACE, *others, changed]}) == 6
    assert pixel_digest(np.rot90(FACE, 4)) == pixel_digest(FACE)


def records() -> list[Record]:
    """By hand: twins a (3, over two splits) and b (2), one of which is blank, and two corrupt files."""
    return [
        Record("1", "happy", "train", sha256="a"),
        Record("2", "sad", "train", sha256="a"),
        Record("3", "sad", "test", sha256="a"),
        Record("4", "sad", "val", sha256="b", blank=True),
        Record("5", "sad", "val", sha256="b", blank=True),
        Record("6", "happy", "test", sha256="c"),
        Record("7", "happy", "test", problem="empty file"),
        Record("8", "sad", "train", problem="not a picture"),
    ]


def test_twins_by_hand() -> None:
    assert count_twins(records()) == {"a": 3, "b": 2}  # corrupt files, which have no digest, are no twins


def test_flags() -> None:
    found = [flags(record, count_twins(records())) for record in records()]
    assert found == ["duplicate"] * 3 + ["blank;duplicate"] * 2 + ["", "corrupt", "corrupt"]


def test_audit_by_hand() -> None:
    assert build_audit(records(), ["happy", "sad"]) == {
        "images": 8,
        "splits": {
            "train": {"happy": 1, "sad": 1},
            "val": {"happy": 0, "sad": 2},
            "test": {"happy": 1, "sad": 1},
        },
        "corrupt": 2,
        "blank": 2,
        "exact": {"groups": 2, "redundant": 3},
        "bad_files": [{"file": "7", "reason": "empty file"}, {"file": "8", "reason": "not a picture"}],
    }
