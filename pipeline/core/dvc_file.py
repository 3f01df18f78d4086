"""What ``dvc.yaml`` says of the stages, so that no list of their files is kept anywhere else."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.core.errors import UserError

DVC_FILE = Path("dvc.yaml")


def read_stage(stage: str) -> dict[str, Any]:
    """Read a stage's entry.

    Raises:
        UserError: There is no ``dvc.yaml`` in the working folder, or it has no such stage.
    """
    try:
        found: dict[str, Any] = YAML(typ="safe", pure=True).load(DVC_FILE.read_text(encoding="utf-8"))["stages"][stage]
        return found
    except (FileNotFoundError, KeyError):
        raise UserError(f"{DVC_FILE} with a stage {stage!r} not found. Run from the project's root.") from None


def find_stage_outs(stage: str) -> list[Path]:
    """The files and folders that a stage writes, metrics and plots among them; raises as ``read_stage``."""
    entry = read_stage(stage)
    given = [out for kind in ("outs", "metrics", "plots") for out in entry.get(kind, [])]
    return [Path(out if isinstance(out, str) else next(iter(out))) for out in given]
