"""Near duplicates: copies planted with Pillow among drawn faces, and the search's cells on made-up descriptors."""

import io
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from builders import drawn_faces, encode
from PIL import Image, ImageEnhance

from pipeline.prepare.twins import neighbours
from pipeline.prepare.twins.neighbours import Cells, candidates
from pipeline.prepare.twins.search import connect, near_pairs

COUNT = 140


def found(images: np.ndarray) -> set[tuple[int, int]]:
    """The pairs among all of some images."""
    pairs, agreement = near_pairs(images, np.arange(len(images)))
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert ((agreement >= 0.9) & (agreement < 1.0001)).all()
    return set(map(tuple, pairs.tolist()))


def recoded(quality: int) -> Callable[[Image.Image], Image.Image]:
    return lambda face: Image.open(io.BytesIO(encode(face, "JPEG", quality=quality)))


def resized(side: int) -> Callable[[Image.Image], Image.Image]:
    return lambda face: face.resize((side, side), Image.Resampling.BICUBIC).resize(face.size)


def moved(right: int, down: int) -> Callable[[Image.Image], Image.Image]:
    return lambda face: face.transform(face.size, Image.Transform.AFFINE, (1, 0, right, 0, 1, down))


def cropped(*box: float) -> Callable[[Image.Image], Image.Image]:
    return lambda face: face.resize(face.size, Image.Resampling.BICUBIC, box=box)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "jpeg 50": recoded(50),
    "jpeg 90": recoded(90),
    "resized to 75 %": resized(36),
    "resized to 150 %": resized(72),
    "mirrored": lambda face: face.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "moved left and down": moved(3, -3),
    "moved up": moved(0, 3),
    "cropped on one side": cropped(3, 0, 48, 48),
    "cropped all round": cropped(2, 1, 47, 46),
    "brighter": lambda face: ImageEnhance.Brightness(face).enhance(1.2),
    "darker": lambda face: ImageEnhance.Brightness(face).enhance(0.8),
    "flatter": lambda face: ImageEnhance.Contrast(face).enhance(0.8),
    "mirrored, cropped and recoded": lambda face: recoded(60)(
        cropped(0, 2, 46, 48)(face.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    ),
}


def test_different_faces_are_no_twins() -> None:
    assert found(drawn_faces()) == set()


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_copy_is_found_and_nothing_else(name: str) -> None:
    originals = range(0, COUNT, 10)
    copies = [np.asarray(CHANGES[name](Image.fromarray(drawn_faces()[row, ..., 0]))) for row in originals]
    images = np.concatenate([drawn_faces(), np.stack(copies)[..., None]])
    assert found(images) == {(row, COUNT + place) for place, row in enumerate(originals)}


@pytest.mark.parametrize("size, channels", [(20, 1), (48, 3), (112, 3)])
def test_size_and_colour_make_no_difference(size: int, channels: int) -> None:
    pictures = [Image.fromarray(face[..., 0]).resize((size, size)) for face in drawn_faces()[:30]]
    pictures.append(pictures[7].transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    pictures.append(ImageEnhance.Brightness(pictures[20]).enhance(0.85))
    images = np.stack([np.asarray(picture) for picture in pictures])[..., None].repeat(channels, axis=3)
    assert found(images) == {(7, 30), (20, 31)}


def test_only_the_given_rows_are_looked_at_in_their_order() -> None:
    images = drawn_faces()[[3, 5, 3, 8, 5]]
    assert near_pairs(images, np.array([4, 3, 1, 2]))[0].tolist() == [[0, 2]]


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_images(count: int) -> None:
    twins = np.stack([drawn_faces()[4], drawn_faces()[4, :, ::-1], drawn_faces()[9]])[:count]
    assert found(twins) == ({(0, 1)} if count >= 2 else set())


def test_plain_pictures_and_noise_are_twins_of_nothing() -> None:
    plain = np.stack([np.full((48, 48, 1), value, np.uint8) for value in (0, 90, 91, 255)])
    noise = np.random.default_rng(0).integers(0, 256, (400, 48, 48, 1), dtype=np.uint8)
    for few, many in ((np.concatenate([drawn_faces()[:5], plain]), [*drawn_faces(), *plain]), (noise[:5], noise)):
        assert found(few) == found(np.stack([*many])) == set()


def test_connect_agrees_with_a_graph_of_all() -> None:
    rng = np.random.default_rng(0)
    for count, pairs in ((50, 20), (50, 60), (400, 150), (2, 1), (3, 0), (0, 0)):
        first, second = rng.integers(0, max(1, count), (2, pairs))
        graph = nx.Graph()
        graph.add_nodes_from(range(count))
        graph.add_edges_from(zip(first.tolist(), second.tolist()))
        sets = sorted(map(sorted, nx.connected_components(graph)))
        expected = np.empty(count, int)
        for number, members in enumerate(sets):
            expected[members] = number
        assert connect(count, first, second).tolist() == expected.tolist()


# Cells


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16)


