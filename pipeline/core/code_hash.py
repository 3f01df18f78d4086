"""Which code decides a result, as a hash that comments, docstrings and layout do not change; another Python may.

Reads ``dvc.yaml``: the code of a stage is what its deps name, so no list of modules is kept anywhere else.
"""

import ast
import hashlib
from collections.abc import Iterable
from pathlib import Path

from pipeline.core.dvc_file import read_stage

PACKAGE = Path(__file__).parents[1]


def find_stage_code(stage: str) -> list[Path]:
    """The files and folders of this package that a stage's deps name; raises as ``read_stage``."""
    return [PACKAGE.parent / dep for dep in read_stage(stage)["deps"] if dep.startswith(f"{PACKAGE.name}/")]


def hash_code(places: Iterable[Path], root: Path = PACKAGE) -> str:
    """The sha256 of Python files, and of those in folders, by their names below ``root`` and by what they do."""
    files: set[Path] = set()
    for place in places:
        files |= set(place.rglob("*.py")) if place.is_dir() else {place}
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(root)}\0{_meaning(path.read_text(encoding='utf-8'))}\0".encode())
    return digest.hexdigest()


def _meaning(source: str) -> str:
    """A module's syntax tree as text, without comments, docstrings and places of lines."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
            ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:]
    return ast.dump(tree)
