"""One data set written in every form of source that ``prepare`` takes, for the benchmark and the tests."""

import csv
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.prepare.sources.source import split_name

FER_NUMBERS = {"angry": 0, "disgust": 1, "fear": 2, "happy": 3, "sad": 4, "surprise": 5, "neutral": 6}
FERPLUS_COLUMNS = [
    "neutral",
    "happiness",
    "surprise",
    "sadness",
    "anger",
    "disgust",
    "fear",
    "contempt",
    "unknown",
    "NF",
]
FERPLUS_OF = {
    "neutral": "neutral", "happy": "happiness", "surprise": "surprise", "sad": "sadness", "angry": "anger",
    "disgust": "disgust", "fear": "fear",
}  # fmt: skip
USAGE = {"train": "Training", "val": "PublicTest", "test": "PrivateTest"}


class Face(NamedTuple):
    """A picture of the archive: its path there, split and class, and its file's bytes."""

    path: str
    split: str
    label: str
    data: bytes

    def pixels(self) -> np.ndarray:
        """Decoded by Pillow alone, uint8 (H, W)."""
        return np.asarray(Image.open(io.BytesIO(self.data)).convert("L"))


def read_archive(path: Path, each: int | None = None) -> list[Face]:
    """Faces of a zip of split and class folders, in order of path; of each class in each split the first ones."""
    faces, taken = [], {}
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            *_, split, label, file = ["", "", *name.split("/")]
            if file and (split := split_name(split)):
                taken[split, label] = taken.get((split, label), 0) + 1
                if each is None or taken[split, label] <= each:
                    faces.append(Face(name, split, label, archive.read(name)))
    return faces


# The forms: each writes faces into an empty folder, and returns the source and further params.

Form = Callable[[list[Face], Path], tuple[Path, dict]]


def write_zip(faces: Iterable[Face], path: Path) -> Path:
    """The archive itself, or a part of it."""
    with zipfile.ZipFile(path, "w") as archive:
        for face in faces:
            archive.writestr(face.path, face.data)
    return path


def write_files(faces: Iterable[Face], folder: Path) -> Path:
    """Pictures at their paths."""
    for face in faces:
        file = folder / face.path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(face.data)
    return folder


def as_zip(faces: list[Face], folder: Path) -> tuple[Path, dict]:
    return write_zip(faces, folder / "faces.zip"), {}


def as_folder(faces: list[Face], folder: Path) -> tuple[Path, dict]:
    return write_files(faces, folder / "faces"), {}


def as_tar(faces: list[Face], folder: Path) -> tuple[Path, dict]:
    with tarfile.open(folder / "faces.tar.gz", "w:gz") as archive:
        for face in faces:
            info = tarfile.TarInfo(face.path)
            info.size = len(face.data)
            archive.addfile(info, io.BytesIO(face.data))
    return folder / "faces.tar.gz", {}


def as_roots(faces: list[Face], folder: Path) -> tuple[Path, dict]:
    """Every other face of each class in a folder, the rest in an archive beside it."""
    root = folder / "several"
    root.mkdir()
    write_files(faces[::2], root / "one set")
    write_zip(faces[1::2], root / "other.zip")
    return root, {}


def _pixels(face: Face) -> str:
    return " ".join(map(str, face.pixels().ravel()))


def as_fer(faces: list[Face], folder: Path) -> tuple[Path, dict]:
    """fer2013.csv: emotion,pixels,Usage."""
    with (folder / "fer2013.csv").open("w", newline="") as file:
        file.write("emotion,pixels,Usage\n")
        for face in faces:
            file.write(f"{FER_NUMBERS[face.label]},{_pixels(face)},{USAGE[face.split]}\n")
    return folder / "fer2013.csv", {}


def as_icml(faces: list[Face], folder: Path) -> tuple[Path, dict]:
    """icml_face_data.csv: emotion, Usage, pixels, blanks included; beside it the challenge's test.csv, unlabelled."""
    (folder / "test.csv").write_text("pixels\n0 0 0 0\n")
    with (folder / "icml_face_data.csv").open("w", newline="") as file:
        file.write("emotion, Usage, pixels\r\n")
        for face in faces:
            file.write(f"{FER_NUMBERS[face.label]},{USAGE[face.split]},{_pixels(face)}\r\n")
    return folder, {}


def as_train(faces: list[Face], folder: Path) -> tuple[Path, dict]:
    """The challenge's train.csv: emotion,pixels, with quotes; of train only, so that val and test are cut."""
    with (folder / "train.csv").open("w", newline="") as file:
        file.write("emotion,pixels\n")
        for face in faces:
            if face.split == "train":
                file.write(f'{FER_NUMBERS[face.label]},"{_pixels(face)}"\n')
    return folder / "train.csv", {}


