"""Each row of docs/data.md, on the data set in its published form: classes, splits and persons, picture by picture."""

import csv
import io
import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import ROOT, SAMPLE, load_script, write_tar, write_zip
from PIL import Image

from pipeline.core.params_file import apply_overrides, parse_params, read_default
from pipeline.prepare.catalogue import SPLITS, Listing
from pipeline.prepare.sources.open import Reading, open_source

forms = load_script("benchmarks/forms.py")
PAGE = (ROOT / "docs" / "data.md").read_text("utf-8").splitlines()
ROWS = [row.split(" | ") for row in PAGE if row.startswith("| ") and " `hyojo use" in row]
COMMANDS = {Path(words[3].removeprefix("prepare.source=")).name: words[3:] for words in
            (shlex.split(re.search("`(hyojo use .*)`", command)[1]) for _, command in ROWS)}  # fmt: skip
USAGE = forms.USAGE


class Face(NamedTuple):
    """A picture, and what is to be found out of it."""

    data: bytes
    label: str
    split: str
    person: str | None


Tree = dict[str, bytes]
Published = tuple[Tree, list[Face]]


def table(rows: Iterable[Iterable[object]], delimiter: str = ",") -> bytes:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(rows)
    return text.getvalue().encode()


def pixels(data: bytes) -> bytes:
    return np.asarray(Image.open(io.BytesIO(data)).convert("L")).tobytes()


@pytest.fixture(scope="module")
def faces() -> list[Face]:
    """Three faces of every class in every split, of persons who are in one split each."""
    found = forms.read_archive(SAMPLE, each=3)
    return [Face(face.data, face.label, face.split, f"{face.split}{i % 2}") for i, face in enumerate(found)]


def unsaid(faces: list[Face], *what: str, **said: str) -> list[Face]:
    """Faces of which a data set does not say the split, so that it is to be cut, or the person."""
    blank = {"split": "train", "person": None}
    return [face._replace(**{name: blank[name] for name in what}, **said) for face in faces]


def fer_csv(faces: list[Face], numbers: dict[str, int] = forms.FER_NUMBERS) -> bytes:
    rows = ([numbers[f.label], " ".join(map(str, pixels(f.data))), USAGE[f.split]] for f in faces)
    return table([["emotion", "pixels", "Usage"], *rows])


def as_fer2013(faces: list[Face]) -> Published:
    names = {"train": "train", "val": "validation", "test": "test"}
    return {f"{names[f.split]}/{f.label}/{i}.jpg": f.data for i, f in enumerate(faces)}, unsaid(faces, "person")


def as_fer2013_csv(faces: list[Face]) -> Published:
    return {"": fer_csv(faces)}, unsaid(faces, "person")


def as_ferplus(faces: list[Face]) -> Published:
    columns = forms.FERPLUS_COLUMNS
    votes = [[USAGE[f.split], "x.png", *(10 * (name == forms.FERPLUS_OF[f.label]) for name in columns)] for f in faces]
    tree = {"fer2013.csv": fer_csv(faces), "fer2013new.csv": table([["Usage", "Image name", *columns], *votes])}
    return tree, unsaid(faces, "person")


def as_ckextended(faces: list[Face]) -> Published:
    """Contempt stands for what is drawn as neutral."""
    faces = [face._replace(label=face.label.replace("neutral", "contempt")) for face in faces]
    return {"": fer_csv(faces, forms.FER_NUMBERS | {"contempt": 7})}, unsaid(faces, "person")


def as_ck48(faces: list[Face]) -> Published:
    people = sorted({f.person for f in faces})
    tree = {f"{f.label}/S{people.index(f.person):03}_{i:03}_0000001.png": f.data for i, f in enumerate(faces)}
    return tree, [face._replace(person=f"S{people.index(face.person):03}") for face in unsaid(faces, "split")]


RAF = {"surprise": 1, "fear": 2, "disgust": 3, "happy": 4, "sad": 5, "angry": 6, "neutral": 7}


