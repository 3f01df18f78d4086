"""A YAML text changed in one place: all other lines, with their comments, stay as they are, byte for byte."""

import io
import re
from collections.abc import Iterator
from functools import reduce
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import CollectionNode, MappingNode, Node


def edit_yaml() -> YAML:
    """A reader and writer that keeps comments and the style of values."""
    yaml = YAML()
    yaml.width = 120
    yaml.preserve_quotes = True
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    return yaml


def set_value(text: str, keys: list[str], value: str) -> str:
    """Put a value, YAML, in place of that of a key, given with those of the mappings around it, or add the key.

    Raises:
        KeyError: A key of ``keys`` but the last has no mapping.
        YAMLError: The value or the text is not YAML, or the key's value is shared by an anchor.
    """
    written = _write_inline(edit_yaml().load(value))
    node = _compose(text)
    for place, key in enumerate(keys):
        if not isinstance(node, MappingNode):
            raise KeyError(keys[place - 1])
        around, (found, node) = node, _find(node, key)
        if found and (node.anchor or node.start_mark.index < found.end_mark.index):
            raise YAMLError(f"{key} has an anchor or is an alias: change it by hand")
    if not found:
        return _insert(text, around, None, [f"{keys[-1]}: {written}"])
    return _replace(text, found, node, written)


def add_missing(text: str, default: str) -> tuple[str, list[str]]:
    """Add the entries that a text lacks where another, complete one has them, with their comments.

    Returns:
        The text, and the dotted names of the keys that were added. Raises ``YAMLError``.
    """
    complete, values, added = _compose(default), YAML(typ="safe", pure=True).load(default), []
    while missing := next(_list_missing(_compose(text), complete, []), None):
        keys, node, before, key, value = missing
        if node.flow_style:
            written = _write_inline(reduce(dict.__getitem__, keys, values))
            entry = [f"{key.value}: {written}"]
        else:
            begin, end = key.start_mark.index, _find_end(default, value)
            first, *others = default[begin : default.find("\n", end)].split("\n")
            entry = [first, *(line[key.start_mark.column :] for line in others)]
        if node.start_mark.column == 0:  # a section: a blank line between it and the next
            entry = ["", *entry] if before else [*entry, ""]
        text = _insert(text, node, before, entry)
        added.append(".".join(keys))
    return text, added


def _compose(text: str) -> Any:
    """The text's nodes, which know where they stand."""
    return YAML(typ="safe", pure=True).compose(io.StringIO(text))


def _find(node: Any, key: str) -> tuple[Node | None, Any]:
    """The nodes of a key and of its value, in a mapping's node."""
    pairs = node.value if isinstance(node, MappingNode) else []
    return next((pair for pair in pairs if pair[0].value == key), (None, None))


def _find_end(text: str, node: Node) -> int:
    """Where a value's text ends; a block's mark is where the next key begins."""
    while isinstance(node, CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        node = last[1] if isinstance(last, tuple) else last
    begin: int = node.start_mark.index
    return begin + len(text[begin : node.end_mark.index].rstrip())


def _list_missing(
    node: Any, complete: MappingNode, keys: list[str]
) -> Iterator[tuple[list[str], MappingNode, Node | None, Node, Node]]:
    """Keys that a mapping lacks: their names, the mapping, the value that comes before, and key and value."""
    before = None
    for key, value in complete.value if isinstance(node, MappingNode) else ():
        found, own = _find(node, key.value)
        if not found:
            yield [*keys, key.value], node, before, key, value
        elif isinstance(value, MappingNode):
            yield from _list_missing(own, value, [*keys, key.value])
        before = own


def _replace(text: str, key: Node, value: Node, written: str) -> str:
    """Write a value where another stands; a block, which has lines of its own, becomes one behind its key."""
    begin, end, colon = value.start_mark.index, _find_end(text, value), text.index(":", key.end_mark.index) + 1
    if begin == end:  # nothing stands there
        return text[:colon] + _align(f" {written}", "", text[colon:])
    if not isinstance(value, CollectionNode) or value.flow_style:
        return text[:begin] + _align(written, text[begin:end], text[end:])
    behind_key, behind = text[colon:begin].splitlines(keepends=True)[0], text[end:].splitlines(keepends=True)
    return text[:colon] + _align(f" {written}", "", behind_key) + "".join(behind[1:])


def _insert(text: str, node: MappingNode, before: Node | None, entry: list[str]) -> str:
    """Add an entry's lines behind the value before, or in front of all; in braces at the end."""
    begin, end, column = node.start_mark.index, node.end_mark.index, node.start_mark.column
    if node.flow_style:
        braces = text[begin : end - 1].rstrip() + (", " if node.value else "") + entry[0] + "}"
        return text[:begin] + _align(braces, text[begin:end], text[end:])
    line_end = "\r\n" if "\r\n" in text else "\n"
    lines = "".join((" " * column + line).rstrip() + line_end for line in entry)
    if before is None:
        return text[: begin - column] + lines + text[begin - column :]
    place = text.find("\n", _find_end(text, before)) + 1
    if not place:
        return _insert(text + line_end, node, before, entry)
    return text[:place] + lines + text[place:]


def _align(new: str, old: str, tail: str) -> str:
    """A value with what follows it, where a comment behind keeps its column."""
    if comment := re.match(r" +(?=#)", tail):
        blanks = max(1, len(comment[0]) + len(old) - len(new))
        return new + " " * blanks + tail[comment.end() :]
    return new + tail


def _write_inline(value: Any) -> str:
    """A value's YAML on one line, as it may stand in brackets too."""
    yaml, out, around = edit_yaml(), io.StringIO(), CommentedMap(key=value)
    yaml.width = 10**6
    around.fa.set_flow_style()
    yaml.dump(around, out)
    return out.getvalue().strip().removeprefix("{key: ").removesuffix("}")
