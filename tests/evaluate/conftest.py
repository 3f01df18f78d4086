"""Fixtures over ``evaluation``."""

from pathlib import Path

import pytest
from evaluation import Workspace

from pipeline.core.stage_files import RunFile
from pipeline.reporting import plots
from pipeline.tracking import evaluations


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Tiny data and net, with tracking replaced by a record of its calls."""
    monkeypatch.chdir(tmp_path)
    space = Workspace()

    def claim_run(key: str) -> str:
        space.keys.append(key)
        return RunFile.load().run_id

    def log_evaluation(
        run_id: str, values: dict, files: dict[str, list[Path]], tags: dict, params: dict, audit: dict
    ) -> None:
        assert all(path.is_file() for paths in files.values() for path in paths)
        space.logged.append((run_id, values, files, tags, params))

    monkeypatch.setattr(evaluations, "claim_run", claim_run)
    monkeypatch.setattr(evaluations, "log_evaluation", log_evaluation)
    return space


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are empty files: drawing them is most of the stage's time here."""
    monkeypatch.setattr(plots, "save", lambda figure, path: path.write_bytes(b""))
