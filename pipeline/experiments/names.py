"""Which contender a name stands for: versions, runs, DVC's experiments and revisions of git are looked through."""

import json
import re
from typing import TYPE_CHECKING

from pipeline.core.errors import UserError
from pipeline.core.project import project_root
from pipeline.experiments.contenders import Contender, read_run, read_version, read_workspace
from pipeline.tracking import dvc_experiments, registry
from pipeline.tracking.inputs import EVALUATION_TAG
from pipeline.tracking.store import PREFIX, connect, experiment_id, find_run, project_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

WORKSPACE = "."
MIN_PREFIX = 4
_HEX = re.compile("[0-9a-f]+")


def find_contender(name: str) -> Contender:
    """Find what a name stands for.

    ``.`` (what stands in ``reports/``), a registry version (``3``, ``v3``), an alias (``champion``, ``@champion``), a
    ``models:/`` URI, a run's id, a unique beginning of one, or its name, a DVC experiment, or a git revision with
    ``reports/evaluation.json`` among its outs. Looked for in this order.

    Raises:
        UserError: Nothing, or several things, of that name; or a run without predictions.
    """
    if name == WORKSPACE:
        return read_workspace()
    client = connect()
    if (version := _find_version(client, name)) is not None:
        return read_version(client, version)
    run = find_run(client, name) if _HEX.fullmatch(name) and len(name) == 32 else None
    run = run or _only(name, _runs_beginning_with(client, name))
    run = run or _find_revision(client, name) or _only(name, _runs_named(client, name))
    if run is None:
        raise UserError(_nothing_found(client, name))
    return read_run(client, run)


def _find_version(client: "MlflowClient", name: str) -> "ModelVersion | None":
    """The registered version that a number, alias or URI stands for; what can be nothing else has to be there."""
    found, model = registry.find_version(client, name), project_name()
    if name.startswith(PREFIX) and not re.fullmatch(f"{PREFIX}{model}[@/].+", name):
        raise UserError(f"{name} is none of models:/{model}@ALIAS and models:/{model}/VERSION")
    if found is None and re.match(rf"@|v\d+$|{PREFIX}", name):
        raise UserError(_nothing_found(client, name))
    return found


def _runs_beginning_with(client: "MlflowClient", prefix: str) -> "list[Run]":
    if len(prefix) < MIN_PREFIX or not _HEX.fullmatch(prefix):
        return []
    return list(client.search_runs([experiment_id(client)], f"attributes.run_id LIKE '{prefix}%'"))


def _runs_named(client: "MlflowClient", name: str) -> "list[Run]":
    """Runs that are called so, or that DVC made in an experiment of that name."""
    if "'" in name:
        return []
    fields = ("attributes.run_name", "tags.`hyojo.dvc.exp_name`")
    return [run for field in fields for run in client.search_runs([experiment_id(client)], f"{field} = '{name}'")]


def _only(name: str, runs: "list[Run]") -> "Run | None":
    """The one of some runs that was evaluated, or the only one at all; None of none."""
    runs = list({run.info.run_id: run for run in runs}.values())
    evaluated = [run for run in runs if EVALUATION_TAG in run.data.tags] or runs
    if len(evaluated) > 1:
        lines = [f"  {run.info.run_id}  {run.info.run_name}" for run in evaluated[:10]]
        more = [f"  and {len(evaluated) - 10} more"] if len(evaluated) > 10 else []
        raise UserError("\n".join([f"{name} stands for several runs; give the id of one:", *lines, *more]))
    return evaluated[0] if evaluated else None


def _find_revision(client: "MlflowClient", name: str) -> "Run | None":
    """The run that ``reports/evaluation.json`` names in a DVC experiment or another revision of git."""
    root = project_root()
    if name.startswith("-"):  # an option of git
        return None
    # Of another name git may know nothing.
    found = dvc_experiments.find_experiments(root).get(name) or dvc_experiments.Experiment(name, name, root)
    try:
        run_id = json.loads(found.read(dvc_experiments.EVALUATION) or "{}").get("run_id")
    except ValueError:
        return None
    run = find_run(client, run_id) if run_id else None
    if run_id and run is None:
        raise UserError(
            f"{name} belongs to run {run_id}, which this store lacks. `dvc exp apply {name}` or a checkout, and "
            "`hyojo sync`, rebuild it."
        )
    return run


def _nothing_found(client: "MlflowClient", name: str) -> str:
    """That nothing has this name, and which names there are."""
    numbers = sorted(int(version.version) for version in registry.versions(client))
    known = {"Versions": numbers, "Experiments": sorted(dvc_experiments.find_experiments(project_root()))}
    there = "".join(f" {kind}: {', '.join(map(str, names))}." for kind, names in known.items() if names)
    return (
        f"there is no version, alias, run, experiment or git revision {name!r} here.{there} `make ui` shows the runs; "
        "`.` is what stands in reports/."
    )
