"""What the extra ``serve`` installs is enough to predict with a registered version."""

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

from builders import ROOT, grey_png, write_bundle
from packaging.requirements import Requirement

from pipeline.tracking import bundles, registry
from pipeline.tracking.pyfunc import build_pyfunc
from pipeline.tracking.store import connect, experiment_id

# Hides what a bare environment with the extra would lack.
RUN = """
import sys
hidden, arguments = set(sys.argv[1].split(",")), sys.argv[2:]

class Bare:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Bare())
from pipeline.cli import main
sys.argv = ['hyojo', *arguments]
main()
"""


def list_installed() -> set[str]:
    """The distributions that the extra brings along, by their normal names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted, found = [*project["dependencies"], *project["optional-dependencies"]["serve"]], set()
    while wanted:
        asked = Requirement(wanted.pop())
        name = asked.name.lower().replace("_", "-").replace(".", "-")
        if name in found or (asked.marker and not asked.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        try:
            wanted += importlib.metadata.requires(asked.name) or []
        except importlib.metadata.PackageNotFoundError:
            found.remove(name)
    return found


def test_a_version_answers_where_the_extra_alone_is_installed(project: Path) -> None:
    folder = write_bundle(Path("models/bundle"), run_id=connect().create_run(experiment_id(connect())).info.run_id)
    build_pyfunc(folder, Path("pyfunc"))
    bundles.log_bundle(folder, Path("pyfunc"))
    registry.register(folder)
    (project / "face.png").write_bytes(grey_png(250))
    installed, hidden = list_installed(), set()
    for module, names in importlib.metadata.packages_distributions().items():
        if not {"hyojo", "mlflow", *installed} & {name.lower().replace("_", "-").replace(".", "-") for name in names}:
            hidden.add(module)
    assert {"torch", "dvc", "sklearn", "matplotlib"} <= hidden
    command = [sys.executable, "-c", RUN, ",".join(hidden), "predict", "--model", "models:/hyojo@champion", "face.png"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "face.png" in done.stdout
