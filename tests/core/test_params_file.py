"""Params are refused before any work when anything in them is off, and read as DVC reads them."""

import json
import math
import re
from pathlib import Path

import pytest
from dvc.utils.serialize import load_yaml
from ruamel.yaml import YAML

from pipeline.core.errors import UserError
from pipeline.core.params import flatten
from pipeline.core.params_file import (
    add_missing,
    apply_overrides,
    apply_recipe,
    load_params,
    parse_params,
    read_default,
    read_text,
)

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def refusal(text: str) -> str:
    """The message with which a params text is refused."""
    with pytest.raises(UserError) as caught:
        parse_params(text)
    return str(caught.value)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_apply_recipe_writes_what_dvc_reads_alike(path: Path, tmp_path: Path) -> None:
    text = apply_recipe(path.read_text(), path.name)
    (tmp_path / "params.yaml").write_text(text)
    values, default = load_yaml(str(tmp_path / "params.yaml")), load_yaml(str(ROOT / "params.yaml"))
    assert load_params(tmp_path / "params.yaml").model_dump() == values
    # Each key of a recipe says something that the default does not.
    recipe = YAML(typ="safe", pure=True).load(path.read_text()) or {}
    for section, keys in recipe.items():
        for key, value in keys.items():
            assert value != default[section][key], f"{section}.{key}"
    assert text.count(" # ") == read_default().count(" # "), "a comment was lost"


def test_the_committed_params_file_is_the_default() -> None:
    assert (ROOT / "params.yaml").read_text() == read_default() == apply_recipe("", "nothing")


def test_apply_recipe_merges_sections_and_replaces_other_values() -> None:
    recipe = "train: {backbone_args: {a: 1}, schedule: {min_lr: 0.1}, transforms: {eval: [Resize: {size: 50}]}}"
    train, default = parse_params(apply_recipe(recipe, "r")).train, parse_params(read_default()).train
    assert train.backbone_args == {"a": 1}
    assert train.transforms.eval == [{"Resize": {"size": 50}}]
    assert train.transforms.train == default.transforms.train
    assert train.schedule.model_dump() == default.schedule.model_dump() | {"min_lr": 0.1}


@pytest.mark.parametrize("recipe", ["- a", "train: 3", "train: {epoch: 3}", "model: {a: 1}", "a: ["])
def test_apply_recipe_refuses_what_is_no_recipe(recipe: str) -> None:
    with pytest.raises(UserError):
        parse_params(apply_recipe(recipe, "r"), "r")


def test_add_missing_completes_a_file_of_an_older_version() -> None:
    lines = read_default().splitlines(keepends=True)
    new = ("  labels:", "  lr:", "    beta:", "  risk:", "  explain:", "  size_ratio:")
    older = "# mine\n" + "".join(line for line in lines if not line.startswith(new))
    older = older.replace("epochs: 12", "epochs: 99  # my reason")
    message = refusal(older)
    assert "missing key 'train.lr' (default: 0.003)" in message
    assert "`hyojo use params.yaml` adds" in message
    text, added = add_missing(older, "params.yaml")
    assert added == [
        "prepare.labels", "train.lr", "train.imbalance.beta", "evaluate.risk", "evaluate.explain", "promote.size_ratio",
    ]  # fmt: skip
    assert text == "# mine\n" + read_default().replace("epochs: 12", "epochs: 99  # my reason")
    assert add_missing(text, "params.yaml") == (text, [])


@pytest.mark.parametrize(
    "old, new, key, nearest",
    [
        ("prepare:\n", "prepar:\n", "prepar", "prepare"),
        ("  img_size: 16", "  image_size: 16", "prepare.image_size", "img_size"),
        ("  epochs: 3", "  epoch: 3", "train.epoch", "epochs"),
        ("  batch_size: 16", "  batchsize: 16", "train.batchsize", "batch_size"),
        ("    warmup: 0.33", "    warm_up: 0.33", "train.schedule.warm_up", "warmup"),
        ("    patience: null", "    patence: null", "train.early_stopping.patence", "patience"),
        ("    eval: []", "    evl: []", "train.transforms.evl", "eval"),
        ("  worst: 4", "  worts: 4", "evaluate.worts", "worst"),
        ("  opset: 18", "  opsett: 18", "export.opsett", "opset"),
    ],
)
def test_a_misspelt_key_is_refused_with_the_nearest_name(
    tiny_params: str, old: str, new: str, key: str, nearest: str
) -> None:
    assert tiny_params.count(old) == 1
    message = refusal(tiny_params.replace(old, new))
    assert f"unknown key '{key}'; did you mean '{nearest}'?" in message
    # The right key is missing then, and that is told too.
    assert f"missing key '{'.'.join([*key.split('.')[:-1], nearest])}'" in message


