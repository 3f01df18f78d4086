"""Hyojo: labelled face images in, a tracked and served expression classifier out."""

import os

# ONNX Runtime reports to its vendor, from its import on, unless this stands there before; so does a registered model.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
