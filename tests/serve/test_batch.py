"""hyojo batch: every form of source gives the same table; killed at any moment and run again, the same parts."""

import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import grey_png, write_files, write_tar, write_zip

from pipeline.cli import build_parser
from pipeline.core.errors import UserError
from pipeline.inference.predictor import Predictor
from pipeline.prepare.sources.unlabelled import open_pictures
from pipeline.serve import batch

FILES = 150
SETTINGS = batch.Settings(batch_size=16, chunk=40, workers=2)
BAD = {3: b"", 70: b"no picture at all", 141: b"\x89PNG\r\n\x1a\n" + bytes(40)}


def pictures() -> dict[str, bytes]:
    """Names and bytes, in order of name; some are bad."""
    return {f"{i % 3}/{i:03d}.png": BAD.get(i, grey_png(i)) for i in range(FILES)}


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of bright and dark pictures, some of them bad, and files that are none."""
    folder = tmp_path_factory.mktemp("batch") / "album"
    for name, data in pictures().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "notes.txt").write_text("passed over")
    return folder


def rows_of(path: Path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a finished table."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def expected(bundle: Path) -> dict[str, dict]:
    """What the server's own code says of each picture, one at a time."""
    predictor = Predictor(bundle)
    return {name: predictor.predict_bytes([data])[0] for name, data in pictures().items()}


def check(rows: list[dict], bundle: Path) -> None:
    answers = expected(bundle)
    assert {row["file"] for row in rows} == set(answers)
    assert len(rows) == FILES
    for row in rows:
        answer = answers[row["file"]]
        for name in ("label", "abstain", "error"):
            assert row[name] == answer[name]
        for name in ("bright", "dark"):
            probability = answer["probabilities"] and answer["probabilities"][name]
            assert row[f"prob_{name}"] == pytest.approx(probability, abs=1e-6)
        assert row["probability"] == (row[f"prob_{row['label']}"] if row["label"] else None)
    assert sum(row["error"] is not None for row in rows) == len(BAD)


