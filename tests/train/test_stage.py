"""The train stage: its files, its one MLflow run, and that killed and run again it ends as if nothing had happened."""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from builders import TINY_PARAMS, forget_store, invert_block, make_project, params_with, seal_prepared
from sklearn.metrics import accuracy_score, f1_score, log_loss
from torch.utils.flop_counter import FlopCounterMode
from training import before_update, find_runs, find_steps, hasten_training, stop_at, train, training_in

from pipeline.core.dataset import Prepared, load_prepared
from pipeline.core.errors import UserError
from pipeline.core.params import EarlyStopping
from pipeline.core.params_file import apply_overrides
from pipeline.models import formats
from pipeline.models.weights import load_classifier, load_model
from pipeline.tracking import runs as tracking
from pipeline.tracking import store, sync
from pipeline.train import checkpoint, job, loop

ROOT = Path(__file__).parents[2]
OUT = Path("models/train")
Digests = dict[str, str]
UPDATES = 3 * (72 // 16)  # epochs x whole batches


# All that draws or keeps a state, at once.
EVERYTHING = (
    "train.backbone_args.drop_path_rate=0.2", "train.mixing.mixup_alpha=0.4", "train.mixing.cutmix_alpha=1.0",
    "train.mixing.prob=0.8", "train.mixing.end=0.67", "train.imbalance.method=sampling", "train.accumulate=2",
    "train.progressive=[{from: 0.0, size: 12}, {from: 0.33, size: null}]", "train.layer_decay=0.8",
    "train.freeze=[stem]", "train.optimizer=adamw", "train.lr=0.01", "train.early_stopping.keep=last",
    "train.transforms.train=[{RandomAffine: {degrees: 10, scale: [0.9, 1.1]}}, RandomErasing]",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hasten_training(monkeypatch)


def results() -> dict[str, str]:
    """Digests of the files that must not depend on how training came to its end."""
    names = ("weights.pt", "weights.json", "history.csv")
    return {name: hashlib.sha256((OUT / name).read_bytes()).hexdigest() for name in names}


def only_run(status: str = "FINISHED") -> Any:
    """The one run of the project's store, which has that status; a finished one has points for every epoch."""
    (run,) = find_runs()
    assert run.info.status == status
    assert status != "FINISHED" or find_steps(run.info.run_id) == [1, 2, 3]
    return run


def count_updates() -> int:
    """How many updates a training takes from here."""
    counted: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        before_update(patch, counted.append)
        train()
    return len(counted)


def stop_training(update: int, *overrides: str) -> None:
    """Train until it is asked to stop in that update."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        train(*overrides, stop=stop_at(patch, update))
    assert ended.value.code == 143


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Digests:
    """Results of a training that nothing disturbed."""
    root = make_project(tmp_path_factory.mktemp("uninterrupted") / "project", empty_store)
    with training_in(root):
        train()
        return results()


def test_train_writes_outs_and_the_run(project: Path) -> None:
    train()
    names = {"weights.pt", "weights.json", "history.csv", "curves.png", "run.json"}
    assert {path.name for path in OUT.iterdir()} == names
    assert [path.name for path in OUT.parent.iterdir()] == ["train"]  # no leftovers

    history = pd.read_csv(OUT / "history.csv")
    assert list(history.columns) == [
        "epoch", "lr", "train/loss", "train/accuracy", "val/loss", "val/accuracy", "val/balanced_accuracy",
        "val/macro_f1",
    ]  # fmt: skip
    assert list(history["epoch"]) == [1, 2, 3]

    sidecar = json.loads((OUT / "weights.json").read_text())
    prepared = load_prepared("data/prepared")
    assert sidecar["backbone"] == "face_resnet_s"
    assert sidecar["class_names"] == prepared.class_names
    assert sidecar["data_digest"] == prepared.digest
    assert sidecar["weights_sha256"] == hashlib.sha256((OUT / "weights.pt").read_bytes()).hexdigest()
    assert sidecar["kept_epoch"] == history["epoch"][history["val/accuracy"].argmax()]
    assert sidecar["params"]["train.lr"] == "0.4"
    text = (OUT / "weights.json").read_text() + (OUT / "run.json").read_text()
    assert str(project) not in text

    record = json.loads((OUT / "run.json").read_text())
    assert record["formats"] == {"pt2": None}
    run = only_run()
    assert run.info.run_id == record["run_id"]
    assert find_steps(run.info.run_id, "val/macro_f1") == [1, 2, 3]
    assert run.data.metrics["val/loss"] == history["val/loss"].iloc[-1]
    assert run.data.params["train.schedule.name"] == "onecycle"
    assert run.data.params["prepare.img_size"] == "16"
    assert not [name for name in run.data.params if name.startswith(("evaluate", "export"))]
    assert run.data.tags["hyojo.weights_sha256"] == sidecar["weights_sha256"]
    assert run.data.tags["hyojo.data_digest"] == prepared.digest
    client = store.connect()
    top = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"params.yaml", "train"} <= top
    assert {item.path for item in client.list_artifacts(run.info.run_id, "train")} == {
        f"train/{name}" for name in names
    }


def test_operations_are_those_of_real_updates(project: Path) -> None:
    """Torch counts the passes of real updates; they need no gradient of the images, which is left out there."""
    train("train.progressive=[{from: 0.0, size: 12}, {from: 0.33, size: null}]")
    net, operations = load_model(OUT)[0].train(), 0
    for size, epochs in ((12, 1), (16, 2)):
        with FlopCounterMode(display=False) as counter:
            net(torch.randn(16, 1, size, size)).sum().backward()
        of_images = 2 * net.stem[0].weight.numel() * 16 * size**2
        operations += epochs * (72 // 16) * (counter.get_total_flops() + of_images)
    assert json.loads((OUT / "run.json").read_text())["figures"]["train/pflop"] == pytest.approx(operations / 1e15)


def test_write_outs_weights_score_what_history_says(project: Path) -> None:
    train()
    history = pd.read_csv(OUT / "history.csv", index_col="epoch")
    best = history.loc[json.loads((OUT / "weights.json").read_text())["kept_epoch"]]
    val = load_prepared("data/prepared").split("val")
    with torch.inference_mode():
        probs = load_classifier(OUT)(torch.from_numpy(np.array(val.images))).double().numpy()
    assert best["val/accuracy"] == accuracy_score(val.targets, probs.argmax(1))
    assert best["val/macro_f1"] == pytest.approx(f1_score(val.targets, probs.argmax(1), average="macro"))
    assert best["val/loss"] == pytest.approx(log_loss(val.targets, probs / probs.sum(1, keepdims=True)), rel=1e-5)


def test_train_again_gives_the_same_bytes(project: Path, uninterrupted: Digests) -> None:
    np.random.seed(123)
    random.seed(123)
    torch.manual_seed(123)
    train()
    assert results() == uninterrupted


def test_train_takes_no_pixels_that_were_not_prepared(project: Path) -> None:
    """Nor does it record their digest; time and size tell nothing."""
    invert_block(project / "data/prepared/train.npy")
    with pytest.raises(UserError, match=r"train\.npy .* not what was prepared.*dvc repro -f prepare"):
        train()
    assert not OUT.exists()


def test_train_never_sees_the_test_split(project: Path, uninterrupted: Digests) -> None:
    """Trained without a pixel or a label of it, the weights are the same; and what picks them is of val."""
    (project / "data/prepared/test.npy").unlink()
    path = project / "data/prepared/manifest.csv"
    manifest = pd.read_csv(path, dtype=str, keep_default_na=False)
    manifest[manifest["split"] != "test"].to_csv(path, index=False)
    seal_prepared(path.parent)
    train()
    assert results() == uninterrupted
    choices = get_args(EarlyStopping.model_fields["metric"].annotation)
    assert choices
    assert all(choice.startswith("val/") for choice in choices)


@pytest.mark.parametrize("update", [0, 3, 5, UPDATES - 1])
def test_train_after_a_stop(project: Path, uninterrupted: Digests, update: int) -> None:
    stop_training(update)
    assert not OUT.exists()
    killed = only_run("KILLED")
    assert find_steps(killed.info.run_id) == list(range(1, update // 4 + 1))
    torch.manual_seed(999)  # what happened before in the process must not matter
    assert count_updates() == UPDATES - update - 1  # no step is done twice
    assert results() == uninterrupted
    assert only_run().info.run_id == killed.info.run_id


def test_train_after_many_stops(project: Path, uninterrupted: Digests) -> None:
    for _ in range(UPDATES // 2):
        stop_training(1)
    train()
    assert results() == uninterrupted
    only_run()


@pytest.mark.parametrize(
    "overrides",
    [
        ("train.optimizer=adamw", "train.lr=0.001", "train.schedule.name=cosine", "train.ema_decay=0.0"),
        (
            "train.schedule.name=plateau",
            "train.schedule.decay=0.33",
            "train.early_stopping.metric=val/loss",
            "train.amp=bf16",
        ),
        ("train.schedule.name=step", "train.optimizer=rmsprop", "train.lr=0.001", "train.amp=fp16"),
        EVERYTHING,
        (*EVERYTHING, "train.imbalance.method=weights", "train.transforms.train=[RandomEqualize, RandomErasing]"),
        (
            "train.backbone=ensemble",
            "train.backbone_args={of: face_resnet_s, members: 2, widths: [8, 8, 8], depths: [1, 1, 1]}",
            "train.distill.from=peers",
        ),
    ],
    ids=["adamw-cosine", "plateau-bf16", "rmsprop-step-fp16", "everything", "one by one", "peers"],
)
def test_train_after_stops_with_other_settings(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
) -> None:
    found = []
    # The first stop is in epoch 1, the second in the middle of epoch 2, the third at its end.
    for name, updates in (("whole", ()), ("stopped", (1, 3, 1))):
        monkeypatch.chdir(make_project(tmp_path / name, empty_store))
        forget_store()
        for update in updates:
            stop_training(update, *overrides)
            torch.manual_seed(update)  # what happens between must not matter
            np.random.seed(update)
        train(*overrides)
        found.append(results())
    assert found[0] == found[1]


def test_train_keeps_by_the_clock(project: Path, uninterrupted: Digests, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short epochs write no checkpoint each; what is logged is in one, so that no epoch is logged with two outcomes."""
    seen: list[tuple[int, int]] = []
    save, log = checkpoint.save, tracking.TrainingRun.log_history

    def keep(folder: Path, state: dict[str, Any], finished: bool) -> None:
        save(folder, state, finished)
        seen.append((len(state["session"]["progress"]["history"]), 0))

    def tell(run: tracking.TrainingRun, history: list[dict[str, float]]) -> None:
        log(run, history)
        seen.append((len(history), len(find_steps(run.run_id))))

    monkeypatch.setattr(checkpoint, "save", keep)
    monkeypatch.setattr(tracking.TrainingRun, "log_history", tell)
    train()
    assert seen == [(0, 0), (0, 0), (3, 0), (3, 3), (3, 0)]  # an attempt, its run, the end, its outs
    assert results() == uninterrupted


@pytest.mark.parametrize("said, left", [("a crash", UPDATES - 6), ("No space left", UPDATES - 2)])
def test_train_after_a_crash(
    project: Path, uninterrupted: Digests, monkeypatch: pytest.MonkeyPatch, said: str, left: int
) -> None:
    """Of an update, or because the disk is full."""
    save, saves = torch.save, iter(range(100))

    def crash(count: int) -> None:
        if count == 6:
            raise RuntimeError(said)

    def fill(state: Any, file: Any) -> None:
        if next(saves) == 4:  # attempt, start, two updates, and now the third
            file.write(b"half of it")
            raise OSError(28, "No space left on device")
        save(state, file)

    with monkeypatch.context() as patch:
        patch.setattr(job, "CHECKPOINT_INTERVAL_S", 0.0)
        if said == "a crash":
            before_update(patch, crash)
        else:
            patch.setattr(torch, "save", fill)
        with pytest.raises((RuntimeError, UserError), match=said):
            train()
    only_run("FAILED")
    (directory,) = [path for path in Path(".hyojo/checkpoints").iterdir() if path.is_dir()]
    assert [path.name for path in directory.iterdir()] == ["state.pt"]
    assert count_updates() == left
    assert results() == uninterrupted
    only_run()


def test_train_killed_while_the_run_is_made(
    project: Path, uninterrupted: Digests, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise SystemExit  # passes all handlers, as a kill does

    with monkeypatch.context() as patch:
        patch.setattr(tracking, "log_files", die)
        for _ in range(2):
            with pytest.raises(SystemExit):
                train()
            only_run("RUNNING")  # made, and nobody knows its id
    train()
    assert results() == uninterrupted
    only_run()


def test_train_restores_lost_outs(project: Path, uninterrupted: Digests) -> None:
    train()
    run_id = json.loads((OUT / "run.json").read_text())["run_id"]
    shutil.rmtree("models")
    assert count_updates() == 0
    assert results() == uninterrupted
    assert json.loads((OUT / "run.json").read_text())["run_id"] == only_run().info.run_id == run_id
    assert find_steps(run_id, "train/kept_epoch") == [0]


@pytest.mark.slow
def test_train_after_edited_comments_and_code(project: Path, tmp_path: Path) -> None:
    """The outs of a finished training come back without an update, on its run, when what changed has no effect."""
    code = tmp_path / "code"
    shutil.copytree(ROOT / "pipeline", code / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    first = spawn(code=code)
    output, _ = first.communicate()
    assert first.returncode == 0, output
    wanted, record = results(), json.loads((OUT / "run.json").read_text())
    for edit, status in (("# A comment.\n", 0), ("EXTRA = 1\n", -signal.SIGKILL)):
        with (code / "pipeline/train/loop.py").open("a") as file:
            file.write(edit)
        shutil.rmtree("models")
        again = spawn("update", 0, signal.SIGKILL, code=code)  # its first update would be its end
        output, _ = again.communicate()
        assert again.returncode == status, output
        if status == 0:
            assert results() == wanted
            assert json.loads((OUT / "run.json").read_text()) == record
            assert only_run().info.run_id == record["run_id"]


def test_train_keeps_the_last_finished_checkpoint(project: Path) -> None:
    """Another job's end discards it; an unfinished one stays."""

    def keys() -> set[str]:
        return {path.name for path in Path(".hyojo/checkpoints").iterdir() if path.is_dir()}

    stop_training(2, "train.seed=1")
    (unfinished,) = keys()
    train("train.epochs=2")
    (first,) = keys() - {unfinished}
    train("train.epochs=2", "train.seed=2")
    (second,) = keys() - {unfinished}
    assert second != first
    train("train.seed=1")
    assert keys() == {unfinished}


def test_hash_job(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Params that decide the weights, data, code and libraries make another job; nothing else does."""
    prepared = load_prepared("data/prepared")

    def key(*overrides: str, data: Prepared = prepared) -> str:
        return job.hash_job(params_with(*overrides), data)

    assert len(bytes.fromhex(key())) == 16
    assert key() == key("train.device=auto") == key("evaluate.worst=9") == key("export.tolerance=0.1")
    others = {
        key(), key("train.lr=0.06"), key("train.seed=1"), key("train.transforms.train=[]"), key("train.epochs=4"),
        key(data=replace(prepared, digest="other")),
    }  # fmt: skip
    monkeypatch.setattr(job, "hash_code", lambda _places: "other")
    others.add(key())
    monkeypatch.setattr(timm, "__version__", "other")
    assert len(others | {key()}) == 8


@pytest.mark.parametrize(
    "metric, values, kept, length",
    [
        ("loss", [0.5, 0.4, 0.6, 0.4, 0.1], 2, 4),  # an equal value is no improvement
        ("accuracy", [0.5, 0.6, 0.4, 0.6, 0.9], 2, 4),
        ("balanced_accuracy", [0.5, 0.4, 0.6, 0.7, 0.1], 4, 5),
        ("macro_f1", [0.5, 0.4, 0.3, 0.6, 0.7], 1, 3),
        ("loss", [0.5, 0.6, 0.4, 0.3, 0.2], 5, 5),
    ],
)
@pytest.mark.parametrize("keep", ["best", "last"])
def test_fit_keeps_the_best_weights_by_every_metric_or_the_last(
    project: Path, monkeypatch: pytest.MonkeyPatch, metric: str, values: list[float], kept: int, length: int, keep: str
) -> None:
    kept = kept if keep == "best" else length
    seen: list[dict[str, torch.Tensor]] = []

    def evaluate(classifier: Any, *_: object, **__: object) -> dict[str, float]:
        seen.append({name: value.clone() for name, value in classifier.model.state_dict().items()})
        # The other metrics say the contrary.
        others = dict.fromkeys(("loss", "accuracy", "balanced_accuracy", "macro_f1"), 0.5)
        return others | {metric: values[len(seen) - 1]}

    monkeypatch.setattr(loop, "evaluate", evaluate)
    stopping = {"patience": 2, "metric": f"val/{metric}", "keep": keep}
    train("train.epochs=5", *(f"train.early_stopping.{name}={value}" for name, value in stopping.items()))
    assert json.loads((OUT / "weights.json").read_text())["kept_epoch"] == kept
    assert len(pd.read_csv(OUT / "history.csv")) == length
    saved = torch.load(OUT / "weights.pt", weights_only=True)
    same = [all(torch.equal(saved[name], value) for name, value in state.items()) for state in seen]
    assert same == [epoch == kept for epoch in range(1, length + 1)]


def untouched(project: Path) -> bool:
    """Whether the stage has written nothing: neither outs, nor checkpoints, nor runs."""
    return not OUT.exists() and not list(project.glob(".hyojo/checkpoints/*/*")) and not find_runs()


def test_train_adapted_stem(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`train.stem: adapt` from the plan to the log, the weights that are loaded, and the cost that is tracked."""
    net = ("train.backbone=test_resnet", "train.backbone_args={}", "train.lr=0.01", "train.epochs=2")
    with pytest.raises(UserError, match=r"Set train\.stem to adapt"):
        train(*net)
    assert untouched(project)
    train(*net, "train.stem=adapt")
    assert "test_resnet would end in a map of 1x1 at 16 px" in capsys.readouterr().out
    loaded, sidecar = load_model(OUT)
    assert len(sidecar.stem) > 1
    assert loaded.forward_features(torch.zeros(1, 1, 16, 16)).shape[2:] == (4, 4)
    (run,) = find_runs()
    stock = timm.create_model("test_resnet", **sidecar.model_args)
    assert run.data.metrics["cost/parameters"] == sum(p.numel() for p in stock.parameters())


@pytest.mark.parametrize(
    "overrides, part",
    [
        (["train.optimizer=adamww"], "did you mean 'adamw'"),
        (["train.backbone=resnet81"], "resnet18"),
        (["train.transforms.train=[RandomHorizontalFlop]"], "RandomHorizontalFlip"),
        (["train.device=cuda:99"], "train.device"),
        (["train.device=gpu"], "train.device"),
        (["train.freeze=[stems]"], r"train\.freeze.*did you mean stem"),
        (["train.weights=params.yaml", f"train.weights_sha256={'0' * 64}"], r"train\.weights_sha256"),
        (["train.epochs=4"], "exported to none"),
    ],
)
def test_train_refuses_before_anything_is_written(
    project: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], part: str
) -> None:
    monkeypatch.setattr(formats, "check_exportable", lambda *_: {"pt2": "no such operator"})
    with pytest.raises(UserError, match=part):
        train(*overrides)
    assert untouched(project)


@pytest.mark.usefixtures("project")
def test_train_one_device_for_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchrun numbers them, started by hand: params say nothing of how many there are."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"train\.device: cuda:1 is one device, and 2 processes .* set cuda"):
        train("train.device=cuda:1")


def test_train_without_a_compiler(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"train\.compile"):
        train("train.compile=default")
    assert untouched(project)


def test_train_full_memory(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the second epoch, of larger images, say."""

    def fill(count: int) -> None:
        if count == 5:
            torch.empty(10**15)

    before_update(monkeypatch, fill)
    with pytest.raises(UserError, match=r"4000000000000000 bytes.*train\.batch_size.*train\.accumulate.*train\.amp"):
        train()
    only_run("FAILED")


def test_train_slow_precision(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"train\.lr"):
        train("train.amp=fp16", "train.lr=1e30", "train.grad_clip_norm=null", "train.ema_decay=0.0")
    assert "train.amp: fp16 is slow here" in capsys.readouterr().out


def test_train_diverging_loss(project: Path) -> None:
    with pytest.raises(UserError, match=r"train\.lr"):
        train("train.lr=1e30", "train.grad_clip_norm=null", "train.ema_decay=0.0")
    only_run("FAILED")


def test_train_with_a_dead_server(project: Path, uninterrupted: Digests, capsys: pytest.CaptureFixture[str]) -> None:
    os.environ["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
    start = time.monotonic()
    train()
    assert time.monotonic() - start < 60
    assert results() == uninterrupted
    run_id = json.loads((OUT / "run.json").read_text())["run_id"]
    assert len(run_id) == 32
    assert "hyojo sync" in capsys.readouterr().err
    # The server is back, and the outs are restored: the run appears under the id that the files know.
    forget_store()
    shutil.rmtree("models")
    train()
    assert json.loads((OUT / "run.json").read_text())["run_id"] == run_id
    assert only_run().data.tags[store.RUN_ID_TAG] == run_id


WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("mlflow", "dvc", "alembic", "sqlalchemy"):
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Absent())
import pytest
from training import hasten_training
from pipeline.core.errors import stage_main
from pipeline.train import stage
hasten_training(pytest.MonkeyPatch())
stage_main(stage.main)
"""


def test_train_without_dvc_and_mlflow(project: Path, uninterrupted: Digests) -> None:
    """It says once that nothing is tracked, and trains on; the files are what they are with them."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [sys.executable, "-c", WITHOUT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr.count("warning:") == 1
    assert "it needs mlflow, which is not installed" in done.stderr
    assert results() == uninterrupted
    assert len(json.loads((OUT / "run.json").read_text())["run_id"]) == 32


# The stage as a process of its own, which sends itself a signal before an update, or in the middle of a save, that
# come so many after others; each update takes a while longer.
DRIVER = """
import os, sys, time
import pytest, torch
from training import before_update, hasten_training
from pipeline.train import job, stage
from pipeline.core.errors import stage_main
patch = pytest.MonkeyPatch()
hasten_training(patch)
event, place, number, pause, interval = sys.argv[1], *map(float, sys.argv[2:])
job.CHECKPOINT_INTERVAL_S = interval
save, saves = torch.save, iter(range(10**6))
def counted(count):
    if count == 0:
        print("training", flush=True)
    if event == "update" and count == place:
        os.kill(os.getpid(), int(number))
    time.sleep(pause)
def half(state, file):
    if event == "save" and next(saves) == place:
        save(state, file)
        file.truncate(file.tell() // 2)
        file.flush()
        os.kill(os.getpid(), int(number))
    save(state, file)
before_update(patch, counted)
torch.save = half
print("ready", flush=True)
stage_main(stage.main)
"""


def spawn(
    event: str = "", place: int = 0, number: int = 0, *, slow: bool = False, code: Path = ROOT
) -> subprocess.Popen[str]:
    """Start the stage, of some tree of code, in a process of its own, in the working directory."""
    settings = [event, place, int(number), *((0.04, 0.1) if slow else (0, 30))]
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, *map(str, settings)],
        env={**os.environ, "PYTHONPATH": f"{code}{os.pathsep}{ROOT / 'tests'}"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.mark.parametrize(
    "event, place, number, code, status",
    [("save", 3, signal.SIGKILL, -9, "RUNNING"), ("update", 6, signal.SIGTERM, 143, "KILLED")],
)
def test_train_after_a_signal_ends_alike(
    project: Path, uninterrupted: Digests, event: str, place: int, number: int, code: int, status: str
) -> None:
    """Killed while it writes a checkpoint, or asked to stop."""
    process = spawn(event, place, number)
    output, _ = process.communicate()
    assert process.returncode == code, output
    assert ("goes on from here" in output) == (code == 143)
    assert not OUT.exists()
    only_run(status)
    assert bool(list(Path(".hyojo/checkpoints").glob("*/.*.tmp.*"))) == (event == "save")
    train()
    assert results() == uninterrupted
    only_run()
    assert not list(Path(".hyojo/checkpoints").glob("*/.*.tmp.*"))


@pytest.mark.slow
def test_train_twice_at_once(project: Path, uninterrupted: Digests) -> None:
    processes = [spawn() for _ in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert sum("waiting for it to end" in output for output in outputs) == 1
    assert results() == uninterrupted
    only_run()


# So many that the fastest machine is not through before the last kill: 14 of them took one 117 epochs.
EPOCHS = 400
LONG = (f"train.epochs={EPOCHS}", *EVERYTHING)
KILLS = 24


@pytest.mark.slow
def test_train_after_many_kills(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, rng = [], random.Random(0)
    for name in ("whole", "killed"):
        root = make_project(tmp_path / name, empty_store)
        monkeypatch.chdir(root)
        forget_store()
        Path("params.yaml").write_text(apply_overrides(TINY_PARAMS, list(LONG)))
        for kill in range(KILLS if name == "killed" else 0):
            writing = kill % 4 == 3
            victim = rng.randrange(3, 9) if writing else -1
            process = spawn("save", victim, signal.SIGKILL, slow=True)  # every fourth in the middle of a save
            assert process.stdout.readline() == "ready\n"
            if not writing:
                if kill % 4:  # in the first seconds of training; else at any moment from the start on
                    while (line := process.stdout.readline()) and line != "training\n":
                        pass
                time.sleep(rng.uniform(0, 2 if kill % 4 else 8))
                process.kill()
            process.communicate()
            assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
            assert not OUT.exists()
            assert len(list(Path(".hyojo/checkpoints").glob("*/.*.tmp.*"))) == 1 or not writing
        train()
        found.append(results())
        (run,) = find_runs()
        assert run.info.status == "FINISHED"
        assert find_steps(run.info.run_id) == find_steps(run.info.run_id, "val/macro_f1") == list(range(1, EPOCHS + 1))
    assert found[0] == found[1]


@pytest.mark.slow
def test_train_while_the_server_dies(
    project: Path, uninterrupted: Digests, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    database = tmp_path / "server.db"
    shutil.copy2(project / "mlflow.db", database)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"

    def serve() -> subprocess.Popen[bytes]:
        command = [
            sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{database}",
            "--artifacts-destination", str(tmp_path / "artifacts"), "--host", "127.0.0.1", "--port", str(port),
            "--workers", "1",
        ]  # fmt: skip
        server = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path
        )
        end = time.monotonic() + 300
        while time.monotonic() < end:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5):
                return server
            assert server.poll() is None
            time.sleep(0.2)
        raise AssertionError("the server does not answer")

    def end(server: subprocess.Popen[bytes]) -> None:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()

    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    forgotten = {"MLFLOW_TRACKING_URI": address}
    server = serve()
    try:
        with monkeypatch.context() as patch:
            before_update(patch, lambda count: end(server) if count == 6 else None)
            train()
        assert results() == uninterrupted
        server = serve()
        forget_store()
        os.environ.update(forgotten)
        (run,) = find_runs()
        assert run.info.run_id == json.loads((OUT / "run.json").read_text())["run_id"]
        assert find_steps(run.info.run_id) == [1]
        sync.sync()
        run = only_run()
        for metric in ("val/accuracy", "lr"):
            assert find_steps(run.info.run_id, metric) == [1, 2, 3]
    finally:
        end(server)
