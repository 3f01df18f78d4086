"""Trainings that see much less of a picture than evaluation, or much smaller ones, are refused with what to set."""

import pytest

from pipeline.core.errors import UserError
from pipeline.core.params_file import apply_overrides, parse_params, read_default


def check(img_size: int, train: str, evaluation: str = "[]", **given: object) -> None:
    lists = [f"train.transforms.train={train}", f"train.transforms.eval={evaluation}", f"prepare.img_size={img_size}"]
    parse_params(apply_overrides(read_default(), [*lists, *(f"train.{key}={value}" for key, value in given.items())]))


CUT, RESIZED = "RandomCrop: {size: %s, padding: 4}", "Resize: {size: %s}"


@pytest.mark.parametrize(
    "img_size, train, evaluation, remedy, mended",
    [
        (224, CUT % 48, "", "RandomCrop cuts 48 px out of 224, .*: set its size to auto", CUT % "auto"),
        (64, CUT % 47, "", "set its size to auto", CUT % 48),
        (224, f"{CUT % 48}, RandomErasing", "", "set its size to auto", f"{CUT % 'auto'}, RandomErasing"),
        (224, "RandomResizedCrop: {size: [48, 48]}", "", "48 px, .* 224 px: set the size of RandomResizedCrop to auto",
         "RandomResizedCrop: {size: auto}"),
        (48, CUT % "auto", RESIZED % 24, "set its size to 48, and put `Resize: {size: 24}` behind it",
         f"{CUT % 48}, {RESIZED % 24}"),
        (48, CUT % "auto", RESIZED % 96, "put `Resize: {size: 96}` in front", f"{RESIZED % 96}, {CUT % 'auto'}"),
        (48, "", RESIZED % 96, "put `Resize: {size: 96}` at its end", RESIZED % 96),
        (224, f"{RESIZED % 256}, {CUT % 48}", "", "set its size to 256, and put", f"{RESIZED % 256}, {CUT % 'auto'}"),
        (24, CUT % 48, "", "cannot cut 48 px out of 24: set its size to auto", CUT % "auto"),
    ],
)  # fmt: skip
def test_find_fault_names_a_value_that_works(
    img_size: int, train: str, evaluation: str, remedy: str, mended: str
) -> None:
    with pytest.raises(UserError, match=rf"\n  train\.transforms\.train: .*{remedy}"):
        check(img_size, f"[{train}]", f"[{evaluation}]")
    check(img_size, f"[{mended}]", f"[{evaluation}]")


@pytest.mark.parametrize(
    "img_size, train, evaluation, given",
    [
        (224, CUT % 168, "", {}),
        (224, RESIZED % 96, "", {}),
        (224, f"{CUT % 48}, {RESIZED % '[96, 96]'}", "", {}),
        (256, CUT % "auto", f"{RESIZED % 256}, CenterCrop: {{size: 224}}", {}),
        (256, CUT % "auto", "CenterCrop: {size: auto}", {"input_size": 128}),
        (48, CUT % "auto", "", {"input_size": 224}),
        (48, CUT % "auto", "", {"progressive": "[{from: 0.0, size: 16}, {from: 0.5, size: null}]"}),
        (48, "RandomHorizontalFlip, Pad: null, Resize: {size: large}", "", {}),  # torchvision says what is wrong
        (48, "RandomCorp: {size: 8}", "", {}),  # likewise, with the nearest name
    ],
)
def test_find_fault_lets_through_what_is_said(img_size: int, train: str, evaluation: str, given: dict) -> None:
    check(img_size, f"[{train}]", f"[{evaluation}]", **given)
