"""Doubting the training labels: probabilities of every training image from a net that was not trained on it.

A net that was trained on a wrong label may have learnt it by heart. So the training split is cut into folds, twins
together, and each fold is judged by a net trained on the others. ``hyojo suspects`` runs it.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field, fields

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from pipeline.core.dataset import Prepared, Split, load_prepared
from pipeline.core.errors import UserError
from pipeline.core.files import write_csv, write_json, write_text
from pipeline.core.params import TrainParams
from pipeline.core.params_file import load_params
from pipeline.metrics.suspects import tabulate
from pipeline.models import model
from pipeline.models.devices import explain_full_memory, resolve_device, set_determinism
from pipeline.models.predict import predict
from pipeline.reporting.suspects import render
from pipeline.tracking.suspects import PAGE, SUMMARY, TABLE, log_suspects
from pipeline.train import loop, planning
from pipeline.train.loader import build_loader
from pipeline.train.loop import Progress
from pipeline.train.trainer import build_trainer


def find_label_suspects(folds: int, epochs: int | None) -> str:
    """Write the suspects among the project's prepared training labels into ``reports/``, and log them on MLflow.

    The training split is cut into ``folds``; each net is trained for ``epochs``, or ``train.epochs``. Returns what
    came of it, in words.

    Raises:
        UserError: Nothing is prepared, folds or epochs that cannot be, or nets that are no better than chance.
    """
    if epochs is not None and epochs < 1:
        raise UserError(f"--epochs {epochs}: a net wants one at least")
    params, prepared = load_params().train, load_prepared()
    params = params.model_copy(update={"epochs": epochs or params.epochs})
    split = prepared.split("train")
    print(f"{folds} nets, {params.epochs} epochs each, on {len(split):,} training images", flush=True)
    probs = held_out_probs(params, prepared, split, twin_groups(prepared), folds)
    table = tabulate({"train": split}, {"train": probs}, prepared.class_names)
    accuracy = float((probs.argmax(axis=1) == split.targets).mean())
    if table is None:
        raise UserError(
            f"the nets are too weak to tell which labels are wrong: of images that they were not trained on, they are "
            f"right on {accuracy:.3f}, as chance could be. Train them longer, such as --epochs {2 * params.epochs}, or "
            "find params that learn. Nothing was written."
        )
    write_csv(TABLE, table)
    write_text(PAGE, render(table, prepared, ["train"], TABLE.name))
    summary = {"data_digest": prepared.digest, "images": len(split), "doubted": len(table), "accuracy": accuracy}
    write_json(SUMMARY, summary | {"folds": folds, "epochs": params.epochs})
    log_suspects()
    return (
        f"{len(table):,} of {len(split):,} training labels are in doubt, see {PAGE}. On images that they were not "
        f"trained on, the nets are right on {accuracy:.3f}."
    )


@dataclass(frozen=True)
class _Part(Prepared):
    """Prepared data of which some training images are all that is seen."""

    part: Split = field(kw_only=True)

    def split(self, name: str) -> Split:
        assert name == "train"
        return self.part


def twin_groups(prepared: Prepared) -> np.ndarray:
    """The set of twins that each training image is of, int64 (N,); images without twins are sets of their own."""
    manifest = pd.read_csv(io.BytesIO(prepared.read("manifest.csv")), usecols=["split", "row", "twins"])
    rows = manifest[(manifest["split"] == "train") & (manifest["row"] >= 0)].sort_values("row")
    return rows["twins"].fillna(-1 - rows["row"]).to_numpy(np.int64)


def cut_folds(targets: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> Iterator[np.ndarray]:
    """Cut images into folds, each with about as many of every class, and no group in two.

    Args:
        targets: Class indices, integers (N,).
        groups: The group of each image, integers (N,).
        folds: How many, 2 at least.
        seed: Another seed, another cut.

    Yields:
        The rows of a fold, int64 (n,), ascending.

    Raises:
        UserError: A class has fewer groups than there are to be folds.
    """
    present = np.unique(targets)
    fewest = min((len(np.unique(groups[targets == target])) for target in present), default=0)
    if not 2 <= folds <= fewest:
        raise UserError(
            f"--folds {folds}: the smallest class has {fewest} different training images, so take 2 to {fewest}"
        )
    cut = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return (held_out for _, held_out in cut.split(targets, targets, groups))


def train_on(params: TrainParams, prepared: Prepared, split: Split, label: str = "") -> model.Classifier:
    """Train as params say, to the last epoch: there is no val split to pick the best by.

    Args:
        params: The train section. One device is used, whatever ``devices`` says.
        prepared: What the images are of.
        split: The images to train on.
        label: What stands before the progress bar.

    Raises:
        UserError: Fewer images than ``train.batch_size``, or the loss diverges.
    """
    if len(split) < params.batch_size:
        raise UserError(
            f"train.batch_size: {params.batch_size} is more than the {len(split)} images that a net is trained on"
        )
    device = resolve_device(params.device)
    set_determinism(params.deterministic, device)
    shared = {item.name: getattr(prepared, item.name) for item in fields(Prepared) if item.init}
    spec, _ = planning.plan(params, prepared.class_names, prepared.img_size, prepared.channels)
    trainer = build_trainer(params, _Part(**shared, part=split), spec, device)
    loader = build_loader(split, params, device)
    for epoch in range(params.epochs):
        scores = loop.train_one_epoch(
            trainer, loader, Progress(epoch=epoch), lambda: None, f"{label}epoch {epoch + 1}/{params.epochs}"
        )
        loss = params.early_stopping.metric == "val/loss"
        trainer.schedule.step_epoch(scores["loss" if loss else "accuracy"])
    return model.Classifier(trainer.candidate, spec).to(device).eval()


def judge(classifier: model.Classifier, params: TrainParams, images: np.ndarray) -> np.ndarray:
    """Probabilities of images, float32 (N, K)."""
    return predict(classifier, images, params.batch_size, resolve_device(params.device))


@explain_full_memory("Lower train.batch_size, raise train.accumulate, or set train.amp to bf16.")
def held_out_probs(params: TrainParams, prepared: Prepared, split: Split, groups: np.ndarray, folds: int) -> np.ndarray:
    """Judge every image by a net that has seen neither it nor its twins: probabilities, float32 (N, K).

    Arguments as ``train_on`` and ``cut_folds``.

    Raises:
        UserError: Too many folds for the data, or a training fails.
    """
    probs = np.full((len(split), len(prepared.class_names)), np.nan, np.float32)
    for number, held_out in enumerate(cut_folds(split.targets, groups, folds, params.seed), start=1):
        rest = np.setdiff1d(np.arange(len(split)), held_out)
        classifier = train_on(params, prepared, take(split, rest), f"fold {number}/{folds}, ")
        probs[held_out] = judge(classifier, params, split.images[held_out])
    return probs


def take(split: Split, rows: np.ndarray) -> Split:
    """Some images of a split, in memory."""
    soft, weights = (None if values is None else np.array(values[rows]) for values in (split.soft, split.weights))
    files = [split.files[row] for row in rows]
    return Split(np.array(split.images[rows]), split.targets[rows], files, soft, weights)
