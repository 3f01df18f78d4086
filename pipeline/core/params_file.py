"""``params.yaml`` as text: read, checked, changed key by key, and made of the default and a recipe.

Reads YAML 1.2 with the parser that DVC uses, so that both see the same values. ``params.default.yaml`` holds every key
with its default and a comment; a recipe holds only what differs from it.
"""

import io
import json
import operator
import shlex
import types
from functools import reduce
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from pipeline.core import paths, yaml_text
from pipeline.core.errors import UserError, suggest
from pipeline.core.files import write_text
from pipeline.core.params import Params, ProjectParams, flatten
from pipeline.core.project import project_root

RENAMED = {
    "prepare.group": "prepare.person",
    "prepare.columns.group": "prepare.columns.person",
    "train.schedule.warmup_epochs": "train.schedule.warmup",
    "train.schedule.decay_epochs": "train.schedule.decay",
    "train.mixing.off_epoch": "train.mixing.end",
    "train.progressive.epoch": "train.progressive.from",
}
# Of these that counted in epochs, and are parts of the training now: how many epochs come before.
EPOCHS_BEFORE = {"warmup_epochs": 0, "decay_epochs": 0, "off_epoch": 1, "epoch": 1}


def load_params(path: Path | str = paths.PARAMS) -> Params:
    """Read and check a complete parameter file.

    Raises:
        UserError: Missing or malformed file; unknown, missing, ill-typed or contradictory keys. The
            message has a line for each, with the nearest valid name.
    """
    return parse_params(read_text(path), str(path))


def read_project_name(root: Path | None) -> str:
    """Name of the project with this root; the default's outside of any, or in a file that is older than the key.

    Raises:
        UserError: It is no name.
    """
    default = YAML(typ="safe", pure=True).load(read_default())["project"]
    path = root / paths.PARAMS if root else None
    if path is None or not path.exists():
        return str(default["name"])
    values = _load_document(read_text(path), str(path))
    section = values.get("project") if isinstance(values, dict) else None
    try:
        return ProjectParams.model_validate(default if section is None else dict(section)).name
    except (ValidationError, TypeError, ValueError):
        raise UserError(f"{path}: project.name must be letters, digits, - and _, such as hyojo") from None


