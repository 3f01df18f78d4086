"""Figures show the numbers they were given, nothing is cut off, and equal input gives equal bytes."""

import io
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from pipeline.reporting import evaluation_figures, plots, training_figures

NAMES = ["angry", "a$b$c", "_shy", "a class name that goes on for much too long"]
MATRIX = np.array([[1234, 0, 6, 0], [1, 3, 0, 0], [0, 0, 0, 0], [0, 2, 2, 4]])
HISTORY = pd.DataFrame(
    [[1, 1.5, 0.3, 1.4, 0.35], [2, 1.0, 0.5, np.nan, 0.55], [3, 0.5, 0.7, 1.2, 0.5]],
    columns=["epoch", "train/loss", "train/accuracy", "val/loss", "val/accuracy"],
)
TABLE = (
    pd.DataFrame(
        [[0.125, 0.25, 0.375, 1240], [1.0, 0.5, 0.75, 4], [0.0, 0.0, 0.0, 0], [0.5, 1.0, 0.625, 8]],
        columns=["precision", "recall", "f1", "support"],
    )
    .assign(**{"class": NAMES})
    .astype({"support": int})
)


def faces(count: int, channels: int = 1) -> np.ndarray:
    """Random faces, each different."""
    return np.random.default_rng(0).integers(0, 256, size=(count, 8, 8, channels), dtype=np.uint8)


def mistakes(count: int, channels: int = 1) -> Figure:
    """A grid of ``count`` mistakes: the first class is predicted, the second is actual."""
    probs = np.tile([0.75, 0.2, 0.05, 0.0], (count, 1))
    files = [f"folder/face_{row}.png" for row in range(count)]
    return evaluation_figures.worst_mistakes(
        faces(count, channels), np.ones(count, int), probs, NAMES, files=files, title="Mistakes"
    )


FIGURES = {
    "curves": lambda: training_figures.training_curves(HISTORY, 2),
    "confusion": lambda: evaluation_figures.confusion_matrix(MATRIX, NAMES),
    "confusion of two": lambda: evaluation_figures.confusion_matrix(np.array([[5, 0], [0, 0]]), ["no", "yes"]),
    "bars": lambda: evaluation_figures.per_class_bars(TABLE),
    "mistakes": lambda: mistakes(5),
    "no mistakes": lambda: mistakes(0),
}


def png(figure: Figure, folder: Path) -> bytes:
    """The bytes that a figure is saved as."""
    plots.save(figure, folder / "figure.png")
    return (folder / "figure.png").read_bytes()


def texts(figure: Figure) -> list[str]:
    """Every text in a figure."""
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


@pytest.mark.parametrize("name", FIGURES)
def test_equal_input_gives_equal_bytes_whatever_the_users_settings(name: str, tmp_path: Path) -> None:
    expected = png(FIGURES[name](), tmp_path)
    with matplotlib.rc_context({"font.size": 20, "savefig.dpi": 30, "axes.grid": True, "image.cmap": "jet"}):
        assert png(FIGURES[name](), tmp_path) == expected
        assert matplotlib.rcParams["font.size"] == 20  # and leaves them as they were
    picture = Image.open(io.BytesIO(expected))
    picture.load()
    assert set(picture.info) <= {"dpi"}  # neither a date nor a version
    assert list(tmp_path.iterdir()) == [tmp_path / "figure.png"]


def test_equal_bytes_in_another_process_without_pyplot(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np\n"
        "from pipeline.reporting import evaluation_figures, plots\n"
        f"plots.save(evaluation_figures.confusion_matrix(np.array({MATRIX.tolist()}), {NAMES}), sys.argv[1])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    root = Path(plots.__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "other.png")], check=True, cwd=root)
    assert (tmp_path / "other.png").read_bytes() == png(FIGURES["confusion"](), tmp_path)


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_cut_off(name: str, tmp_path: Path) -> None:
    pixels = np.asarray(Image.open(io.BytesIO(png(FIGURES[name](), tmp_path))).convert("L"))
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == 255).all()


def test_curves_show_the_history_and_the_kept_epoch() -> None:
    loss, accuracy = training_figures.training_curves(HISTORY, 2).axes
    lines = {line.get_label(): line for line in accuracy.get_lines()}
    np.testing.assert_array_equal(lines["train"].get_ydata(), HISTORY["train/accuracy"])
    np.testing.assert_array_equal(lines["val"].get_ydata(), HISTORY["val/accuracy"])
    star = lines["kept: epoch 2, val accuracy 0.550"]
    assert (star.get_xdata().tolist(), star.get_ydata().tolist()) == ([2], [0.55])
    assert lines["train"].get_linestyle() != lines["val"].get_linestyle()  # not told by colour alone
    assert {line.get_label() for line in loss.get_lines()} > {"train", "val"}


