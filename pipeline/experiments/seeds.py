"""Train a setting under several seeds: ``hyojo seeds 5``. Mean, standard deviation and interval of each score.

Each seed is a DVC experiment and an MLflow run; a parent run ties these together. DVC's record says what is done, so
an interrupted family goes on, and what changed is trained anew.
"""

import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ruamel.yaml import YAML

from pipeline.core.errors import UserError
from pipeline.core.params import Params, flatten
from pipeline.core.params_file import apply_overrides, parse_params, read_text
from pipeline.core.paths import PARAMS
from pipeline.core.project import project_root
from pipeline.core.signals import StopRequest, stop_requests
from pipeline.metrics.seed_anova import MeanInterval, mean_interval
from pipeline.reporting import plots
from pipeline.tracking import dvc_experiments, families, runs
from pipeline.tracking.dvc_experiments import Experiment
from pipeline.tracking.families import Member
from pipeline.tracking.store import connect, find_run

# Figure -> its place in metrics.json, and how it is printed.
HEADLINES = {
    "val_accuracy": (("val", "accuracy"), "val accuracy"),
    "val_macro_f1": (("val", "macro_f1"), "val macro-F1"),
    "test_accuracy": (("test", "accuracy"), "test accuracy"),
    "test_macro_f1": (("test", "macro_f1"), "test macro-F1"),
    "test_clean_accuracy": (("test_clean", "accuracy"), "test accuracy, no twins"),
    "test_nll": (("test", "nll"), "test NLL"),
    "test_ece": (("test", "ece"), "test ECE"),
}
TRAIN_TIME = "train_time_s"
STAGES = ("prepare", "train", "evaluate")
# More would not fit the tag that names the members.
MOST_SEEDS = 100
FREE = {"train": {"seed", "device", "devices"}}
Runner = Callable[[Path, str, list[str], dict[str, str], StopRequest], int]


@dataclass(frozen=True)
class Setting:
    """What the seeds of a family share.

    Attributes:
        params: All params; the seed in them says nothing.
        overrides: How ``dvc exp run -S`` gets there from ``params.yaml``.
        name: Of the family.
    """

    params: Params
    overrides: list[str]
    name: str

    @property
    def key(self) -> str:
        """Digest of what decides a seed's result, but for seed, code and data."""
        return hashlib.sha256(json.dumps(_decisive(self.params), sort_keys=True).encode()).hexdigest()

    def experiment(self, seed: int) -> str:
        """DVC's name of a seed."""
        return f"{self.name}-{seed}"


def read_setting(overrides: list[str], name: str | None) -> Setting:
    """The setting that ``params.yaml`` and ``key=value`` pairs give.

    Raises:
        UserError: A pair or value that is not valid, or a name that git takes for no ref.
    """
    text = read_text(PARAMS)
    before = YAML(typ="safe").load(text)
    changed = apply_overrides(text, overrides)
    params = parse_params(changed, PARAMS)
    hydra = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key.strip() == "train.seed":
            raise UserError("--set train.seed: the seeds are what varies; --start says which is the first.")
        parsed = YAML(typ="safe", pure=True).load(value)
        former: Any = before
        for part in key.strip().split("."):
            former = former.get(part) if isinstance(former, dict) else None
        if isinstance(parsed, dict) and former:
            raise UserError(
                f"--set {override}: DVC would add this to what is there. "
                f"`hyojo use {PARAMS} {key.strip()}=...` replaces it."
            )
        hydra.append(f"++{key.strip()}={hydra_value(parsed)}")
    setting = Setting(params, hydra, name or "")
    if name is not None and not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,60}", name):
        raise UserError(
            f"--name {name!r}: a name is a letter and then letters, digits, hyphens and underscores."
        )
    return setting if name else Setting(params, hydra, f"seeds-{setting.key[:7]}")


