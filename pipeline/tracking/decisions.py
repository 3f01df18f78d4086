"""The record of who made which version champion, when and why: append-only, in the order of the server.

A decision is a version of the registered model ``<project>.decisions``: of two clients that add one at once each gets a
number of its own, on any server, and nobody writes over another's. The record decides, and the alias ``champion``
follows it: of two moves away from one champion the first counts, and a move whose author was killed before the alias
followed is finished by the next command. So nothing is locked, and no clocks of two machines are compared.
mlflow is imported inside functions: it is slow.
"""

import json
import sys
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pipeline.tracking.origin import find_author
from pipeline.tracking.store import project_name
from pipeline.tracking.trouble import TrackingError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

CHAMPION = "champion"
# Kinds of decisions; all but the last move the alias.
FIRST, PROMOTED, FORCED, ROLLED_BACK, OUTSIDE, REFUSED = (
    "first", "promoted", "forced", "rolled back", "outside the gate", "refused",
)  # fmt: skip
# On a version, with the decision's number: where people look for it.
DECISION_TAG = "hyojo.decision"
# On the registered model, by versions of this program without a record: former champions, oldest first.
FORMER_TAG = "hyojo.champions"
_OWN = "hyojo."  # begins the tags of a decision that are no figures
_SOURCE = "hyojo:/decision"  # a version must come from somewhere; this one is no model


@dataclass(frozen=True)
class Decision:
    """What was decided about a version.

    Attributes:
        kind: One of the kinds above.
        version: The version it is about, and the champion after it if it moves the alias; None: none is champion.
        former: The champion before it.
        reason: In a sentence.
        figures: All that it rests on, by name.
        by: Who, as the server knows him, or the system.
        at: When, by the server's clock.
        number: In the record.
        made: When the version was registered, by the server: a deleted model's numbers go to other versions.
        followed: Whether the alias followed: ``yes``, ``no`` (it was elsewhere by then), or nothing yet.
        void: Whether it counts for nothing, since another version was champion by then.
    """

    kind: str
    version: int | None
    former: int | None
    reason: str
    figures: dict[str, str] = field(default_factory=dict)
    by: str = ""
    at: datetime = datetime(1970, 1, 1, tzinfo=UTC)
    number: int = 0
    made: int | None = None
    followed: str = ""
    void: bool = False


@dataclass(frozen=True)
class History:
    """All decisions in their order, and what follows from them.

    Attributes:
        decisions: Oldest first.
        champion: The version that the alias should be on; None for none.
        line: Champions that can be gone back through, oldest first, the present one last.
        ever: All that were ever champion, in order of their first time.
    """

    decisions: list[Decision]
    champion: int | None
    line: list[int]
    ever: list[int]

    @property
    def pending(self) -> Decision | None:
        """The last move, if the alias did not follow yet."""
        moves = [each for each in self.decisions if each.kind != REFUSED and not each.void]
        return moves[-1] if moves and not moves[-1].followed else None


class MovedError(Exception):
    """Another version became champion meanwhile; ``champion`` is the version that has the alias now."""

    def __init__(self, champion: int | None) -> None:
        super().__init__(champion)
        self.champion = champion


def read_aliases(client: "MlflowClient", model: str) -> dict[str, int] | None:
    """Read which version has which alias of a registered model; None if there is no such model.

    That an alias is missing is read from an answer, never from an error.

    Raises:
        TrackingError: The store does not answer, or not as MLflow does.
    """
    found = _find_model(client, model)
    return None if found is None else {name: int(version) for name, version in found.aliases.items()}


def champion_number(client: "MlflowClient") -> int | None:
    """Which version is champion, by the alias."""
    return (read_aliases(client, project_name()) or {}).get(CHAMPION)


def read_history(client: "MlflowClient") -> History:
    """Read the record, and say of each decision whether it counts."""
    model = _find_model(client, project_name())
    line = list(json.loads(model.tags.get(FORMER_TAG, "[]"))) if model else []
    champion = line[-1] if line else None
    ever = list(dict.fromkeys(line))
    decisions = []
    found = client.search_model_versions(f"name = '{_record_name()}'")
    mine = [_parse(version) for version in found if f"{_OWN}kind" in version.tags]
    for each in sorted(mine, key=lambda decision: decision.number):
        void = each.kind != REFUSED and (each.former != champion or each.followed == "no")
        decisions.append(replace(each, void=void))
        if void or each.kind == REFUSED:
            continue
        champion = each.version
        if champion is None:
            continue
        if each.kind == ROLLED_BACK and champion in line:
            del line[len(line) - line[::-1].index(champion) :]
        else:
            line.append(champion)
        ever += [champion] if champion not in ever else []
    return History(decisions, champion, line, ever)


def record(client: "MlflowClient", decision: Decision) -> int:
    """Append a decision of the one who asks; returns its number."""
    given = {"kind": decision.kind, "reason": decision.reason, "by": find_author(), "followed": decision.followed}
    given |= {"version": _text(decision.version), "former": _text(decision.former)}
    if decision.version is not None:
        given["made"] = _text(client.get_model_version(project_name(), given["version"]).creation_timestamp)
    tags = {f"{_OWN}{name}": value for name, value in given.items() if value} | decision.figures
    name, about = _record_name(), f"{describe_move(decision)}: {decision.reason}"
    # Looked up: a server with users denies a version of a model that is not there.
    if _find_model(client, name) is None:
        create_model(client, name, f"Who made which version of {project_name()} champion, and why")
    made = client.create_model_version(name, source=_SOURCE, tags=tags, description=about)
    if decision.kind == REFUSED:
        _tag_version(client, replace(decision, number=int(made.version)))
    return int(made.version)


