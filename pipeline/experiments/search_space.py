"""What a search tries: ``search.yaml``, parameters by their names in ``params.yaml`` and their ranges."""

import json
import operator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Literal

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.core.errors import UserError
from pipeline.core.library_names import check_names
from pipeline.core.params import Params
from pipeline.core.params_file import apply_overrides, parse_params, read_text
from pipeline.core.paths import PARAMS

OBJECTIVES: dict[str, Literal["maximize", "minimize"]] = {
    "val/accuracy": "maximize",
    "val/macro_f1": "maximize",
    "val/loss": "minimize",
}


@dataclass(frozen=True)
class Space:
    """A space to search.

    Attributes:
        objective: Of ``OBJECTIVES``: a figure of the val split in its best epoch.
        ranges: By the names of ``params.yaml``, such as ``train.lr``.
    """

    objective: str
    ranges: dict[str, BaseDistribution]

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """Whether more or less of the objective is better, in Optuna's words."""
        return OBJECTIVES[self.objective]

    def find_start(self, params: Params) -> dict[str, Any]:
        """The present values of what is searched; empty if one is outside its range."""
        found: dict[str, Any] = {}
        for name, given in self.ranges.items():
            value: Any = reduce(operator.getitem, name.split("."), params.model_dump(by_alias=True))
            if isinstance(given, FloatDistribution | IntDistribution):
                inside = isinstance(value, int | float) and given.low <= value <= given.high
            else:
                inside = isinstance(given, CategoricalDistribution) and value in given.choices
            if not inside:
                return {}
            found[name] = value
        return found

    def best(self, curve: list[float]) -> float:
        """The objective in the best epoch."""
        return max(curve) if self.direction == "maximize" else min(curve)


class _Range(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    low: float | int
    high: float | int
    log: bool = False


def read_space(path: Path) -> Space:
    """Read a space, and check it against ``params.yaml``: every name and the ends of every range are valid there.

    Raises:
        UserError: It is missing, malformed, or names what there is not; the message has the key and the remedy.
    """
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} not found. It says what is searched; `git show HEAD:search.yaml` has an example."
        ) from None
    except (OSError, YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if (
        not isinstance(content, dict)
        or set(content) != {"objective", "params"}
        or not isinstance(content["params"], dict)
    ):
        raise UserError(f"{path}: two keys are wanted, objective and params.")
    if content["objective"] not in OBJECTIVES:
        raise UserError(f"{path}: objective is one of {', '.join(OBJECTIVES)}: a search never looks at the test split.")
    ranges = {name: _read_range(path, name, value) for name, value in content["params"].items()}
    text = read_text(PARAMS)
    for name, (_, ends) in ranges.items():
        if not name.startswith("train."):
            raise UserError(f"{path}: {name} is no parameter of training, so its trials could not be compared on val.")
        for end in ends:
            try:
                check_names(parse_params(apply_overrides(text, [f"{name}={json.dumps(end)}"])).train)
            except UserError as error:
                raise UserError(
                    f"{path}: {name}: {end!r} is not allowed: {str(error).splitlines()[-1].strip()}"
                ) from None
    if not ranges:
        raise UserError(f"{path}: params is empty, so there is nothing to search.")
    return Space(content["objective"], {name: found for name, (found, _) in ranges.items()})


def _read_range(path: Path, name: str, value: Any) -> tuple[BaseDistribution, list[Any]]:
    """A range as Optuna has it, and its ends or choices."""
    if isinstance(value, list) and value and all(isinstance(each, str | int | float | bool) for each in value):
        return CategoricalDistribution(value), value
    try:
        found = _Range.model_validate(value)
        low, high = found.low, found.high
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=found.log), [low, high]
        return FloatDistribution(low, high, log=found.log), [low, high]
    except (ValidationError, ValueError, TypeError):
        raise UserError(
            f"{path}: {name}: a list of values is wanted, such as [adamw, muon], or a range, such as "
            "{low: 0.001, high: 0.1, log: true}."
        ) from None
