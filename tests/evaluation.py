"""An evaluation to be tested: a tiny data set, a small random net, and the folders of the stage."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from builders import TINY_PARAMS, seal_prepared

from pipeline.core.params import EvaluateParams
from pipeline.core.params_file import parse_params
from pipeline.core.paths import PREPARED, REPORTS, TRAINED
from pipeline.evaluate import stage
from pipeline.models.model import ModelSpec, build_model
from pipeline.models.weights import save_weights

# Names that a csv reader may take for a missing value, a number or two columns.
CLASS_NAMES = ["1", "NA", "sad, or not"]
MEAN, STD, SIZE = 0.5, 0.25, 16
LEAKS = {0, 3, 4, 20}  # test images with a twin in train
AUDIT = {"redundant": 7, "conflicting_groups": 2, "test_in_train": 4}
PARAMS = parse_params(TINY_PARAMS).evaluate.model_copy(update={"tta": [], "quantiles": 1})
WHOLE = PARAMS.model_copy(update={"corruptions": ["blur", "jpeg"], "corrupted": 20, "quantiles": 2, "explain": 2})
ORIGIN = {"mlflow.user": "ada", "mlflow.source.git.commit": "c" * 40, "hyojo.git_dirty": "true"}


def make_prepared(folder: Path, labels: dict[str, list[int]]) -> Path:
    """Write a prepared data set as the prepare stage does."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows = []
    for split, targets in labels.items():
        # Coarse patterns: to a net with pooling, pictures of pure noise are all alike.
        coarse = rng.integers(0, 256, size=(len(targets), 4, 4, 1), dtype=np.uint8)
        images = coarse.repeat(SIZE // 4, axis=1).repeat(SIZE // 4, axis=2)
        np.save(folder / f"{split}.npy", images)
        for row, target in enumerate(targets):
            name = CLASS_NAMES[target]
            leak = split == "test" and row in LEAKS
            flags, twins = ("duplicate;leak", "1") if leak else ("", "")
            rows.append((f'{split}/{name}/a "face", {row} 顔.png', name, split, row, "0" * 64, flags, twins))
    rows.append(("broken.png", "1", "test", -1, "", "corrupt", ""))
    columns = ["file", "label", "split", "row", "sha256", "flags", "twins"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "manifest.csv", index=False)
    meta = {"class_names": CLASS_NAMES, "img_size": SIZE, "channels": 1, "digest": "d" * 64, "counts": {}}
    return seal_prepared(folder, **meta, audit=AUDIT)


def make_trained(folder: Path) -> Path:
    """Write a small random net as the train stage does."""
    folder.mkdir(parents=True)
    resolved = [{"ToDtype": {}}, {"Normalize": {"mean": [MEAN], "std": [STD]}}]
    preprocessing = {
        "img_size": SIZE, "channels": 1, "input_size": SIZE, "in_chans": 1, "mean": [MEAN], "std": [STD],
        "train": resolved, "eval": resolved,
    }  # fmt: skip
    model_args = {"num_classes": 3, "in_chans": 1, "widths": [8, 8, 8]}
    torch.manual_seed(0)
    spec = ModelSpec("face_resnet_s", model_args, CLASS_NAMES, preprocessing)
    model = build_model(spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        # Centred answers: a random head gives every face the same class.
        model.fc.bias -= model.eval()(torch.randn(64, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)).mean(0)
    save_weights(folder, model, spec, "d" * 64)
    (folder / "run.json").write_text(json.dumps({"run_id": "run-of-train", "origin": ORIGIN, "ended_s": 1e9}))
    (folder / "history.csv").write_text(
        "epoch,lr,train/loss,train/accuracy,val/loss,val/accuracy\n1,0.1,1.1,0.3,1.2,0.2\n2,0.0,1.0,0.4,1.1,0.3\n"
    )
    return folder


class Workspace:
    """The three folders of the stage in the working folder, and what it asked of tracking."""

    prepared, trained, reports = PREPARED, TRAINED, REPORTS

    def __init__(self) -> None:
        make_prepared(PREPARED, {"train": [0, 1, 2], "val": [0, 1, 2] * 3, "test": [0, 1, 2, 2, 1, 0, 0] * 4})
        make_trained(TRAINED)
        self.keys: list[str] = []
        self.logged: list[tuple[str, dict[str, float], dict[str, list[Path]], dict[str, str]]] = []

    def evaluate(self, params: EvaluateParams = PARAMS) -> dict[str, Any]:
        """Run the stage."""
        return stage.evaluate(params, "cpu")

    def change_data(self, **changes: object) -> None:
        """Say other things of the data set."""
        seal_prepared(self.prepared, **changes)

    def digests(self) -> dict[str, str]:
        """The sha256 of every report."""
        files = sorted(path for path in self.reports.rglob("*") if path.is_file())
        return {str(path.relative_to(self.reports)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def predictions(self) -> pd.DataFrame:
        """``predictions.csv`` with its names as text."""
        text = dict.fromkeys(["file", "label", "predicted"], str)
        return pd.read_csv(self.reports / "predictions.csv", dtype=text, keep_default_na=False)