def move(client: "MlflowClient", decision: Decision) -> None:
    """Record a decision and have the alias follow it.

    Raises:
        MovedError: Another version became champion since ``decision.former`` was looked up; the alias stays there, and
            the decision is recorded as void.
    """
    _follow(client, record(client, decision))


def settle(client: "MlflowClient") -> tuple[History, Decision | None]:
    """Finish a move whose author was killed, and record a move of the alias that no decision made.

    Returns:
        The history, whose champion is the alias's; and the move that was finished, if one was.
    """
    history = read_history(client)
    pending, finished = history.pending, None
    if pending:
        with suppress(MovedError):
            _follow(client, pending.number)
            finished = pending
            print(f"Finished what had been cut short: {describe_move(pending)}, by {pending.by}.", file=sys.stderr)
        history = read_history(client)
    if (present := champion_number(client)) != history.champion:
        reason = "found so; the alias was moved outside the gate"
        record(client, Decision(OUTSIDE, present, history.champion, reason, followed="yes"))
        history = read_history(client)
    return history, finished


def create_model(client: "MlflowClient", name: str, description: str) -> None:
    """Make a registered model, unless there is one."""
    try:
        client.create_registered_model(name, description=description)
    except TrackingError as error:
        if not error.is_taken:
            raise


def describe_move(decision: Decision) -> str:
    """Say in a few words what a decision did."""
    version = f"version {decision.version}" if decision.version else "no version"
    instead = f" in place of {decision.former}" if decision.former else ""
    return f"{version} {'refused' if decision.kind == REFUSED else f'champion ({decision.kind})'}{instead}"


def _follow(client: "MlflowClient", number: int) -> None:
    """Have the alias follow a decision, if that counts; can be cut short and done again at any point."""
    model, history = project_name(), read_history(client)
    decision = next((each for each in history.decisions if each.number == number), None)
    if decision is None:  # a replica that is behind, or a proxy
        raise TrackingError(f"{_record_name()} does not show decision {number}, which was just added; try again.")
    if decision.void:
        raise MovedError(history.champion)
    assert decision.version is not None
    if (present := champion_number(client)) not in (decision.former, decision.version):
        client.set_model_version_tag(_record_name(), str(number), f"{_OWN}followed", "no")
        raise MovedError(present)
    target = decision.version
    while True:
        try:
            client.set_registered_model_alias(model, CHAMPION, str(target))
        except TrackingError as error:
            if not error.is_missing:
                raise
            client.set_model_version_tag(_record_name(), str(number), f"{_OWN}followed", "no")
            raise MovedError(present) from None  # the version was deleted
        # Whoever was slow may have moved it back: of all who moved it the last looks once more.
        if (history := read_history(client)).champion in (target, None):
            break
        target = history.champion
    _tag_version(client, decision)
    present = champion_number(client)
    client.set_model_version_tag(_record_name(), str(number), f"{_OWN}followed", "yes")
    if present != decision.version:  # moved by hand, or by a later decision
        raise MovedError(present)


def _tag_version(client: "MlflowClient", decision: Decision) -> None:
    """Tell on a version's own page what was decided about it, each decision under a key of its own."""
    text, model, number = f"{decision.kind}: {decision.reason}", project_name(), str(decision.version)
    client.set_model_version_tag(model, number, f"{DECISION_TAG}.{decision.number}", text)
    said, line = client.get_model_version(model, number).description or "", f"- Decision {decision.number}, {text}"
    if line not in said:
        client.update_model_version(
            model, number, f"{said}\n{line}" if "\n- Decision " in said else f"{said}\n\n{line}"
        )


def _find_model(client: "MlflowClient", name: str) -> "RegisteredModel | None":
    """The registered model of a name; None if MLflow says that there is none."""
    try:
        found = client.get_registered_model(name)
    except TrackingError as error:
        if error.is_missing:
            return None
        raise
    if found.name != name:
        raise TrackingError(f"MLflow was asked for the registered model {name} and answered of {found.name!r}.")
    return found


def _record_name() -> str:
    return f"{project_name()}.decisions"


def _parse(version: "ModelVersion") -> Decision:
    """A decision as it was recorded."""
    own = {key.removeprefix(_OWN): value for key, value in version.tags.items() if key.startswith(_OWN)}
    return Decision(
        kind=own["kind"],
        version=_number(own.get("version")),
        former=_number(own.get("former")),
        reason=own.get("reason", ""),
        figures={key: value for key, value in version.tags.items() if not key.startswith(_OWN)},
        by=own.get("by", ""),
        at=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC),
        number=int(version.version),
        made=_number(own.get("made")),
        followed=own.get("followed", ""),
    )


def _number(text: str | None) -> int | None:
    return int(text) if text else None


def _text(number: int | None) -> str:
    return "" if number is None else str(number)