def as_raf(faces: list[Face]) -> Published:
    """Train and test, of which the names of the files tell; notes on each picture beside it."""
    faces = [face for face in unsaid(faces, "person") if face.split != "val"]
    names = [f"{face.split}_{i:05}" for i, face in enumerate(faces)]
    tree = {f"Image/aligned/{name}_aligned.jpg": face.data for name, face in zip(names, faces)}
    tree |= {f"Annotation/manual/{name}_manu_attri.txt": b"1.0\t2.0\n0\n1\n2\n" for name in names}
    lines = "".join(f"{name}.jpg {RAF[face.label]}\n" for name, face in zip(names, faces))
    return tree | {"EmoLabel/list_patition_label.txt": lines.encode()}, faces


def as_raf_kaggle(faces: list[Face]) -> Published:
    faces = [face for face in unsaid(faces, "person") if face.split != "val"]
    tree, rows = {}, {"train": [["image", "label"]], "test": [["image", "label"]]}
    for i, face in enumerate(faces):
        name = f"{face.split}_{i:05}_aligned.jpg"
        tree[f"DATASET/{face.split}/{RAF[face.label]}/{name}"] = face.data
        rows[face.split].append([name, RAF[face.label]])
    return tree | {f"{split}_labels.csv": table(own) for split, own in rows.items()}, faces


def as_affectnet(faces: list[Face]) -> Published:
    """Some lie in the folder of another class; the table counts."""
    faces = unsaid(faces, "split", "person")
    paths = [f"{faces[i - (i % 7 == 0)].label}/image{i:07}.jpg" for i in range(len(faces))]
    rows = [[i, path, face.label, 0.87] for i, (path, face) in enumerate(zip(paths, faces))]
    tree = {path: face.data for path, face in zip(paths, faces)}
    return tree | {"labels.csv": table([["", "pth", "label", "relFCs"], *rows])}, faces


def as_affectnet_full(faces: list[Face]) -> Published:
    """Numbers to 10, of which the last three are no expressions; contempt is some of what is drawn as sad."""
    names = ["neutral", "happy", "sad", "surprise", "fear", "disgust", "angry", "contempt", "none", "unsure", "no face"]
    numbers = {name: number for number, name in enumerate(names)}
    faces = [face for face in unsaid(faces, "person") if face.split != "test"]
    contempt = {face: face._replace(label="contempt") for face in faces if face.label == "sad" and face.data[-20] % 2}
    faces = [contempt.get(face, face) for face in faces]
    tree, rows = {}, {"train": [], "val": []}
    for i, face in enumerate([*faces, *(faces[0]._replace(label=name) for name in names[8:])]):
        path = f"{i % 3}/{i:032x}.jpg"
        tree[f"Manually_Annotated_Images/{path}"] = face.data
        rows[face.split].append([path, 1, 2, 30, 30, "1.2;3.4", numbers[face.label], 0.1, -2])
    columns = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"
    named = {"train": "training.csv", "val": "validation.csv"}
    return tree | {named[split]: table([columns.split(","), *own]) for split, own in rows.items()}, faces


def as_jaffe(faces: list[Face]) -> Published:
    codes = dict(zip(forms.FER_NUMBERS, ("AN", "DI", "FE", "HA", "SA", "SU", "NE")))
    people = dict(zip(sorted({face.person for face in faces}), ("KA", "KL", "KM", "KR", "MK", "NA")))
    tree, found = {"README_FIRST.txt": b"The Japanese Female Facial Expression (JAFFE) Database\n"}, []
    for i, face in enumerate(faces):
        tiff = io.BytesIO()
        Image.open(io.BytesIO(face.data)).save(tiff, "tiff")
        person = people[face.person]
        tree[f"{person}.{codes[face.label]}{i % 3 + 1}.{i}.tiff"] = tiff.getvalue()
        found.append(face._replace(split="train", person=person))
    return tree, found


