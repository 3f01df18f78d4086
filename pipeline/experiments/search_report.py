"""What a search came to: in the terminal, and with Optuna's plots on the MLflow run above its trials."""

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.trial import TrialState

from pipeline.tracking import runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLOTS = ("optimization_history", "param_importances", "parallel_coordinate")


def format_summary(study: optuna.Study, name: str, objective: str, confirmed: list[float]) -> str:
    """The trials, the best of them, how it did under fresh seeds, and what to do next."""
    count = {state: len(study.get_trials(deepcopy=False, states=(state,))) for state in TrialState}
    lines = [
        f"{name}: {count[TrialState.COMPLETE]} trials finished, {count[TrialState.PRUNED]} ended early, "
        f"{count[TrialState.FAIL]} failed"
    ]
    if not count[TrialState.COMPLETE]:
        return lines[0]
    best = study.best_trial
    lines.append(f"best: {name}-{best.number}, {objective} {best.value:.4f}")
    lines += [
        f"  {key}: {value:g}" if isinstance(value, float) else f"  {key}: {value}" for key, value in best.params.items()
    ]
    if confirmed:
        spread = f" ({min(confirmed):.4f} to {max(confirmed):.4f})" if len(confirmed) > 1 else ""
        mean = float(np.mean(confirmed))
        lines.append(
            f"under {len(confirmed)} fresh seeds: {mean:.4f}{spread}; the search's own figure is "
            f"{study.best_value - mean:+.4f} from that, and was the best of {count[TrialState.COMPLETE]}"
        )
    lines.append(f"`dvc exp apply {name}-{best.number}` takes it over; `dvc repro` then scores it on test, once.")
    return "\n".join(lines)


def publish(client: Any, parent_id: str, study: optuna.Study, confirmed: list[float], status: str) -> None:
    """Put figures, Optuna's plots and the table of trials onto the run; ``status`` is how the search ended."""
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    figures = {"search/trials": float(len(study.trials))}
    if finished:
        figures["search/best"] = float(study.best_value)
    if confirmed:
        figures |= {"search/confirmed_mean": float(np.mean(confirmed)), "search/confirmed_n": float(len(confirmed))}
    client.log_text(parent_id, study.trials_dataframe().to_csv(index=False), "search/trials.csv")
    for name, figure in _draw(study).items() if len(finished) > 1 else ():
        client.log_figure(parent_id, figure, f"search/{name}.png", save_kwargs={"bbox_inches": "tight"})
    runs.log_metrics(client, parent_id, figures)
    client.set_terminated(parent_id, status)


def _draw(study: optuna.Study) -> dict[str, "Figure"]:
    """Optuna's own plots by name; those that it cannot draw of so few trials are missing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    found = {}
    for name in PLOTS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its plots being experimental
            try:
                drawn = getattr(optuna.visualization.matplotlib, f"plot_{name}")(study)
            except (RuntimeError, ValueError, ZeroDivisionError):
                continue
        found[name] = np.ravel(drawn)[0].figure
        FigureCanvasAgg(found[name])
        found[name].set_size_inches(8, 5)
    return found
