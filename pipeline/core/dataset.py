"""Prepared arrays: what ``prepare`` wrote, memory-mapped and checked.

Reads ``data/prepared``: one uint8 array a split, ``manifest.csv``, ``parity.zip`` and ``classes.json``, by whose sums
the others are checked, always: a split in one pass when it is opened first, at 2 GB/s on one core (0.4 without
instructions for SHA-256), which leaves its pixels in the system's cache for what follows.
"""

import hashlib
import io
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.core.errors import UserError
from pipeline.core.files import unescape_cell
from pipeline.core.paths import PREPARED
from pipeline.core.stage_files import BLOCK, DatasetFile, begin_digest

_COLUMNS = ("file", "label", "split", "row", "flags", "weight", "root", "person")


@dataclass(frozen=True)
class Split:
    """One split of N images.

    Attributes:
        images: uint8 (N, H, W, C).
        targets: Class indices, int64 (N,).
        files: Their names in the source.
        soft: The share of each class in people's votes, float32 (N, K), rows summing to 1, where there are votes.
        weights: How much each image counts in training, float32 (N,), where the source says.
    """

    images: np.ndarray
    targets: np.ndarray
    files: list[str]
    soft: np.ndarray | None = None
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Prepared:
    """The prepared data set; ``split`` opens one of its splits."""

    path: Path
    class_names: list[str]
    img_size: int
    channels: int
    digest: str
    split_digests: dict[str, str]
    files: dict[str, str]  # sums of those that are no arrays
    audit: dict[str, int] = field(default_factory=dict)  # its headline
    counts: dict[str, dict[str, int]] = field(default_factory=dict)  # images by split and class
    faces: dict[str, Any] | None = None  # how they were cut out of photos; None if the source has faces
    _splits: dict[str, Split] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def _manifest(self) -> pd.DataFrame:
        # Labels and file names are text even where they look like numbers or like a missing value.
        try:
            manifest = pd.read_csv(
                io.BytesIO(self.read("manifest.csv")),
                dtype=dict.fromkeys(("file", "label", "split", "flags", "root", "person"), str),
                usecols=lambda name: name in _COLUMNS,
                keep_default_na=False,
            )
        except ValueError as error:
            raise self._refusal("manifest.csv", f"cannot be read ({error})") from None
        if missing := set(_COLUMNS[:5]) - set(manifest):
            raise self._refusal("manifest.csv", f"has no columns {sorted(missing)}")
        names = [name for name in ("file", "label", "root", "person") if name in manifest]
        manifest[names] = manifest[names].map(unescape_cell)
        return manifest[manifest["row"] >= 0].sort_values("row")

    def split(self, name: str) -> Split:
        """Open a split, and check by its digest that it is what was prepared; its pixels stay on disk.

        Args:
            name: ``train``, ``val`` or ``test``.

        Raises:
            UserError: If the arrays and the manifest do not belong together, or are not what was prepared.
        """
        if name not in self._splits:
            self._splits[name] = self._open(name)
        return self._splits[name]

    def _open(self, name: str) -> Split:
        """Map the arrays of a split and check them."""
        rows = self._manifest[self._manifest["split"] == name]
        images = self._load(f"{name}.npy", (len(rows), self.img_size, self.img_size, self.channels), np.uint8)
        if rows["row"].tolist() != list(range(len(rows))):
            raise self._refusal("manifest.csv", f"does not have the rows 0 to {len(rows) - 1} of {name}, each once")
        index = {label: i for i, label in enumerate(self.class_names)}
        if unknown := set(rows["label"]) - set(index):
            raise self._refusal("manifest.csv", f"has labels that classes.json lacks: {sorted(unknown)}")
        targets = np.array(rows["label"].map(index), dtype=np.int64)
        soft = None
        if (self.path / f"{name}_soft.npy").exists():
            soft = self._load(f"{name}_soft.npy", (len(rows), len(self.class_names)), np.float32)
        weights = rows["weight"].to_numpy(np.float32) if "weight" in rows else None
        digest = begin_digest(name, self.class_names, images.shape[1:], targets)
        for array in [each for each in (images, soft, weights) if each is not None]:
            for start in range(0, len(array), BLOCK):
                digest.update(array[start : start + BLOCK])
        if digest.hexdigest() != self.split_digests.get(name):
            raise self._refusal(f"{name}.npy", "and the labels in manifest.csv are not what was prepared")
        return Split(images, targets, rows["file"].tolist(), soft, weights)

    def read(self, file: str) -> bytes:
        """Read a file that is no array.

        Raises:
            UserError: If it is not what was prepared.
        """
        try:
            content = (self.path / file).read_bytes()
        except OSError as error:
            raise self._refusal(file, f"cannot be read ({error})") from None
        if not self.files:
            raise self._refusal(DatasetFile.FILE, "is of an older version, which kept no sums of files")
        if hashlib.sha256(content).hexdigest() != self.files.get(file):
            raise self._refusal(file, "is not what was prepared: its sum is another than in classes.json")
        return content

    def _load(self, file: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        """Map an array that must be of that shape and type."""
        try:
            array: np.ndarray = np.load(self.path / file, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise self._refusal(file, f"cannot be read ({error})") from None
        if array.shape != shape or array.dtype != dtype:
            said = f"but manifest.csv and classes.json say {np.dtype(dtype)} {shape}"
            raise self._refusal(file, f"holds {array.dtype} {array.shape}, {said}")
        return array

    def _refusal(self, file: str, why: str) -> UserError:
        return UserError(f"{self.path / file} {why}. Run `dvc repro -f prepare`.")

    def leaks(self, name: str) -> np.ndarray:
        """Which images of the val or test split have a twin among the training images, bool (N,)."""
        rows = self._manifest[self._manifest["split"] == name]
        return np.array(["leak" in flags.split(";") for flags in rows["flags"]], bool)

    def identities(self, name: str) -> pd.DataFrame:
        """What tells the images of a split from others, in their order.

        Returns:
            ``sha256`` (of the pixels at full size, hexadecimal: it stays when files move), ``twins`` (number of the set
            of twins; NaN: none) and ``conflict`` (whether a twin has another label).
        """
        columns = ["split", "row", "sha256", "twins", "flags"]
        table = pd.read_csv(io.BytesIO(self.read("manifest.csv")), usecols=columns, dtype={"flags": str})
        table = table[(table["split"] == name) & (table["row"] >= 0)].sort_values("row", ignore_index=True)
        conflict = table["flags"].fillna("").str.split(";").map(lambda flags: "conflict" in flags).astype(bool)
        return table[["sha256", "twins"]].assign(conflict=conflict)

    def origins(self, name: str) -> dict[str, list[str]]:
        """Where the images of a split come from: ``root`` and ``person`` of each, as far as the source has them."""
        rows = self._manifest[self._manifest["split"] == name]
        return {column: rows[column].tolist() for column in ("root", "person") if column in rows}


def load_prepared(path: Path | str = PREPARED) -> Prepared:
    """Open a prepared data set.

    Raises:
        UserError: If ``prepare`` has not written it.
    """
    meta = DatasetFile.load(Path(path))
    return Prepared(Path(path), **{name: getattr(meta, name) for name in DatasetFile.model_fields if name != "sha256"})