@pytest.mark.parametrize(
    "old, new, renamed",
    [
        ("  person: auto", "  group: auto", "'prepare.group'; it is called 'prepare.person' now"),
        ("columns: {}", "columns: {group: who}", "'prepare.columns.group'; it is called 'prepare.columns.person'"),
        ("warmup: 0.33", "warmup_epochs: 1", "called 'train.schedule.warmup' now, a part of the training: 0.3333"),
        ("decay: 0.67", "decay_epochs: 2", "called 'train.schedule.decay' now, a part of the training: 0.6667"),
        ("    end: null", "    off_epoch: 3", "called 'train.mixing.end' now, a part of the training: 0.6667"),
        (
            "progressive: []",
            "progressive: [{epoch: 2, size: 8}]",
            "'train.progressive.from' now, a part of the training: 0.3333",
        ),
    ],
)
def test_parse_params_names_what_a_renamed_key_is_called(old: str, new: str, renamed: str, tiny_params: str) -> None:
    assert renamed in refusal(tiny_params.replace(old, new))


def test_a_key_like_no_other_is_refused_with_all_valid_ones(tiny_params: str) -> None:
    message = refusal(apply_overrides(tiny_params, ["export.zzzzzz=1"]))
    assert "unknown key 'export.zzzzzz'; valid keys: formats, int8_drop, opset, tolerance" in message


# Values of each key that are of the wrong type, or cannot be; `yes` is a word in YAML 1.2.
IMPOSSIBLE = {
    "prepare.img_size": ["48.0", "'48'", "7", "2000"],
    "prepare.channels": ["2"],
    "prepare.val_fraction": ["1.0", "-0.1"],
    "prepare.source": ["''"],
    "train.epochs": ["0", "true", "10 epochs"],
    "train.lr": ["1e-3x", "0", ".inf", ".nan"],
    "train.weight_decay": [".inf"],
    "train.pretrained": ["yes", "1"],
    "train.input_size": ["large"],
    "train.amp": ["off", "float16"],
    "train.schedule": ["cosine"],
    "train.schedule.name": ["cosin"],
    "train.schedule.decay_rate": ["1.0"],
    "train.transforms.train": [
        "RandomCrop",
        "[3]",
        "[{RandomCrop: 16}]",
        "[{RandomCrop: {size: 16}, Resize: {size: 16}}]",
    ],
    "train.early_stopping.metric": ["val/acc"],
    "train.early_stopping.patience": ["0"],
    "train.accumulate": ["0"],
    "train.devices": ["0"],
    "train.layer_decay": ["0", "1.5"],
    "train.freeze": ["stem"],
    "train.mixing.mixup_alpha": ["-0.1"],
    "train.mixing.prob": ["1.5"],
    "train.mixing.end": ["1", "-0.1"],
    "train.schedule.warmup": ["1"],
    "train.schedule.decay": ["0", "30"],
    "train.imbalance.method": ["focal"],
    "train.imbalance.beta": ["1.0"],
    "train.imbalance.tau": ["-1"],
    "train.progressive": ["[{from: 1, size: 16}]", "[{from: 0, size: 4}]"],
    "train.compile": ["1", "fast", "true"],
    "train.weights_sha256": ["abc"],
    "evaluate.worst": ["101"],
    "export.formats": ["[]", "[tflite]"],
    "export.opset": ["17"],
    "export.tolerance": ["0"],
}


@pytest.mark.parametrize("key, value", [(key, value) for key, values in IMPOSSIBLE.items() for value in values])
def test_an_ill_typed_or_impossible_value_is_refused_by_its_key(tiny_params: str, key: str, value: str) -> None:
    message = refusal(apply_overrides(tiny_params, [f"{key}={value}"]))
    assert f"\n  {key}" in message
    assert "function" not in message  # no internals of the checking library in the path