def read_text(path: Path | str) -> str:
    """Text of a parameter file; a missing one is a ``UserError`` that names the remedy."""
    try:
        with open(path, encoding="utf-8", newline="") as file:  # line ends as they are
            return file.read()
    except FileNotFoundError:
        raise UserError(f"{path} not found in {Path.cwd()}. {_find_remedy(Path(path))}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _find_remedy(missing: Path) -> str:
    """What to do about a parameter file that is not there."""
    try:
        root = project_root()
    except UserError:
        root = Path.cwd()
    if root != Path.cwd().resolve():
        return f"Change into the project's root: cd {shlex.quote(str(root))}"
    if missing.name == paths.PARAMS.name:
        return "Write it with `hyojo use recipes/sample.yaml`."
    return f"There are {', '.join(map(str, sorted(Path('recipes').glob('*.yaml')))) or 'no recipes here'}."


def read_default() -> str:
    """Text of the complete, commented default."""
    return resources.files("pipeline.core").joinpath("params.default.yaml").read_text(encoding="utf-8")


def parse_params(text: str, name: str = str(paths.PARAMS)) -> Params:
    """Check the text of a parameter file; ``name`` stands in the messages. Raises ``UserError``."""
    try:
        values = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise UserError(f"{name} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{name} must hold the sections {', '.join(Params.model_fields)}.")
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        lines = list(dict.fromkeys(_explain(item, values) for item in error.errors()))
        if all(item["type"] == "missing" for item in error.errors()):
            lines.append(f"`hyojo use {name}` adds what is missing, with its default.")
        raise UserError(f"{name} is not valid:\n" + "\n".join(f"  {line}" for line in lines)) from None


def apply_overrides(text: str, overrides: list[str]) -> str:
    """Set ``key=value`` pairs (dotted keys, YAML values) in a parameter file's text; no other line changes.

    Raises:
        UserError: A pair without ``=``, a value that is not YAML, or a key whose section does not exist.
            Whether the key itself is known is for ``parse_params`` to say.
    """
    for override in overrides:
        key, equals, value = override.partition("=")
        keys = key.strip().split(".")
        try:
            if not equals or len(keys) < 2:
                raise UserError(f"{override!r} is not of the form section.key=value; {_suggest_key(key)}")
            text = yaml_text.set_value(text, keys, value)
        except KeyError as error:
            raise UserError(f"{override!r}: there is no section {error.args[0]!r}; {_suggest_key(key)}") from None
        except YAMLError as error:
            raise UserError(f"{override!r}: not valid YAML: {error}") from None
    return text


def _suggest_key(key: str) -> str:
    """Hint at the parameter that was meant."""
    known = [name[1:] for name in flatten(parse_params(read_default()), "")]
    return suggest(key, known, "an example: train.epochs=10")


def apply_recipe(recipe: str, name: str) -> str:
    """Text of a complete parameter file: the default, with what a recipe says in place of its values.

    Args:
        recipe: Text of a YAML file with some of the default's sections and keys.
        name: Of the recipe; stands in errors.
    """
    document = _load_document(read_default(), "the default")
    _overlay(document, _load_document(recipe, name) or {}, Params, name)
    return _dump_document(document)


def add_missing(text: str, name: str) -> tuple[str, list[str]]:
    """Add the keys that a file of an older version lacks, with their defaults and comments.

    Returns:
        The text, and the dotted names of the keys that were added.
    """
    _load_document(text, name)
    return yaml_text.add_missing(text, read_default())


def write_params(text: str) -> None:
    """Write ``params.yaml`` at one stroke."""
    write_text(paths.PARAMS, text)


def _load_document(text: str, name: str) -> Any:
    """A YAML document that keeps its comments."""
    try:
        return yaml_text.edit_yaml().load(text)
    except YAMLError as error:
        raise UserError(f"{name} is not valid YAML: {error}") from None


def _dump_document(document: Any) -> str:
    """A document's text."""
    out = io.StringIO()
    yaml_text.edit_yaml().dump(document, out)
    return out.getvalue()


def _set_value(node: CommentedMap, key: str, value: Any) -> None:
    """Put a value in place of another, whose comment stays."""
    node[key] = value
    # ruamel's place for comments before a block's first entry: left over, it costs a line break further down.
    if comments := node.ca.items.get(key):
        comments[3] = None


def _overlay(document: CommentedMap, changes: Any, model: type[BaseModel], name: str) -> None:
    """Put the values of a recipe into a document; sections are merged, all else is replaced."""
    if not isinstance(changes, dict):
        raise UserError(f"{name} must hold sections such as train, and in them keys with values.")
    for key, value in changes.items():
        section = _section_class(model.model_fields[key].annotation) if key in model.model_fields else None
        if section and isinstance(document.get(key), dict):
            _overlay(document[key], value, section, name)
        else:
            _set_value(document, key, value)


def _explain(item: Any, values: dict[str, Any]) -> str:
    """One validation error in the file's values as a sentence, with the nearest valid name for an unknown key."""
    written = ".".join(part for part in item["loc"] if isinstance(part, str) and part != "[key]")
    if written in RENAMED:
        return f"unknown key {written!r}; it is called {RENAMED[written]!r} now{_convert(item, values)}"
    location, valid = _read_location(item["loc"])
    name = ".".join(location)
    if item["type"] == "extra_forbidden":
        hint = suggest(location[-1], valid, f"valid keys: {', '.join(valid)}", cutoff=0.5)
        return f"unknown key {name!r}; {hint}"
    if item["type"] == "missing":
        return f"missing key {name!r}" + (f" (default: {default})" if (default := _default_of(location)) else "")
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{name}: {message}" if name else message
    works = f"; {default} works" if (default := _default_of(location)).strip("[{}]") else ""
    return f"{name}: {message} (got {item['input']!r}{works})"


def _convert(item: Any, values: dict[str, Any]) -> str:
    """The value of a renamed key as the new one has it: a part of the training in place of epochs."""
    try:
        part = (item["input"] - EPOCHS_BEFORE[item["loc"][-1]]) / values["train"]["epochs"]
    except (KeyError, TypeError, ZeroDivisionError):
        return ""
    return f", a part of the training: {part:.4g}"


def _default_of(location: list[str]) -> str:
    """A key's default, or a section's, on one line; empty where there is none."""
    try:
        value = reduce(operator.getitem, location, YAML(typ="safe", pure=True).load(read_default()))
    except (KeyError, TypeError):
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _read_location(location: tuple[int | str, ...]) -> tuple[list[str], list[str]]:
    """What of an error's location stands in the file, which names no branches of unions; and what its end may be."""
    clean: list[str] = []
    valid: list[str] = []
    model: Any = Params
    for part in location:
        if model and isinstance(part, str):
            valid = sorted(field.alias or name for name, field in model.model_fields.items())
            field = model.model_fields.get(part)
            model = _section_class(field.annotation) if field else None
        elif isinstance(part, str):
            continue
        clean.append(str(part))
    return clean, valid


def _section_class(annotation: Any) -> Any:
    """The section class in an annotation, or that of a list's items, if it has one."""
    if get_origin(annotation) in (Union, types.UnionType, Annotated, list):
        return next((found for arg in get_args(annotation) if (found := _section_class(arg))), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
