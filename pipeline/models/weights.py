"""A trained net on disk: ``weights.pt``, a plain state_dict, with ``weights.json`` beside it.

The sidecar holds all that is needed to build the net and to prepare a picture for it.
"""

import hashlib
import io
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.core.errors import UserError
from pipeline.core.stage_files import WeightsFile
from pipeline.models.model import Classifier, ModelSpec, build_model

WEIGHTS = "weights.pt"


def save_weights(directory: Path, model: nn.Module, spec: ModelSpec, data_digest: str, **training: Any) -> str:
    """Write ``weights.pt`` and ``weights.json``; equal weights give equal bytes, whose sha256 is returned.

    The model is the plain module, neither compiled nor wrapped; ``training`` are further entries of the sidecar.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    buffer = io.BytesIO()  # torch.save puts a file's name into its bytes; a buffer has none
    torch.save(state, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    (directory / WEIGHTS).write_bytes(buffer.getvalue())
    WeightsFile(**asdict(spec), weights_sha256=digest, data_digest=data_digest, **training).save(directory)
    return digest


def read_spec(sidecar: WeightsFile) -> ModelSpec:
    """The net that a sidecar describes; one of a time before ``train.stem`` has no entry for it."""
    return ModelSpec(**{field.name: getattr(sidecar, field.name) for field in fields(ModelSpec)})


def load_model(directory: Path | str, device: torch.device | str = "cpu") -> tuple[nn.Module, WeightsFile]:
    """Load the net that train wrote, in eval mode, and its sidecar.

    Raises ``UserError`` for missing files, and for weights that are not those of the sidecar.
    """
    sidecar = WeightsFile.load(Path(directory))
    path = Path(directory) / WEIGHTS
    data = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(data).hexdigest() != sidecar.weights_sha256:
        raise UserError(
            f"{path} is not the file that {WeightsFile.FILE} describes. Restore both: `dvc checkout {directory}`."
        )
    model = build_model(read_spec(sidecar))
    state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    model.load_state_dict(state, strict=True)
    return model.to(device).eval(), sidecar


def load_classifier(directory: Path | str, device: torch.device | str = "cpu") -> Classifier:
    """Load trained weights as a ``Classifier`` in eval mode; errors as ``load_model``."""
    model, sidecar = load_model(directory, device)
    return Classifier(model, read_spec(sidecar)).to(device).eval()
