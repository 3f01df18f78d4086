"""What ``hyojo watch`` found, on an MLflow run of its own."""

from pipeline.tracking.origin import origin_tags
from pipeline.tracking.runs import log_metrics
from pipeline.tracking.store import connect, experiment_id


def log_watch(figures: dict[str, float], page: str, scores: str, against: str) -> None:
    """Log figures as ``watch/<name>`` and the page, HTML."""
    client = connect()
    about = {"mlflow.source.name": "hyojo watch", "hyojo.watch.scores": scores}
    tags = origin_tags() | about | {"hyojo.watch.against": against}
    run = client.create_run(experiment_id(client), tags=tags, run_name="watch")
    log_metrics(client, run.info.run_id, {f"watch/{name}": value for name, value in figures.items()})
    client.log_text(run.info.run_id, page, "watch/watch.html")
    client.set_terminated(run.info.run_id, "FINISHED")
