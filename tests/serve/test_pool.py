"""Processes that hold the model: who waits for whom, and what happens when one ends, hangs or can't be replaced."""

import asyncio
import os
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from builders import grey_png, seal_bundle

from pipeline.core.errors import UserError
from pipeline.serve import locate, pool
from pipeline.serve.pool import Pool, Unanswered

# Pictures with which a process has accidents; the others it answers as it should.
ACCIDENTS = """
import os, time
from pipeline.inference import predictor
answer = predictor.Predictor.predict_bytes

def predict_bytes(self, pictures, *how):
    for picture in pictures:
        if picture.startswith(b"wait"):
            time.sleep(float(picture[4:]))
        elif picture == b"die":
            os._exit(3)
        elif picture == b"raise":
            raise ValueError
    return answer(self, pictures, *how)

predictor.Predictor.predict_bytes = predict_bytes
"""
BRIGHT, DARK = grey_png(250), grey_png(5)

Body = Callable[[Pool, list[int]], Awaitable[None]]


@pytest.fixture
def run(tmp_path: Path, bright_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs what a test does with a pool, which it gets with the sizes of all batches."""
    (tmp_path / "sitecustomize.py").write_text(ACCIDENTS)
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(body: Body, workers: int = 1, bundle: Path = bright_bundle) -> None:
        async def main() -> None:
            sizes: list[int] = []
            made = Pool(locate.locate(str(bundle)), None, workers, 1, sizes.append)
            try:
                await made.start()
                async with asyncio.timeout(20):
                    await body(made, sizes)
            finally:
                made.kill()

        asyncio.run(main())

    return run


async def labels(made: Pool, *pictures: bytes, faces: bool | None = None) -> list[str | None]:
    return [row["label"] for row in await made.answer(list(pictures), faces, False)]


async def until_ready(made: Pool) -> None:
    while not made.is_ready:
        await asyncio.sleep(0.02)


def test_who_comes_alone_never_waits_and_those_who_wait_go_together(run: Callable[..., None]) -> None:
    async def body(made: Pool, sizes: list[int]) -> None:
        first = asyncio.create_task(labels(made, b"wait0.3"))
        await asyncio.sleep(0.1)
        assert sizes == [1]
        found = await asyncio.gather(*(labels(made, picture) for picture in (BRIGHT, DARK) * 5), labels(made, DARK))
        assert found == [["bright"], ["dark"]] * 5 + [["dark"]]
        assert sizes == [1, 11]
        assert await first == [None]
        assert await labels(made) == []

    run(body)


def test_all_processes_work(run: Callable[..., None]) -> None:
    async def body(made: Pool, sizes: list[int]) -> None:
        for _ in range(3):
            start = time.monotonic()
            assert await asyncio.gather(*(labels(made, b"wait0.6") for _ in range(4))) == [[None]] * 4
            assert time.monotonic() - start < 1.7  # one after the other takes 2.4 s
        assert sizes == [1] * 12

    run(body, workers=4)


def test_requests_that_want_different_things_go_apart(run: Callable[..., None]) -> None:
    async def body(made: Pool, sizes: list[int]) -> None:
        first = asyncio.create_task(labels(made, b"wait0.2"))
        await asyncio.sleep(0.05)
        wanted = (None, True, None, True)
        rows = await asyncio.gather(*(made.answer([BRIGHT], faces, False) for faces in wanted), first)
        assert ["faces" in answer[0] for answer in rows[:4]] == [False, True, False, True]
        assert sizes == [1, 2, 2]

    run(body)


def test_a_large_request_holds_no_small_one_up(run: Callable[..., None]) -> None:
    async def body(made: Pool, sizes: list[int]) -> None:
        large = asyncio.create_task(labels(made, *[BRIGHT, DARK, b"wait0.01", b"junk"] * 50))
        await asyncio.sleep(0.05)
        assert await labels(made, DARK) == ["dark"]
        assert not large.done()
        assert await large == ["bright", "dark", None, None] * 50
        assert max(sizes) <= pool.SHARE + 1

    run(body)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_picture_that_ends_its_process_costs_its_own_request_alone(run: Callable[..., None], workers: int) -> None:
    async def body(made: Pool, sizes: list[int]) -> None:
        first = [asyncio.create_task(labels(made, b"wait0.3")) for _ in range(workers)]
        await asyncio.sleep(0.1)
        before = {worker.process.pid for worker in made.workers}
        guilty = asyncio.create_task(labels(made, b"die"))
        found = await asyncio.gather(*(labels(made, picture) for picture in (BRIGHT, DARK, b"raise") * 3))
        with pytest.raises(Unanswered, match="has ended"):
            await guilty
        assert found == [["bright"], ["dark"], [None]] * 3
        assert [await one for one in first] == [[None]] * workers
        await until_ready(made)
        assert before != {worker.process.pid for worker in made.workers}
        assert len(made.workers) == workers
        assert await labels(made, BRIGHT, DARK) == ["bright", "dark"]

    run(body, workers=workers)


def test_a_process_that_hangs_is_not_ready_and_replaced(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "STUCK_S", 0.2)
    monkeypatch.setattr(pool, "HUNG_S", 0.6)

    async def body(made: Pool, sizes: list[int]) -> None:
        hung = asyncio.create_task(labels(made, b"wait60"))
        await asyncio.sleep(0.1)
        assert made.is_ready
        await asyncio.sleep(0.2)
        assert not made.is_ready
        with pytest.raises(Unanswered):
            await hung
        await until_ready(made)
        assert await labels(made, BRIGHT) == ["bright"]

    run(body)


def test_who_waited_too_long_is_told(run: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "BUDGET_S", 0.2)

    async def body(made: Pool, sizes: list[int]) -> None:
        begun = asyncio.create_task(made.answer([b"wait0.5"] + [BRIGHT] * 20, None, False))
        await asyncio.sleep(0.05)
        with pytest.raises(Unanswered, match="again in a second"):
            await labels(made, DARK)
        rows = await begun
        assert [row["label"] for row in rows[1:16]] == ["bright"] * 15
        assert {row["error"] for row in rows[16:]} == {"the request takes too long; send fewer pictures"}

    run(body)


def test_a_process_is_replaced_by_one_with_the_same_model_or_none(
    run: Callable[..., None],
    bright_bundle: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = Path(shutil.copytree(bright_bundle, tmp_path / "bundle"))

    async def body(made: Pool, sizes: list[int]) -> None:
        for worker in list(made.workers):
            os.kill(worker.process.pid, signal.SIGKILL)
        await asyncio.sleep(0.1)
        assert not made.is_ready
        await until_ready(made)
        assert await labels(made, BRIGHT) == ["bright"]
        (folder / "MODEL_CARD.md").write_text("of another model")
        seal_bundle(folder, class_names=["dark", "bright"])
        for worker in list(made.workers):
            os.kill(worker.process.pid, signal.SIGKILL)
        await asyncio.sleep(2)
        assert not made.is_ready
        monkeypatch.setattr(pool, "BUDGET_S", 0.3)
        with pytest.raises(Unanswered, match="again in a second"):
            await labels(made, BRIGHT)

    run(body, bundle=folder)
    assert "can't be replaced" in (said := capfd.readouterr().err)
    assert "is not the file that was exported" in said


def test_a_model_that_cannot_be_loaded_is_told(run: Callable[..., None], bright_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bright_bundle, tmp_path / "bundle"))
    (folder / "model.onnx").write_bytes(b"no graph")
    seal_bundle(folder)

    async def body(made: Pool, sizes: list[int]) -> None:
        raise AssertionError

    start = time.monotonic()
    with pytest.raises(UserError, match="bundle can't be loaded"):
        run(body, bundle=folder, workers=2)
    assert time.monotonic() - start < 10


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone tells of the end of a parent")
def test_processes_end_with_the_server(bright_bundle: Path, tmp_path: Path) -> None:
    """However it ends."""
    from running import Running

    one = Running("--model", str(bright_bundle), "--workers", "2")
    children = Path(f"/proc/{one.process.pid}/task/{one.process.pid}/children").read_text().split()
    assert len(children) == 2
    one.process.kill()
    until = time.monotonic() + 5
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < until
        time.sleep(0.02)
