"""Typed parameters: frozen objects, one class a section of ``params.yaml``.

Every key is required and no other key is accepted. Defaults and what a key means stand in ``params.default.yaml``.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline.core.picture_sizes import find_fault

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
# A torchvision v2 transform: its bare name, or one key with its arguments.
TransformSpec = str | Annotated[dict[str, dict[str, Any] | None], Field(min_length=1, max_length=1)]


class Section(BaseModel):
    """A part of the file: frozen, strictly typed, no unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=(), serialize_by_alias=True
    )


class ProjectParams(Section):
    """What the project is called in MLflow; no result hangs on it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$")]


class PrepareParams(Section):
    """Source images -> packed uint8 arrays."""

    source: Annotated[str, Field(min_length=1)]
    columns: dict[Literal["path", "label", "split", "person", "weight"], Annotated[str, Field(min_length=1)]]
    class_map: dict[str, Annotated[str, Field(min_length=1)] | None]
    label: Annotated[str, Field(min_length=1)]
    labels: Literal["majority", "soft"]
    person: Annotated[str, Field(min_length=1)] | None
    img_size: Annotated[int, Field(ge=8, le=1024)]
    channels: Literal[1, 3]
    val_fraction: Fraction
    test_fraction: Fraction
    seed: int
    max_bad_fraction: Annotated[float, Field(ge=0, le=1)]
    faces: Literal["crop"] | None
    face_margin: Annotated[float, Field(ge=0, le=0.5)]
    face_min_size: Annotated[int, Field(ge=12, le=4096)]
    duplicates: Literal["drop_from_train", "drop_exact_from_train", "keep"]
    conflicts: Literal["drop", "majority", "keep"]
    corrections: Literal["train", "all", "none"]

    @property
    def face_settings(self) -> dict[str, Any] | None:
        """How faces are looked for and cut out, as ``faces.cut_faces`` takes it; None where they are already."""
        return {"margin": self.face_margin, "min_size": self.face_min_size} if self.faces else None

    @field_validator("class_map", mode="before")
    @classmethod
    def _name_numbers(cls, value: Any) -> Any:
        """YAML has a number for the key of ``{0: angry}``."""
        return {str(key): name for key, name in value.items()} if isinstance(value, dict) else value


class Transforms(Section):
    """Two lists of torchvision v2 transforms, by name."""

    train: list[TransformSpec]
    eval: list[TransformSpec]


class Schedule(Section):
    """Learning rate over the run; ``decay*`` and ``min_lr`` serve the schedules that have them.

    ``warmup`` and ``decay`` are parts of the training.
    """

    name: Literal["cosine", "onecycle", "step", "plateau"]
    warmup: Fraction
    min_lr: NonNegative
    decay: Annotated[float, Field(gt=0, le=1)]
    decay_rate: Annotated[float, Field(gt=0, lt=1)]


class Stretch(Section):
    """From that part of the training on, images have ``size`` px; null: what the transforms give."""

    start: Annotated[float, Field(ge=0, lt=1, alias="from")]
    size: Annotated[int, Field(ge=8, le=1024)] | None


class Mixing(Section):
    """timm's mixup and cutmix: alphas of the beta distributions (0: none), how often which, and until when."""

    mixup_alpha: NonNegative
    cutmix_alpha: NonNegative
    prob: Annotated[float, Field(ge=0, le=1)]
    switch_prob: Annotated[float, Field(ge=0, le=1)]
    end: Fraction | None


class Imbalance(Section):
    """What is done about rare classes; ``beta`` and ``tau`` serve the methods that have them."""

    method: Literal["none", "weights", "sampling", "logits"]
    beta: Fraction
    tau: NonNegative


