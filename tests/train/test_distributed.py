"""Several ranks: gloo with two processes on the CPU, started as users start them."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch
import torch.distributed as dist
from builders import TINY_PARAMS, make_project, params_with
from training import find_runs, find_steps, rank_of, stop_at, train, training_in

from pipeline.core.dataset import load_prepared
from pipeline.core.errors import UserError
from pipeline.core.params_file import apply_overrides
from pipeline.core.signals import StopRequest
from pipeline.metrics.selection import selection_scores
from pipeline.models.predict import predict
from pipeline.models.weights import load_classifier
from pipeline.train import checkpoint, distributed
from pipeline.train.trainer import check_batches

ROOT = Path(__file__).parents[2]
LIMIT_S = 30  # in which all ranks must have ended
START_S = 300  # generous: imports on a busy machine
# Layer norm: no rank's result depends on which samples are in its share.
NET = (
    "train.backbone=vit_tiny_patch16_224",
    "train.backbone_args={patch_size: 4, embed_dim: 16, depth: 2, num_heads: 2}",
    "train.lr=0.05", "train.accumulate=2", "train.mixing.mixup_alpha=0.4", "train.mixing.cutmix_alpha=1.0",
    "train.imbalance.method=sampling",
)  # fmt: skip
STILL = (*NET, "train.lr=0.000000001", "train.epochs=6", "train.early_stopping.patience=2", "train.ema_decay=0.0")
BATCH_NORM = ("train.epochs=2", "train.schedule.warmup=0.25")

# Trainings, one after the other, in the processes that torchrun starts.
DRIVER = """
import json, os, sys
from pathlib import Path
import pytest
import torch.distributed as dist
from builders import forget_store
from training import before_update, hasten_training, stop_at, train
from pipeline.train import distributed
join = distributed.Ranks.join
distributed.Ranks.join = lambda self, device: dist.is_initialized() or join(self, device)
distributed.Ranks.leave = lambda self: None
for folder, overrides, update in json.loads(sys.argv[1]):
    os.chdir(folder)
    forget_store()
    code, counted = 0, []
    with pytest.MonkeyPatch.context() as patch:
        hasten_training(patch)
        before_update(patch, counted.append)
        try:
            train(*overrides, stop=stop_at(patch, update if os.environ["RANK"] == "1" else None))
        except SystemExit as end:
            code = end.code
    Path(f"rank{os.environ['RANK']}").write_text(f"{code} {len(counted)}")
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """A folder of projects: trained by two ranks, by one, or by first so many and then so many."""
    root = tmp_path_factory.mktemp("ranks")
    for name in ("one", "two", "two-one", "one-two", "early", "norm"):
        make_project(root / name, empty_store)
    with training_in(root / "one"):
        train(*NET)
    with training_in(root / "one-two"), pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        train(*NET, stop=stop_at(patch, 5))
    (root / "driver.py").write_text(DRIVER)
    jobs = [
        ("two", NET, None), ("two-one", NET, 5), ("one-two", NET, None), ("early", STILL, None),
        ("norm", BATCH_NORM, None),
    ]  # fmt: skip
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(root / "driver.py")]
    done = subprocess.run(
        [sys.executable, *command, json.dumps([(str(root / name), *rest) for name, *rest in jobs])],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        capture_output=True, text=True, timeout=2 * START_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    with training_in(root / "two-one"):
        assert not Path("models/train").exists()
        train(*NET)
    return root


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "models/train/weights.pt", weights_only=True)


def history(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "models/train/history.csv")


@pytest.mark.parametrize("name", ["two", "two-one", "one-two"])
def test_any_number_of_ranks_trains_the_same_net(trained: Path, name: str) -> None:
    wanted, found = history(trained / "one"), history(trained / name)
    assert list(found["epoch"]) == [1, 2, 3]
    pd.testing.assert_frame_equal(found, wanted, rtol=1e-3, atol=1e-3)
    alone, together = weights(trained / "one"), weights(trained / name)
    assert list(alone) == list(together)
    for key, value in alone.items():
        torch.testing.assert_close(together[key], value, rtol=1e-3, atol=1e-4)
    with training_in(trained / name):  # all ranks have one run
        (run,) = find_runs()
        assert run.info.status == "FINISHED"
        assert find_steps(run.info.run_id, "val/loss") == [1, 2, 3]


def test_one_rank_that_is_asked_to_stop_stops_all_and_no_update_is_done_twice(trained: Path) -> None:
    ends = {
        name: [(trained / name / f"rank{rank}").read_text() for rank in (0, 1)]
        for name in ("two", "two-one", "one-two", "early")
    }
    assert ends["two"] == ["0 12"] * 2  # 3 epochs of 4 updates
    assert ends["two-one"] == ["143 6"] * 2
    assert ends["one-two"] == ["0 6"] * 2
    assert ends["early"] == ["0 12"] * 2  # 1 epoch, and 2 without a better one
    assert list(history(trained / "early")["epoch"]) == [1, 2, 3]


