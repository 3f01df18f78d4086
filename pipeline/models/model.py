"""Any timm backbone for small faces, and its weights on disk.

Writes and reads ``weights.pt`` (a plain state_dict) with ``weights.json`` beside it, which holds all that is
needed to build the net and to prepare a picture for it.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import pipeline.models.backbones  # noqa: F401  (registers our nets with timm)
from pipeline.core.errors import UserError
from pipeline.models import stem
from pipeline.models import views as tta
from pipeline.models.stem import Changes
from pipeline.train.augment import batched

WEIGHTS, SIDECAR = "weights.pt", "weights.json"


@dataclass(frozen=True)
class Recipe:
    """How to build a net and feed it; ``json``-able, and saved beside the weights as it is.

    ``model_args`` are the arguments of ``timm.create_model``; ``preprocessing`` has ``img_size`` and
    ``channels`` of a prepared image, ``input_size`` (px) and ``in_chans`` of the net, ``mean``, ``std``, and
    the resolved ``train`` and ``eval`` transforms; train adds ``faces``, how they were cut out of photos.
    ``stem`` is what is changed in the net that timm builds, so that it suits small pictures (see ``stem``).
    """

    backbone: str
    model_args: dict[str, Any]
    class_names: list[str]
    preprocessing: dict[str, Any]
    stem: Changes = field(default_factory=dict)


def build_model(recipe: Recipe) -> nn.Module:
    """Build the net of a recipe, randomly initialised from torch's global generator."""
    net = timm.create_model(recipe.backbone, pretrained=False, **recipe.model_args)
    return stem.apply(net, recipe.stem)


class Classifier(nn.Module):
    """A net with its eval preprocessing and softmax: prepared images in, probabilities out.

    This is what is evaluated, exported and served, so that all of them see the same arithmetic.

    Attributes:
        temperature: By which logits are divided.
        views: Names of ``views.views``, over which logits are averaged; none: the image alone.
    """

    def __init__(
        self, model: nn.Module, recipe: Recipe, temperature: float = 1.0, views: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.model = model
        # Floats before any Resize: the one for bytes rounds to whole greys, in eager mode otherwise than in a graph.
        self.preprocess = batched.build([{"ToDtype": {}}, *recipe.preprocessing["eval"]])
        self.temperature = temperature
        self.views = views

    def forward(self, images: Tensor) -> Tensor:
        """Classify prepared images.

        Args:
            images: uint8 (B, H, W, C), as ``prepare`` packs them.

        Returns:
            Probabilities, float32 (B, K); each row sums to 1.
        """
        images = images.permute(0, 3, 1, 2)
        if self.views:
            images = torch.cat(tta.views(images, self.views))
        logits = self.model(self.preprocess(images)).float()
        if self.views:
            logits = logits.unflatten(0, (tta.passes(self.views), -1)).mean(0)
        return (logits if self.temperature == 1 else logits / self.temperature).softmax(1)


def save_weights(directory: Path, model: nn.Module, recipe: Recipe, extra: dict[str, Any]) -> str:
    """Write ``weights.pt`` and ``weights.json``; equal weights give equal bytes.

    Args:
        directory: An existing folder.
        model: The plain module, neither compiled nor wrapped.
        recipe: How it was built.
        extra: Further entries of the sidecar.

    Returns:
        The sha256 of ``weights.pt``.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    buffer = io.BytesIO()  # torch.save puts a file's name into its bytes; a buffer has none
    torch.save(state, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    (directory / WEIGHTS).write_bytes(buffer.getvalue())
    sidecar = {
        "backbone": recipe.backbone, "model_args": recipe.model_args, "class_names": recipe.class_names,
        "preprocessing": recipe.preprocessing, "stem": recipe.stem, "weights_sha256": digest, **extra,
    }  # fmt: skip
    (directory / SIDECAR).write_text(json.dumps(sidecar, indent=2) + "\n", encoding="utf-8")
    return digest


def load_sidecar(directory: Path | str) -> dict[str, Any]:
    """Read ``weights.json``; raises ``UserError`` if train has not written it."""
    try:
        return json.loads((Path(directory) / SIDECAR).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{Path(directory) / SIDECAR} not found. Run `dvc repro train` first.") from None


def recipe_of(sidecar: dict[str, Any]) -> Recipe:
    """The recipe that a sidecar holds; one of a time before ``stage.stem`` has no entry for it."""
    required = (sidecar[key] for key in ("backbone", "model_args", "class_names", "preprocessing"))
    return Recipe(*required, sidecar.get("stem", {}))


def load_model(directory: Path | str, device: torch.device | str = "cpu") -> tuple[nn.Module, dict[str, Any]]:
    """Load trained weights.

    Args:
        directory: What train wrote.
        device: Where the net goes.

    Returns:
        The net in eval mode, and the sidecar.

    Raises:
        UserError: Missing files, or weights that are not those of the sidecar.
    """
    sidecar = load_sidecar(directory)
    path = Path(directory) / WEIGHTS
    data = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(data).hexdigest() != sidecar["weights_sha256"]:
        raise UserError(
            f"{path} is not the file that {SIDECAR} describes. Restore both: `dvc checkout {directory}`."
        )
    model = build_model(recipe_of(sidecar))
    state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    model.load_state_dict(state, strict=True)
    return model.to(device).eval(), sidecar


def load_classifier(directory: Path | str, device: torch.device | str = "cpu") -> Classifier:
    """Load trained weights as a ``Classifier`` in eval mode; errors as ``load_model``."""
    model, sidecar = load_model(directory, device)
    return Classifier(model, recipe_of(sidecar)).to(device).eval()
