"""One value of a YAML text is changed, and nothing else in it."""

import difflib
import itertools

import pytest
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.core.params import flatten
from pipeline.core.params_file import parse_params, read_default
from pipeline.core.yaml_text import add_missing, set_value

DEFAULT = read_default()
KEYS = [name[1:] for name in flatten(parse_params(DEFAULT), "")]
VALUES = ["17", "1e-3", "true", "data/my faces (2).zip", "'S\\d+'", "'a, b: c'", "[a, {b: 1}]", "{c: null}"]


def load(text: str) -> dict:
    return YAML(typ="safe", pure=True).load(text)


def with_value(values: dict, keys: list[str], value: object) -> dict:
    """The same with one value changed, or added."""
    if not keys:
        return value
    return values | {keys[0]: with_value(values.get(keys[0]), keys[1:], value)}


def changed_lines(old: str, new: str) -> tuple[list[str], list[str]]:
    """Lines that are gone, and lines that are new, with their ends."""
    lines = list(difflib.ndiff(old.splitlines(keepends=True), new.splitlines(keepends=True)))
    return [line[2:] for line in lines if line[0] == "-"], [line[2:] for line in lines if line[0] == "+"]


@pytest.mark.parametrize(
    "key, value, line_end", list(zip(KEYS, itertools.cycle(VALUES), itertools.cycle(["\n", "\r\n"])))
)
def test_set_value_changes_one_line_of_the_default(key: str, value: str, line_end: str) -> None:
    text = DEFAULT.replace("\n", line_end)
    new = set_value(text, key.split("."), value)
    assert load(new) == with_value(load(text), key.split("."), load(value))
    gone, came = changed_lines(text, new)
    if key != "train.transforms.train":  # a list on lines of its own
        assert len(gone) == len(came) == 1
        assert gone[0].partition("#")[2] == came[0].partition("#")[2]
        if " # " in gone[0] and len(came[0]) <= len(gone[0]):
            assert gone[0].index(" # ") == came[0].index(" # ")
    assert all(line.endswith(line_end) for line in came)
    assert set_value(new, key.split("."), value) == new


MESSY = """\
# mine
prepare: {a: 1,  b: [x,
    y],   "c": 'it''s', e:
    5}   # all

train:    # why
    # first
    one:    1# no comment
    two:
    three:   # empty
    four: "4"  # four
    five: >
      folded
      text

    six:   # a list
    -  p   # pth
    -  q

    # of seven
    seven:
        x: {}
        y: {z: null}   # z
last: 0"""


@pytest.mark.parametrize(
    "key, gone, came",
    [
        ("prepare.a", "prepare: {a: 1,  b: [x,\n", "prepare: {a: NEW,  b: [x,\n"),
        ("prepare.b", "prepare: {a: 1,  b: [x,\n    y],   \"c\": 'it''s', e:\n",
         "prepare: {a: 1,  b: NEW,   \"c\": 'it''s', e:\n"),
        ("prepare.c", "    y],   \"c\": 'it''s', e:\n", '    y],   "c": NEW, e:\n'),
        ("prepare.d", "    5}   # all\n", "    5, d: NEW} # all\n"),
        ("prepare.e", "    5}   # all\n", "    NEW}   # all\n"),
        ("train.one", "    one:    1# no comment\n", "    one:    NEW\n"),
        ("train.two", "    two:\n", "    two: NEW\n"),
        ("train.three", "    three:   # empty\n", "    three: NEW # empty\n"),
        ("train.four", '    four: "4"  # four\n', "    four: NEW  # four\n"),
        ("train.five", "    five: >\n      folded\n      text\n", "    five: NEW\n"),
        ("train.six", "    six:   # a list\n    -  p   # pth\n    -  q\n", "    six: NEW # a list\n"),
        ("train.seven.x", "        x: {}\n", "        x: NEW\n"),
        ("train.seven.x.w", "        x: {}\n", "        x: {w: NEW}\n"),
        ("train.seven.y.z", "        y: {z: null}   # z\n", "        y: {z: NEW}   # z\n"),
        ("train.seven", "    seven:\n        x: {}\n        y: {z: null}   # z\n", "    seven: NEW\n"),
        ("train.seven.v", "", "        v: NEW\n"),
        ("train", None, "train: NEW # why\n"),
        ("last", "last: 0", "last: NEW"),
        ("new", "", "new: NEW\n"),
    ],
)  # fmt: skip
def test_set_value_in_any_style(key: str, gone: str | None, came: str) -> None:
    """Braces, comments, empty and folded values, lists, other indents, no line end at the end."""
    new = set_value(MESSY, key.split("."), "NEW")
    assert load(new) == with_value(load(MESSY), key.split("."), "NEW")
    found = ["".join(lines) for lines in changed_lines(MESSY, new)]
    assert found[1] == came
    assert gone is None or found[0] == gone


@pytest.mark.parametrize("key", ["a.x", "b.x", "b", "c", "d"])
def test_set_value_refuses_what_is_shared(key: str) -> None:
    with pytest.raises((YAMLError, KeyError)):
        set_value("a: &it {x: 1}\nb: *it\nc: &n 3\nd: *n\n", key.split("."), "2")


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_add_missing_adds_lines_and_changes_none(line_end: str) -> None:
    older = "evaluate:\n    # mine\n    worst: 3   # few\n    batch_size:   7\n\ntrain: {epochs: 3}   # short\n"
    older = older.replace("\n", line_end)
    text, added = add_missing(older, DEFAULT)
    full, kept = load(DEFAULT), load(text)
    assert {"prepare", "train.lr", "train.schedule", "evaluate.tta", "export", "promote"} <= set(added)
    assert kept["evaluate"] == full["evaluate"] | {"worst": 3, "batch_size": 7}
    assert kept["train"] == full["train"] | {"epochs": 3}
    assert [kept[name] for name in ("prepare", "export", "promote")] == [
        full[name] for name in ("prepare", "export", "promote")
    ]
    gone, came = changed_lines(older, text)
    assert [line for line in gone if not line.startswith("train: {epochs: 3")] == []
    assert all(line.endswith(line_end) for line in came)
    assert "    tta: [flip]               # flip, shifts" in text
    assert add_missing(text, DEFAULT) == (text, [])
