"""Parity: exported files answer as the trained classifier, from a picture's bytes on and through what serves them."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.core.dataset import Prepared
from pipeline.core.errors import UserError
from pipeline.inference import faces, images
from pipeline.inference.graphs import load_graph

BATCHES = (1, 7)


def check_parity(
    classifier: torch.nn.Module, prepared: Prepared, folder: Path, names: list[str], tolerance: float
) -> dict[str, Any]:
    """Compare files of a folder, formats by ``names``, with the classifier (on the CPU) at batch 1 and 7.

    What goes in are the bytes of prepare's ``parity.zip``, untouched pictures of the test split; what comes out are
    probabilities, which may differ by the tolerance at most.

    Returns:
        What was found to agree: ``formats``, ``pictures`` (how many), ``tolerance``.

    Raises:
        UserError: If a picture decodes to other pixels than prepare's, or a format disagrees.
    """
    pictures = load_pictures(prepared)
    graphs = {name: load_graph(folder / f"model.{name}", trust=True) for name in names}
    for size in BATCHES:
        for start in range(0, len(pictures), size):
            batch = np.take(pictures, range(start, start + size), axis=0, mode="wrap")
            with torch.inference_mode():
                expected = classifier(torch.from_numpy(batch)).numpy()
            for name, run in graphs.items():
                probs = run(batch)
                same = probs.shape == expected.shape
                difference = float(np.abs(probs - expected).max()) if same else float("inf")
                if not difference <= tolerance:  # NaN must fail too
                    raise UserError(
                        f"model.{name} disagrees with the trained model: {difference:.2g} in probability at batch "
                        f"{size}, and export.tolerance is {tolerance:g}. No bundle was written. Leave "
                        f"{name} out of export.formats, or try another export.opset."
                    )
    return {"formats": names, "pictures": len(pictures), "tolerance": tolerance}


def load_pictures(prepared: Prepared) -> np.ndarray:
    """Decode the pictures of ``parity.zip`` as serving does, and hold them against prepare's pixels.

    Returns:
        uint8 (N, S, S, C).

    Raises:
        UserError: If there are none, or they differ.
    """
    path = prepared.path / "parity.zip"
    test = prepared.split("test").images
    pictures = []
    try:
        with zipfile.ZipFile(io.BytesIO(prepared.read(path.name))) as archive:
            for name in archive.namelist():
                picture = _as_served(archive.read(name), prepared)
                if not np.array_equal(picture, test[int(Path(name).stem)]):
                    raise UserError(
                        f"{path}: {name} decodes to other pixels than those in test.npy, so another version of "
                        "Pillow or of images.py prepared the data. Run `dvc repro -f prepare`."
                    )
                pictures.append(picture)
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} can't be read ({error}). Run `dvc repro -f prepare`.") from None
    if not pictures:
        raise UserError(f"{path} holds no pictures to check the formats with. Run `dvc repro -f prepare`.")
    return np.stack(pictures)


def _as_served(data: bytes, prepared: Prepared) -> np.ndarray:
    """A picture's pixels, uint8 (S, S, C), by the code that serves; of a photo, its largest face's."""
    if not prepared.faces:
        return images.load(data, prepared.img_size, prepared.channels)
    _, largest = next(faces.cut_faces(data, prepared.channels, prepared.faces))
    return images.resize(largest, prepared.img_size)
