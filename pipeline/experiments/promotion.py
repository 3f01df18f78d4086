"""``hyojo promote``: the gate between a registered version and the alias ``champion``.

Everything that the gate looked at, its decision and who asked for it are tags of the version: ``gate.*`` and
``hyojo.decision``. Limits stand below ``promote`` in ``params.yaml``.
"""

import tempfile
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.errors import UserError
from pipeline.core.params import PromoteParams
from pipeline.core.params_file import load_params
from pipeline.core.project import project_lock
from pipeline.experiments import contenders, gate
from pipeline.inference import graphs, latency
from pipeline.tracking import registry
from pipeline.tracking.origin import find_user
from pipeline.tracking.registry import DECISION_TAG, MODEL, PARITY_TAG, MovedError, Outcome
from pipeline.tracking.store import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

GATE = "gate."


def promote(version: int | None = None, force: bool = False, reason: str | None = None) -> Outcome:
    """Make a version champion if the gate lets it through.

    Args:
        version: The latest if None.
        force: Promote whatever the gate says; recorded, as the gate's findings are.
        reason: Why; goes with ``force``.

    Returns:
        The outcome; ``refused`` if the gate said no, or another version became champion meanwhile.

    Raises:
        UserError: No such version, or ``force`` and ``reason`` not given together.
    """
    reason = (reason or "").strip()
    if force != bool(reason):
        raise UserError("--force and --reason TEXT go together: what is overruled must be accounted for.")
    client = connect()
    with project_lock("registry"):
        known = {int(item.version): item for item in registry.versions(client)}
        if not known:
            raise UserError("no version is registered. Run `hyojo register` first.")
        number = max(known) if version is None else version
        if number not in known:
            raise UserError(f"{MODEL} has no version {number}; it has {', '.join(map(str, sorted(known)))}.")
        champion = registry.champion_number(client)
        if champion == number:
            return Outcome(number, False, f"Version {number} is champion already.")
        if champion is None:
            verdict, found = gate.Verdict(), "there was no champion"
        else:
            verdict = _judge(client, known[number], known[champion], load_params().promote)
            found = _summary(verdict, champion)
        if not verdict.passed and not force:
            _record(client, number, verdict, f"refused: {'; '.join(verdict.reasons)}", champion)
            return Outcome(number, False, f"Refused: {'; '.join(verdict.reasons)}.{_told(verdict)}", refused=True)
        try:
            registry.crown(client, number, champion)
        except MovedError as moved:
            text = f"version {moved.champion} became champion while version {number} was held against {champion}"
            _record(client, number, verdict, f"void: {text}", champion)
            return Outcome(number, False, f"Not promoted: {text}. Run `hyojo promote {number}` again.", refused=True)
        if not verdict.passed:
            found = f"forced by {find_user()}: {reason} (against: {'; '.join(verdict.reasons)})"
        _record(client, number, verdict, f"champion: {found}", champion, forced=reason if force else None)
        text = f"Version {number} is champion: {found}.{_told(verdict)} Restart servers to load it."
        return Outcome(number, True, text)


def measure(client: "MlflowClient", versions: "list[ModelVersion]") -> list[tuple[float | None, float | None]] | None:
    """Load the served graphs of versions into this process and time them in turns.

    Returns:
        Milliseconds of an answer and megabytes of the file, for each; None if not all of them can be loaded here.
    """
    models, sizes = [], []
    with tempfile.TemporaryDirectory(prefix="hyojo-promote-") as scratch:
        try:
            for version in versions:
                folder = registry.fetch_bundle(client, version, Path(scratch) / str(version.version))
                sizes.append(graphs.served_file(folder)[1].stat().st_size / 1e6)
                models.append(latency.open_model(folder))
            return list(zip(latency.measure_ms(models), sizes))
        except Exception:  # gone artifacts, a runtime that is not installed, an operator it lacks
            return None


def _judge(
    client: "MlflowClient", candidate: "ModelVersion", champion: "ModelVersion", params: PromoteParams
) -> gate.Verdict:
    """The gate's verdict on what this store knows of both; what cannot be read is a reason to refuse."""
    try:
        sides = [contenders.read_version(client, version) for version in (candidate, champion)]
    except UserError as error:
        return gate.Verdict(reasons=[f"the two cannot be compared: {str(error).rstrip('.')}"])
    both = [candidate, champion]
    measured = measure(client, both)
    found = measured or [tuple(_recorded(v, name) for name in ("latency_ms", "size_mb")) for v in both]
    evidence = [
        gate.Evidence(
            **{item.name: getattr(side, item.name) for item in fields(gate.Evidence) if hasattr(side, item.name)},
            parity=version.tags.get(PARITY_TAG) == "passed",
            latency_ms=latency_ms,
            size_mb=size_mb,
        )
        for side, version, (latency_ms, size_mb) in zip(sides, both, found)
    ]
    verdict = gate.judge(evidence[0], evidence[1], params)
    verdict.figures["costs"] = "measured" if measured else "recorded"
    for name, side in zip(("latency_ms", "champion_latency_ms"), evidence):
        if side.latency_ms:
            verdict.figures[name] = side.latency_ms
    return verdict


def _recorded(version: "ModelVersion", name: str) -> float | None:
    """A cost that export recorded."""
    value = version.tags.get(f"cost.{name}")
    return None if value is None else float(value)


def _summary(verdict: gate.Verdict, champion: int) -> str:
    """What was found, in a line."""
    figures = verdict.figures
    if "difference" not in figures:
        return "; ".join(verdict.reasons)
    return (
        f"test accuracy {figures['accuracy']:.4f} against {figures['champion_accuracy']:.4f} of version {champion} "
        f"on {figures['images']:,} images (difference {100 * figures['difference']:+.2f} points, 95 % interval "
        f"{100 * figures['difference_low']:+.2f} to {100 * figures['difference_high']:+.2f}, rule {figures['rule']}, "
        f"p = {figures['p_value']:.2g})"
    )


def _told(verdict: gate.Verdict) -> str:
    return "".join(f" Note: {note}." for note in verdict.notes)


def _record(
    client: "MlflowClient", number: int, verdict: gate.Verdict, decision: str, champion: int | None, **more: str | None
) -> None:
    """Write the decision and all it rests on as tags of the version, in place of an earlier one's."""
    tags = {name: f"{value:.6g}" if isinstance(value, float) else str(value) for name, value in verdict.figures.items()}
    tags |= {"by": find_user(), "at": datetime.now(UTC).isoformat(timespec="seconds")}
    more |= {"notes": "; ".join(verdict.notes), "reasons": "; ".join(verdict.reasons)}
    tags |= {name: text for name, text in more.items() if text}
    tags |= {"champion": str(champion)} if champion is not None else {}
    for name in client.get_model_version(MODEL, str(number)).tags:
        if name.startswith(GATE) and name.removeprefix(GATE) not in tags:
            client.delete_model_version_tag(MODEL, str(number), name)
    for name, value in tags.items():
        client.set_model_version_tag(MODEL, str(number), GATE + name, value)
    client.set_model_version_tag(MODEL, str(number), DECISION_TAG, decision)
