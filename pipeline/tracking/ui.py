"""Where a browser finds the project's runs, and how MLflow shows them there: its front page is of language models."""

import json
from typing import TYPE_CHECKING

from pipeline.metrics.table import HEADLINES
from pipeline.tracking.store import experiment_id
from pipeline.tracking.trouble import TrackingError

if TYPE_CHECKING:
    from mlflow import MlflowClient

# What MLflow's button "Share" makes: a tag of the experiment that holds a view, and its name in the address. Tried with
# MLflow 3.17, whose pages take from it what they know.
VIEW_NAME = "hyojo"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_NAME}"
COLUMNS = [  # beside the run's name and when it began
    *(f"metrics.`test/{name}`" for name in HEADLINES),
    "params.`train.backbone`",
    "attributes.`User`",
    "duration",
    "attributes.`Dataset`",
    "attributes.`Models`",
]
SECTIONS = ["train", "val", "Model metrics", "test", "test_clean", "cost", "System metrics"]  # of charts; curves first


def runs_page(client: "MlflowClient", address: str) -> str:
    """Where a browser finds the project's runs, with scores and backbone as columns if the store takes that view."""
    page = client.get_experiment(experiment_id(client))
    view = json.dumps({
        "selectedColumns": COLUMNS,
        "columnOrder": ["attributes.`Run Name`", "runDateAndNestInfo", *COLUMNS],
        "isAccordionReordered": True,
        "compareRunCharts": [],
        "compareRunSections": [
            {"uuid": name, "name": name, "display": True, "isReordered": False, "deleted": False, "isGenerated": True}
            for name in SECTIONS
        ],
    })  # fmt: skip
    shared = f"&viewStateShareKey={VIEW_NAME}"
    try:
        if page.tags.get(VIEW_TAG) != view:
            client.set_experiment_tag(page.experiment_id, VIEW_TAG, view)
    except TrackingError:  # who may only read sees MLflow's own columns
        shared = shared if VIEW_TAG in page.tags else ""
    return f"{address.rstrip('/')}/#/experiments/{page.experiment_id}/runs?workflowType=machine_learning{shared}"
