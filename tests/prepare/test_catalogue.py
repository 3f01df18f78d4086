"""Classes, splits and people of a source, listed from items written down by hand."""

import tracemalloc
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from builders import Items

from pipeline.core.errors import UserError
from pipeline.prepare.catalogue import SPLITS, Listing
from pipeline.prepare.sources.labels import name_classes
from pipeline.prepare.sources.source import Item

ListingOf = Callable[..., Listing]


@pytest.mark.parametrize(
    "labels, class_map, expected",
    [
        ("Happy sad", {}, {"Happy": "Happy", "sad": "sad"}),
        ("Happy HAPPY sad", {}, {"Happy": "happy", "HAPPY": "happy", "sad": "sad"}),
        ("angry anger sad", {"ANGER": "angry"}, {"angry": "angry", "anger": "angry", "sad": "sad"}),
        ("Angry anger sad", {"anger": "angry"}, {"Angry": "angry", "anger": "angry", "sad": "sad"}),
        ("a b c", {"a": "Up", "b": "up"}, {"a": "Up", "b": "Up", "c": "c"}),
        ("a b c", {"a": "b", "b": "a"}, {"a": "b", "b": "a", "c": "c"}),
        ("a b c d", {"a": None, "C": None}, {"a": None, "b": "b", "c": None, "d": "d"}),
        ("0 1", {"0": "happy", "1": "sad"}, {"0": "happy", "1": "sad"}),
        ("0 1", {}, {"0": "0", "1": "1"}),
        ("a b (c d)", {"c": None, "d": "b"}, {"a": "a", "b": "b", "c": None, "d": "b"}),
    ],
)
def test_classes_of_labels(labels: str, class_map: dict[str, str | None], expected: dict[str, str | None]) -> None:
    """Those in brackets are of no image; they may be in the map."""
    own, _, others = labels.strip(")").partition("(")
    assert name_classes(own.split(), class_map, others=others.split()) == expected


@pytest.mark.parametrize(
    "labels, class_map, message",
    [
        (["a", "b"], {"c": "d"}, r"faces.csv has no label 'c'; it has a, b\."),
        (["happy", "sad"], {"hapy": "joy"}, "no label 'hapy'; did you mean 'happy'"),
        (["0", "1"], {"0": "happy"}, r"labels of faces.csv are numbers \(1\).*\{1: angry"),
        (["12", "-1", "3"], {}, r"numbers \(-1, 3, 12\)"),
        (["a"], {}, "only one class, 'a'; it takes two"),
        (["a", "b"], {"b": "A"}, "only one class, 'A' after prepare.class_map"),
        (["a", "b"], {"a": None, "b": None}, "no class left after prepare.class_map"),
        ([f"label {i}" for i in range(2000)], {}, "2000 different labels, such as label 0, label 1, label 10"),
    ],
)
def test_labels_that_cannot_be(labels: list[str], class_map: dict[str, str | None], message: str) -> None:
    with pytest.raises(UserError, match=message):
        name_classes(labels, class_map, numbers_are_names=False, source="faces.csv")


def items(*texts: str) -> list[Item]:
    """Items as ``name label split person``, ``-`` for what is not there."""
    found = []
    for text in texts:
        name, label, split, person = (cell if cell != "-" else None for cell in f"{text} - -".split()[:4])
        found.append(Item(name, label, split, [name], person=person))
    return found


def test_items_are_numbered_in_order_of_name(listing_of: ListingOf) -> None:
    listing = listing_of(items("b sad", "ä happy", "B sad test", "a happy val", "z happy test", "c sad val"))
    assert list(listing.files()) == sorted(["b", "ä", "B", "a", "z", "c"])
    assert list(listing.places()) == [[name] for name in listing.files()]
    assert listing.class_names == ["happy", "sad"]
    assert listing.numbers("class", np.int16).tolist() == [1, 0, 1, 1, 0, 0]
    assert [SPLITS[split] for split in listing.numbers("split", np.int8)] == [
        "test", "val", "train", "val", "test", "train",
    ]  # fmt: skip
    assert list(listing.files([4, 0])) == ["z", "B"]
    assert listing.given == {"train", "val", "test"}
    assert listing.numbers("person", np.int32) is None
    assert listing.numbers("weight", np.float32) is None