def as_ferplus(faces: list[Face], folder: Path) -> tuple[Path, dict]:
    """FER's CSV with wrong labels, and votes that say the right ones; between them rows that no class has."""
    rows = [(face, face.label) for face in faces]
    for place, verdict in ((5, "unknown"), (11, "NF"), (17, "torn")):
        rows.insert(place, (faces[place], verdict))
    with (folder / "fer2013.csv").open("w") as pixels, (folder / "fer2013new.csv").open("w") as votes:
        pixels.write("emotion,pixels,Usage\n")
        votes.write(f"Usage,Image name,{','.join(FERPLUS_COLUMNS)}\n")
        for i, (face, verdict) in enumerate(rows):
            counts = dict.fromkeys(FERPLUS_COLUMNS, 0)
            if verdict == "torn":
                counts |= {"sadness": 4, "fear": 3, "anger": 2}
            else:
                counts[FERPLUS_OF.get(verdict, verdict)] = 8
                counts["contempt" if verdict == "neutral" else "neutral"] += 1
                counts["unknown"] += 1
            usage = USAGE[face.split]
            pixels.write(f"{(FER_NUMBERS[face.label] + 1) % 7},{_pixels(face)},{usage}\n")
            name = "" if verdict == "NF" else f"fer{i:07d}.png"
            votes.write(f"{usage},{name},{','.join(map(str, counts.values()))}\n")
    return folder, {}


def as_table(faces: list[Face], folder: Path) -> tuple[Path, dict]:
    """A CSV beside the pictures: labels in any case, splits spelt as people do."""
    write_files(faces, folder / "my faces (2)")
    with (folder / "my faces (2)" / "labels.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["Image Path", "Emotion", "Usage", "notes"])
        for i, face in enumerate(faces):
            label = (face.label, face.label.upper(), f" {face.label.title()} ")[i % 3]
            writer.writerow([face.path.replace("/", "\\"), label, USAGE[face.split], 'said; "well"\nand more'])
    return folder / "my faces (2)", {}


def as_parquet_table(faces: list[Face], folder: Path) -> tuple[Path, dict]:
    """A Parquet table beside the pictures, with columns of unusual names and numbers for labels."""
    write_files(faces, folder / "images")
    names = sorted({face.label for face in faces})
    table = {
        "where": [f"/home/somebody/images/{face.path}" for face in faces],
        "y": [float(names.index(face.label)) for face in faces],
        "fold": [face.split for face in faces],
    }
    pq.write_table(pa.table(table), folder / "table.parquet", row_group_size=500)
    columns = {"path": "where", "label": "y", "split": "fold"}
    return folder, {"columns": columns, "class_map": {str(i): name for i, name in enumerate(names)}}


def _write_embedded(faces: list[Face], path: Path, numbers: bool) -> None:
    """Parquet as Hugging Face's datasets writes it: pictures as structs, names of classes in the metadata."""
    names = sorted({face.label for face in faces})
    pictures = [{"bytes": face.data, "path": Path(face.path).name} for face in faces]
    labels = [names.index(face.label) if numbers else face.label for face in faces]
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    table = pa.table({"image": pictures, "label": labels})
    if numbers:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=100)


def as_embedded(faces: list[Face], folder: Path) -> tuple[Path, dict]:
    """Shards of each split, and labels as numbers with names in the metadata."""
    (folder / "data").mkdir()
    for split, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        own = [face for face in faces if face.split == split]
        shards = [own[: len(own) // 3], own[len(own) // 3 :]]
        for i, shard in enumerate(shards):
            _write_embedded(shard, folder / "data" / f"{name}-{i:05d}-of-{len(shards):05d}.parquet", numbers=True)
    return folder, {}


def as_embedded_file(faces: list[Face], folder: Path) -> tuple[Path, dict]:
    """One file with a column of splits, plain bytes, and labels as text."""
    table = {
        "img": [face.data for face in faces],
        "emotion": [face.label.title() for face in faces],
        "split": [face.split for face in faces],
    }
    pq.write_table(pa.table(table), folder / "faces.parquet")
    return folder / "faces.parquet", {}


FORMS: dict[str, Form] = {
    "zip of class folders": as_zip,
    "folder": as_folder,
    "tar.gz": as_tar,
    "folder of a folder and a zip": as_roots,
    "fer2013.csv": as_fer,
    "icml_face_data.csv": as_icml,
    "train.csv": as_train,
    "FER+ and fer2013.csv": as_ferplus,
    "CSV and pictures": as_table,
    "Parquet and pictures": as_parquet_table,
    "Parquet with pictures in it": as_embedded,
    "one Parquet file": as_embedded_file,
}
