"""What training leaves: ``models/train`` with weights, sidecar, history, curves and ``run.json``."""

import pandas as pd

from pipeline.core.files import replacing, write_csv
from pipeline.core.paths import TRAINED
from pipeline.core.stage_files import RunFile
from pipeline.models import costs, model
from pipeline.models.weights import save_weights
from pipeline.reporting import plots, training_figures
from pipeline.train.job import Job, Session


def write_outs(job: Job, session: Session) -> str:
    """Write ``models/train`` at one stroke; returns the digest of the weights."""
    with replacing(TRAINED) as folder:
        folder.mkdir()
        best = model.build_model(job.spec)
        best.load_state_dict(session.best_state)
        training = {"best_epoch": session.best_epoch, "params": job.flat_params}
        digest = save_weights(folder, best, job.spec, job.prepared.digest, **training)
        history = pd.DataFrame(session.progress.history)
        write_csv(folder / "history.csv", history)
        plots.save(training_figures.training_curves(history, session.best_epoch), folder / "curves.png")
        RunFile(run_id=session.run_id, job=job.key, formats=session.formats).save(folder)
    return digest


def collect_figures(job: Job, session: Session) -> dict[str, float]:
    """Collect what training took, and what an answer of the net takes, as metrics of the run."""
    classifier = model.Classifier(model.build_model(job.spec), job.spec).eval()
    found = costs.count_costs(classifier, job.prepared.img_size, job.prepared.channels)
    figures = {"train/time_s": session.train_s, "train/best_epoch": session.best_epoch}
    return figures | {f"cost/{name}": value for name, value in found.items()}
