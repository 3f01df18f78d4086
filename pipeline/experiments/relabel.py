"""Decisions of people about labels, taken from files that the page of suspects saved into ``data/corrections.csv``."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.core.dataset import load_prepared
from pipeline.core.errors import UserError, suggest
from pipeline.core.paths import CORRECTIONS
from pipeline.prepare.corrections import Correction, read_corrections, write_corrections


def take_decisions(files: Sequence[str], who: str) -> str:
    """Merge decisions into ``data/corrections.csv``; of two about one label of a picture the later counts.

    Args:
        files: That the page saved.
        who: Stands where a file says nobody.

    Returns:
        What came of it, in words.

    Raises:
        UserError: A file is missing or none of these, or names classes that the prepared data do not have; then
            nothing is written.
    """
    names = load_prepared().class_names
    decided = {(each.sha256, each.old): each for each in read_corrections(CORRECTIONS)}
    before = dict(decided)
    for file in files:
        if not Path(file).exists():
            raise UserError(f"{file} does not exist. The page of suspects saves it, mostly into Downloads.")
        for each in read_corrections(Path(file)):
            _check_class(each, file, names)
            former = decided.get((each.sha256, each.old))
            if former is None or former.when <= each.when:
                decided[each.sha256, each.old] = Correction(**vars(each) | {"who": each.who or who})
    write_corrections(CORRECTIONS, list(decided.values()))
    new, changed = len(decided) - len(before), sum(decided[key] != each for key, each in before.items())
    counts = {
        "labels changed": sum(bool(each.new) and each.new != each.old for each in decided.values()),
        "confirmed": sum(each.new == each.old for each in decided.values()),
        "pictures left out": sum(not each.new for each in decided.values()),
    }
    return (
        f"{CORRECTIONS}: {new} decisions more, {changed} changed; now "
        f"{', '.join(f'{count} {name}' for name, count in counts.items())}. `dvc repro` applies them; commit the file."
    )


def _check_class(each: Correction, file: str, names: list[str]) -> None:
    if each.new and each.new not in names:
        hint = suggest(each.new, names, f"the prepared data have {', '.join(names)}")
        raise UserError(f"{file}: {each.file} is to be {each.new!r}, which is no class: {hint}")
