"""What ``dvc.yaml`` says of the stages, so that no list of their files is kept anywhere else."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.core.errors import UserError

DVC_FILE = Path("dvc.yaml")


def read_stage(stage: str, dvc_file: Path = DVC_FILE) -> dict[str, Any]:
    """Read a stage's entry.

    Raises:
        UserError: There is no ``dvc.yaml`` in the working folder, or it has no such stage.
    """
    try:
        found: dict[str, Any] = YAML(typ="safe", pure=True).load(dvc_file.read_text(encoding="utf-8"))["stages"][stage]
        return found
    except (FileNotFoundError, KeyError):
        raise UserError(f"{dvc_file} with a stage {stage!r} not found. Run from the project's root.") from None


def find_stage_outs(stage: str, dvc_file: Path = DVC_FILE) -> list[Path]:
    """The files and folders that a stage writes, metrics and plots among them, as ``dvc.yaml`` names them.

    Raises:
        UserError: As ``read_stage``.
    """
    entry = read_stage(stage, dvc_file)
    given = [out for kind in ("outs", "metrics", "plots") for out in entry.get(kind, [])]
    return [Path(out if isinstance(out, str) else next(iter(out))) for out in given]
