"""Prepared arrays: what ``prepare`` wrote, memory-mapped and checked.

Reads ``data/prepared``: one uint8 array a split, ``manifest.csv`` and ``classes.json``.
"""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.errors import UserError

PREPARED = Path("data/prepared")


@dataclass(frozen=True)
class Split:
    """One split: ``images`` uint8 (N, H, W, C), ``targets`` int64 (N,) and the N source ``files``.

    Where the data has them, ``soft`` targets float32 (N, K), rows summing to 1, and ``weights`` float32 (N,).
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
    audit: dict[str, int] = field(default_factory=dict)  # its headline

    @cached_property
    def _manifest(self) -> pd.DataFrame:
        # Labels and file names are text even where they look like numbers or like a missing value.
        try:
            manifest = pd.read_csv(
                self.path / "manifest.csv",
                dtype={"file": str, "label": str, "split": str, "flags": str},
                usecols=["file", "label", "split", "row", "flags"],
                keep_default_na=False,
            )
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.path / 'manifest.csv'} cannot be read ({error}). Run `dvc repro prepare` again."
            ) from None
        return manifest[manifest["row"] >= 0].sort_values("row")

    def split(self, name: str) -> Split:
        """Open a split without reading its pixels.

        Args:
            name: ``train``, ``val`` or ``test``.

        Raises:
            UserError: If the arrays and the manifest do not belong together.
        """
        rows = self._manifest[self._manifest["split"] == name]
        try:
            images = np.load(self.path / f"{name}.npy", mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise UserError(
                f"{self.path / name}.npy cannot be read ({error}). Run `dvc repro prepare` again."
            ) from None
        shape = (len(rows), self.img_size, self.img_size, self.channels)
        if images.shape != shape or images.dtype != np.uint8:
            raise UserError(
                f"{self.path / name}.npy holds {images.dtype} {images.shape}, but manifest.csv and classes.json "
                f"say uint8 {shape}. Run `dvc repro prepare` again."
            )
        if rows["row"].tolist() != list(range(len(rows))):
            raise UserError(
                f"{self.path / 'manifest.csv'}: the rows of {name} are not 0 to {len(rows) - 1}, each once. "
                "Run `dvc repro prepare` again."
            )
        index = {label: i for i, label in enumerate(self.class_names)}
        unknown = set(rows["label"]) - set(index)
        if unknown:
            raise UserError(
                f"{self.path / 'manifest.csv'} has labels that classes.json lacks: {sorted(unknown)}. "
                "Run `dvc repro prepare` again."
            )
        targets = np.array(rows["label"].map(index), dtype=np.int64)
        return Split(images, targets, rows["file"].tolist())

    def leaks(self, name: str) -> np.ndarray:
        """Which images of the val or test split have a twin among the training images, bool (N,)."""
        rows = self._manifest[self._manifest["split"] == name]
        return rows["flags"].str.split(";").map(lambda flags: "leak" in flags).to_numpy(bool)


def load_prepared(path: Path | str = PREPARED) -> Prepared:
    """Open a prepared data set.

    Raises:
        UserError: If ``prepare`` has not written it.
    """
    path = Path(path)
    try:
        meta = json.loads((path / "classes.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path / 'classes.json'} not found. Run `dvc repro prepare` first.") from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path / 'classes.json'} cannot be read ({error}). Run `dvc repro prepare` again."
        ) from None
    keys = ("class_names", "img_size", "channels", "digest", "split_digests")
    if missing := set(keys) - set(meta):
        raise UserError(f"{path / 'classes.json'} lacks {sorted(missing)}. Run `dvc repro prepare` again.")
    return Prepared(path, *(meta[key] for key in keys), audit=meta.get("audit", {}))
