"""Imports go one way, and dvc.yaml names every module that a stage's result depends on: read from the source."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
MODULES = {path.stem for path in (ROOT / "pipeline").glob("*.py")} - {"__init__"}
STAGES = ("prepare", "train", "evaluate", "export")
TORCH = {"torch", "torchvision", "timm"}
AUGMENTATION = dict.fromkeys(("draws", "geometry", "kernels", "moves"), "only training augments")
UPDATES = dict.fromkeys(("loader", "losses", "optim", "schedule", "trainer"), "only training does updates")
PLAN = dict.fromkeys(("costs", "planning", "pretrained"), "only a training is planned")
# Imported by a stage, and yet not in its deps: an edit must not run the stage again.
EXEMPT = {
    "prepare": {
        "errors": "texts of errors",
        "params": "the values themselves stand in dvc.yaml's params",
        "audit_page": "looks of a page",
        "pages": "looks of a page",
        "store": "says where the cache of decoded pictures is",
    },
    "train": {
        "errors": "texts of errors",
        "params": "the values themselves stand in dvc.yaml's params",
        "plots": "a curve's looks must not train anew",
        "tracking": "mirrors results; `hyojo sync` brings the mirror up to date",
        "family": "mirrors results too",
        "store": "says where that mirror is",
        "interrupt": "stopped and run again, a training ends alike",
        "tta": "training sees the image alone",
    },
    "evaluate": {
        "errors": "texts of errors",
        "params": "the values themselves stand in dvc.yaml's params",
        "plots": "looks of figures",
        "pages": "looks of a page",
        "tracking": "mirrors results; `hyojo sync` brings the mirror up to date",
        "family": "mirrors results too",
        "store": "says where that mirror is",
        "interrupt": "how the stage is stopped",
        "checkpoint": "only deletes what train no longer needs",
        "distributed": "one process evaluates",
        **AUGMENTATION,
        **UPDATES,
        **PLAN,
    },
    "export": {
        "errors": "texts of errors",
        "params": "the values themselves stand in dvc.yaml's params",
        "tracking": "mirrors results; `hyojo sync` brings the mirror up to date",
        "family": "mirrors results too",
        "store": "says where that mirror is",
        "latency": "a figure for the tracker",
        "interrupt": "how the stage is stopped",
        **AUGMENTATION,
    },
}
# An edit to one of these must run train again, but not from the start.
NOT_IN_THE_JOB = {
    "checkpoint": "how a state is kept, not what it is",
    "formats": "only says what can be exported",
}


def is_for_types_only(node: ast.stmt) -> bool:
    """Whether a statement is ``if TYPE_CHECKING:``."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imported(tree: ast.AST, in_functions: bool) -> set[str]:
    """Dotted names that running a module imports; at module level only, or in its functions too."""
    names = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif is_for_types_only(node) or (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not in_functions
        ):
            continue
        else:
            names |= imported(node, in_functions)
    return names


@cache
def names(module: str, in_functions: bool = True) -> frozenset[str]:
    """Dotted names that one of our modules imports."""
    tree = ast.parse((ROOT / "pipeline" / f"{module}.py").read_text(encoding="utf-8"))
    return frozenset(imported(tree, in_functions))


def local(module: str, in_functions: bool = True) -> set[str]:
    """Our modules that one of them imports; those that ship in a served model also know each other by bare names."""
    found = set()
    for name in names(module, in_functions):
        parts = name.split(".")
        if parts[0] == "pipeline":
            found.add(parts[1])
        elif parts[0] in MODULES:
            shipped = {"serving", "faces", "images"}
            assert {module, parts[0]} <= shipped, f"{module} imports {name} without its package"
            found.add(parts[0])
    assert found <= MODULES, f"{module} imports from the package itself: {found - MODULES}"
    return found


def foreign(module: str, in_functions: bool = True) -> set[str]:
    """Top-level packages, not ours, that a module imports."""
    return {name.split(".")[0] for name in names(module, in_functions)} - {"pipeline"}


def reached(module: str, in_functions: bool = True) -> set[str]:
    """Our modules that one of them imports, directly or through others; itself included."""
    seen, todo = set(), [module]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += local(name, in_functions)
    return seen


