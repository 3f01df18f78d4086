"""Labels from nets that were trained before: the mean answer of some teachers becomes part of the training labels.

Born-again networks (Furlanello et al., 2018, https://arxiv.org/abs/1805.04770): teachers and student are the same net,
trained in the same way from other seeds. Where people's labels are doubtful, the student is told so.
"""

from dataclasses import replace

import numpy as np

from pipeline import engine, model
from pipeline.augment import sample_seed
from pipeline.data import Prepared, Split
from pipeline.params import TrainParams
from pipeline.trainer import Trainer


def params_of(params: TrainParams, taught: int) -> TrainParams:
    """How the net after ``taught`` teachers is trained: the last one, the student, as the params say.

    The teachers' seeds are drawn from the seed, so that no member of a family of seeds is another one's teacher.
    """
    if taught == params.distillation.teachers:
        return params
    return params.model_copy(update={"seed": sample_seed(params.seed, -1 - taught, -4)})


def label(params: TrainParams, taught: int) -> str:
    """What the net after ``taught`` teachers is called in front of its epochs."""
    teachers = params.distillation.teachers
    if not teachers:
        return ""
    return "student, " if taught == teachers else f"teacher {taught + 1}/{teachers}, "


def answers(
    classifier: model.Classifier, split: Split, params: TrainParams, trainer: Trainer, progress: str
) -> np.ndarray:
    """Probabilities of all images of a split, float32 (N, K), which all ranks compute together."""
    ranks = trainer.ranks
    probs = engine.predict(
        classifier.to(trainer.device).eval(), split.images[ranks.rank :: ranks.world], params.batch_size,
        trainer.device, progress if ranks.main else None,
    )  # fmt: skip
    return ranks.gather(probs, len(split))


def training_split(prepared: Prepared, params: TrainParams, taught: int, sums: np.ndarray | None) -> Split:
    """The training split for the net after ``taught`` teachers.

    Args:
        prepared: The data.
        params: The train section.
        taught: Teachers that are trained.
        sums: The sum of their answers, float32 (N, K).

    Returns:
        The split as it is for a teacher. For a student of teachers, its ``soft`` targets are ``weight`` parts the mean
        answer and the rest the label, or the votes where there are votes.
    """
    split, teachers = prepared.split("train"), params.distillation.teachers
    if not teachers or taught < teachers:
        return split
    labels = split.soft
    if labels is None:
        labels = np.eye(len(prepared.class_names), dtype=np.float32)[split.targets]
    weight = np.float32(params.distillation.weight)
    soft = (1 - weight) * labels + weight * sums / np.float32(teachers)
    return replace(split, soft=soft / soft.sum(axis=1, keepdims=True))
