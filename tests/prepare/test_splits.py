"""Cuts: between twins and people never, near the wanted shares, and the same whatever the order."""

from collections import Counter, defaultdict
from collections.abc import Callable

import numpy as np
import pytest

from pipeline.core.errors import UserError
from pipeline.prepare.catalogue import SPLITS, Listing
from pipeline.prepare.columns import Records
from pipeline.prepare.ordering import number_distinct
from pipeline.prepare.sources.source import Item
from pipeline.prepare.splits import cut_missing, cut_split

Face = tuple[str, str, str | None]  # label, picture, person


@pytest.fixture
def records_of(listing_of: Callable[..., Listing]) -> Callable[..., Records]:
    """Records of faces given by hand; two faces of one picture are twins."""

    def make(faces: list[Face], splits: list[str] | None = None) -> Records:
        items = [
            Item(f"{i:06}", label, split, i, person=person)
            for i, ((label, _, person), split) in enumerate(zip(faces, splits or ["train"] * len(faces)))
        ]
        records = Records.of(listing_of(items, person="auto"))
        for i, (_, picture, _) in enumerate(faces):
            records.digests[i] = np.random.default_rng(list(picture.encode())).integers(0, 256, 32)
        records.twins[:] = number_distinct(records.digests)
        return records

    return make


def where(records: Records) -> list[str]:
    return [SPLITS[split] for split in records.splits]


def parted(keys: list[str | None], splits: list[str]) -> list[str]:
    """Keys that are in more than one split."""
    found = defaultdict(set)
    for key, split in zip(keys, splits):
        found[key].add(split)
    return [key for key, places in found.items() if key is not None and len(places) > 1]


def test_fewer_are_moved_rather_than_parting_twins(records_of: Callable[..., Records]) -> None:
    faces = [("a", str(i // 4), None) for i in range(40)] + [("b", f"b{i}", None) for i in range(9)]
    records = records_of(faces)
    cut_split(records, "val", {"a": 7, "b": 2}, seed=0)
    assert Counter(where(records)[:40]) == {"train": 36, "val": 4}
    assert Counter(where(records)[40:]) == {"train": 7, "val": 2}


@pytest.mark.parametrize("seed", range(3))
def test_people_with_every_expression(records_of: Callable[..., Records], seed: int) -> None:
    """As in the laboratory: 10 people, each three times in each of seven classes."""
    faces = [("abcdefg"[k], f"{p}-{k}-{n}", f"S{p}") for p in range(10) for k in range(7) for n in range(3)]
    records = records_of(faces)
    cut_missing(records, {"train"}, {"test": 0.2, "val": 0.1}, seed)
    splits = where(records)
    assert not parted([person for _, _, person in faces], splits)
    assert Counter(splits) == {"train": 147, "test": 42, "val": 21}


@pytest.mark.parametrize("seed", range(3))
def test_uneven_people_and_twins_between_them(records_of: Callable[..., Records], seed: int) -> None:
    """People with one to thirty images of uneven classes, some of nobody, and pictures that two people share."""
    rng = np.random.default_rng(seed)
    faces: list[Face] = []
    for person in range(150):
        for i in range(rng.integers(1, 30)):
            label = "abcd"[rng.choice(4, p=[0.5, 0.3, 0.15, 0.05])]
            faces.append((label, f"{person}-{i}", f"S{person}" if person % 5 else None))
    for i in range(30):  # one of nobody or of somebody, again as somebody else
        label, picture, _ = faces[i * 40]
        faces.append((label, picture, f"S{i * 4 + 1}"))
    records = records_of(faces)
    cut_missing(records, {"train"}, {"test": 0.2, "val": 0.1}, seed)
    splits = where(records)
    assert not parted([person for _, _, person in faces], splits)
    assert not parted([picture for _, picture, _ in faces], splits)
    for split, share in (("test", 0.2), ("val", 0.1)):
        for label in "abcd":
            wanted = share * sum(face[0] == label for face in faces)
            found = sum(face[0] == label and s == split for face, s in zip(faces, splits))
            assert found == pytest.approx(wanted, abs=max(2, 0.2 * wanted)), (split, label)


def test_people_of_a_given_split_stay_whole(records_of: Callable[..., Records]) -> None:
    """A train image whose twin is a test image keeps its whole person in train."""
    faces = [("ab"[i % 2], f"p{i}", f"S{i // 6}") for i in range(60)]
    faces += [("a", "p0", None), ("b", "q", None)]
    splits = ["train"] * 60 + ["test"] * 2
    records = records_of(faces, splits)
    cut_missing(records, {"train", "test"}, {"test": 0.2, "val": 0.3}, 0)
    after = where(records)
    assert after[60:] == ["test", "test"]
    assert set(after[:6]) == {"train"}
    assert "test" not in after[:60]
    assert Counter(after)["val"] == 18
    assert not parted([person for _, _, person in faces], after)


def test_order_makes_no_difference(records_of: Callable[..., Records]) -> None:
    faces = [("abc"[i % 3], f"p{i // 2}", f"S{i // 7}") for i in range(200)]
    chosen = []
    for order in (range(200), np.random.default_rng(0).permutation(200)):
        records = records_of([faces[i] for i in order])
        cut_missing(records, {"train"}, {"test": 0.1, "val": 0.1}, 5)
        chosen.append(Counter((faces[i], split) for i, split in zip(order, where(records))))
    assert chosen[0] == chosen[1]


def test_one_person_in_all_of_a_class(records_of: Callable[..., Records]) -> None:
    faces = [("a", f"p{i}", "S0") for i in range(10)] + [("b", f"q{i}", f"S{i}") for i in range(1, 30)]
    with pytest.raises(UserError, match="'a' has no images for split"):
        cut_missing(records_of(faces), {"train"}, {"test": 0.1, "val": 0.1}, 0)


def test_what_cannot_be_read_is_passed_over(records_of: Callable[..., Records]) -> None:
    records = records_of([("ab"[i % 2], f"p{i}", None) for i in range(40)])
    bad = range(0, 40, 4)
    for i in bad:
        records.mark(i, "corrupt")
    cut_missing(records, {"train"}, {"test": 0.25, "val": 0.25}, 0)
    assert {where(records)[i] for i in bad} == {"train"}
    # 10 of a, 20 of b: a quarter of each, rounded.
    usable = Counter(split for i, split in enumerate(where(records)) if i not in bad)
    assert usable == {"train": 16, "test": 7, "val": 7}
