"""What several seeds of one setting came to: mean, standard deviation and interval of each score."""

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.experiments.seed_setting import Setting
from pipeline.metrics.seed_anova import MeanInterval, mean_interval
from pipeline.metrics.table import METRICS
from pipeline.reporting import plots, training_figures
from pipeline.tracking import families, runs
from pipeline.tracking.families import Member

# Part of ``metrics.json`` -> how its scores are called. Of test all scores are summarised, else those of the headline.
PARTS = {"val": "val {}", "test": "test {}", "test_clean": "test {}, no twins"}
# Name of a figure -> its part of ``metrics.json`` and its score there.
FIGURES = {
    f"{part}_{name}": (part, name)
    for part in PARTS
    for name, metric in METRICS.items()
    if part == "test" or metric.headline
}
TRAIN_TIME = "train_time_s"
TITLES = {name: PARTS[part].format(METRICS[score].title) for name, (part, score) in FIGURES.items()}
TITLES[TRAIN_TIME] = "training time, s"


def read_figures(result: dict[str, Any]) -> dict[str, float]:
    """Return those of ``FIGURES`` that the content of a ``metrics.json`` has."""
    return {
        name: float(result[part][score]) for name, (part, score) in FIGURES.items() if score in result.get(part, {})
    }


def summarise(found: list[Member]) -> dict[str, MeanInterval]:
    """Return mean, standard deviation and 95 % t interval of each figure that every member has."""
    names = [name for name in TITLES if found and all(name in member.figures for member in found)]
    highest = {name: METRICS[score].highest for name, (_, score) in FIGURES.items()} | {TRAIN_TIME: math.inf}
    return {n: mean_interval(np.array([member.figures[n] for member in found]), highest=highest[n]) for n in names}


def format_summary(setting: Setting, found: list[Member]) -> str:
    """Return the summary as a table for the terminal."""
    lines = [f"{setting.name}: {len(found)} seeds ({', '.join(str(member.seed) for member in found)})"]
    if summary := summarise(found):
        lines.append(f"  {'':26} {'mean':>8} {'sd':>8}   95 % t interval")
    for name, s in summary.items():
        digits = 1 if name == TRAIN_TIME else 4
        spread = f"{s.sd:8.{digits}f}   {s.low:.{digits}f} to {s.high:.{digits}f}" if s.count > 1 else "one seed"
        lines.append(f"  {TITLES[name]:26} {s.mean:8.{digits}f} {spread}")
    return "\n".join(lines)


def publish(client: Any, parent_id: str, setting: Setting, found: list[Member], status: str) -> None:
    """Bring the parent run in line with the family's members; ``status`` is how it ended."""
    summary = summarise(found)
    values = {"seeds/n": float(len(found))}
    for name, spread in summary.items():
        for part in ("mean", "sd", "low", "high") if spread.count > 1 else ("mean",):
            values[f"seeds/{name}_{part}"] = getattr(spread, part)
    rows = [{"seed": m.seed, "experiment": m.experiment, "run_id": m.run_id} | m.figures for m in found]
    with tempfile.TemporaryDirectory(prefix="hyojo-seeds-") as scratch:
        files = [Path(scratch) / "seeds.csv"]
        pd.DataFrame(rows).to_csv(files[0], index=False)
        if summary:
            files.append(Path(scratch) / "seeds.png")
            shown = [name for name in summary if name in FIGURES and METRICS[FIGURES[name][1]].headline]
            figure = training_figures.seed_scores(
                {TITLES[name]: [member.figures[name] for member in found] for name in shown},
                {TITLES[name]: (summary[name].mean, summary[name].low, summary[name].high) for name in shown},
                f"{setting.name}: {len(found)} seeds, mean and 95 % t interval",
            )
            plots.save(figure, files[1])
        families.publish(client, parent_id, found, files, _note(setting, summary, len(found)))
    runs.log_metrics(client, parent_id, values)
    client.set_terminated(parent_id, status)


def _note(setting: Setting, summary: dict[str, MeanInterval], count: int) -> str:
    """The parent run's description, Markdown."""
    table = "\n".join(
        f"| {TITLES[name]} | {s.mean:.4f} | {s.sd:.4f} | {s.low:.4f} to {s.high:.4f} |"
        for name, s in summary.items()
        if name in FIGURES and s.count > 1
    )
    sets = "".join(f" --set {override.removeprefix('++')}" for override in setting.overrides)
    return (
        f"**{count} seeds** of one setting; the runs below this one are the seeds.\n\n"
        f"| | mean | sd | 95 % t interval |\n|---|---|---|---|\n{table}\n\n"
        f"Again: `hyojo seeds {count}{sets} --name {setting.name}`. "
        f"One of them: `dvc exp apply {setting.name}-0`."
    )