def hydra_value(value: Any) -> str:
    """A value in the grammar of ``dvc exp run -S``."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{hydra_value(str(k))}:{hydra_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(hydra_value, value)) + "]"
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    # A backslash counts only before a quote, and at the end.
    text = re.sub(r"(\\*)'", lambda found: found[1] * 2 + "\\'", str(value))
    return "'" + re.sub(r"(\\+)$", lambda found: found[1] * 2, text) + "'"


def train_seeds(
    count: int,
    start: int = 0,
    overrides: list[str] | None = None,
    name: str | None = None,
    runner: Runner = dvc_experiments.run_experiment,
) -> int:
    """Train and evaluate seeds ``start`` to ``start + count - 1``, summarise the family, print the summary.

    Args:
        count: How many.
        start: The first.
        overrides: ``key=value`` pairs on top of ``params.yaml``.
        name: Of the family; from the params if None.
        runner: What runs an experiment.

    Returns:
        Exit status: 0, 1 if a seed failed, 128 + signal if stopped.

    Raises:
        UserError: What would let all seeds fail; before the first is trained.
    """
    if not 1 <= count <= MOST_SEEDS or start < 0:
        raise UserError(f"seeds wants 1 to {MOST_SEEDS} seeds and a --start of 0 or more")
    root = project_root()
    dvc_experiments.check_repository(root)
    setting = read_setting(overrides or [], name)
    dvc_experiments.check_source(root, setting.params.prepare.source)
    client = runs.attempt(connect, "opening the store", "running `hyojo seeds` again")
    shared = flatten(setting.params.prepare, "prepare") | flatten(setting.params.train, "train")
    shared.pop("train.seed")
    parent = client and families.open_family(client, setting.name, setting.key, shared)
    variables = {families.PARENT_VARIABLE: parent.info.run_id} if parent else {}
    failed: list[int] = []
    try:
        with stop_requests() as stop:
            for seed in range(start, start + count):
                if not _run_seed(root, setting, seed, variables, runner, stop):
                    failed.append(seed)
                if stop:
                    break
    except BaseException:
        if parent:
            runs.attempt(
                lambda: client.set_terminated(parent.info.run_id, "FAILED"), "ending the run", "the next run"
            )
        raise
    found = find_members(root, setting, client)
    if parent:
        status = "KILLED" if stop else "FAILED" if failed else "FINISHED"
        runs.attempt(
            lambda: _publish(client, parent.info.run_id, setting, found, status), "the summary",
            "running `hyojo seeds` again",
        )  # fmt: skip
    print(summary_text(setting, found))
    if stop:
        print("Stopped; the same command goes on from here.", file=sys.stderr)
        return 128 + stop.signal
    if failed:
        seeds = ", ".join(map(str, failed))
        print(f"warning: no result for seed {seeds}; the same command tries again.", file=sys.stderr)
    return int(bool(failed))


def _run_seed(
    root: Path, setting: Setting, seed: int, variables: dict[str, str], runner: Runner,
    stop: StopRequest,
) -> bool:  # fmt: skip
    """Train and evaluate one seed, unless that was done; whether there is a result."""
    name = setting.experiment(seed)
    former = dvc_experiments.find_experiments(root).get(name)
    if former and is_current(former, setting, seed, root, {}):
        print(f"{name} is there already.", flush=True)
        return True
    if former:  # DVC refuses a name twice; what it computed stays in the cache
        dvc_experiments.remove_experiment(root, name)
    status = runner(root, name, [*setting.overrides, f"++train.seed={seed}"], variables, stop)
    made = dvc_experiments.find_experiments(root).get(name)
    return status == 0 and made is not None and bool(made.text("reports/metrics.json"))


def is_current(
    experiment: Experiment, setting: Setting, seed: int, root: Path, digests: dict[str, str | None]
) -> bool:
    """Whether an experiment is what these params, code and data give, by DVC's record of it.

    Args:
        experiment: A finished one.
        setting: What is wanted.
        seed: Of which seed.
        root: The project's.
        digests: MD5 of deps by path, where known; those of other files are added, and a folder that is not known
            makes an experiment one to run again, which DVC does at no cost if nothing changed.
    """
    lock = experiment.lock()
    if any(stage not in lock for stage in STAGES) or not experiment.text("reports/metrics.json"):
        return False
    params = {stage: lock[stage]["params"][PARAMS][stage] for stage in STAGES}
    try:
        known = setting.params.model_validate({**setting.params.model_dump(), **params})
    except ValueError:  # of an older version, with other keys
        return False
    if known.train.seed != seed or _decisive(known) != _decisive(setting.params):
        return False
    made = {out["path"] for stage in STAGES for out in lock[stage]["outs"]}
    for stage in STAGES:
        for dep in lock[stage]["deps"]:
            path = dep["path"]
            if path in made:
                continue
            if path not in digests:
                digests[path] = dvc_experiments.file_digest(root / path) if (root / path).is_file() else None
            if digests[path] != dep.get("md5"):
                return False
    return True


def find_members(root: Path, setting: Setting, client: Any) -> list[Member]:
    """The family's seeds that are of today's params, code and data, by seed; others are told and left out."""
    digests: dict[str, str | None] = {}
    pattern = re.compile(re.escape(setting.name) + r"-(0|[1-9]\d*)")
    named = {
        int(match[1]): experiment
        for name, experiment in dvc_experiments.find_experiments(root).items()
        if (match := pattern.fullmatch(name))
    }
    # A folder's digest is DVC's to know: the newest record has it.
    for experiment in sorted(named.values(), key=lambda one: _committed(root, one)):
        for dep in experiment.lock().get("prepare", {}).get("deps", []):
            if (root / dep["path"]).is_dir():
                digests[dep["path"]] = dep.get("md5")
    found, stale = [], []
    for seed, experiment in sorted(named.items()):
        if is_current(experiment, setting, seed, root, digests):
            found.append(_member(experiment, seed, client))
        else:
            stale.append(seed)
    if stale:
        seeds = ", ".join(map(str, stale))
        print(f"left out, since code or data changed after it was trained: seed {seeds}", file=sys.stderr)
    return found


def _committed(root: Path, experiment: Experiment) -> int:
    """When an experiment was recorded, s."""
    return int(dvc_experiments.git(root, "show", "-s", "--format=%ct", experiment.commit) or 0)


def _member(experiment: Experiment, seed: int, client: Any) -> Member:
    """An experiment's figures; its run is rebuilt if the store lacks it."""
    result = json.loads(experiment.text("reports/metrics.json"))
    figures = {
        name: float(result[part][score])
        for name, ((part, score), _) in HEADLINES.items()
        if result.get(part, {}).get(score) is not None
    }
    member = Member(seed, experiment.name, result["run_id"], figures)

    def look_up() -> None:
        run = find_run(client, member.run_id)
        if run is None:
            dvc_experiments.restore_run(experiment)
            run = find_run(client, member.run_id)
        if run and "train/time_s" in run.data.metrics:
            figures[TRAIN_TIME] = run.data.metrics["train/time_s"]

    if client:
        runs.attempt(look_up, f"the run of {experiment.name}", "running `hyojo seeds` again")
    return member


