"""Where stages leave what they hand on, relative to the folder that DVC runs them in."""

from pathlib import Path

PARAMS = Path("params.yaml")
CORRECTIONS = Path("data/corrections.csv")
PREPARED = Path("data/prepared")
TRAINED = Path("models/train")
REPORTS = Path("reports")
BUNDLE = Path("models/bundle")