@pytest.mark.parametrize(
    "overrides, part",
    [
        (["train.weights=w.pt"], "weights and weights_sha256 go together"),
        ([f"train.weights_sha256={'a' * 64}"], "weights and weights_sha256 go together"),
        (["train.weights=w.pt", f"train.weights_sha256={'a' * 64}", "train.pretrained=true"], "exclude each other"),
        (["evaluate.tta=[]", "evaluate.serve_tta=true"], "serve_tta needs the views to serve"),
        (["train.schedule.warmup=0"], "must be more than 0, such as 0.25"),
        (["train.devices=2", "train.device=cuda:1"], "cuda:1 is one and devices says 2"),
        (["train.devices=3"], "batch_size (16) must be a multiple of twice devices (3)"),
        (["train.accumulate=3"], "batch_size (16) must be a multiple of accumulate (3)"),
        (["train.accumulate=16", "train.devices=2"], "batch_size (8) must be a multiple of accumulate (16)"),
        (["train.batch_size=15", "train.mixing.cutmix_alpha=1.0"], "batch_size (15) must be even"),
        (["train.progressive=[{form: 0, size: 16}]"], "unknown key 'train.progressive.0.form'; did you mean 'from'?"),
        (["train.progressive=[{from: 0.5, size: 16}]"], "must begin with {from: 0.0"),
        (["train.progressive=[{from: 0, size: 16}, {from: 0, size: 12}]"], "its parts must rise"),
    ],
)
def test_combinations_that_cannot_work_are_refused(tiny_params: str, overrides: list[str], part: str) -> None:
    assert part in refusal(apply_overrides(tiny_params, overrides))


@pytest.mark.parametrize(
    "text, part",
    [
        ("", "must hold the sections"),
        ("- a\n- b\n", "must hold the sections"),
        ("prepare: {", "not valid YAML"),
        ("a: 1\n--- \nb: 2\n", "not valid YAML"),
        ("a: !!python/object:os.system {}\n", "not valid YAML"),
        ("1: 2\n", "1: Keys should be strings"),
        ("prepare: 3\n", "prepare:"),
        ("prepare: null\n", "prepare:"),
        (read_default().replace("  epochs: 12", "  epochs: 12\n  epochs: 4"), "duplicate key"),
    ],
)
def test_text_that_is_no_params_file_is_refused(text: str, part: str) -> None:
    assert part in refusal(text)