def as_kdef(faces: list[Face]) -> Published:
    """One person is in a folder of series A and in one of series B."""
    codes = dict(zip(forms.FER_NUMBERS, ("AN", "DI", "AF", "HA", "SA", "SU", "NE")))
    people = dict(zip(sorted({face.person for face in faces}), ("F01", "F02", "F03", "M01", "M02", "M03")))
    tree, found = {}, []
    for i, face in enumerate(faces):
        person, angle = people[face.person], ("S", "FL", "HR")[i % 3]
        folder = f"{'AB'[i // 2 % 2]}{person}"
        name = f"{folder}/{folder}{codes[face.label]}{angle}.JPG"
        if name not in tree:
            tree[name] = face.data
            found.append(face._replace(split="train", person=person))
    return tree, found


ROBOFLOW = {"train": "train", "val": "valid", "test": "test"}


def as_roboflow(faces: list[Face]) -> Published:
    """One-hot, with blanks after the commas; a picture of two classes is left out."""
    labels = sorted(forms.FER_NUMBERS)
    tree, rows = {}, {split: ["filename, " + ", ".join(labels)] for split in ROBOFLOW}
    for i, face in enumerate([*faces, faces[0]]):
        name = f"{i}_jpg.rf.{i:032x}.jpg"
        tree[f"{ROBOFLOW[face.split]}/{name}"] = face.data
        ones = {face.label} if i < len(faces) else {"angry", "sad"}
        rows[face.split].append(", ".join([name, *(str(int(label in ones)) for label in labels)]))
    tree |= {f"{ROBOFLOW[split]}/_classes.csv": "\n".join(lines).encode() for split, lines in rows.items()}
    return tree | {"README.roboflow.txt": b"Exported from a.jpg\nProvided by b\n"}, unsaid(faces, "person")


def as_roboflow_boxes(faces: list[Face]) -> Published:
    """Every third picture has two boxes of its class, and one has two of different classes."""
    tree, rows = {}, {split: ["filename,width,height,class,xmin,ymin,xmax,ymax"] for split in ROBOFLOW}
    for i, face in enumerate([*faces, faces[0]]):
        name = f"{i}_jpg.rf.{i:032x}.jpg"
        tree[f"{ROBOFLOW[face.split]}/{name}"] = face.data
        boxes = [face.label] * (2 if i % 3 == 0 else 1) if i < len(faces) else ["angry", "sad"]
        rows[face.split] += [f"{name},48,48,{label},{k},1,40,41" for k, label in enumerate(boxes)]
    tree |= {f"{ROBOFLOW[split]}/_annotations.csv": "\n".join(lines).encode() for split, lines in rows.items()}
    return tree, unsaid(faces, "person")


def as_imagefolder(faces: list[Face]) -> Published:
    """CSV for one split and JSON Lines for the others; the names of the files are the same in all."""
    tree = {}
    for split, suffix in {"train": "csv", "validation": "jsonl", "test": "jsonl"}.items():
        own = [face for face in faces if split.startswith(face.split)]
        rows = [{"file_name": f"{i:04}.png", "label": face.label, "subject": face.person} for i, face in enumerate(own)]
        tree |= {f"{split}/{row['file_name']}": face.data for row, face in zip(rows, own)}
        lines = "\n".join(map(json.dumps, rows)).encode()
        tree[f"{split}/metadata.{suffix}"] = (
            lines if suffix == "jsonl" else table([rows[0], *(r.values() for r in rows)])
        )
    return tree, faces


def as_hub(faces: list[Face]) -> Published:
    tree = {}
    for split, own in {s: [f for f in faces if f.split == s] for s in ("train", "test")}.items():
        columns = {"image": [{"bytes": f.data, "path": None} for f in own], "label": [f.label for f in own]}
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns), buffer)
        tree[f"data/{split}-00000-of-00001.parquet"] = buffer.getvalue()
    return tree, [face for face in unsaid(faces, "person") if face.split != "val"]


