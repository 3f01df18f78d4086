"""Which model is served or asked: a bundle folder or a registered version, found and loaded."""

import atexit
import importlib.util
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError
from pipeline.inference.graphs import RUNTIMES
from pipeline.inference.predictor import Predictor
from pipeline.inference.requests import COLUMN
from pipeline.serve.answers import Predict
from pipeline.tracking import store
from pipeline.tracking.trouble import TrackingError, told

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.pyfunc import PyFuncModel


@dataclass(frozen=True)
class Located:
    """A model that was found.

    Attributes:
        title: What people call it: ``hyojo version 3 (champion)``, or the name of the bundle's folder. Clients see it,
            so it is no path.
        path: The folder that is loaded: MLflow's model, or the bundle.
        bundle: The folder with ``bundle.json``; ``path`` itself for a bundle.
    """

    title: str
    path: Path
    bundle: Path


def locate(model: str, runtime: str | None = None) -> Located:
    """Find a model, and look whether it can be run.

    Args:
        model: A bundle folder, the number or alias of a version (``3``, ``champion``), or a URI:
            ``models:/hyojo@champion``, ``models:/hyojo/3``, ``runs:/<run id>/model``, or that of a folder.
        runtime: One of ``graphs.RUNTIMES``; None: whichever the model has a file for.

    Raises:
        UserError: There is none, it lacks the file that the runtime wants, or that runtime is not installed.
    """
    if runtime == "torch" and importlib.util.find_spec("torch") is None:
        raise UserError(
            "--runtime torch needs torch, which is not installed here: pip install torch, or --runtime onnx."
        )
    named = re.fullmatch(r"@?\w[\w.-]*", model) and not Path(model).exists()
    found = _registered(model) if model.startswith(store.PREFIX) or named else _folder(model)
    there = [name for name, file in RUNTIMES.items() if (found.bundle / file).exists()]
    if not there or runtime not in (None, *there):
        wanted = " and no ".join(RUNTIMES.values()) if runtime is None else RUNTIMES[runtime]
        remedy = f"It can be served with --runtime {' or '.join(there)}. " if there else ""
        raise UserError(
            f"{found.title} holds no {wanted}. {remedy}A registered version holds one file, and the int8 one if there "
            "is one; the bundle folder has every format in export.formats."
        )
    return found


def open_predictor(found: Located, faces: bool | None = None, **config: Any) -> Predict:
    """Load a model that was found, to ask it in this process; a bundle needs no MLflow.

    Args:
        found: From ``locate``.
        faces: Whether to find faces in each picture and classify those; None: as the model was trained.
        config: As in ``predictor.CONFIG``.

    Raises:
        UserError: It cannot be loaded, or cannot find faces.
    """
    if found.path == found.bundle:
        return partial(Predictor(found.bundle, **config).predict_bytes, faces=faces)
    model = open_pyfunc(found, **config)
    known = knows_faces(model)
    if faces and not known:
        raise UserError(
            f"{found.title} was registered by a version that finds no faces. `dvc repro export` and `hyojo register` "
            "make a new one."
        )
    import pandas as pd

    params = None if faces is None or not known else {"faces": faces}
    return lambda pictures: model.predict(pd.DataFrame({COLUMN: pd.Series(pictures, dtype=object)}), params=params)


def open_pyfunc(found: Located, **config: Any) -> "PyFuncModel":
    """Load a model that was found as MLflow's pyfunc: a registered version with its own code.

    Args:
        found: From ``locate``.
        config: As in ``predictor.CONFIG``; a version that was registered before it could be told minds none of it.

    Raises:
        UserError: It cannot be loaded.
    """
    if found.path == found.bundle:
        from pipeline.tracking.pyfunc import open_bundle

        return open_bundle(found.bundle, **config)
    store.configure_mlflow()
    import mlflow.pyfunc
    from mlflow.exceptions import MlflowException

    try:
        return mlflow.pyfunc.load_model(str(found.path), model_config=config)
    except (MlflowException, OSError) as error:
        raise UserError(f"{found.title} can't be loaded: {str(error).splitlines()[0]}") from None


def knows_faces(model: "PyFuncModel") -> bool:
    """Whether a model can be asked to look for faces."""
    return "faces" in str(model.metadata.get_params_schema())


def _folder(model: str) -> Located:
    """A bundle's folder, or that of a model as MLflow keeps it; fetched if a URI says where it is."""
    path = Path(model)
    if ":/" in model and not path.exists():
        fetched = _fetch(model)
        if fetched is None:
            raise UserError(f"{model} can't be fetched: there is nothing. `hyojo register` makes a version.")
        path = fetched
    inside = path / "artifacts" / "bundle"
    if (path / "MLmodel").exists() and (inside / "bundle.json").exists():
        return Located(path.resolve().name, path, inside)
    if not (path / "bundle.json").exists():
        raise UserError(
            f"{model} is no bundle: bundle.json is missing. `dvc repro` makes one in models/bundle; a registered "
            "version is given by its number or as @champion."
        )
    return Located(path.resolve().name, path, path)


def _fetch(uri: str) -> Path | None:
    """The files behind a URI of MLflow's, in a folder that goes with this process; None if it answers of none.

    Raises:
        TrackingError: The store, or that of the files, does not answer.
    """
    _client()
    import mlflow.artifacts

    try:
        with told(uri):
            if not mlflow.artifacts.list_artifacts(artifact_uri=uri):
                return None
            folder = tempfile.mkdtemp(prefix="hyojo-model-")
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            return Path(mlflow.artifacts.download_artifacts(uri, dst_path=folder))
    except TrackingError as error:
        if error.is_missing:
            return None
        raise


def _registered(model: str) -> Located:
    """A version in the registry, downloaded if it isn't on this machine."""
    from pipeline.tracking import decisions, registry  # pandas comes with it, which a bundle need not wait for

    client, project = _client(), store.project_name()
    version = registry.find_version(client, model)
    if version is None:
        there = ", ".join(map(str, sorted(int(each.version) for each in registry.versions(client))))
        if not there:
            raise UserError(
                f"{model}: nothing is registered. `hyojo register` makes a version; --model takes a bundle folder too."
            )
        if model.removeprefix(f"{store.PREFIX}{project}").removeprefix("@") == decisions.CHAMPION:
            raise UserError(f"{project} has no champion. `hyojo promote` makes one of version {there}.")
        raise UserError(f"{model}: there is no such version; {project} has {there}.")
    aliases = decisions.read_aliases(client, version.name) or {}
    champion = aliases.get(decisions.CHAMPION) == int(version.version)
    title = f"{version.name} version {version.version}{' (champion)' if champion else ''}"
    path = _fetch(f"{store.PREFIX}{version.name}/{version.version}")
    if path is None or not (path / "artifacts" / "bundle" / "bundle.json").exists():
        raise UserError(
            f"the files of {title} are not where the registry says. If the project was moved, `hyojo sync --relocate` "
            "mends that; after a clone and `dvc pull`, `hyojo sync` does."
        )
    return Located(title, path, path / "artifacts" / "bundle")


def _client() -> "MlflowClient":
    """A client of the project's store; a tracking server that is named needs no project around."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    return store.open_client(uri) if "://" in uri and not uri.startswith(store.SQLITE) else store.connect()
