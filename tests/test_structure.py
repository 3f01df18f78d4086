"""What a stage reaches stands in its deps, the extras name every package imported, and nothing grows too large."""

import ast
import operator
import re
import subprocess
import sys
import tomllib
from functools import cache, reduce
from importlib.metadata import packages_distributions
from pathlib import Path

import grimp
import pytest
import yaml

ROOT = Path(__file__).parents[1]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Rooms on which no result hangs: texts of errors, looks of pages, the mirror in MLflow.
BESIDE = ("pipeline.core", "pipeline.reporting", "pipeline.tracking")
SEVERAL = ("print", "max", "min")  # take any number of arguments alike
MODULES = sorted((ROOT / "pipeline").rglob("*.py"))


@cache
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(
        "pipeline", include_external_packages=True, exclude_type_checking_imports=True, cache_dir=None
    )


def decides(module: str) -> bool:
    """Whether a module may decide a stage's result."""
    return module == "pipeline.core.dataset" or not module.startswith(BESIDE)


def reached(start: str) -> set[str]:
    """Our modules that one imports, directly or through others that decide a result."""
    seen: set[str] = set()
    todo = [start]
    while todo:
        module = todo.pop()
        if module not in seen and module.startswith("pipeline.") and decides(module):
            seen.add(module)
            todo += graph().find_modules_directly_imported_by(module)
    return seen


@pytest.mark.parametrize("stage", STAGES)
def test_deps_cover_what_a_stage_reaches(stage: str) -> None:
    deps = [dep for dep in STAGES[stage]["deps"] if dep.startswith("pipeline/")]
    names = {dep.removesuffix(".py").replace("/", ".") for dep in deps}
    found = reached(f"pipeline.{stage}.__main__")
    # A package that is passed through holds nothing but its docstring.
    packages = {module for module in found if (ROOT / module.replace(".", "/")).is_dir()}
    covered = {module for module in found if any(module == name or module.startswith(f"{name}.") for name in names)}
    assert found - covered - packages == set()
    assert all((ROOT / dep).exists() for dep in deps)
    idle = {
        name for name in names if decides(name) and not any(f"{module}.".startswith(f"{name}.") for module in found)
    }
    assert not idle, "a dep that the stage does not reach"


@pytest.mark.parametrize("stage", STAGES)
def test_stages_are_packages_and_sections_of_params(stage: str) -> None:
    # Without exec, a shell stays between DVC and the stage, and signals end there.
    assert STAGES[stage]["cmd"] == f"exec python -m pipeline.{stage}"
    assert STAGES[stage]["params"] == [stage]
    assert "requirements.lock" in STAGES[stage]["deps"]
    assert stage in yaml.safe_load((ROOT / "params.yaml").read_text())


def test_light_rooms_load_no_torch_and_no_mlflow() -> None:
    """Packages that are not ours might bring them along."""
    light = [
        "cli", "core.params_file", "core.stage_files", "inference.predictor", "prepare.stage", "reporting.html",
        "metrics.table", "tracking.registry", "experiments.promotion", "serve.server", "serve.batch",
    ]  # fmt: skip
    code = f"import sys, {', '.join(f'pipeline.{module}' for module in light)}\n"
    code += "print(*({'torch', 'mlflow', 'timm'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_extras_name_every_package_that_is_imported() -> None:
    names = [*PROJECT["dependencies"], *reduce(operator.iadd, PROJECT["optional-dependencies"].values(), [])]
    named = {re.split(r"[\[<>=~ ]", name)[0].lower().replace("_", "-") for name in names}
    externals = {module for module in graph().modules if not module.startswith("pipeline")}
    providers = packages_distributions()
    missing = {}
    for module in externals - set(sys.stdlib_module_names):
        found = {name.lower().replace("_", "-") for name in providers.get(module, [])}
        if found and not found & named:
            missing[module] = sorted(graph().find_modules_that_directly_import(module))
    assert missing == {}


def test_one_module_asks_for_the_kind_of_a_device() -> None:
    """``models/devices.py`` alone names CUDA in code, so that other kinds, and tests, go the same way."""
    there = [*MODULES, *sorted((ROOT / "benchmarks").glob("*.py"))]
    asks = re.compile(r"(?<!-)\bcuda\b|\bdevice\.type *(==|!=|in\b|not in\b)")
    assert [path.name for path in there if asks.search(path.read_text(encoding="utf-8"))] == ["devices.py"]


def test_no_module_function_or_call_is_too_large() -> None:
    found = []
    for path in MODULES:
        text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT)
        tree = ast.parse(text)
        if path.stem in ("utils", "helpers", "common"):
            found.append(f"{name}: name a module by its subject")
        if (lines := text.count("\n")) > 300:
            found.append(f"{name}: {lines} lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 60:
                found.append(f"{name}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines")
            elif isinstance(node, ast.Call) and len(node.args) > 5 and ast.unparse(node.func) not in SEVERAL:
                found.append(f"{name}:{node.lineno} {ast.unparse(node.func)}: {len(node.args)} positional arguments")
    assert not found, "\n".join(found)