def as_competition(faces: list[Face]) -> Published:
    """Ids without suffix, which pictures of ``test`` have too; a table of these without labels, and one of guesses."""
    own = [face for face in unsaid(faces, "person") if face.split == "train"]
    others = [face for face in faces if face.split == "test"]
    tree = {f"train/{i}.jpg": face.data for i, face in enumerate(own)}
    tree |= {f"test/{i}.jpg": face.data for i, face in enumerate(others)}
    guesses = [[i, "happy"] for i in range(len(others))]
    tree |= {"train.csv": table([["id", "emotion"], *([i, face.label] for i, face in enumerate(own))])}
    tree |= {"test.csv": table([["id"], *([i] for i in range(len(others)))])}
    return tree | {"sample_submission.csv": table([["id", "emotion"], *guesses])}, own


def as_mine(faces: list[Face]) -> Published:
    rows = [[f"{i}.jpg", face.label, face.split, face.person] for i, face in enumerate(faces)]
    tree = {f"images/{i}.jpg": face.data for i, face in enumerate(faces)}
    papers = b"title,year,file\nFaces,2013,paper.pdf\n"
    heads = ["fname", "facial_expression", "split", "subject"]
    return tree | {"data/labels.csv": table([heads, *rows]), "data/papers.csv": papers}, faces


def as_named(faces: list[Face]) -> Published:
    tree = {f"faces {i % 2}/{i:04}_{face.label}_f.jpg": face.data for i, face in enumerate(faces)}
    return tree, unsaid(faces, "split", "person")


PUBLISHED: dict[str, Callable[[list[Face]], Published]] = {
    "fer2013": as_fer2013, "fer2013.csv": as_fer2013_csv, "ferplus": as_ferplus, "ckextended.csv": as_ckextended,
    "CK+48": as_ck48, "raf-db": as_raf, "raf-db-kaggle": as_raf_kaggle, "affectnet": as_affectnet,
    "affectnet-full": as_affectnet_full, "jaffe": as_jaffe, "kdef": as_kdef, "roboflow": as_roboflow,
    "roboflow-boxes": as_roboflow_boxes, "imagefolder": as_imagefolder, "hub": as_hub, "competition": as_competition,
    "mine": as_mine, "named": as_named,
}  # fmt: skip
UNPACKED = ("fer2013.csv", "ckextended.csv", "ferplus", "hub")


def write(tree: Tree, path: Path, kind: str) -> Path:
    if kind == "zip":
        return write_zip(path.with_suffix(".zip"), {f"around/{name}": data for name, data in tree.items()})
    if kind == "tar":
        return write_tar(path.with_suffix(".tar"), tree.items())
    for name, data in tree.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def read(path: Path, name: str, scratch: Path) -> list[Face]:
    """What the command of a row makes of a source."""
    params = parse_params(apply_overrides(read_default(), COMMANDS[name])).prepare
    with open_source(path, Reading.of(params)) as source:
        with closing(Listing(scratch, source, params.class_map, params.person)) as listing:
            labels, splits = (listing.numbers(column, np.int16) for column in ("class", "split"))
            fetched = [pixels(fetch()) for fetch in source.fetch(listing.places())]
            people = [person and person.removeprefix("around/") for person in listing.people()]
    (scratch / "listing.db").unlink()
    return [
        Face(data, listing.class_names[label], SPLITS[split], person)
        for data, label, split, person in zip(fetched, labels, splits, people, strict=True)
    ]


def test_every_row_has_a_data_set() -> None:
    assert list(COMMANDS) == list(PUBLISHED)


@pytest.mark.parametrize(
    "name, kind",
    [(n, k) for n, k in product(PUBLISHED, ("folder", "zip", "tar")) if k == "folder" or n not in UNPACKED],
)
def test_data_set_as_published(tmp_path: Path, faces: list[Face], name: str, kind: str) -> None:
    tree, expected = PUBLISHED[name](faces)
    path = tmp_path / name
    (tmp_path / "scratch").mkdir()
    if "" in tree:
        path.write_bytes(tree[""])
    else:
        path = write(tree, path, kind)
    found = read(path, name, tmp_path / "scratch")
    assert Counter(found) == Counter(face._replace(data=pixels(face.data)) for face in expected)
