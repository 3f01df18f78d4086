"""Misspelt names are told without importing the libraries, whose own lists say which names are right."""

import subprocess
import sys
from pathlib import Path

import pytest
from builders import ROOT, TINY_PARAMS

from pipeline.core import library_names
from pipeline.core.errors import UserError
from pipeline.core.library_names import check_names
from pipeline.core.params_file import apply_overrides, parse_params


def check(*overrides: str) -> None:
    check_names(parse_params(apply_overrides(TINY_PARAMS, list(overrides))).train)


def test_every_name_that_a_library_has_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    from timm.models._registry import _model_entrypoints
    from timm.optim import list_optimizers

    import pipeline.models.backbones  # noqa: F401  (registers ours)
    from pipeline.models.transforms import list_names

    asked = []
    monkeypatch.setattr(library_names, "_check", lambda key, name, lacks, known: asked.append(known))
    check()
    nets, optimizers, transforms = asked[:3]
    assert set(_model_entrypoints) <= nets
    assert len(nets) < len(_model_entrypoints) + 30
    assert set(list_optimizers()) <= optimizers
    assert set(list_names()) <= transforms


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/*.yaml")), ids=lambda path: path.stem)
def test_recipes_pass(path: Path) -> None:
    from pipeline.core.params_file import apply_recipe

    check_names(parse_params(apply_recipe(path.read_text(encoding="utf-8"), path.name)).train)


@pytest.mark.parametrize(
    "override, message",
    [
        ("train.backbone=resnet81", "train.backbone: timm has no model 'resnet81'; did you mean .*resnet18"),
        ("train.backbone=face_resnet_xs", "did you mean .*face_resnet_s"),
        ("train.backbone=resnet", "no model 'resnet'"),
        ("train.optimizer=adamm", "train.optimizer: timm has no optimizer 'adamm'; did you mean .*adam"),
        ("train.transforms.eval=[CentreCrop]", "train.transforms.eval.0: torchvision.* no 'CentreCrop'; .*CenterCrop"),
        ("train.transforms.train=[{RandomCorp: {size: 8}}]", "train.transforms.train.0: .*RandomCrop"),
    ],
)
def test_misspelt_names_are_refused_with_the_nearest(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(override)


def test_without_a_library_its_names_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check("train.optimizer=adamm", "train.transforms.eval=[CentreCrop]")


@pytest.mark.heavy
def test_prepare_refuses_them_before_it_looks_at_the_source(home: Path) -> None:
    text = apply_overrides(TINY_PARAMS, ["train.backbone=resnet81", "prepare.source=nowhere"])
    Path("params.yaml").write_text(text, encoding="utf-8")
    done = subprocess.run([sys.executable, "-m", "pipeline.prepare"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: train.backbone: timm has no model 'resnet81'")