def test_a_missing_or_unreadable_file_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="hyojo use"):
        load_params(tmp_path / "params.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        load_params(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"prepare: \xe9\n")
    with pytest.raises(UserError, match="cannot be read"):
        load_params(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    "key", ["checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "num_classes"]
)
def test_parse_params_weights_past_their_digest(tiny_params: str, key: str) -> None:
    """Timm would take a file by these, whatever ``weights_sha256`` says; or they would be overwritten."""
    assert key in refusal(tiny_params.replace("backbone_args: {", f"backbone_args: {{{key}: x, "))


def test_read_text_says_where_to_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a folder below, the same command would only fail again; in the root, the recipes are named."""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text("train: {epochs: 3}")
    monkeypatch.chdir(tmp_path / "recipes")
    with pytest.raises(UserError, match=f"Change into the project's root: cd {tmp_path}"):
        read_text("recipes/mine.yaml")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"There are recipes/mine\.yaml"):
        read_text("recipes/yours.yaml")


def test_params_cannot_be_changed(tiny_params: str) -> None:
    params = parse_params(tiny_params)
    with pytest.raises(ValueError, match="frozen"):
        params.train.epochs = 5  # type: ignore[misc]


TRICKY = [
    "1e-3", "1E3", "1.e-3", "-0.0", "on", "off", "yes", "no", "y", "true", "True", "0o7", "07", "0x1F", "1_000", "~",
    "null", "Null", ".inf", "1:30", "2020-01-01", "'1'", "+5", "0b11", "1e3.5", "12e03",
]  # fmt: skip


@pytest.mark.parametrize("scalar", TRICKY)
def test_scalars_mean_what_they_mean_to_dvc(tiny_params: str, tmp_path: Path, scalar: str) -> None:
    # backbone_args takes any value, so the parsed one can be seen; a float elsewhere shows as its type.
    text = tiny_params.replace("backbone_args: {", f"backbone_args: {{probe: {scalar}, ")
    (tmp_path / "params.yaml").write_text(text)
    theirs = load_yaml(str(tmp_path / "params.yaml"))["train"]["backbone_args"]["probe"]
    ours = load_params(tmp_path / "params.yaml").train.backbone_args["probe"]
    assert (type(ours), str(ours)) == (type(theirs), str(theirs))


def test_overrides_change_what_they_name_and_keep_the_comments(tiny_params: str) -> None:
    text = apply_overrides(
        tiny_params,
        [
            "train.backbone=resnet18",
            "train.lr=1e-4",
            "train.weights=null",
            "train.transforms.eval=[{CenterCrop: {size: 12}}]",
            "export.formats=[onnx, pt2]",
        ],
    )
    assert apply_overrides(tiny_params, []) == tiny_params
    assert "backbone: resnet18" in text
    assert "# any name that timm knows" in text
    before, after = parse_params(tiny_params), parse_params(text)
    assert after.train.lr == 1e-4
    assert after.train.transforms.eval == [{"CenterCrop": {"size": 12}}]
    assert after.export.formats == ["onnx", "pt2"]
    changed = {"backbone", "lr", "transforms"}
    assert after.train.model_dump(exclude=changed) == before.train.model_dump(exclude=changed)
    assert after.prepare == before.prepare
    # What is written is read back alike by DVC's parser.
    assert YAML(typ="safe", pure=True).load(text) == after.model_dump()


@pytest.mark.parametrize(
    "override",
    [
        "train.epochs",
        "epochs=3",
        "=3",
        "",
        "trian.epochs=3",
        "train.schedul.name=cosine",
        "train.lr.x=3",
        "train.transforms.train.0=Resize",
        "train.epochs=[1",
        "train.epochs=a: b: c",
    ],
)
def test_an_override_that_makes_no_sense_is_refused(tiny_params: str, override: str) -> None:
    with pytest.raises(UserError) as caught:
        apply_overrides(tiny_params, [override])
    assert override in str(caught.value)


@pytest.mark.parametrize(
    "override, said",
    [
        ("trian.epochs=3", "no section 'trian'; did you mean 'train.epochs'?"),
        ("train.schedul.name=step", "no section 'schedul'; did you mean 'train.schedule.name'?"),
        ("epochs=3", "did you mean 'train.epochs'?"),
        ("train.epochs", "did you mean 'train.epochs'?"),
        ("zzz=3", "an example: train.epochs=10"),
    ],
)
def test_an_override_of_no_key_is_refused_with_the_nearest(tiny_params: str, override: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        apply_overrides(tiny_params, [override])


@pytest.mark.parametrize("text", ["a: [", ""])
def test_overrides_of_broken_text_are_refused(text: str) -> None:
    with pytest.raises(UserError):
        apply_overrides(text, ["train.epochs=3"])


def test_flatten_names_every_value_once(tiny_params: str) -> None:
    flat = flatten(parse_params(tiny_params).train, "train")
    assert flat["train.backbone"] == "face_resnet_s"
    assert flat["train.schedule.name"] == "onecycle"
    assert flat["train.lr"] == "0.4"
    assert flat["train.backbone_args.widths"] == "[8, 8, 8]"
    assert flat["train.weights"] == "null"
    assert flat["train.transforms.eval"] == "[]"
    assert all(isinstance(value, str) for value in flat.values())
    assert not math.isnan(float(flat["train.momentum"]))


@pytest.mark.parametrize(
    "override, said",
    [
        ("train.epochs=0", "(got 0; 12 works)"),
        ("train.amp=off", "(got 'off'; none works)"),
        ("train.lr=0", "0.003 w"),
    ],
)
def test_a_refused_value_is_answered_with_one_that_works(tiny_params: str, override: str, said: str) -> None:
    assert said in refusal(apply_overrides(tiny_params, [override]))


def test_class_map_takes_numbers_and_any_name(tiny_params: str) -> None:
    text = apply_overrides(tiny_params, ["prepare.class_map={0: angry, 'happy (1)': joy, 2: null}"])
    prepare = parse_params(text).prepare
    assert prepare.class_map == {"0": "angry", "happy (1)": "joy", "2": None}
    # Names of MLflow's parameters cannot have parentheses.
    assert json.loads(flatten(prepare, "prepare")["prepare.class_map"]) == prepare.class_map
    plain = parse_params(apply_overrides(tiny_params, ["prepare.class_map={anger: angry}"])).prepare
    assert flatten(plain, "prepare")["prepare.class_map.anger"] == "angry"


@pytest.mark.parametrize(
    "override, message",
    [
        ("prepare.columns={paht: x}", "paht"),
        ("prepare.columns={path: ''}", "prepare.columns: String should have at least 1 character"),
        ("prepare.class_map={anger: 1}", "prepare.class_map: Input should be a valid string (got 1)"),
        ("prepare.class_map=[anger]", "prepare.class_map"),
        ("prepare.labels=hard", "'majority' or 'soft'"),
        ("prepare.person=''", "prepare.person"),
    ],
)
def test_sources_params_that_cannot_be(tiny_params: str, override: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        parse_params(apply_overrides(tiny_params, [override]))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_list_may_be_emptied_in_every_recipe(path: Path) -> None:
    text = apply_recipe(path.read_text(), path.name)
    expected = parse_params(text).model_dump()
    expected["train"]["progressive"] = []
    assert parse_params(apply_overrides(text, ["train.progressive=[]"])).model_dump() == expected
