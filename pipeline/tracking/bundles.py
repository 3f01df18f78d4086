"""Bundles on MLflow runs: the served model, its card and its costs."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.errors import telling
from pipeline.core.paths import BUNDLE
from pipeline.core.stage_files import BundleFile
from pipeline.inference.bundle import Bundle, BundleError
from pipeline.tracking.attempts import attempt
from pipeline.tracking.runs import log_metrics
from pipeline.tracking.store import connect, find_run

if TYPE_CHECKING:
    from mlflow.entities import Run

BUNDLE_TAG = "hyojo.bundle"


def read_bundle(folder: Path | None = None) -> BundleFile:
    """Read the record of a bundle, every file of which is checked.

    Args:
        folder: Where it is; None: where export leaves it.

    Raises:
        UserError: It is not as it was exported.
    """
    with telling(BundleError):
        bundle = Bundle(folder or BUNDLE)
        bundle.check()
    return BundleFile.parse(bundle.content, str(bundle.folder / BundleFile.FILE))


def log_bundle(bundle_dir: Path, pyfunc_dir: Path, metrics: dict[str, float] | None = None) -> None:
    """Put the served model, its card and its costs onto a run, the files once for each bundle digest.

    The first model of a run lies in ``model/``, another one in a folder of its own: a registered version is what
    lies in its folder, and has to stay what it is. ``metrics`` are those that no file holds, such as latency.
    """
    bundle = BundleFile.load(bundle_dir)
    digest = bundle.digest

    def log() -> None:
        client = connect()
        run = find_run(client, bundle.run_id)
        if run is None:
            raise LookupError(f"no run {bundle.run_id}")
        log_metrics(client, run.info.run_id, bundle_costs(bundle) | (metrics or {}))
        known = find_model(run, digest)
        if known and client.list_artifacts(run.info.run_id, known):
            return
        tag, folder = _model_places(digest)[known is None and BUNDLE_TAG in run.data.tags]
        client.log_artifacts(run.info.run_id, str(pyfunc_dir), known or folder)
        client.log_artifact(run.info.run_id, str(bundle_dir / "MODEL_CARD.md"))
        if known is None:
            client.set_tag(run.info.run_id, tag, digest)

    attempt(log, "logging the bundle")


def find_model(run: "Run", digest: str) -> str | None:
    """Find the artifact folder in which a run holds the served model of a bundle; None if it lacks it."""
    return next((folder for tag, folder in _model_places(digest) if run.data.tags.get(tag) == digest), None)


def _model_places(digest: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """Tag and folder of a bundle's model on a run: as its first model, and as a later one."""
    short = digest[:12]
    return (BUNDLE_TAG, "model"), (f"{BUNDLE_TAG}.{short}", f"model-{short}")


def bundle_costs(bundle: BundleFile) -> dict[str, float]:
    """Return the costs that a ``bundle.json`` tells of, by the names of their metrics."""
    cost = bundle.cost
    found = {f"cost/{name}": cost[name] for name in ("parameters", "flops") if name in cost}
    return found | ({"cost/size_mb": cost["size_bytes"] / 1e6} if "size_bytes" in cost else {})
