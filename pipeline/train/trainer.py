"""What an update needs, built as the train section says: net, loss, optimizer, schedule and what goes with them."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.core.dataset import Prepared
from pipeline.core.errors import UserError
from pipeline.core.params import TrainParams
from pipeline.models import devices
from pipeline.models.backbones import Ensemble
from pipeline.models.model import ModelSpec
from pipeline.train import optim, planning
from pipeline.train.augment.batched import Augmentation
from pipeline.train.average import Average
from pipeline.train.distill import PEERS, Teacher, load_teacher
from pipeline.train.distributed import Ranks
from pipeline.train.loader import count_steps
from pipeline.train.losses import Mixer, TrainingLoss
from pipeline.train.muon import Muon, update_matrices
from pipeline.train.schedule import LRSchedule


@dataclass
class Trainer:
    """What an update needs: net, loss, optimizer and what goes with them."""

    model: nn.Module
    criterion: TrainingLoss
    optimizer: torch.optim.Optimizer
    schedule: LRSchedule
    scaler: torch.amp.GradScaler
    ema: Average | None
    augmentation: Augmentation
    mixer: Mixer
    teacher: Teacher | None
    device: torch.device
    memory_format: torch.memory_format
    params: TrainParams
    ranks: Ranks = field(default_factory=Ranks)
    wrapped: nn.Module | None = None  # the net as trained, where that is not the net itself (several ranks)
    updates: int = 0  # done so far, over all epochs

    @property
    def candidate(self) -> nn.Module:
        """The net that is scored and kept: averaged over updates, where params say so."""
        return self.ema.module if self.ema else self.model

    def train_mode(self) -> None:
        """Put the net into train mode, but for its frozen parts."""
        self.model.train()
        for name in self.params.freeze:  # by name: sync_bn puts other modules into the net
            self.model.get_submodule(name).eval()

    def size_in(self, epoch: int) -> int | None:
        """Side of the images in a zero-based epoch, px; None: as the transforms give them."""
        begins = self.params.find_epoch
        sizes = [stretch.size for stretch in self.params.progressive if begins(stretch.start) <= epoch]
        return sizes[-1] if sizes else None


def check_batches(params: TrainParams, prepared: Prepared, ranks: Ranks) -> None:
    """Refuse batches that cannot be shared out or mixed."""
    world, samples = max(params.devices, ranks.world), len(prepared.split("train"))
    # More ranks than train.devices says, where torchrun was started by hand: params could not check that.
    if world > 1 and (params.batch_size % (2 * world) or params.batch_size // world % params.accumulate):
        raise UserError(
            f"train.batch_size: {params.batch_size} must be a multiple of twice the {world} ranks, and a rank's share "
            f"of it a multiple of train.accumulate ({params.accumulate})"
        )
    if world > len(prepared.split("val")):
        raise UserError(f"train.devices: {world} ranks are more than the val samples")
    if samples >= params.batch_size:
        return
    if world > 1:
        raise UserError(f"train.batch_size: {params.batch_size} is more than the {samples} training samples")
    if samples % 2 and (params.mixing.mixup_alpha or params.mixing.cutmix_alpha):
        raise UserError(f"train.mixing pairs samples, and the only batch has {samples}: lower train.batch_size")


def build_trainer(
    params: TrainParams, prepared: Prepared, spec: ModelSpec, device: torch.device, ranks: Ranks | None = None
) -> Trainer:
    """Net, loss, optimizer, schedule and the rest, as params say.

    Raises:
        UserError: An unknown optimizer (with the nearest name), weights that cannot be had, sizes of images that
            the net does not take, or no compiler where one is needed.
    """
    if params.compile != "none":
        devices.check_compiler(device)
    torch.manual_seed(params.seed)
    net = planning.build_initial_model(spec, params)
    for place, stretch in enumerate(params.progressive):  # before the epoch that would bring them
        reason = stretch.size and planning.find_run_failure(net, stretch.size, spec.preprocessing["in_chans"])
        if reason:
            raise UserError(f"train.progressive.{place}: the net does not take {stretch.size} px ({reason})")
    ranks = ranks or Ranks()
    optim.freeze_parts(net, params.freeze)
    memory_format = torch.channels_last if params.channels_last else torch.contiguous_format
    net = net.to(device, memory_format=memory_format)
    optimizer = optim.build_optimizer(net, params)
    split, preprocessing = prepared.split("train"), spec.preprocessing
    counts = np.bincount(split.targets, minlength=len(prepared.class_names))
    mode = "min" if params.early_stopping.metric == "val/loss" else "max"
    steps = count_steps(len(split), params.batch_size)
    size, channels = preprocessing["img_size"], preprocessing["channels"]
    teaching = params.distill if params.distill.source is not None else None
    teacher = _find_teacher(params, net, spec)
    return Trainer(
        model=net,
        criterion=TrainingLoss(counts, params.label_smoothing, params.imbalance, teaching).to(device),
        optimizer=optimizer,
        schedule=LRSchedule(optimizer, params.schedule, lr=params.lr, epochs=params.epochs, steps=steps, mode=mode),
        scaler=torch.amp.GradScaler(device.type, enabled=params.amp == "fp16"),
        ema=Average(net, params.ema_decay) if params.ema_decay else None,
        augmentation=Augmentation(preprocessing["train"], params.seed, size, channels),
        mixer=Mixer(params, len(prepared.class_names)),
        teacher=teacher and teacher.to(device).to(memory_format=memory_format),
        device=device,
        memory_format=memory_format,
        params=params,
        ranks=ranks,
    )


def _find_teacher(params: TrainParams, net: nn.Module, spec: ModelSpec) -> Teacher | None:
    """The net that params name as the teacher; peers are in ``net`` already."""
    if params.distill.source is None:
        return None
    if params.distill.source != PEERS:
        return load_teacher(params.distill, spec)
    if not isinstance(net, Ensemble) or len(net.members) < 2:
        raise UserError(
            f"train.distill.from: peers are the members of an ensemble, and {params.backbone} has none that could "
            "teach each other. Set train.backbone to ensemble with two members or more, or name a teacher."
        )
    return None


def wrap(trainer: Trainer) -> None:
    """Compile what an update consists of, and have the net exchange gradients, as params say.

    Compiled are augmentation, net, loss and Muon; other optimizers and the average of the weights are a few launches
    as they are. The net's state_dict keeps its names.
    """
    params = trainer.params
    ids = devices.list_ids(trainer.device)
    if params.sync_bn and trainer.ranks.world > 1 and ids:  # statistics are shared on CUDA alone
        # timm's: torch's would lose its fused activations
        trainer.model = convert_sync_batchnorm(trainer.model)
    if params.compile != "none":
        settings: dict[str, Any] = {"dynamic": False, "mode": params.compile}
        for module in (trainer.model, trainer.criterion):
            module.compile(**settings)
        if not trainer.augmentation.per_sample:
            trainer.augmentation.run = torch.compile(trainer.augmentation.run, **settings)  # type: ignore[method-assign]
        if isinstance(trainer.optimizer, Muon):
            trainer.optimizer.compiled = torch.compile(update_matrices, **settings)
    if trainer.ranks.world > 1:
        trainer.wrapped = DistributedDataParallel(trainer.model, device_ids=ids)
