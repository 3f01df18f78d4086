"""If most pictures show next to nothing, the stage says so; if their range is not known, it stops."""

from pathlib import Path

import numpy as np
import pytest
from builders import draw_noise, encode, prepare_params

from pipeline.core.errors import UserError
from pipeline.prepare.stage import prepare

RNG = np.random.default_rng(0)
KINDS = {
    "dark": lambda: encode(RNG.integers(0, 60, (12, 12), dtype=np.uint8)),
    "bright": lambda: encode(RNG.integers(195, 256, (12, 12), dtype=np.uint8)),
    "blank": lambda: encode(np.full((12, 12), RNG.integers(100, 150), np.uint8)),
}


def write_faces(folder: Path, odd: int, make) -> Path:
    """20 pictures of two classes, some of them of a kind."""
    for i in range(20):
        path = folder / ("happy", "sad")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make() if i < odd else draw_noise(i))
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("odd", [10, 11])
def test_most_pictures_decide(kind: str, odd: int, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(prepare_params(write_faces(home.parent / "work", odd, KINDS[kind])))
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert [line.split(".")[0] for line in said] == ([f"warning: 11 of 20 images are {kind}"] if odd == 11 else [])


def test_pictures_of_12_bits_in_16_stop_the_stage_with_the_reason(home: Path) -> None:
    source = write_faces(home.parent / "work", 20, lambda: encode(RNG.integers(0, 4096, (12, 12), dtype=np.uint16)))
    with pytest.raises(UserError, match=r"none of the 10 files .*0.png: 16-bit samples below a quarter"):
        prepare(prepare_params(source))
