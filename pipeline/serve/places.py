"""Where a model is that somebody names: a bundle's folder, a registered version, or the files behind a URI."""

import atexit
import re
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from pipeline.core.errors import UserError
from pipeline.inference.bundle import RECORD

SIGNATURE = ".sig"  # ends the name of a signature, which lies beside the folder that is signed
_IN_STORE = ("models:/", "runs:/", "mlflow-artifacts:/")  # URIs that only the store can resolve


class Place(NamedTuple):
    """Where a model is.

    Attributes:
        title: What people call it: ``hyojo version 3 (champion)``, or the name of the bundle's folder. Clients see it,
            so it is no path.
        path: The folder that is loaded: MLflow's model, or the bundle.
        signature: Path or URI of its signature, if it has one.
        run_id: Of a registered version.
        version: Of a registered version, such as ``hyojo/3``.
        runs_code: Whether it comes from where MLflow keeps models, which run code by its design.
    """

    title: str
    path: Path
    signature: str
    run_id: str | None = None
    version: str = ""
    runs_code: bool = False

    @property
    def bundle(self) -> Path:
        """The folder with ``bundle.json``; ``path`` itself for a bundle."""
        return self.path / "artifacts" / "bundle" if (self.path / "MLmodel").exists() else self.path


def find_model(model: str) -> Place:
    """Find a model, given as in ``locate``; raises ``UserError`` if there is none."""
    return _registered(model) if _names_version(model) else _folder(model)


def is_alias(model: str) -> bool:
    """Whether a model, given as in ``locate``, is an alias, which another version can get."""
    last = re.split("[@/]", model.removeprefix("models:/"))[-1]
    return _names_version(model) and not re.fullmatch(r"v?\d+", last)


def look_up(alias: str) -> str:
    """The ``version`` of a ``Place`` that an alias stands for now; nothing is fetched.

    Raises:
        UserError: There is no such alias, or the store does not answer.
    """
    from pipeline.tracking import registry, store

    found = registry.find_version(store.open_reader(), alias)
    if found is None:
        raise UserError(f"{alias} is no version's any more")
    return f"{found.name}/{found.version}"


def _names_version(model: str) -> bool:
    pattern = model.startswith("models:/") or re.fullmatch(r"@?\w[\w.-]*", model)
    return bool(pattern) and not Path(model).exists()


def _folder(model: str) -> Place:
    """A bundle's folder, or that of a model as MLflow keeps it; fetched if a URI says where it is."""
    path, signature = Path(model), f"{Path(model).resolve()}{SIGNATURE}"
    if ":/" in model and not path.exists():
        fetched = fetch_uri(model)
        if fetched is None:
            raise UserError(f"{model} can't be fetched: there is nothing. `hyojo register` makes a version.")
        path, signature = fetched, model.rstrip("/") + SIGNATURE
    place = Place(path.resolve().name, path, signature, runs_code=model.startswith("runs:/") and path != Path(model))
    if not (place.bundle / RECORD).exists():
        raise UserError(
            f"{model} is no bundle: bundle.json is missing. `dvc repro` makes one in models/bundle; a registered "
            "version is given by its number or as @champion."
        )
    return place


def fetch_uri(uri: str, file: bool = False) -> Path | None:
    """As ``runs.fetch``, to where it goes with this process."""
    from pipeline.tracking import store
    from pipeline.tracking.runs import fetch

    if uri.startswith(_IN_STORE):
        store.open_reader()
    else:
        store.configure_mlflow()
    folder = Path(tempfile.mkdtemp(prefix="hyojo-model-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return fetch(uri, folder, file)


def _registered(model: str) -> Place:
    """A version in the registry, downloaded if it isn't on this machine."""
    # Pandas and others come with it, which a bundle's answers need not wait for, nor have at all.
    from pipeline.tracking import decisions, registry, signing, store

    client, project = store.open_reader(), store.project_name()
    version = registry.find_version(client, model)
    if version is None:
        there = ", ".join(map(str, sorted(int(each.version) for each in registry.versions(client))))
        if not there:
            raise UserError(
                f"{model}: nothing is registered. `hyojo register` makes a version; --model takes a bundle folder too."
            )
        if model.removeprefix(f"{store.PREFIX}{project}").removeprefix("@") == decisions.CHAMPION:
            raise UserError(f"{project} has no champion. `hyojo promote` makes one of version {there}.")
        raise UserError(f"{model}: there is no such version; {project} has {there}.")
    aliases = decisions.read_aliases(client, version.name) or {}
    champion = aliases.get(decisions.CHAMPION) == int(version.version)
    title = f"{version.name} version {version.version}{' (champion)' if champion else ''}"
    path = fetch_uri(f"{store.PREFIX}{version.name}/{version.version}")
    if path is None or not (path / "artifacts" / "bundle" / "bundle.json").exists():
        raise UserError(
            f"the files of {title} are not where the registry says. If the project was moved, `hyojo sync --relocate` "
            "mends that; after a clone and `dvc pull`, `hyojo sync` does."
        )
    run = store.find_run(client, version.run_id or "")
    signature = f"{run.info.artifact_uri}/{signing.name_signature(version)}" if run else ""
    number = f"{version.name}/{version.version}"
    return Place(title, path, signature, version.run_id, number, runs_code=True)