@pytest.mark.parametrize("rows,kept", [(0, None), (1, 1), (3, None), (3, 99)])
def test_curves_of_short_histories(rows: int, kept: int | None, tmp_path: Path) -> None:
    figure = training_figures.training_curves(HISTORY.head(rows), kept)
    assert png(figure, tmp_path).startswith(b"\x89PNG")
    assert any("kept" in text for text in texts(figure)) == (kept == 1)


def test_confusion_shows_counts_and_row_shares() -> None:
    axes = evaluation_figures.confusion_matrix(MATRIX, NAMES).axes[0]
    cells = {tuple(map(int, text.get_position())): text.get_text() for text in axes.texts}
    assert len(cells) == 16
    # The position is (predicted, actual).
    wanted = {(0, 0): "1,234\n100%", (0, 1): "1\n25%", (1, 1): "3\n75%", (1, 0): "0", (3, 3): "4\n50%"}
    assert wanted.items() <= cells.items()
    shares = np.asarray(axes.images[0].get_array())
    np.testing.assert_allclose(shares[1], [0.25, 0.75, 0, 0])
    np.testing.assert_allclose(shares[2], 0)  # a class without samples is a row of zeros, not NaN
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("actual", "predicted")
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows[:3] == ["angry  (n = 1,240)", "a$b$c  (n = 4)", "_shy  (n = 0)"]


def test_confusion_of_many_classes_has_no_numbers(tmp_path: Path) -> None:
    figure = evaluation_figures.confusion_matrix(np.eye(21, dtype=int), [f"class {i}" for i in range(21)])
    assert not figure.axes[0].texts
    assert png(figure, tmp_path).startswith(b"\x89PNG")


def test_bars_are_as_long_as_the_scores() -> None:
    axes = evaluation_figures.per_class_bars(TABLE).axes[0]
    for bars, column in zip(axes.containers, ["precision", "recall", "f1"]):
        np.testing.assert_allclose([bar.get_width() for bar in bars], TABLE[column])
    assert "angry\nn = 1,240" in [label.get_text() for label in axes.get_yticklabels()]
    # The first class stands on top: the y axis points down.
    assert axes.get_ylim()[0] > axes.get_ylim()[1]


@pytest.mark.parametrize("count", [0, 1, 5, 10])
@pytest.mark.parametrize("channels", [1, 3])
def test_mistakes_show_each_face_with_its_classes(count: int, channels: int) -> None:
    figure = mistakes(count, channels)
    drawn = [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]
    shown = faces(count, channels)
    assert len(drawn) == count
    assert all(np.array_equal(one, face.squeeze()) for one, face in zip(drawn, shown))
    words = texts(figure)
    assert "Mistakes" in words  # the title
    assert words.count("predicted angry 75%") == count
    assert words.count("actual a$b$c 20%") == count
    assert f"face_{count - 1}.png" in words or not count


def test_grey_faces_keep_their_brightness(tmp_path: Path) -> None:
    # An evenly grey face would become black or white if the picture were stretched to its own range.
    face = np.full((1, 8, 8, 1), 100, np.uint8)
    figure = evaluation_figures.worst_mistakes(
        face, np.array([1]), np.array([[1.0, 0, 0, 0]]), NAMES, files=["x.png"], title="Mistakes"
    )
    pixels = np.asarray(Image.open(io.BytesIO(png(figure, tmp_path))).convert("L"))
    assert (np.abs(pixels.astype(int) - 100) <= 1).sum() > 10_000


def test_what_does_not_fit_together_is_refused() -> None:
    one, probs = np.ones(1, int), np.ones((1, 4))
    with pytest.raises(ValueError, match=r"not \(1, 8, 8\)"):
        evaluation_figures.worst_mistakes(faces(1)[..., 0], one, probs, NAMES, files=["x"], title="")
    with pytest.raises(ValueError, match="2 faces, 1 targets"):
        evaluation_figures.worst_mistakes(faces(2), one, probs, NAMES, files=["x"], title="")
    with pytest.raises(ValueError, match=r"\(2, 2\), not \(4, 4\)"):
        evaluation_figures.confusion_matrix(MATRIX, ["a", "b"])
    with pytest.raises(ValueError, match="lacks the columns val/loss, val/accuracy"):
        training_figures.training_curves(HISTORY[["epoch", "train/loss", "train/accuracy"]], 1)


def test_letters_without_a_font_do_not_warn(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    png(evaluation_figures.confusion_matrix(np.eye(2, dtype=int), ["怒り", "\U000f0000"]), tmp_path)
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_only_png_is_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"saved as \.png"):
        plots.save(mistakes(0), tmp_path / "figure.svg")
    assert not list(tmp_path.iterdir())