def test_the_reader_of_imports_sees_every_form() -> None:
    source = (
        "import a.b\nfrom c import d\nif TYPE_CHECKING:\n    import e\nif x:\n    import f\ntry:\n    import g\n"
        "except E:\n    import h\nclass K:\n    import i\n    def m(self):\n        with x:\n            import j\n"
    )
    tree = ast.parse(source)
    assert imported(tree, in_functions=False) == {"a.b", "c.d", "f", "g", "h", "i"}
    assert imported(tree, in_functions=True) == {"a.b", "c.d", "f", "g", "h", "i", "j"}
    assert {"engine", "data"} <= local("train")
    assert "backbones" in reached("train")


@pytest.mark.parametrize("module", sorted(MODULES))
def test_only_sync_imports_a_stage(module: str) -> None:
    allowed = {"evaluate"} if module == "sync" else set()
    assert local(module) & set(STAGES) <= allowed


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_reaches_another_or_a_command(stage: str) -> None:
    above = {
        *STAGES,
        "batch",
        "cli",
        "comparison",
        "compare_page",
        "contenders",
        "experiments",
        "groups",
        "folds",
        "gate",
        "promotion",
        "sync",
        "registry",
        "predict",
        "probe",
        "seeds",
        "server",
        "served",
        "webpage",
    } - {stage}
    assert not reached(stage) & above


@pytest.mark.parametrize(
    "module, allowed",
    [
        ("errors", set()), ("images", set()), ("plots", set()), ("backbones", set()),
        ("metrics", set()), ("calibration", set()), ("intervals", {"calibration"}),
        ("card", set()), ("tta", set()), ("corruptions", set()), ("slices", {"metrics"}),
        ("robustness", {"corruptions", "data", "engine", "metrics", "model"}),
        ("quantize", {"formats"}),
        ("explanations", {"data", "metrics", "model"}), ("formats", set()), ("interrupt", set()), ("decoded", set()),
        ("alignment", set()), ("pages", set()), ("pixels", set()), ("ordering", set()),
        ("neighbours", {"ordering", "pixels"}),
        ("duplicates", {"alignment", "neighbours", "pixels"}),
        ("twins", {"duplicates", "ordering", "pixels", "records"}), ("suspects", {"data", "pages"}),
        ("audit_page", {"audit", "listing", "pages", "pixels", "records"}),
        ("params", {"errors"}), ("store", {"errors"}), ("data", {"errors"}), ("checkpoint", {"errors"}),
        ("pretrained", {"errors"}), ("costs", set()), ("latency", {"serving"}), ("tracking", {"family", "store"}),
        ("family", {"errors", "store"}), ("grouped", set()), ("experiments", {"errors", "interrupt"}),
        ("registry", {"errors", "store", "tracking"}),
        ("contenders", {"errors", "experiments", "family", "registry", "store", "tracking"}), ("paired", set()),
        ("gate", {"calibration", "paired", "params"}),
        ("comparison", {"calibration", "contenders", "errors", "gate", "metrics", "paired"}),
        ("compare_page", {"comparison", "data", "errors", "grouped", "groups", "pages", "plots"}),
        ("promotion", {
            "contenders", "errors", "gate", "latency", "params", "registry", "serving", "store", "tracking",
        }),
        ("schedule", {"params"}),
        ("serving", {"faces", "images"}), ("faces", {"images"}), ("guard", set()), ("cores", set()),
        ("pyfunc", {"faces", "images", "serving", "store"}),
        ("served", {"errors", "pyfunc", "registry", "serving", "store"}), ("webpage", {"pages", "served"}),
        ("server", {"cores", "errors", "guard", "pyfunc", "served", "serving", "webpage"}),
        ("draws", set()), ("geometry", {"draws"}), ("moves", {"draws", "geometry"}),
        ("kernels", {"draws", "geometry", "moves"}), ("augment", {"draws", "errors", "kernels", "params"}),
        ("archives", {"errors", "images"}),
        ("items", {"errors"}), ("labels", {"errors"}), ("tables", {"errors"}),
        ("zips", {"archives", "images"}), ("tars", {"archives", "errors"}),
        ("trees", {"archives", "errors", "images", "items", "labels", "tars", "zips"}),
        ("manifests", {"archives", "errors", "items", "tables", "trees"}),
        ("embedded", {"errors", "images", "items", "tables"}),
        ("fer", {"errors", "images", "items", "labels", "tables"}),
        ("sources", {"archives", "embedded", "errors", "fer", "items", "labels", "manifests", "tables", "trees"}),
        ("listing", {"errors", "items", "labels"}), ("records", {"listing", "ordering"}),
        ("audit", {"listing", "records"}),
        ("splits", {"errors", "listing", "records"}),
        ("decoding", {"audit", "decoded", "faces", "images", "items", "pixels", "records"}),
        ("pictures", {"archives", "embedded", "errors", "images", "items", "tables", "trees"}), ("scores", {"errors"}),
        ("batch", {"cores", "errors", "images", "pictures", "predict", "scores", "served", "serving"}),
        ("model", {"augment", "backbones", "errors", "stem", "tta"}), ("stem", {"maps"}), ("maps", set()),
        ("planning", {"augment", "costs", "errors", "maps", "model", "params", "pretrained", "stem"}),
        ("distributed", {"errors", "interrupt"}), ("loader", {"augment", "data"}), ("losses", {"augment", "params"}),
        ("optim", {"errors", "params"}),
        (
            "trainer",
            {
                "augment", "data", "distributed", "errors", "loader", "losses", "model", "optim", "params", "planning",
                "schedule",
            },
        ),
        ("folds", {
            "data", "engine", "errors", "loader", "model", "params", "planning", "reports", "suspects", "tracking",
            "trainer",
        }),
        ("engine", {"augment", "data", "distributed", "errors", "loader", "metrics", "model", "trainer", "tta"}),
    ],
)  # fmt: skip
def test_what_lies_below_imports_no_more_than_this(module: str, allowed: set[str]) -> None:
    assert local(module) <= allowed