def test_a_folder(album: Path, bright_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "scores.parquet"
    out.parent.mkdir()
    result = batch.score_pictures(album, out, bright_bundle, SETTINGS)
    assert result[:5] == (FILES, FILES, len(BAD), 1, FILES)
    rows = rows_of(out)
    assert [row["file"] for row in rows] == sorted(pictures())
    check(rows, bright_bundle)
    names = [f"part-0000{number}.parquet" for number in range(4)]
    assert sorted(path.name for path in out.iterdir()) == ["_SUCCESS", "_settings.json", *names]
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert pd.read_parquet(out)["file"].tolist() == sorted(pictures())
    described = {row["file"]: row["brightness"] for row in rows if row["error"] is None}
    assert described == {name: int(name[2:5]) for name in described}
    assert {row["version"] for row in rows} == {json.loads((bright_bundle / "bundle.json").read_text())["digest"][:12]}
    assert batch.score_pictures(album, out, bright_bundle, SETTINGS)[:5] == (FILES, FILES, len(BAD), 1, 0)


def archive(path: Path) -> Path:
    """The same pictures in a zip or tar archive, in no order of name."""
    files = dict(reversed(pictures().items())) | {"readme.txt": b"passed over"}
    if path.suffix == ".zip":
        return write_zip(path, files, zipfile.ZIP_DEFLATED)
    return write_tar(path, files.items(), "gz" if path.suffix == ".gz" else "")


@pytest.mark.parametrize("name", ["faces.zip", "faces.tar", "faces.tar.gz"])
def test_an_archive(name: str, bright_bundle: Path, tmp_path: Path) -> None:
    result = batch.score_pictures(archive(tmp_path / name), tmp_path / "s", bright_bundle, SETTINGS)
    assert result[:4] == (FILES, FILES, len(BAD), 1)
    rows = rows_of(tmp_path / "s")
    assert [row["file"] for row in rows] == list(reversed(pictures()))
    check(rows, bright_bundle)


def test_parquet_with_pictures_in_it(bright_bundle: Path, tmp_path: Path) -> None:
    """As Hugging Face has it, in two files with several row groups, and as plain bytes in one."""
    names, data = list(pictures()), [value or None for value in pictures().values()]
    structs = pa.array([{"bytes": value, "path": name} for name, value in zip(names, data)])
    shards = tmp_path / "shards"
    shards.mkdir()
    for i, part in enumerate((slice(0, 90), slice(90, None))):
        table = pa.table({"label": [0] * len(names[part]), "image": structs[part]})
        pq.write_table(table, shards / f"train-{i:05d}-of-00002.parquet", row_group_size=33)
    batch.score_pictures(shards, tmp_path / "s", bright_bundle, SETTINGS)
    rows = rows_of(tmp_path / "s")
    assert rows[0]["file"] == "train-00000-of-00002.parquet/0000000-000.png"
    assert rows[149]["file"] == "train-00001-of-00002.parquet/0000059-149.png"
    assert [row["error"] is None for row in rows] == [i not in BAD for i in range(FILES)]
    assert rows[3]["error"] == "no bytes in its row"
    answers = list(expected(bright_bundle).values())
    assert [row["label"] for row in rows] == [answer["label"] for answer in answers]
    with open_pictures(shards) as source:  # from any number on
        everything = [(name, fetch) for name, fetch in source.stream(0)]
        for start in (1, 32, 33, 66, 67, 89, 90, 91, 123, 149, 150):
            assert [name for name, _ in source.stream(start)] == [name for name, _ in everything[start:]]
            assert all(
                fetch() == data[start + i] for i, (_, fetch) in enumerate(source.stream(start)) if data[start + i]
            )
    pq.write_table(pa.table({"photo": pa.array(data, pa.binary())}), tmp_path / "plain.parquet")
    batch.score_pictures(tmp_path / "plain.parquet", tmp_path / "t", bright_bundle, SETTINGS)
    assert [row["label"] for row in rows_of(tmp_path / "t")] == [row["label"] for row in rows]


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_table_of_paths(suffix: str, album: Path, bright_bundle: Path, tmp_path: Path) -> None:
    names = [*list(pictures())[20:30], str(album / "1/001.png"), "nowhere.png", ""]
    table = album.parent / f"table{suffix}"
    cells = [name if not name or name.startswith("/") else f"album/{name}" for name in names]
    if suffix == ".csv":
        table.write_text("id,where is it\n" + "".join(f"{i},{cell}\n" for i, cell in enumerate(cells)))
    else:
        pq.write_table(pa.table({"id": range(len(cells)), "where is it": cells}), table)
    with pytest.raises(UserError, match=r"no path in its column 'id'.*--column: it has id, where is it"):
        batch.score_pictures(table, tmp_path / "s", bright_bundle, SETTINGS._replace(column="id"))
    for column in (None, "where is it"):
        settings = SETTINGS._replace(column=column)
        result = batch.score_pictures(table, tmp_path / "s", bright_bundle, settings)
        assert result[:3] == (13, 13, 2)
    rows = rows_of(tmp_path / "s")
    assert [row["file"] for row in rows] == cells
    answers = expected(bright_bundle)
    assert [row["label"] for row in rows[:10]] == [answers[name]["label"] for name in names[:10]]
    assert rows[10]["label"] == "dark"
    assert rows[11]["error"].startswith("cannot be read")
    assert rows[12]["error"] == "no path in its row"


def test_workers_change_nothing(album: Path, bright_bundle: Path, tmp_path: Path) -> None:
    files = []
    for workers in (1, 3):
        out = tmp_path / f"{workers}"
        batch.score_pictures(album, out, bright_bundle, SETTINGS._replace(workers=workers))
        files.append(content(out))
    assert files[0] == files[1]


class Stop(BaseException):
    """Ends a run wherever it is."""


@pytest.mark.parametrize("parts", [0, 1, 2, 4])
def test_stopped_and_run_again(
    parts: int, album: Path, bright_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After any number of parts, and also between the last of them and the end."""
    whole, out = tmp_path / "whole", tmp_path / "s"
    batch.score_pictures(album, whole, bright_bundle, SETTINGS)
    write, fail = batch.AnswerParts.write, Mock(side_effect=Stop)

    def write_or_stop(self: batch.AnswerParts, rows: list) -> None:
        fail() if self.parts == parts else write(self, rows)

    with monkeypatch.context() as patch, pytest.raises(Stop):  # noqa: PT012
        patch.setattr(batch.AnswerParts, "write", write_or_stop)
        patch.setattr(batch.AnswerParts, "finish", fail)
        batch.score_pictures(album, out, bright_bundle, SETTINGS)
    assert not (out / "_SUCCESS").exists()
    assert len(list(out.glob("*.parquet"))) == parts
    if parts == 2:  # a machine that lost its power
        (out / "part-00001.parquet").write_bytes(b"PAR1 torn")
    result = batch.score_pictures(album, out, bright_bundle, SETTINGS)
    assert result.scored == max(0, FILES - 40 * (1 if parts == 2 else parts))
    assert result[:3] == (FILES, FILES, len(BAD))
    assert content(out) == content(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "whole"]


def test_what_was_made_otherwise_is_not_gone_on_with(
    album: Path, bright_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "s"
    with monkeypatch.context() as patch, pytest.raises(Stop):  # noqa: PT012
        patch.setattr(batch.AnswerParts, "finish", Mock(side_effect=Stop))
        batch.score_pictures(album, out, bright_bundle, SETTINGS)
    other = archive(tmp_path / "other.zip")
    for finished in (False, True):
        with pytest.raises(UserError, match=r"made with other source.*--restart"):
            batch.score_pictures(other, out, bright_bundle, SETTINGS)
        with pytest.raises(UserError, match=r"made with other chunk"):
            batch.score_pictures(album, out, bright_bundle, SETTINGS._replace(chunk=41))
        if not finished:
            batch.score_pictures(album, out, bright_bundle, SETTINGS)
    assert batch.score_pictures(other, out, bright_bundle, SETTINGS._replace(restart=True)).scored == FILES
    work = write_files(tmp_path / "work", part="somebody's") / "part.csv"
    for folder, said in ((work.parent, "has files that"), (work, "is a file")):
        with pytest.raises(UserError, match=said):
            batch.score_pictures(album, folder, bright_bundle, SETTINGS._replace(restart=True))
    assert work.read_text() == "somebody's"
    (out / "notes.txt").write_text("mine")
    assert batch.score_pictures(album, out, bright_bundle, SETTINGS._replace(restart=True)).scored == FILES
    assert (out / "notes.txt").read_text() == "mine"


def test_mistakes_are_told_before_any_work(album: Path, bright_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd.bin").write_bytes(b"odd")
    lost = write_files(tmp_path, lost="path,label\ngone/a.png,sad\n") / "lost.csv"
    broken = archive(tmp_path / "broken.zip")
    broken.write_bytes(broken.read_bytes()[:-30])
    cases = [
        (tmp_path / "nowhere", out, SETTINGS, "does not exist"),
        (tmp_path / "empty", out, SETTINGS, "holds no pictures"),
        (tmp_path / "odd.bin", out, SETTINGS, "no known form"),
        (broken, out, SETTINGS, "damaged"),
        (album, tmp_path, SETTINGS, "has files that"),
        (album, out, SETTINGS._replace(batch_size=0), "--batch-size"),
        (album, out, SETTINGS._replace(workers=0), "--workers"),
        (album, album / "notes.txt" / "s", SETTINGS, "there is no folder .*notes.txt"),
        (album, tmp_path / "new" / "s", SETTINGS, "there is no folder .*new"),
        (album, album / "notes.txt", SETTINGS, "is a file"),
        (lost, out, SETTINGS, "no path in its column 'path' .*, such as 'gone/a.png'"),
    ]
    for source, target, settings, text in cases:
        with pytest.raises(UserError, match=text) as error:
            batch.score_pictures(source, target, bright_bundle, settings)
        assert "prepare" not in str(error.value)
    with pytest.raises(UserError, match="dvc repro"):
        batch.score_pictures(album, out, tmp_path / "empty", SETTINGS)
    assert not out.exists()


def test_a_row_a_face(bright_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes, the largest first, and an error where there is no face; what finds them has tests of its own."""
    from pipeline.inference import images, predictor
    from pipeline.inference.faces import Face, NoFace

    def cut(data: bytes, channels: int, settings: object):
        value = images.load(data, 8, channels)
        if value.mean() < 20:
            raise NoFace("no face was found")
        return iter([(Face((1, 2, 6, 7), 0.9), value), (Face((0, 0, 3, 3), 0.8), 255 - value)])

    monkeypatch.setattr(predictor, "cut_faces", cut)
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, value in (("a", 10), ("b", 200), ("c", 30)):
        (folder / f"{name}.png").write_bytes(grey_png(value))
    result = batch.score_pictures(folder, tmp_path / "s", bright_bundle, SETTINGS._replace(faces=True))
    assert result[:3] == (3, 5, 1)
    rows = rows_of(tmp_path / "s")
    assert [(row["file"], row["left"], row["width"], row["label"]) for row in rows] == [
        ("a.png", None, None, None), ("b.png", 1, 6, "bright"), ("b.png", 0, 3, "dark"), ("c.png", 1, 6, "dark"),
        ("c.png", 0, 3, "bright"),
    ]  # fmt: skip
    assert [row["error"] for row in rows] == ["no face was found", None, None, None, None]


def test_a_registered_model_gives_the_same(
    album: Path, bright_bundle: Path, pyfunc_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.tracking import store

    monkeypatch.setattr(store, "connect", lambda: None)  # no project is around
    batch.score_pictures(album, tmp_path / "a", bright_bundle, SETTINGS)
    batch.score_pictures(album, tmp_path / "b", pyfunc_dir.as_uri(), SETTINGS._replace(trust=True))
    for part in (tmp_path / "a").glob("*.parquet"):
        assert part.read_bytes() == (tmp_path / "b" / part.name).read_bytes()
    with pytest.raises(UserError, match="-other can't be fetched"):
        batch.score_pictures(album, tmp_path / "c", pyfunc_dir.as_uri() + "-other", SETTINGS)


def test_the_command_says_how_it_went(album: Path, bright_bundle: Path, tmp_path: Path, capsys) -> None:
    def run(*words: object) -> int:
        arguments = build_parser().parse_args(["batch", *map(str, words), "--model", str(bright_bundle)])
        return arguments.run(arguments)

    out = tmp_path / "s"
    assert run(album, "--out", out) == 0
    assert "150 pictures, 150 rows, 3 of them errors, 1 other files passed over (" in capsys.readouterr().out
    assert run(album, "--out", out, "--resume") == 0
    assert "finished before" in capsys.readouterr().out
    assert run(album, "--out", out, "--restart", "--workers", 1) == 0
    assert "img/s" in capsys.readouterr().out
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "x.png").write_bytes(b"x")
    assert run(bad, "--out", tmp_path / "out") == 1
    assert "  1 x not a picture" in capsys.readouterr().out


@pytest.mark.slow
def test_killed_again_and_again(bright_bundle: Path, tmp_path: Path) -> None:
    """Kill -9 at random moments until it is through: the same bytes as a run in one piece."""
    rng = np.random.default_rng(0)
    many = {f"{i:05d}.png": BAD.get(i % 1000) or grey_png(i % 256) for i in range(30_000)}
    source = write_zip(tmp_path / "many.zip", many)
    words = [sys.executable, "-m", "pipeline.cli", "batch", str(source), "--model", str(bright_bundle)]
    words += ["--chunk", "500"]
    subprocess.run([*words, "--out", str(tmp_path / "whole")], check=True)
    out, kills = tmp_path / "s", 0
    for _ in range(200):
        process = subprocess.Popen([*words, "--out", str(out)], stdout=subprocess.DEVNULL)
        try:
            process.wait((1.0 + 2.5 * rng.random()) * max(1, kills / 10))  # a busy machine takes longer to begin
            break
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            if (out / "_SUCCESS").exists():
                assert len(rows_of(out)) == 30_000
    assert kills >= 3
    assert content(out) == content(tmp_path / "whole")


def test_two_at_once_are_one_too_many(album: Path, bright_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    with batch.AnswerParts(out, {}, ["a"], False, False), pytest.raises(UserError, match="another process"):
        batch.score_pictures(album, out, bright_bundle, SETTINGS)
    assert json.loads((out / "_settings.json").read_text()) == {}
