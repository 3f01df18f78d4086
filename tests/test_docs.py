"""What the documents tell people to type and to look at exists; the README stays short."""

import re
import shlex
import subprocess

import pytest
from builders import ROOT
from dvc.cli.parser import get_main_parser
from ruamel.yaml import YAML

from pipeline.cli import JOBS, build_parser

# What the stages write, and what a user makes: not in git.
MADE = re.compile(r"data/(?!sample)|models|reports|mlflow\.db|mlruns|\.venv|\.hyojo")
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8").replace("\\\n", " ")
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("recipes/*.md")])
    if path.name != "CHANGELOG.md"
}


def list_commands(program: str) -> list[list[str]]:
    """Argument lists of a program's calls on all pages, in code blocks and inline."""
    found: dict[tuple[str, ...], None] = {}
    for page in PAGES.values():
        lines = [line for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
        inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page, flags=re.DOTALL))
        for text in [*lines, *inline]:
            for part in re.split(r" (?:&&|\|) ", text):
                words = shlex.split(part, comments=True) if part.count('"') % 2 == part.count("'") % 2 == 0 else []
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words = words[1:]
                # In the text, `dvc add` names a command; with arguments, and in code blocks, it is a call.
                if words[:1] == [program] and (text in lines or len(words) > 2) and "..." not in part:
                    found[tuple(words[1:])] = None
    return list(map(list, found))


@pytest.mark.parametrize("arguments", list_commands("hyojo"), ids=" ".join)
def test_hyojo_commands_parse(arguments: list[str]) -> None:
    assert arguments == ["--help"] or arguments[1:] == ["--help"] or callable(build_parser().parse_args(arguments).run)


@pytest.mark.parametrize("arguments", list_commands("dvc"), ids=" ".join)
def test_dvc_commands_parse(arguments: list[str]) -> None:
    assert callable(get_main_parser().parse_args(arguments).func)


@pytest.mark.parametrize("arguments", list_commands("make"), ids=" ".join)
def test_make_targets_exist(arguments: list[str]) -> None:
    # -n prints what would run; an unknown target is an error.
    assert subprocess.run(["make", "-n", arguments[0]], cwd=ROOT, capture_output=True).returncode == 0


def test_every_command_has_a_page() -> None:
    told = {words[0] for words in list_commands("hyojo")} | {
        name for page in PAGES.values() for name in re.findall(r"`hyojo ([\w-]+)`", page)
    }
    assert {name for names in JOBS.values() for name in names} - told == set()
    assert len(list_commands("dvc")) >= 7


@pytest.mark.parametrize("name", PAGES)
def test_named_paths_exist(name: str) -> None:
    page, folder = PAGES[name], (ROOT / name).parent
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page, flags=re.DOTALL))
    tops = "|".join(re.escape(path.name) for path in ROOT.iterdir() if path.is_dir() and path.name[0] != ".")
    named = [text for text in inline if re.fullmatch(rf"({tops})(/[\w.-]+)+/?", text) and not MADE.match(text)]
    text = re.sub(r"`[^`\n]*`", "", page)
    links = [link for link in re.findall(r"\]\(([^)#:\s]+)(?:#[\w-]*)?\)", text) if "://" not in link]
    assert [path for path in named if not (ROOT / path).exists()] == []
    assert [link for link in links if not (folder / link).exists()] == []


@pytest.mark.parametrize("name", PAGES)
def test_links_to_headings_exist(name: str) -> None:
    for path, anchor in re.findall(r"\]\(([\w./-]*)#([\w-]+)\)", PAGES[name]):
        text = ((ROOT / name).parent / path if path else ROOT / name).read_text(encoding="utf-8")
        headings = [re.sub(r"[^\w -]", "", line).lower() for line in re.findall(r"^#+ (.*)", text, re.MULTILINE)]
        assert anchor in [heading.replace(" ", "-") for heading in headings]


def test_overrides_name_real_params() -> None:
    from pipeline.core.params_file import apply_overrides, parse_params

    overrides = [found for page in PAGES.values() for found in re.findall(r"-S ([\w.]+=[^\s`,]+)", page)]
    assert overrides
    for override in overrides:
        parse_params(apply_overrides((ROOT / "params.yaml").read_text(encoding="utf-8"), [override]))


@pytest.mark.parametrize("name", PAGES)
def test_no_example_leaves_its_values_to_the_next(name: str) -> None:
    """``dvc exp run -S`` leaves them in params.yaml, unless it runs in a copy."""
    runs = re.findall(r"^dvc exp run .* -S .*$", PAGES[name], re.MULTILINE)
    assert [run for run in runs if not re.search(r" --(temp|queue) ", run)] == []


def test_the_readme_stays_short() -> None:
    readme = PAGES["README.md"]
    assert len(readme.splitlines()) <= 150
    assert len(readme.split()) <= 1300
    pages = {path.name for path in ROOT.glob("docs/*.md")}
    assert pages - set(re.findall(r"\(docs/([\w.-]+)\)", readme)) == set()


def test_the_workflow_runs_commands_that_there_are() -> None:
    steps = YAML(typ="safe").load(ROOT / ".github" / "workflows" / "train.yaml")["jobs"]["train"]["steps"]
    script = "\n".join(step["run"] for step in steps if "run" in step)
    assert subprocess.run(["bash", "-n", "-c", re.sub(r"\$\{\{.*?\}\}", "1", script)]).returncode == 0
    for words in re.findall(r"\b(?:hyojo|dvc) [\w .-]+(?: \"\$BASE\")?", script):
        program, *arguments = shlex.split(words)
        parser = build_parser() if program == "hyojo" else get_main_parser()
        assert parser.parse_args([argument for argument in arguments if argument != "2"])
    (target,) = re.findall(r"make (\w+)", script)
    assert subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True).returncode == 0