def test_no_imports_go_in_circles() -> None:
    for module in MODULES:
        assert module not in {name for other in local(module) for name in reached(other)}, module


def test_the_command_line_imports_nothing_heavy_before_a_command_runs() -> None:
    assert local("cli", in_functions=False) == {"errors"}
    assert foreign("cli", in_functions=False) <= set(sys.stdlib_module_names)


def test_mlflow_is_imported_only_in_functions_and_only_where_it_belongs() -> None:
    assert {module for module in MODULES if "mlflow" in foreign(module)} == {
        "store", "tracking", "family", "registry", "pyfunc", "served", "server", "serving",
        "predict",
    }  # fmt: skip
    # serving does so where MLflow runs it as a file of its own; see the test below for what we import.
    at_once = {module for module in MODULES if "mlflow" in foreign(module, in_functions=False)}
    assert at_once == {"serving"}


def test_torch_stays_out_of_what_needs_none() -> None:
    light = [
        "prepare", "cli", "registry", "contenders", "comparison", "compare_page", "latency", "gate", "promotion",
        "store", "tracking", "predict", "serving", "images", "params", "plots", "metrics", "batch",
        "server", "served", "pyfunc", "webpage",
    ]  # fmt: skip
    for module in light:
        for below in reached(module, in_functions=False):
            assert not foreign(below, in_functions=False) & TORCH, f"{module} through {below}"
    # Packages that are not ours might bring it along.
    code = f"import sys, {', '.join(f'pipeline.{module}' for module in light)}\n"
    code += "print(*({'torch', 'mlflow', 'timm'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def listed(stage: str) -> list[str]:
    """Our modules in a stage's deps."""
    deps = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]["deps"]
    return [Path(dep).stem for dep in deps if dep.startswith("pipeline/")]


@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_the_modules_that_a_stage_imports(stage: str) -> None:
    deps = listed(stage)
    assert len(deps) == len(set(deps))
    assert set(deps) == reached(stage) - set(EXEMPT[stage])
    assert set(EXEMPT[stage]) <= reached(stage), "an exemption that nothing needs"


def test_stages_are_modules_and_sections_of_params() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    sections = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert tuple(stages) == STAGES
    assert tuple(sections) == (*STAGES, "promote")
    for name, stage in stages.items():
        # Without exec, a shell stays between DVC and the stage, and signals end there.
        assert stage["cmd"] == f"exec python -m pipeline.{name}"
        assert stage["params"] == [name]
        assert (ROOT / "pipeline" / f"{name}.py").is_file()


def test_a_job_is_named_by_the_modules_that_make_its_result() -> None:
    tree = ast.parse((ROOT / "pipeline" / "train.py").read_text(encoding="utf-8"))
    (value,) = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "RESULT_MODULES"
    ]
    assert set(ast.literal_eval(value)) == set(listed("train")) - set(NOT_IN_THE_JOB)