@pytest.mark.parametrize("name", ["two", "early", "norm"])
def test_every_val_sample_counts_once(trained: Path, name: str) -> None:
    folder = trained / name
    split = load_prepared(folder / "data/prepared").split("val")
    assert len(split) % 2 == 1
    scores = selection_scores(split.targets, predict(load_classifier(folder / "models/train"), split.images, 27))
    scores["loss"] = scores.pop("nll")
    best = json.loads((folder / "models/train/weights.json").read_text())["kept_epoch"]
    row = history(folder).set_index("epoch").loc[best]
    assert {key: row[f"val/{key}"] for key in scores} == pytest.approx(scores, rel=1e-5)


@pytest.mark.parametrize(
    "overrides, world, part",
    [
        (["train.batch_size=18"], 4, "multiple of twice the 4 ranks"),
        (["train.accumulate=16"], 2, "train.accumulate"),
        (["train.batch_size=80"], 2, "more than the 72 training samples"),
        (["train.batch_size=56"], 28, "more than the val samples"),
        (["train.batch_size=80", "train.devices=2"], 1, "more than the 72 training samples"),
    ],
)
def test_batches_that_cannot_be_shared_out_are_refused(
    prepared_dir: Path, overrides: list[str], world: int, part: str
) -> None:
    with pytest.raises(UserError, match=part):
        check_batches(params_with(*overrides).train, load_prepared(prepared_dir), rank_of(0, world))


def test_devices_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"train\.devices: 2 CUDA devices"):
        distributed.launch(2, torch.device("cuda:0"))


def test_a_request_to_stop_is_not_lost_to_torchrun(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "launch", lambda *_: pytest.fail("launched"))
    stop = StopRequest()
    stop.signal = signal.SIGTERM
    with pytest.raises(SystemExit) as ended:
        train("train.devices=2", stop=stop)
    assert ended.value.code == 143


@contextlib.contextmanager
def started(project: Path, epochs: int):
    """The stage with ``stage.devices: 2``, in its first epochs; yields the process and its ranks."""
    overrides = [*BATCH_NORM, "train.devices=2", f"train.epochs={epochs}"]
    (project / "params.yaml").write_text(apply_overrides(TINY_PARAMS, overrides))
    log = project / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.train"],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
    ranks = []
    try:
        end = time.monotonic() + START_S
        # The line stands there before the checkpoint does, so that of one epoch would not do.
        while f"epoch 3/{epochs}  train loss" not in log.read_text() and process.poll() is None:
            assert time.monotonic() < end, "three epochs take too long"
            time.sleep(0.1)
        assert process.poll() is None, log.read_text()
        ranks = psutil.Process(process.pid).children()
        assert len(ranks) == 2
        yield process, ranks
    finally:
        process.kill()
        process.wait()
        for rank in ranks:
            with contextlib.suppress(psutil.NoSuchProcess):
                rank.kill()


def end_of(process: subprocess.Popen, ranks: list[psutil.Process]) -> int:
    """Status of the process, once it and all ranks have ended, which must not take long."""
    start = time.monotonic()
    status = process.wait(LIMIT_S)
    _, alive = psutil.wait_procs(ranks, LIMIT_S - (time.monotonic() - start))
    assert not alive
    return status


def progress(project: Path) -> dict:
    """Where the one checkpoint stands."""
    (directory,) = [path for path in (project / ".hyojo/checkpoints").iterdir() if path.is_dir()]
    return checkpoint.load(directory)["session"]["progress"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_all_ranks_with_a_checkpoint(project: Path, number: signal.Signals) -> None:
    with started(project, 2000) as (process, ranks):
        process.send_signal(number)
        assert end_of(process, ranks) == 128 + number
    log = (project / "log").read_text()
    assert "goes on from here" in log
    assert "Traceback" not in log
    assert progress(project)["epoch"] >= 1
    (run,) = find_runs()
    assert run.info.status == "KILLED"


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_ends_all_and_the_rerun_goes_on(project: Path, victim: int) -> None:
    with started(project, 80) as (process, ranks):
        by_rank = {rank.environ()["RANK"]: rank for rank in ranks}
        by_rank[str(victim)].kill()
        assert end_of(process, ranks) != 0
    done = progress(project)["epoch"]
    assert 1 <= done < 80
    rerun = subprocess.run(
        [sys.executable, "-m", "pipeline.train"], env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=2 * START_S,
    )  # fmt: skip
    assert rerun.returncode == 0, rerun.stdout + rerun.stderr
    assert f"Going on from the checkpoint at epoch {done + 1}" in rerun.stdout
    assert list(history(project)["epoch"]) == list(range(1, 81))
    (run,) = find_runs()
    assert find_steps(run.info.run_id) == list(range(1, 81))


@pytest.mark.slow
def test_ranks_end_with_what_started_them(project: Path) -> None:
    with started(project, 2000) as (process, ranks):
        process.kill()
        end_of(process, ranks)
    assert progress(project)["epoch"] >= 1
    shutil.rmtree(project / ".hyojo")


@pytest.mark.parametrize("name, bound", [("cpu", None), ("meta:1", torch.device("meta:1"))])
def test_ranks_tell_the_device_that_is_theirs(monkeypatch: pytest.MonkeyPatch, name: str, bound: Any) -> None:
    """NCCL would guess one by the rank, which is wrong on a second machine."""
    told: dict[str, Any] = {}
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **named: told.update(named, backend=backend))
    rank_of(1, 2).join(torch.device(name))
    assert told["device_id"] == bound
    assert told["backend"] == ("cpu:gloo,cuda:nccl" if bound else "gloo")
