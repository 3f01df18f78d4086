"""What ``dvc.yaml`` says of the stages, so that no list of their files is kept anywhere else."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.core.errors import UserError

DVC_FILE, LOCK = Path("dvc.yaml"), Path("dvc.lock")


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


def read_lock() -> dict[str, Any]:
    """Read what DVC recorded of each stage in the working folder; nothing where it recorded none."""
    return parse_lock(LOCK.read_text(encoding="utf-8")) if LOCK.exists() else {}


def parse_lock(text: str) -> dict[str, Any]:
    """Read the stages of a ``dvc.lock``; none from what is no such file, or half of one."""
    try:
        found: dict[str, Any] = YAML(typ="safe", pure=True).load(text)["stages"]
        return found
    except (YAMLError, KeyError, TypeError):
        return {}


def find_source_digest(lock: dict[str, Any]) -> str | None:
    """Find the digest by which DVC knows what was prepared, in the stages of a ``dvc.lock``."""
    stage = lock.get("prepare", {})
    source = stage.get("params", {}).get("params.yaml", {}).get("prepare", {}).get("source")
    return next((dep.get("md5") for dep in stage.get("deps", []) if dep["path"] == source), None)