class Distill(Section):
    """A teacher, whose answers to the same views are learnt, too."""

    source: Annotated[str | None, Field(alias="from")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None
    weight: Annotated[float, Field(gt=0, le=1)]
    temperature: Positive

    @model_validator(mode="after")
    def _check_digest(self) -> "Distill":
        if (self.sha256 is None) != (self.source in (None, "peers")):
            raise ValueError("sha256 goes with a teacher from a folder, a run or a version, and with nothing else")
        return self


class EarlyStopping(Section):
    """The val metric that tells the best epoch, whose weights to keep, and after how many worse epochs to stop."""

    metric: Literal["val/accuracy", "val/balanced_accuracy", "val/macro_f1", "val/loss"]
    keep: Literal["best", "last"]
    patience: Count | None


class TrainParams(Section):
    """Packed arrays -> weights."""

    backbone: Annotated[str, Field(min_length=1)]
    backbone_args: dict[str, Any]
    pretrained: bool
    weights: str | None
    weights_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None
    input_size: Literal["auto"] | Annotated[int, Field(ge=8, le=1024)]
    stem: Literal["auto", "adapt", "keep"]
    transforms: Transforms
    progressive: list[Stretch]
    mixing: Mixing
    batch_size: Count
    accumulate: Count
    epochs: Count
    optimizer: str
    lr: Positive
    momentum: Fraction
    weight_decay: NonNegative
    layer_decay: Annotated[float, Field(gt=0, le=1)]
    freeze: list[str]
    schedule: Schedule
    label_smoothing: Fraction
    imbalance: Imbalance
    distill: Distill
    ema_decay: Fraction
    grad_clip_norm: Positive | None
    amp: Literal["none", "bf16", "fp16"]
    tf32: bool
    channels_last: bool
    compile: Literal["none", "default", "reduce-overhead"]
    early_stopping: EarlyStopping
    seed: int
    deterministic: bool
    device: str
    devices: Count
    sync_bn: bool

    @field_validator("compile", mode="before")
    @classmethod
    def _name_mode(cls, value: Any) -> Any:
        """It was a yes or no once."""
        if isinstance(value, bool):
            raise ValueError(f"{str(value).lower()} is called {'default' if value else 'none'} now")
        return value

    @field_validator("backbone_args")
    @classmethod
    def _check_arguments(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Nothing gets weights in past ``weights_sha256``, or is overwritten by what the data says."""
        for key in value:
            if key in ("num_classes", "in_chans"):
                raise ValueError(f"{key} follows from the data: take it out")
            if key == "checkpoint_path" or key.startswith(("pretrained", "cache_dir")):
                raise ValueError(
                    f"{key} is not taken here: say which weights by pretrained, or weights and weights_sha256"
                )
        return value

    @model_validator(mode="after")
    def _check_combinations(self) -> "TrainParams":
        if (self.weights is None) != (self.weights_sha256 is None):
            raise ValueError(
                "weights and weights_sha256 go together: give both (`sha256sum FILE` prints the digest), or neither"
            )
        if self.weights and self.pretrained:
            raise ValueError("weights and pretrained exclude each other: set pretrained to false")
        if self.devices > 1 and ":" in self.device:
            kind, _, _ = self.device.partition(":")
            raise ValueError(f"device {self.device} is one and devices says {self.devices}: set device to {kind}")
        if self.batch_size % (2 * self.devices if self.devices > 1 else 1):
            raise ValueError(f"batch_size ({self.batch_size}) must be a multiple of twice devices ({self.devices})")
        if self.batch_size // self.devices % self.accumulate:
            raise ValueError(
                f"a device's share of batch_size ({self.batch_size // self.devices}) must be a multiple of accumulate "
                f"({self.accumulate})"
            )
        if (self.mixing.mixup_alpha or self.mixing.cutmix_alpha) and self.batch_size % 2:
            raise ValueError(f"mixing pairs the samples of a batch: batch_size ({self.batch_size}) must be even")
        starts = [stretch.start for stretch in self.progressive]
        if starts != sorted(set(starts)) or (starts and starts[0] != 0):
            raise ValueError("progressive must begin with {from: 0.0, ...}, and its parts must rise")
        if self.schedule.name == "onecycle" and self.schedule.warmup == 0:
            raise ValueError("schedule onecycle rises during schedule.warmup, which must be more than 0, such as 0.25")
        return self

    def find_epoch(self, part: float) -> int:
        """The epoch, from 0, with which that part of the training ends; the last one is never of what comes before."""
        return min(round(part * self.epochs), self.epochs - 1)


class EvaluateParams(Section):
    """Test split -> metrics."""

    batch_size: Count
    worst: Annotated[int, Field(ge=0, le=100)]
    tta: list[Literal["flip", "shifts", "sizes"]]
    serve_tta: bool
    risk: Annotated[float, Field(gt=0, lt=1)]
    corruptions: list[Literal["brightness", "contrast", "blur", "noise", "jpeg", "rotation", "downscaling"]]
    corrupted: Count | None
    quantiles: Annotated[int, Field(ge=1, le=20)]
    explain: Annotated[int, Field(ge=0, le=100)]

    @model_validator(mode="after")
    def _check_views(self) -> "EvaluateParams":
        if self.serve_tta and not self.tta:
            raise ValueError("serve_tta needs the views to serve, such as tta: [flip]")
        return self


class ExportParams(Section):
    """Weights -> bundle."""

    formats: Annotated[list[Literal["pt2", "onnx"]], Field(min_length=1)]
    opset: Annotated[int, Field(ge=18)]
    tolerance: Positive
    int8_drop: Annotated[float, Field(ge=0, le=1)] | None


class PromoteParams(Section):
    """What a version must hold up to in place of the champion; null: not looked at."""

    rule: Literal["better", "not_worse"]
    level: Annotated[float, Field(gt=0, le=0.5)]
    seed_sd: Annotated[float, Field(gt=0, le=0.5)] | None
    recall_floor: Annotated[float, Field(ge=0, le=1)] | None
    ece_rise: Annotated[float, Field(ge=0, le=1)] | None
    latency_ratio: Positive | None
    size_ratio: Positive | None


class Params(Section):
    """The whole file."""

    project: ProjectParams
    prepare: PrepareParams
    train: TrainParams
    evaluate: EvaluateParams
    export: ExportParams
    promote: PromoteParams

    @model_validator(mode="after")
    def _check_sizes(self) -> "Params":
        lists, size, given = self.train.transforms, self.prepare.img_size, self.train.input_size
        if fault := find_fault(lists.train, lists.eval, size, size if given == "auto" else given):
            raise ValueError(f"train.transforms.train: {fault}")
        return self


def flatten(section: Section, prefix: str) -> dict[str, str]:
    """Dotted names and printable values of a section, as MLflow wants them; lists become JSON."""
    flat: dict[str, str] = {}
    for key, value in section.model_dump().items():
        flat.update(_flatten_value(value, f"{prefix}.{key}"))
    return flat


def _flatten_value(value: Any, name: str) -> dict[str, str]:
    # MLflow takes no other names; a class may have any.
    if isinstance(value, dict) and value and all(key.isidentifier() for key in value):
        return {k: v for key, item in value.items() for k, v in _flatten_value(item, f"{name}.{key}").items()}
    return {name: value if isinstance(value, str) else json.dumps(value)}
