"""Distillation (Hinton et al., 2015, https://arxiv.org/abs/1503.02531): a net learns a teacher's answers, too.

The teacher answers the very views that the net learns from (Beyer et al., 2022, https://arxiv.org/abs/2106.05237): its
answers to other views, or to its own training images as they are, are what it has learnt by heart. It is a trained net,
or the other members of an ensemble (Zhang et al., 2018, https://arxiv.org/abs/1706.00384).
"""

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.core.errors import UserError
from pipeline.core.params import Distill
from pipeline.core.stage_files import WeightsFile
from pipeline.models import transforms
from pipeline.models.model import ModelSpec
from pipeline.models.weights import load_model, read_spec
from pipeline.train import planning

PEERS = "peers"


class Teacher(nn.Module):
    """A trained net that answers what another one sees, in that one's order of classes.

    Images are brought to its own statistics and scale, at which a whole face has the size of its input.
    """

    order: Tensor
    factor: Tensor
    offset: Tensor

    def __init__(self, net: nn.Module, own: ModelSpec, learner: ModelSpec) -> None:
        super().__init__()
        self.net = net.requires_grad_(False)
        self.scale: float = own.preprocessing["input_size"] / learner.preprocessing["input_size"]
        order = [own.class_names.index(name) for name in learner.class_names]
        (mean, std), (seen_mean, seen_std) = (
            [torch.tensor(spec.preprocessing[name]).view(1, -1, 1, 1) for name in ("mean", "std")]
            for spec in (own, learner)
        )
        self.register_buffer("order", torch.tensor(order), persistent=False)
        self.register_buffer("factor", seen_std / std, persistent=False)
        self.register_buffer("offset", (seen_mean - mean) / std, persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W), normalized for the net that learns."""
        if self.scale != 1:
            size = [round(side * self.scale) for side in images.shape[2:]]
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        logits: Tensor = self.net.eval()(images * self.factor + self.offset)
        return logits[:, self.order]


def load_teacher(params: Distill, learner: ModelSpec) -> Teacher:
    """Load the teacher that params name.

    Raises:
        UserError: There is none, it has other weights than ``sha256`` says, it knows other classes, or it does not
            take the views.
    """
    source = str(params.source)
    with tempfile.TemporaryDirectory(prefix="hyojo-teacher-") as scratch:
        local = (Path(source) / WeightsFile.FILE).exists()
        net, sidecar = load_model(source if local else _fetch(source, Path(scratch)))
    if sidecar.weights_sha256 != params.sha256:
        raise UserError(
            f"train.distill.sha256 is {params.sha256}, but the weights of {source} have {sidecar.weights_sha256}. If "
            "these are meant, write that digest there."
        )
    own = read_spec(sidecar)
    if sorted(own.class_names) != sorted(learner.class_names):
        raise UserError(
            f"train.distill.from: {source} knows the classes {', '.join(own.class_names)}, and the data has "
            f"{', '.join(learner.class_names)}."
        )
    teacher, seen = Teacher(net, own, learner), learner.preprocessing
    views = transforms.build_train(seen["train"])
    shape = transforms.find_output_shape(views, seen["img_size"], seen["channels"], "train.transforms.train")
    size = shape[1] or seen["input_size"]
    if reason := planning.find_run_failure(teacher, size, shape[0]):
        raise UserError(f"train.distill.from: {source} does not take views of {size} px ({reason}).")
    return teacher


def _fetch(source: str, scratch: Path) -> Path:
    """What train wrote in a run, or in that of a version, in a folder below ``scratch``."""
    from pipeline.tracking import registry, runs, store

    client = store.open_reader()
    run_id = source.removeprefix("runs:/") if source.startswith("runs:/") else ""
    if source.startswith(store.PREFIX) and (version := registry.find_version(client, source)):
        run_id = version.run_id or ""
    found = runs.fetch(f"runs:/{run_id}/train", scratch) if run_id and store.find_run(client, run_id) else None
    if found is None:
        raise UserError(
            f"train.distill.from: {source} is no teacher. Give a folder that train wrote (with weights.pt and "
            "weights.json), runs:/RUN_ID, models:/NAME/VERSION, or peers."
        )
    return found


def list_peers_answers(logits: Tensor) -> Tensor:
    """For members' logits (M, B, K) the mean of the others', (M, B, K), which nothing learns from."""
    logits = logits.detach()
    return (logits.sum(0) - logits) / (len(logits) - 1)


def match(logits: Tensor, answers: Tensor, temperature: float) -> Tensor:
    """How far logits (N, K) are from a teacher's: the divergence of each sample (N,), in nats, at a temperature.

    It is scaled by the square of the temperature, so that gradients keep their size.
    """
    ours, theirs = (F.log_softmax(each / temperature, -1) for each in (logits, answers.float()))
    return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1) * temperature**2
