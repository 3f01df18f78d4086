"""What is read is what DVC tracks: links to folders in a source are refused, others are followed."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from builders import list_items, read_contents, write_files

from pipeline.core.errors import UserError
from pipeline.inference.images import ImageError
from pipeline.prepare.sources.open import open_source


def link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


CASES = {
    "a class": ("all/happy", ("all/sad/b.png",)),
    "a split": ("all/train", ("all/test/happy/c.png", "all/test/sad/b.png")),
    "a data set among others": ("all/mine", ("all/CK+/happy/c.png", "all/CK+/sad/b.png")),
    "a folder inside a class": ("all/happy/more", ("all/happy/c.png", "all/sad/b.png")),
    "pictures of a table": ("all/pictures", ()),
    "a folder beside classes": ("all/notes", ("all/happy/c.png", "all/sad/b.png")),
}


@pytest.mark.parametrize("case", CASES)
def test_a_linked_folder_is_refused_with_the_remedy(case: str, tmp_path: Path) -> None:
    name, others = CASES[case]
    write_files(tmp_path, *others, "my pool/happy/a.png", "my pool/sad/b.png")
    if case == "pictures of a table":
        write_files(tmp_path / "all", labels="path,label\npictures/happy/a.png,happy\npictures/sad/b.png,sad\n")
    link(tmp_path / name, tmp_path / "my pool")
    with pytest.raises(UserError, match=r"DVC does not look behind them") as caught:
        open_source(tmp_path / "all")
    link_ = shlex.quote(str(tmp_path / name))
    remedy = f"rm {link_} && cp -rL {shlex.quote(str((tmp_path / 'my pool').resolve()))} {link_}"
    assert remedy in str(caught.value)
    subprocess.run(remedy, shell=True, check=True)
    assert {os.path.basename(item.file) for item in list_items(tmp_path / "all")} >= {"a.png", "b.png"}


def test_other_links_are_fine(tmp_path: Path) -> None:
    """To files, of the source itself, and to folders that are passed over anyway."""
    write_files(tmp_path, "all/happy/a.png", "all/sad/b.png", "pool/c.png")
    link(tmp_path / "all" / "sad" / "c.png", tmp_path / "pool" / "c.png")
    link(tmp_path / "all" / ".cache", tmp_path / "pool")
    link(tmp_path / "all" / "sad" / "gone.png", tmp_path / "nowhere")
    link(tmp_path / "alias", tmp_path / "all")
    with open_source(tmp_path / "alias") as source, pytest.raises(ImageError, match="cannot be read"):
        next(source.fetch(item.place for item in source.items() if "gone" in item.file))()
    (tmp_path / "all" / "sad" / "gone.png").unlink()
    assert set(read_contents(tmp_path / "alias")) == {"happy/a.png", "sad/b.png", "sad/c.png"}
    assert read_contents(tmp_path / "alias")["sad/c.png"] == b"pool/c.png"


@pytest.mark.heavy
def test_what_is_read_is_what_dvc_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC's own list of the folder has linked files, and nothing behind linked folders."""
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    write_files(tmp_path, "p/all/happy/a.png", "p/all/sad/b.png", "pool/c.png")
    link(tmp_path / "p" / "all" / "sad" / "c.png", tmp_path / "pool" / "c.png")

    def hashed() -> set[str]:
        for words in (["init", "-q", "-f", "--no-scm"], ["add", "-q", "all"]):
            subprocess.run([sys.executable, "-m", "dvc", *words], cwd=tmp_path / "p", check=True)
        (listing,) = (tmp_path / "p" / ".dvc" / "cache").rglob("*.dir")
        return {entry["relpath"] for entry in json.loads(listing.read_text())}

    assert hashed() == set(read_contents(tmp_path / "p" / "all")) == {"happy/a.png", "sad/b.png", "sad/c.png"}
    link(tmp_path / "p" / "all" / "angry", tmp_path / "pool")
    assert not [name for name in hashed() if name.startswith("angry/")]
    with pytest.raises(UserError, match="links to folders"):
        open_source(tmp_path / "p" / "all")
