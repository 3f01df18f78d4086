"""Names in the train section that a library must know, looked up in its source text: importing it takes seconds.

So ``prepare`` refuses a misspelt one before it decodes. Training asks the libraries themselves, and says more.
"""

import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path

from pipeline.core.code_hash import PACKAGE
from pipeline.core.errors import UserError, suggest
from pipeline.core.params import TrainParams

# A registered net, or the former name of one, which stands before the present name. That these find all names, and few
# other words, is tested.
_MODEL = re.compile(r"""@register_model\s+def (\w+)|['"](\w+)['"]\s*:\s*['"]""")
_OPTIMIZER = re.compile(r"""['"](\w+)['"]""")
_TRANSFORM = re.compile(r"\b([A-Z]\w+)\b")


def check_names(params: TrainParams) -> None:
    """Raise ``UserError``, with the nearest name, for a backbone, optimizer or transform that its library lacks."""
    nets = [*_sources("timm", "models"), PACKAGE / "models" / "backbones.py"]
    _check("train.backbone", params.backbone.split(".")[0], "timm has no model", _find_words(_MODEL, nets))
    optimizers = _find_words(_OPTIMIZER, _sources("timm", "optim"))
    _check("train.optimizer", params.optimizer, "timm has no optimizer", optimizers)
    transforms = _find_words(_TRANSFORM, _sources("torchvision", "transforms/v2"))
    for split, specs in params.transforms:
        for i, spec in enumerate(specs):
            name = spec if isinstance(spec, str) else next(iter(spec))
            _check(f"train.transforms.{split}.{i}", name, "torchvision.transforms.v2 has no", transforms)


def _sources(library: str, folder: str) -> list[Path]:
    """The modules in a folder of a library; none if it is not installed."""
    found = importlib.util.find_spec(library)
    places = found.submodule_search_locations if found else None
    return sorted(Path(places[0], folder).rglob("*.py")) if places else []


def _find_words(pattern: re.Pattern[str], files: Iterable[Path]) -> set[str]:
    """The names that a pattern's groups find in files."""
    found = (match for file in files for match in pattern.finditer(file.read_text(encoding="utf-8")))
    return {name for match in found for name in match.groups() if name}


def _check(key: str, name: str, lacks: str, known: set[str]) -> None:
    if len(known) > 10 and name not in known:
        hint = suggest(name, known, "mend it", most=3, cutoff=0.5)
        raise UserError(f"{key}: {lacks} {name!r}; {hint}")