def compared(values: np.ndarray, folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """The rows of every part of a cell, and those that are compared with them."""
    with closing(Cells(values, folder)) as cells:
        return [(members, visitors) for members, _, visitors in cells.visited_by(0, len(values))]


def test_twins_are_found_in_cells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(neighbours, "_CELL", 100)
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5000, 40))
    copies = values[:500] + rng.normal(size=(500, 40)) * 0.5  # cosine 0.9, as of a copy shifted by 3 px
    everything = unit(np.concatenate([values, copies]))
    pairs = np.concatenate(list(candidates(everything, tmp_path)))
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert len(np.unique(pairs, axis=0)) == len(pairs)
    assert len({(row, 5000 + row) for row in range(500)} & set(map(tuple, pairs.tolist()))) >= 490
    cosines = (everything.astype(float)[pairs[:, 0]] * everything.astype(float)[pairs[:, 1]]).sum(axis=1)
    assert cosines.min() >= 0.39
    assert np.bincount(pairs[:, 0]).max() <= len(everything) / 100  # not everything with everything
    members = np.concatenate([members for members, _ in compared(everything, tmp_path)])
    assert sorted(members) == list(range(5500))
    # Some at a time, they find the same.
    monkeypatch.setattr(neighbours, "_VISITORS", 1300)
    again = np.concatenate(list(candidates(everything, tmp_path)))
    assert set(map(tuple, again.tolist())) == set(map(tuple, pairs.tolist()))


def test_cells_hold_their_own_descriptors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(neighbours, "_CELL", 100)
    values = unit(np.random.default_rng(1).normal(size=(3000, 12)))
    with closing(Cells(values, tmp_path)) as cells:
        parts = list(cells.visited_by(500, 1500))
    assert all((values[members] == descriptors).all() for members, descriptors, _ in parts)
    # Each row visits its nearest pivots' cells, of which one is its own.
    visits = {(row + 500, member) for members, _, rows in parts for row in rows for member in members}
    assert {(row, row) for row in range(500, 1500)} <= visits


def test_the_work_does_not_grow_as_the_square(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(neighbours, "_CELL", 64)
    values = unit(np.random.default_rng(0).normal(size=(32000, 20)))

    def work(count: int) -> int:
        return sum(len(members) * len(visitors) for members, visitors in compared(values[:count], tmp_path))

    assert work(32000) / work(2000) < 16**1.6  # 256 if it did


def test_pictures_that_are_all_alike_come_to_an_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(neighbours, "_CELL", 50)
    same = unit(np.ones((3000, 8)))
    assert max(len(members) for members, _ in compared(same, tmp_path)) <= 50
    assert sum(map(len, candidates(same, tmp_path))) > 0


def test_neighbours_take_a_few_bytes_of_each_picture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(neighbours, "_VISITORS", 2048)
    monkeypatch.setattr(neighbours, "_COSINES", 2**15)
    monkeypatch.setattr("pipeline.prepare.ordering._PART", 2048)
    peaks = []
    for count in (4_500, 10_000):
        values = unit(np.random.default_rng(0).normal(size=(count, 8)))
        tracemalloc.start()
        assert sum(map(len, candidates(values, tmp_path))) > count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 30 * 5_500
