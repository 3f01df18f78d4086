"""What README.md tells people to type and to look at exists; run by ``pytest tests/test_readme.py``."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from dvc.cli.parser import get_main_parser

from pipeline.cli import build_parser

ROOT = Path(__file__).parent.parent
# What the stages write, and what a user makes: not in git.
MADE = ("data/prepared", "data/raw", "models", "reports", "mlflow.db", "mlruns", ".venv", ".hyojo")
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
INLINE = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", README, flags=re.DOTALL))
LINES = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]


def commands(program: str) -> list[list[str]]:
    """Argument lists of a program's calls, in code blocks and inline."""
    found = []
    for text in [*LINES, *INLINE]:
        for part in text.split(" && "):
            words = shlex.split(part, comments=True) if part.count('"') % 2 == 0 and "'" not in part else []
            # In the text, `dvc add` names a command; with arguments, and in code blocks, it is a call.
            if words[:1] == [program] and (text in LINES or len(words) > 2):
                found.append(words[1:])
    return found


@pytest.mark.parametrize("arguments", commands("hyojo"), ids=" ".join)
def test_hyojo_commands_parse(arguments: list[str]) -> None:
    parsed = build_parser().parse_args(arguments)
    assert callable(parsed.run)


@pytest.mark.parametrize("arguments", commands("dvc"), ids=" ".join)
def test_dvc_commands_parse(arguments: list[str]) -> None:
    assert callable(get_main_parser().parse_args(arguments).func)


@pytest.mark.parametrize("arguments", commands("make"), ids=" ".join)
def test_make_targets_exist(arguments: list[str]) -> None:
    target = arguments[0]
    # -n prints what would run; an unknown target is an error.
    assert subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True).returncode == 0


def test_every_kind_of_command_is_found() -> None:
    assert len(commands("hyojo")) >= 7
    assert len(commands("dvc")) >= 7
    assert {words[0] for words in commands("make")} >= {"repro", "test", "ui"}


def test_named_paths_exist() -> None:
    paths = [text for text in INLINE if re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?|[\w-]+\.(yaml|md|lock)", text)]
    paths = [path for path in paths if "/" in path or path.endswith((".yaml", ".lock"))]
    paths += re.findall(r"\]\(([^)#:]+)\)", README)
    paths += [word for words in commands("hyojo") for word in words if word.startswith("data/")]
    given = [path for path in paths if not path.startswith(MADE) and "to/" not in path]
    missing = [path for path in given if not (ROOT / path).exists()]
    assert len(given) >= 8
    assert not missing


def test_overrides_name_real_params() -> None:
    from pipeline.core.params_file import apply_overrides, parse_params

    overrides = re.findall(r"-S ([\w.]+=[^\s`]+)", README)
    assert overrides
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    for override in overrides:
        parse_params(apply_overrides(text, [override.split(",")[0]]))


@pytest.mark.parametrize("path", [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), ROOT / "recipes/README.md"], ids=str)
def test_no_example_leaves_its_values_to_the_next(path: Path) -> None:
    """``dvc exp run -S`` leaves them in params.yaml, unless it runs in a copy."""
    runs = re.findall(r"^dvc exp run .* -S .*$", path.read_text(encoding="utf-8").replace("\\\n", " "), re.MULTILINE)
    assert [run for run in runs if not re.search(r" --(temp|queue) ", run)] == []
    assert runs or path.name != "README.md" or path.parent != ROOT


def test_nothing_is_left_to_fill_in() -> None:
    assert not re.findall(r"@[A-Z_]+@", README)
