"""What ``hyojo watch`` found, on an MLflow run of its own."""

from pathlib import Path

from pipeline.tracking.origin import origin_tags
from pipeline.tracking.runs import log_files, log_metrics
from pipeline.tracking.store import connect, experiment_id


def log_watch(figures: dict[str, float], page: Path, scores: str, against: str) -> str:
    """Log figures as ``watch/<name>`` and the page; returns the run's id."""
    client = connect()
    about = {"mlflow.source.name": "hyojo watch", "hyojo.watch.scores": scores}
    tags = origin_tags() | about | {"hyojo.watch.against": against}
    run = client.create_run(experiment_id(client), tags=tags, run_name="watch")
    log_metrics(client, run.info.run_id, {f"watch/{name}": value for name, value in figures.items()})
    log_files(client, run.info.run_id, {"watch": [page]})
    client.set_terminated(run.info.run_id, "FINISHED")
    return str(run.info.run_id)
