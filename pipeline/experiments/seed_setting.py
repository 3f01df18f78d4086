"""What the seeds of a family share: params, and how DVC gets there from ``params.yaml``."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.core.dvc_file import DVC_FILE, read_stage
from pipeline.core.errors import UserError
from pipeline.core.params import Params, flatten
from pipeline.core.params_file import apply_overrides, parse_params, read_text
from pipeline.core.paths import PARAMS
from pipeline.tracking.origin import git

STAGES = ("prepare", "train", "evaluate")
FREE = {"train": {"seed", "device", "devices"}}


@dataclass(frozen=True)
class Setting:
    """What the seeds of a family share.

    Attributes:
        params: All params; the seed in them says nothing.
        overrides: How ``dvc exp run -S`` gets there from ``params.yaml``.
        name: Of the family.
        inputs: What in git decides a result beside the params: code and, where git has it, the source.
    """

    params: Params
    overrides: list[str]
    name: str
    inputs: list[str]

    @property
    def key(self) -> str:
        """Digest of the params that decide a seed's result, but for the seed."""
        return _hash_params(self.params)

    def name_seed(self, seed: int) -> str:
        """DVC's name of a seed's experiment."""
        return f"{self.name}-{seed}"

    def flat_params(self) -> dict[str, str]:
        """Params of prepare and train, flat, without the seed."""
        flat = flatten(self.params.prepare, "prepare") | flatten(self.params.train, "train")
        return {name: value for name, value in flat.items() if name != "train.seed"}


def read_setting(overrides: list[str], name: str | None) -> Setting:
    """Return the setting that ``params.yaml`` and ``key=value`` pairs give.

    Raises:
        UserError: A pair or value that is not valid, or a name that git takes for no ref.
    """
    text = read_text(PARAMS)
    before = YAML(typ="safe").load(text)
    changed = apply_overrides(text, overrides)
    params = parse_params(changed, str(PARAMS))
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
    if name is not None:
        check_name(name)
    source = params.prepare.source
    code = [dep for stage in STAGES for dep in read_stage(stage)["deps"] if not dep.startswith("$")]
    inputs = [str(DVC_FILE), *code, *([source] if git(Path.cwd(), "ls-files", "--", source) else [])]
    return Setting(params, hydra, name or f"seeds-{_hash_params(params)[:7]}", inputs)


def check_name(name: str) -> None:
    """Refuse what git takes for no ref, and so DVC for no name of an experiment; raises ``UserError``."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,60}", name):
        raise UserError(f"--name {name!r}: a name is a letter and then letters, digits, hyphens and underscores.")


def hydra_value(value: Any) -> str:
    """Return a value in the grammar of ``dvc exp run -S``."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{hydra_value(str(k))}:{hydra_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(hydra_value, value)) + "]"
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    # A backslash counts only before a quote, and at the end.
    text = re.sub(r"(\\*)'", lambda found: found[1] * 2 + "\\'", str(value))
    return "'" + re.sub(r"(\\+)$", lambda found: found[1] * 2, text) + "'"


def pick_decisive(params: Params) -> dict[str, Any]:
    """Return what decides a result, but for the seed."""
    return {stage: getattr(params, stage).model_dump(exclude=FREE.get(stage)) for stage in STAGES}


def _hash_params(params: Params) -> str:
    return hashlib.sha256(json.dumps(pick_decisive(params), sort_keys=True).encode()).hexdigest()
