"""The JSON files that stages hand on: one typed model each, with one way to write and one way to read them.

Reads and writes ``classes.json`` (prepare), ``run.json`` and ``weights.json`` (train), ``evaluation.json`` and
``calibration.json`` (evaluate) and ``bundle.json`` (export). Keys of a newer version are passed over.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.core import paths
from pipeline.core.errors import UserError
from pipeline.core.files import write_json

if TYPE_CHECKING:
    import numpy as np

Scores = dict[str, int | float]
BLOCK = 1024  # images of which the bytes are read, written and summed at once


class StageFile(BaseModel):
    """A JSON file of a stage, in a folder of the project."""

    model_config = ConfigDict(frozen=True, strict=True, protected_namespaces=())

    FILE: ClassVar[str]
    FOLDER: ClassVar[Path]
    STAGE: ClassVar[str]

    @classmethod
    def load(cls, folder: Path | None = None) -> Self:
        """Read the file.

        Args:
            folder: Where it is; None: where the stage leaves it.

        Raises:
            UserError: It is missing, damaged or not of this kind; the message names the file and the remedy.
        """
        path = (cls.FOLDER if folder is None else Path(folder)) / cls.FILE
        try:
            return cls.parse(path.read_bytes(), str(path))
        except FileNotFoundError:
            raise UserError(f"{path} not found. Run `dvc repro {cls.STAGE}` first.") from None
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error}). Run `dvc repro -f {cls.STAGE}`.") from None

    @classmethod
    def parse(cls, content: bytes | str, name: str) -> Self:
        """Read the file's content, from wherever it came; ``name`` stands in the error. Raises ``UserError``."""
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            reason = f"{where}: {first['msg']}" if where else first["msg"]
            raise UserError(
                f"{name} is damaged or of another version ({reason}). Run `dvc repro -f {cls.STAGE}`."
            ) from None

    def save(self, folder: Path | None = None) -> None:
        """Write the file at one stroke; keys that were not given are left out."""
        write_json((self.FOLDER if folder is None else Path(folder)) / self.FILE, self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """The file's content; keys that were not given are left out."""
        return self.model_dump(exclude_unset=True)


class SealedFile(StageFile):
    """A file that decides results, with the SHA-256 of its own other entries; older versions wrote none."""

    sha256: str = ""

    @classmethod
    def parse(cls, content: bytes | str, name: str) -> Self:
        """As of ``StageFile``; a file that was changed since it was written is refused too."""
        found = super().parse(content, name)
        if found.sha256 and found.sha256 != _sum_entries(json.loads(content)):
            stage = cls.STAGE
            raise UserError(
                f"{name} was changed since {stage} wrote it: its sum is another. Run `dvc repro -f {stage}`."
            )
        return found

    def save(self, folder: Path | None = None) -> None:
        """As of ``StageFile``, with the file's own sum."""
        content = self.as_dict()
        write_json(
            (self.FOLDER if folder is None else Path(folder)) / self.FILE, content | {"sha256": _sum_entries(content)}
        )


def _sum_entries(content: dict[str, Any]) -> str:
    """The SHA-256 of a file's entries, but for that sum itself."""
    entries = {name: value for name, value in content.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


class DatasetFile(SealedFile):
    """What the prepared arrays are: classes, sizes, digests, counts by split and class, and the audit's headline.

    ``files`` has the SHA-256 of ``manifest.csv`` and ``parity.zip``; the arrays are in ``split_digests``.
    """

    FILE, FOLDER, STAGE = "classes.json", paths.PREPARED, "prepare"

    class_names: list[str]
    img_size: int
    channels: int
    faces: dict[str, Any] | None = None
    digest: str
    split_digests: dict[str, str]
    counts: dict[str, dict[str, int]] = {}
    audit: dict[str, int] = {}
    files: dict[str, str] = {}


def begin_digest(split: str, class_names: Sequence[str], shape: Sequence[int], targets: "np.ndarray") -> Any:
    """Begin a split's digest; the bytes of its pixels, votes and weights follow, each where there are some.

    Args:
        split: Its name.
        class_names: The K classes.
        shape: Of an image, (H, W, C).
        targets: Class indices, int (N,).
    """
    digest = hashlib.sha256(json.dumps([split, list(class_names), list(shape)]).encode()[:-1] + b", [")
    for start in range(0, len(targets), BLOCK):
        labels = json.dumps([class_names[target] for target in targets[start : start + BLOCK]])
        digest.update((", " if start else "").encode() + labels.encode()[1:-1])
    digest.update(b"]]")
    return digest


class NetFile(StageFile):
    """How to build a net and feed it, and which weights are its."""

    backbone: str
    model_args: dict[str, Any]
    class_names: list[str]
    preprocessing: dict[str, Any]
    stem: dict[str, Any] = {}
    weights_sha256: str


class RunFile(StageFile):
    """The MLflow run of the weights, and what no other file tells of it: enough to make it again on any server.

    Attributes:
        job: The key of the training job.
        formats: Why a format cannot be exported; None: it can.
        origin: Tags of the run: who trained, commit, DVC's experiment.
        started_s: Of the training, seconds since 1970, as ``ended_s``.
        figures: What the training took: metrics by name.
    """

    FILE, FOLDER, STAGE = "run.json", paths.TRAINED, "train"

    run_id: str
    job: str | None = None
    formats: dict[str, str | None] = {}
    origin: dict[str, str] = {}
    started_s: float | None = None
    ended_s: float | None = None
    figures: Scores = {}


class WeightsFile(NetFile, SealedFile):
    """The sidecar of ``weights.pt``: how to build the net, how to feed it, and what it learnt from."""

    FILE, FOLDER, STAGE = "weights.json", paths.TRAINED, "train"

    data_digest: str
    kept_epoch: int = 0
    params: dict[str, str] = {}


class EvaluationFile(StageFile):
    """What evaluate counted, and on which run it is: scores by part of the data, numbers of images, the audit.

    The parts: val, test, its images without twins, the mean over views, corrupted images.
    """

    FILE, FOLDER, STAGE = "evaluation.json", paths.REPORTS, "evaluate"

    val: Scores
    test: Scores
    test_clean: Scores = {}
    audit: Scores = {}
    test_tta: Scores = {}
    test_plain: Scores = {}
    robustness: Scores = {}
    run_id: str


class CalibrationFile(SealedFile):
    """The temperature, the errors of calibration, when to abstain, and the views that are averaged."""

    FILE, FOLDER, STAGE = "calibration.json", paths.REPORTS, "evaluate"

    temperature: float
    ece: dict[str, Scores]
    abstain: dict[str, Any]
    aurc: float
    tta: dict[str, Any] = {}

    @property
    def served_views(self) -> list[str]:
        """Views of a picture over which the served answer is the mean, beside the picture itself."""
        return self.tta["views"] if self.tta.get("served") else []


class BundleFile(NetFile):
    """What is served, and where it came from; ``inference.bundle`` makes and checks its sums."""

    FILE, FOLDER, STAGE = "bundle.json", paths.BUNDLE, "export"

    calibration: dict[str, Any]
    abstain: dict[str, Any] = {}
    views: list[str] = []
    code_sha256: str = ""
    int8: dict[str, Any] = {}
    digest: str
    formats: dict[str, str | None]
    data_digest: str
    test_digest: str | None = None
    run_id: str
    metrics: dict[str, Scores]
    audit: Scores = {}
    versions: dict[str, str]
    parity: dict[str, Any] = {}
    cost: dict[str, int | float] = {}
    files: dict[str, str] = {}
    sha256: str = ""


class ReferenceFile(StageFile):
    """The answers to the test split, with which later ones are compared; a bundle has a copy.

    Attributes:
        images: Of the test split.
        accuracy: On all of it.
        estimate_off: How far accuracies that were estimated without labels are off on pictures made worse, ``mean`` and
            ``most``; empty where that was not measured.
        columns: Values of each answer, of some thousand at most: ``label``, ``probability``, ``abstain``,
            ``brightness``, ``sharpness`` and ``right``.
    """

    FILE, FOLDER, STAGE = "reference.json", paths.REPORTS, "evaluate"

    images: int
    accuracy: float
    estimate_off: Scores = {}
    columns: dict[str, list[Any]]


class LatencyFile(StageFile):
    """How long an answer takes; by itself, as equal bundles are equal files."""

    FILE, FOLDER, STAGE = "latency.json", paths.REPORTS, "export"

    latency_ms: float

    @property
    def metrics(self) -> dict[str, float]:
        """By the names of MLflow's metrics."""
        return {"cost/latency_ms": self.latency_ms}
