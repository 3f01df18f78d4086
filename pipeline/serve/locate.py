"""Which model is served or asked: a bundle folder or a registered version, found, checked and loaded.

A bundle is data. A model as MLflow keeps it is Python, which runs when it is loaded: a folder of that kind has to be
trusted by the one who names it.
"""

import importlib.util
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import inference
from pipeline.core.errors import UserError, telling
from pipeline.inference.bundle import Bundle, BundleError
from pipeline.inference.graphs import RUNTIMES
from pipeline.inference.predictor import Predictor
from pipeline.inference.requests import COLUMN
from pipeline.serve.answers import Predict
from pipeline.serve.places import find_model

if TYPE_CHECKING:
    from mlflow.pyfunc import PyFuncModel

    from pipeline.core.stage_files import BundleFile


@dataclass(frozen=True)
class Located:
    """A model that was found; its ``bundle.json`` is as it was exported.

    Attributes:
        title: As of ``Place``, and so is ``path``.
        version: What answers name: ``hyojo/3``, or the begin of a bundle's digest.
        opened: Its bundle. However often it is loaded, by processes that serve, it is this one or refused.
        trust: Whether it may run code of its own.
    """

    title: str
    version: str
    path: Path
    opened: Bundle
    trust: bool

    @property
    def bundle(self) -> Path:
        """The folder with ``bundle.json``; ``path`` itself for a bundle."""
        return self.opened.folder

    @property
    def code(self) -> Path:
        """The folder of the code that answers: a version's own, or ours."""
        return Path(inference.__file__).parent if self.path == self.bundle else self.path / "code" / "hyojo_inference"

    @property
    def record(self) -> "BundleFile":
        """What ``bundle.json`` says."""
        from pipeline.core.stage_files import BundleFile

        return BundleFile.parse(self.opened.content, self.title)


def locate(model: str, runtime: str | None = None, trust: bool = False, public_key: str | None = None) -> Located:
    """Find a model, and look whether it can be run, and may be.

    Args:
        model: A bundle folder, the number or alias of a version (``3``, ``champion``), or a URI:
            ``models:/hyojo@champion``, ``models:/hyojo/3``, ``runs:/<run id>/model-<digest>``, or that of a folder.
        runtime: One of ``graphs.RUNTIMES``; None: whichever the model has a file for.
        trust: Whether a folder may run code of its own. Versions and runs always may.
        public_key: The file with the key by which the model has to be signed; None: by none. A signed model is trusted.

    Raises:
        UserError: There is none, it is not as it was exported, not signed or not trusted, it lacks the file that the
            runtime wants, or that runtime is not installed.
    """
    if runtime == "torch" and importlib.util.find_spec("torch") is None:
        raise UserError(
            "--runtime torch needs torch, which is not installed here: pip install torch, or --runtime onnx."
        )
    place = find_model(model)
    if public_key is not None:
        from pipeline.serve.signatures import copy_signed

        place, trust = copy_signed(place, Path(public_key)), True
    bundle = place.bundle
    if bundle != place.path and not (trust or place.runs_code):
        raise UserError(
            f"{model} is a model as MLflow keeps it, which runs Python of its own when it is loaded. If you know who "
            f"made it, --trust loads it; the bundle in it is data: --model {model.rstrip('/')}/artifacts/bundle."
        )
    with telling(BundleError):
        opened = Bundle(bundle)
    found = Located(place.title, place.version or opened.record["digest"][:12], place.path, opened, trust)
    there = [name for name, file in RUNTIMES.items() if (found.bundle / file).exists()]
    if not there or runtime not in (None, *there):
        wanted = " and no ".join(RUNTIMES.values()) if runtime is None else RUNTIMES[runtime]
        remedy = f"It can be served with --runtime {' or '.join(there)}. " if there else ""
        raise UserError(
            f"{found.title} holds no {wanted}. {remedy}A registered version holds one file, and the int8 one if there "
            "is one; the bundle folder has every format in export.formats."
        )
    return found


def open_predictor(found: Located, faces: bool | None = None, describe: bool = False, **config: Any) -> Predict:
    """Load a model that was found, to ask it in this process; a bundle needs no MLflow.

    Args:
        found: From ``locate``.
        faces: Whether to find faces in each picture and classify those; None: as the model was trained.
        describe: As of ``predict_bytes``; a version that was registered before there was such a thing says nothing.
        config: As in ``predictor.CONFIG``.

    Raises:
        UserError: It cannot be loaded.
    """
    if found.path == found.bundle:
        with telling(BundleError):
            return partial(
                Predictor(found.opened, **config, trust=found.trust).predict_bytes, faces=faces, describe=describe
            )
    model = open_pyfunc(found, **config)
    import pandas as pd

    schema = model.metadata.signature and model.metadata.signature.params
    known = {param.name for param in schema.params} if schema else ()
    wanted = {"faces": faces, "describe": describe or None}
    params = {name: value for name, value in wanted.items() if value is not None and name in known}
    return lambda pictures: model.predict(pd.DataFrame({COLUMN: pd.Series(pictures, dtype=object)}), params=params)


def open_pyfunc(found: Located, **config: Any) -> "PyFuncModel":
    """Load a registered version that was found, with its own code.

    Args:
        found: From ``locate``.
        config: As in ``predictor.CONFIG``; a version that was registered before it could be told minds none of it.

    Raises:
        UserError: It cannot be loaded.
    """
    from pipeline.tracking import store

    store.configure_mlflow()
    import mlflow.pyfunc
    from mlflow.exceptions import MlflowException

    try:
        return mlflow.pyfunc.load_model(str(found.path), model_config=config)
    except (MlflowException, OSError, ValueError) as error:  # a ValueError: the version's own look at its bundle
        raise UserError(f"{found.title} can't be loaded: {str(error).splitlines()[0]}") from None
