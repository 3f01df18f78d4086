"""A project of one's own is a clone that takes updates: what docs/team.md says, with two versions of the code."""

import re
import subprocess
from pathlib import Path

from builders import ROOT

OWN = ("params.yaml", "dvc.lock", ".dvc/config", "reports/metrics.json", "reports/per_class.csv")
CODE = "pipeline/core/params.default.yaml"


def test_an_update_changes_the_code_and_nothing_of_ones_own(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "team.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"<!-- ([\w.: ]+) -->\n```bash\n(.*?)```", page, re.DOTALL))
    people = "for r in AUTHOR COMMITTER; do export GIT_${r}_NAME=a GIT_${r}_EMAIL=a@b; done"

    def shell(script: str, folder: Path) -> str:
        script = script.replace("https://git.example.org", str(tmp_path / "git"))
        script = f"export GIT_CONFIG_GLOBAL=/dev/null; {people}\n{script}"
        return subprocess.check_output(["bash", "-euc", script], cwd=folder, text=True, stderr=subprocess.STDOUT)

    def commit(folder: Path, version: str, names: tuple[str, ...]) -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(f"of {version}\n")
        shell("git add -A && git commit -qm Version", folder)

    hyojo = tmp_path / "git" / "hyojo.git"
    hyojo.mkdir(parents=True)
    (hyojo / ".gitattributes").write_bytes((ROOT / ".gitattributes").read_bytes())
    shell("git init -qb main && git init -q --bare ../team/faces.git", hyojo)
    commit(hyojo, "one", (*OWN, CODE))
    shell(blocks["first: begin"], tmp_path)
    commit(tmp_path / "faces", "mine", OWN)
    commit(hyojo, "two", (*OWN, CODE))
    fetch, merge, use, *_ = blocks["first: update"].splitlines()
    assert use == "hyojo use params.yaml"
    shell(f"{fetch}\n{merge}", tmp_path / "faces")
    found = {name: (tmp_path / "faces" / name).read_text() for name in (*OWN, CODE)}
    assert found == dict.fromkeys(OWN, "of mine\n") | {CODE: "of two\n"}
    assert shell("git status --porcelain", tmp_path / "faces") == ""
