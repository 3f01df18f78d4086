"""``hyojo promote``: the gate between a registered version and the alias ``champion``.

Everything that the gate looked at, its decision and who asked for it go into the record of ``tracking.decisions``.
Limits stand below ``promote`` in ``params.yaml``.
"""

import tempfile
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.errors import UserError
from pipeline.core.params import PromoteParams
from pipeline.core.params_file import load_params
from pipeline.core.project import project_lock
from pipeline.experiments import contenders, gate
from pipeline.inference import graphs, latency
from pipeline.tracking import decisions, registry, signing
from pipeline.tracking.decisions import FORCED, PROMOTED, REFUSED, Decision, MovedError
from pipeline.tracking.evaluations import TEST_DIGEST_TAG
from pipeline.tracking.registry import CLASSES_TAG, PARITY_TAG, PROJECT_TAG, Outcome
from pipeline.tracking.store import connect, project_name
from pipeline.tracking.trouble import TrackingError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


def promote(
    version: int | None = None,
    force: bool = False,
    reason: str | None = None,
    project: str | None = None,
    public_key: str | None = None,
) -> Outcome:
    """Make a version champion if the gate lets it through.

    Args:
        version: The latest if None.
        force: Promote whatever the gate says; recorded, as the gate's findings are.
        reason: Why; goes with ``force``.
        project: The version's; without it ``force`` does not overrule that the version is of another project, of other
            classes, or was tested on other data.
        public_key: The file with the key by which the version has to be signed; None: by none.

    Returns:
        The outcome; ``refused`` if the gate said no, or another version became champion meanwhile.

    Raises:
        UserError: No such version, one that is not as it was exported or not signed, or ``force`` and ``reason`` not
            given together.
    """
    reason = (reason or "").strip()
    if force != bool(reason):
        raise UserError("--force and --reason TEXT go together: what is overruled must be accounted for.")
    client, model = connect(), project_name()
    with project_lock("registry"):
        known = {int(item.version): item for item in registry.versions(client)}
        if not known:
            raise UserError(f"no version of {model} is registered. Run `hyojo register` first.")
        number = max(known) if version is None else version
        if number not in known:
            raise UserError(f"{model} has no version {number}; it has {', '.join(map(str, sorted(known)))}.")
        champion = decisions.settle(client)[0].champion
        if champion == number:
            return Outcome(number, False, f"Version {number} is champion already.")
        signing.check_version(client, known[number], public_key)
        verdict = _judge(client, known[number], known[champion] if champion else None, load_params().promote)
        if not verdict.passed:
            own = known[number].tags.get(PROJECT_TAG, model)
            if force and verdict.foreign and project != own:
                verdict.reasons.append(f"to --force that, name the version's project too: --project {own}")
            if not force or (verdict.foreign and project != own):
                refusal = "; ".join(verdict.reasons)
                decisions.record(client, _decide(REFUSED, number, champion, refusal, verdict))
                return Outcome(number, False, f"Refused: {refusal}.{_told(verdict)}", refused=True)
        kind, found = PROMOTED, _summary(verdict, champion)
        if not verdict.passed:
            kind, found = FORCED, f"forced: {reason} (against: {'; '.join(verdict.reasons)})"
        try:
            decisions.move(client, _decide(kind, number, champion, found, verdict))
        except MovedError as moved:
            text = f"version {moved.champion} became champion while version {number} was held against {champion}"
            return Outcome(number, False, f"Not promoted: {text}. Run `hyojo promote {number}` again.", refused=True)
        text = f"Version {number} is champion: {found}.{_told(verdict)} Restart servers that do not --follow."
        return Outcome(number, True, text)


def measure(client: "MlflowClient", versions: "list[ModelVersion]") -> list[tuple[float | None, float | None]] | str:
    """Load the served graphs of versions into this process and time them in turns.

    Returns:
        Milliseconds of an answer and megabytes of the file, for each; why not, if not all of them can be loaded here.

    Raises:
        TrackingError: The store of the artifacts does not answer.
    """
    models, sizes = [], []
    with tempfile.TemporaryDirectory(prefix="hyojo-promote-") as scratch:
        try:
            for version in versions:
                folder = registry.fetch_bundle(version, Path(scratch) / str(version.version))
                sizes.append(graphs.served_file(folder)[1].stat().st_size / 1e6)
                models.append(latency.open_model(folder))
            return list(zip(latency.measure_ms(models), sizes))
        except TrackingError as error:
            if not error.is_missing:
                raise
            return str(error)
        except Exception as error:  # a runtime that is not installed, an operator it lacks, half a file
            return str(error).replace(f"{scratch}/", "version ")


def _judge(
    client: "MlflowClient", candidate: "ModelVersion", champion: "ModelVersion | None", params: PromoteParams
) -> gate.Verdict:
    """The gate's verdict on what this store knows of both; what cannot be read is a reason to refuse."""
    own = candidate.tags.get(PROJECT_TAG, candidate.name)
    if own != candidate.name:
        text = f"version {candidate.version} is of another project, {own}, than {candidate.name}"
        return gate.Verdict([text], foreign=True)
    if champion is None:
        return gate.Verdict()
    try:
        sides = [contenders.read_version(client, version) for version in (candidate, champion)]
    except TrackingError:
        raise
    except UserError as error:
        # What the versions themselves say is known even so.
        pairs = [(candidate.tags.get(name), champion.tags.get(name)) for name in (CLASSES_TAG, TEST_DIGEST_TAG)]
        foreign = any(None not in pair and pair[0] != pair[1] for pair in pairs)
        return gate.Verdict([f"the two cannot be compared: {str(error).rstrip('.')}"], foreign=foreign)
    both = [candidate, champion]
    measured = measure(client, both)
    recorded = [tuple(_recorded(v, name) for name in ("latency_ms", "size_mb")) for v in both]
    found = recorded if isinstance(measured, str) else measured
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
    verdict.figures["costs"] = "recorded" if isinstance(measured, str) else "measured"
    if isinstance(measured, str):
        verdict.notes.append(f"costs are those that export recorded: {' '.join(measured.split())[:200].rstrip('.')}")
    for name, side in zip(("latency_ms", "champion_latency_ms"), evidence):
        if side.latency_ms:
            verdict.figures[name] = side.latency_ms
    return verdict


def _recorded(version: "ModelVersion", name: str) -> float | None:
    """A cost that export recorded."""
    value = version.tags.get(f"cost.{name}")
    return None if value is None else float(value)


def _summary(verdict: gate.Verdict, champion: int | None) -> str:
    """What was found, in a line."""
    figures = verdict.figures
    if champion is None:
        return "there was no champion"
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


def _decide(kind: str, number: int, champion: int | None, reason: str, verdict: gate.Verdict) -> Decision:
    """The decision, with all it rests on."""
    seen = {name: f"{value:.6g}" if isinstance(value, float) else str(value) for name, value in verdict.figures.items()}
    notes = {"notes": "; ".join(verdict.notes)} if verdict.notes else {}
    return Decision(kind, number, champion, reason, seen | notes)
