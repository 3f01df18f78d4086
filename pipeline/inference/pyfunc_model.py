"""What MLflow runs to load a logged model (models from code): the folder that ships beside it, as a ``PythonModel``.

MLflow runs this file under another name each time. That name becomes the package of the modules in ``code/``, so that
of two versions in one process each answers with its own code: by a name on ``sys.path`` the second would get the
modules of the first.
"""

import os
from importlib import import_module
from pathlib import Path
from typing import Any

import mlflow

# ONNX Runtime reports to its vendor, from its import on, unless this stands there before.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
__path__ = [str(Path(__file__).parent / "code" / "hyojo_inference")]
_predictor = import_module(f"{__name__}.predictor")


class ExpressionModel(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined, misc]
    """The pyfunc: column ``image`` in, one row of ``label``, ``probabilities``, ``error`` for each out."""

    # MLflow would have predict annotated, to check requests itself, and raise; this also keeps it from asking.
    _skip_type_hint_validation = True

    def load_context(self, context: Any) -> None:
        """Load the bundle that was logged with the model."""
        given = {name: (context.model_config or {}).get(name) for name in _predictor.CONFIG}
        # MLflow runs this file, so the folder beside it is trusted already.
        self.predictor = _predictor.Predictor(context.artifacts["bundle"], **given, trust=True)

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Answer a request; no input raises."""
        return self.predictor.answer(model_input, params)


mlflow.models.set_model(ExpressionModel())