def summarise(found: list[Member]) -> dict[str, MeanInterval]:
    """Mean, standard deviation and 95 % t interval of each figure that every member has."""
    names = [name for name in (*HEADLINES, TRAIN_TIME) if found and all(name in m.figures for m in found)]
    return {name: mean_interval(np.array([member.figures[name] for member in found])) for name in names}


def summary_text(setting: Setting, found: list[Member]) -> str:
    """The summary as a table for the terminal."""
    lines = [f"{setting.name}: {len(found)} seeds ({', '.join(str(member.seed) for member in found)})"]
    labels = {name: label for name, (_, label) in HEADLINES.items()} | {TRAIN_TIME: "training time, s"}
    if summary := summarise(found):
        lines.append(f"  {'':24} {'mean':>8} {'sd':>8}   95 % t interval")
    for name, s in summary.items():
        digits = 1 if name == TRAIN_TIME else 4
        spread = (
            f"{s.sd:8.{digits}f}   {s.low:.{digits}f} to {s.high:.{digits}f}" if s.count > 1 else "one seed"
        )
        lines.append(f"  {labels[name]:24} {s.mean:8.{digits}f} {spread}")
    return "\n".join(lines)


def _publish(client: Any, parent_id: str, setting: Setting, found: list[Member], status: str) -> None:
    """Bring the parent run in line with the family's members."""
    summary = summarise(found)
    values = {"seeds/n": float(len(found))}
    for name, figure in summary.items():
        for part in ("mean", "sd", "low", "high") if figure.count > 1 else ("mean",):
            values[f"seeds/{name}_{part}"] = getattr(figure, part)
    rows = [{"seed": m.seed, "experiment": m.experiment, "run_id": m.run_id} | m.figures for m in found]
    table = "\n".join(
        f"| {HEADLINES[name][1]} | {s.mean:.4f} | {s.sd:.4f} | {s.low:.4f} to {s.high:.4f} |"
        for name, s in summary.items()
        if name in HEADLINES and s.count > 1
    )
    sets = "".join(f" --set {override.removeprefix('++')}" for override in setting.overrides)
    note = (
        f"**{len(found)} seeds** of one setting; the runs below this one are the seeds.\n\n"
        f"| | mean | sd | 95 % t interval |\n|---|---|---|---|\n{table}\n\n"
        f"Again: `hyojo seeds {len(found)}{sets} --name {setting.name}`. "
        f"One of them: `dvc exp apply {setting.name}-0`."
    )
    with tempfile.TemporaryDirectory(prefix="hyojo-seeds-") as scratch:
        files = [Path(scratch) / "seeds.csv"]
        pd.DataFrame(rows).to_csv(files[0], index=False)
        if summary:
            files.append(Path(scratch) / "seeds.png")
            shown = ("val_accuracy", "test_accuracy", "test_clean_accuracy", "test_macro_f1")
            plots.save(
                plots.seed_scores(
                    {HEADLINES[n][1]: [m.figures[n] for m in found] for n in shown if n in summary},
                    {
                        HEADLINES[n][1]: (summary[n].mean, summary[n].low, summary[n].high)
                        for n in shown
                        if n in summary
                    },
                    f"{setting.name}: {len(found)} seeds, mean and 95 % t interval",
                ),
                files[1],
            )
        families.publish(client, parent_id, found, values, files, note, status)


def _decisive(params: Params) -> dict[str, Any]:
    """What decides a result, but for the seed."""
    return {stage: getattr(params, stage).model_dump(exclude=FREE.get(stage)) for stage in STAGES}