def test_of_two_with_one_name_the_later_counts_or_is_an_error(listing_of: ListingOf) -> None:
    twice = items("a happy", "b sad", "a sad", "c happy")
    listing = listing_of(twice, later_wins=True)
    assert listing.count == 3
    assert listing.numbers("class", np.int16).tolist() == [1, 1, 0]
    with pytest.raises(UserError, match="given names 1 files twice: 'a'"):
        listing_of(twice)


def test_people_are_numbered_and_named(listing_of: ListingOf) -> None:
    listing = listing_of(items("a happy - Zoe", "b sad - Ann", "c sad", "d happy - Ann"))
    assert listing.person_count == 2
    assert list(listing.people()) == ["Zoe", "Ann", None, "Ann"]
    numbers = listing.numbers("person", np.int32)
    assert numbers[1] == numbers[3] != numbers[0]
    assert numbers[2] == -1
    assert listing_of(items("a happy - Zoe", "b sad - Ann"), person=None).person_count == 0


@pytest.mark.parametrize(
    "person, names, people",
    [
        (r"S\d+", "x/S1_a S2/S1_b y/S12_c", ["S1", "S1", "S12"]),
        (r"^(\w+?)_", "x/S1_a S2/S1_b y/S12_c", ["S1", "S1", "S12"]),
        (r"(\w+)/[^/]+$", "x/S1_a y/S1_b x/S12_c", ["x", "y", "x"]),
        (r"S\d+", "x/S1_a x/none y/S12_c", ["S1", None, "S12"]),
        (r"_p(\d+)\.", "x/a_p1.jpg x/b_p2.jpg y/c_p1.jpg", ["1", "2", "1"]),
    ],
)
def test_people_by_pattern(listing_of: ListingOf, person: str, names: str, people: list[str | None]) -> None:
    texts = [f"{name} {label}" for name, label in zip(names.split(), ["happy", "sad", "sad"])]
    listing = listing_of(items(*texts), person=person)
    assert dict(zip(listing.files(), listing.people())) == dict(zip(names.split(), people))


def test_people_of_merged_sources_are_different_people(listing_of: ListingOf) -> None:
    both = [Item(f"{root}/{i}", ["happy", "sad"][i], None, [], person="S1", root=root) for root in "AB" for i in (0, 1)]
    listing = listing_of(both)
    assert listing.merged
    assert list(listing.people()) == ["A/S1", "A/S1", "B/S1", "B/S1"]
    assert list(listing.roots()) == ["A", "A", "B", "B"]


@pytest.mark.parametrize(
    "texts, person, message",
    [
        ([], "auto", "has no labelled images"),
        (["a happy val", "b sad test"], "auto", "given has test and val but no train split"),
        (["a happy", "b sad"], "subject", "'subject' is no column .* nor a pattern in any file's name, such as 'a'"),
        (
            ["a happy - S1", "b sad - S1", "c sad test S1", "d happy test"],
            "auto",
            "1 of 1 people are in more than one.*: S1.*prepare.person to null",
        ),
    ],
)
def test_what_cannot_be_trained_on(listing_of: ListingOf, texts: list[str], person: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        listing_of(items(*texts), person=person)


def test_a_dropped_class_may_be_missing_in_a_split(listing_of: ListingOf) -> None:
    listing = listing_of(items("a happy", "b sad", "c fear", "d sad test", "e happy test"), {"fear": None})
    assert listing.class_names == ["happy", "sad"]
    assert listing.left_out == {"prepare.class_map: fear": 1}
    assert list(listing.files()) == ["a", "b", "d", "e"]


def test_memory_does_not_grow_with_the_source(tmp_path: Path) -> None:
    """Python's own allocations; SQLite's are few MB at any size."""
    peaks, source = [], Items([])
    for count in (2_000, 20_000):
        some = (Item(f"{i:07}.png", "ab"[i % 2], None, [i, 1, 2]) for i in range(count))
        source.items = lambda some=some: some
        folder = tmp_path / str(count)
        folder.mkdir()
        tracemalloc.start()
        with closing(Listing(folder, source, {}, "auto")) as listing:
            assert sum(1 for _ in listing.places()) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 100_000
