"""Write what documents take from the code and from docs/results: params.md, drawings, forms of source, results.

Run: python docs/generate.py [--check]    (--check writes nothing and fails where a document is stale)
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grimp
import networkx as nx
import results
import yaml
from pydantic import BaseModel
from ruamel.yaml import YAML

from pipeline.core.params import Params
from pipeline.core.params_file import read_default
from pipeline.prepare.sources import open as _open  # noqa: F401  (registers the forms)
from pipeline.prepare.sources.form import render_forms

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Write all documents, or say which are stale."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only fail where a document is stale")
    check = parser.parse_args().check
    stale = []
    for path, text in render_documents().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(text, encoding="utf-8")
    if stale and check:
        sys.exit(f"stale: {', '.join(stale)}. `make docs` writes them anew.")
    print(f"{'wrote' if stale else 'up to date:'} {', '.join(stale) or 'all documents'}")


def render_documents() -> dict[Path, str]:
    """Each document's path and the text that it should have."""
    parts = {
        "README.md": {"leaderboard": results.render_leaderboard("recipe", "seeds", "test", "clean", "minutes")},
        "docs/architecture.md": {"rooms": draw_rooms(), "files": draw_files(), "reruns": render_reruns()},
        "docs/data.md": {"forms": render_forms()},
        "docs/results.md": {"leaderboard": results.render_leaderboard(), "details": results.render_details()},
    }
    filled = {ROOT / name: fill_in((ROOT / name).read_text(encoding="utf-8"), own) for name, own in parts.items()}
    return filled | {ROOT / "docs/params.md": render_params()}


def fill_in(text: str, parts: dict[str, str]) -> str:
    """Replace what stands between ``<!-- NAME -->`` and ``<!-- end of NAME -->``."""
    for name, part in parts.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if begin not in text or end not in text:
            sys.exit(f"a document has no {begin} ... {end}")
        text = text[: text.index(begin) + len(begin)] + f"\n{part}\n" + text[text.index(end) :]
    return text


def draw_rooms() -> str:
    """The rooms and which imports which, as Mermaid; an arrow that others imply is left out."""
    graph = grimp.build_graph("pipeline", exclude_type_checking_imports=True, cache_dir=None)
    rooms = sorted(graph.find_children("pipeline"))
    arrows = nx.DiGraph(
        (a.split(".")[1], b.split(".")[1])
        for a in rooms
        for b in rooms
        if a != b and graph.direct_import_exists(importer=a, imported=b, as_packages=True)
    )
    lines = [f"    {a} --> {b}" for a, b in sorted(nx.transitive_reduction(arrows).edges)]
    return "\n".join(["```mermaid", "flowchart TD", *lines, "```"])


def read_stages() -> dict[str, dict[str, Any]]:
    """The stages of dvc.yaml."""
    return yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


def list_outs(stage: dict[str, Any]) -> list[str]:
    """All that a stage writes."""
    given = [out for kind in ("outs", "metrics", "plots") for out in stage.get(kind, [])]
    return [out if isinstance(out, str) else next(iter(out)) for out in given]


def draw_files() -> str:
    """The stages and the files between them, as Mermaid."""
    stages = read_stages()
    lines = []
    for name, stage in stages.items():
        lines.append(f"    {name}[[{name}]]")
        outs = list_outs(stage)
        read = {dep for other in stages.values() for dep in other["deps"]} & set(outs)
        for out in outs:
            if out in read:
                lines.append(f'    {name} --> {key_of(out)}("{out}")')
        if rest := [out for out in outs if out not in read]:
            lines.append(f'    {name} --> {key_of(name)}_more("{"<br>".join(rest)}")')
        lines += [f"    {key_of(dep)} --> {name}" for dep in stage["deps"] if writer_of(dep, stages)]
    return "\n".join(["```mermaid", "flowchart LR", '    source("prepare.source") --> prepare', *lines, "```"])


def writer_of(path: str, stages: dict[str, dict[str, Any]]) -> str | None:
    """The stage that writes a path."""
    return next((name for name, stage in stages.items() if path in list_outs(stage)), None)


def key_of(path: str) -> str:
    """A name that Mermaid takes."""
    return re.sub(r"\W", "_", path)


def render_reruns() -> str:
    """What runs a stage again, as a Markdown table; a stage that ran with other outs runs those that read them."""
    stages = read_stages()
    deps = dict.fromkeys(dep for stage in stages.values() for dep in stage["deps"] if not writer_of(dep, stages))
    rows = [f"| an edit of | {' | '.join(stages)} |", f"|---|{'---|' * len(stages)}"]
    for dep in deps:
        marks = ["runs" if dep in stage["deps"] else "" for stage in stages.values()]
        rows.append(f"| `{dep}` | {' | '.join(marks)} |")
    return "\n".join(rows)


def render_params() -> str:
    """``docs/params.md``: a table a section, made of the default's comments and of what the types allow."""
    document = YAML().load(read_default())
    lines = [
        "# Parameters", "",
        "Made by `make docs` from `pipeline/core/params.default.yaml` and `pipeline/core/params.py`.",
        "`params.yaml` holds every key; a recipe holds those that differ from the default.", "",
    ]  # fmt: skip
    for name, section in document.items():
        model = Params.model_fields[name].annotation
        lines += [f"## {name}", "", *([model.__doc__, ""] if model.__doc__ else [])]
        lines += ["| key | default | allowed | meaning |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in list_keys(section, model, "")]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def list_keys(section: Any, model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    """Key, default, allowed values and meaning of each key below a section."""
    schema = model.model_json_schema()
    annotations = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
    for key, value in section.items():
        annotation = annotations[key]
        # ruamel keeps a line's comment behind its value, or behind a block's key.
        comments = [token for token in section.ca.items.get(key, []) if token and not isinstance(token, list)]
        meaning = comments[0].value.strip().lstrip("# ").split("\n")[0] if comments else ""
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            if meaning:
                yield f"`{prefix}{key}`", "", "", meaning
            yield from list_keys(value, annotation, f"{prefix}{key}.")
        else:
            text = yaml.safe_dump(plain(value), default_flow_style=True, width=9999).removesuffix("...\n").strip()
            allowed = describe_schema(schema["properties"][key], schema.get("$defs", {}))
            yield tuple(part.replace("|", "\\|") for part in (f"`{prefix}{key}`", f"`{text}`", allowed, meaning))


def plain(value: Any) -> Any:
    """A value without ruamel's classes."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, bool) else type(value).__mro__[-2](value)


def describe_schema(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """What a JSON schema allows, in a few words."""
    if "$ref" in schema:
        return describe_schema(definitions[schema["$ref"].split("/")[-1]], definitions)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(describe_schema(part, definitions) for part in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    kind = {"number": "number", "integer": "integer", "boolean": "`true`, `false`", "string": "text", "null": "`null`",
            "array": "list", "object": "mapping"}[schema["type"]]  # fmt: skip
    if schema["type"] == "array" and (items := schema.get("items")):
        kind = f"list of {describe_schema(items, definitions)}"
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    found = [f"{sign} {schema[name]:g}" for name, sign in bounds.items() if name in schema]
    return " ".join([kind, ", ".join(found)]).strip()


if __name__ == "__main__":
    main()
