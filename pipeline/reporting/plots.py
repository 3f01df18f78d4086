"""How figures look, and how they become a PNG or a part of a page.

Every drawing function returns a matplotlib ``Figure`` of its own, drawn by Agg: no pyplot, no global state, no
display. The user's matplotlib settings are left aside and no date or version is written into the PNG, so
that equal input gives equal bytes. Colours are Okabe and Ito's, which colour-blind readers tell apart
(https://jfly.uni-koeln.de/color/); nothing is told by colour alone.
"""

import functools
import html
import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline.core.files import replacing

BLUE, VERMILLION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6B6B6B"
_STYLE: dict[str, Any] = {
    "figure.dpi": 120,
    "savefig.dpi": 120,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "grid.color": "#E4E4E4",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    # A class may be called "a$b$".
    "text.parse_math": False,
}
# Matplotlib's own font has no Chinese, Japanese or Korean: class names in them need one of these.
_EASTERN_FONTS = (
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans JP", "IPAexGothic", "Droid Sans Fallback"),
    *("WenQuanYi Zen Hei", "Hiragino Sans", "Yu Gothic", "Microsoft YaHei", "Malgun Gothic"),
)
# What a page calls the colours that it has of its own, lighter ones where it is dark.
_PAGE_COLOURS = {BLUE: "accent", VERMILLION: "bad", GREEN: "good", GREY: "faint", "#E4E4E4": "line"}


@contextmanager
def _style() -> Iterator[None]:
    """Our look whatever the user's matplotlibrc says, for the time of one drawing."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        installed = set(font_manager.get_font_names())
        fonts = ["DejaVu Sans", *(name for name in _EASTERN_FONTS if name in installed)]
        matplotlib.rcParams.update({**_STYLE, "font.family": fonts})
        # A letter that no font has is drawn as a box; the csv beside the picture has the name.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Have a drawing function run in our style."""

    @functools.wraps(draw)
    def wrapper(*args: Any, **kwargs: Any) -> Figure:
        with _style():
            return draw(*args, **kwargs)

    return wrapper


def save(figure: Figure, path: Path | str) -> None:
    """Write a figure as PNG, at one stroke, with nothing in it that varies; another suffix is a ``ValueError``."""
    path = Path(path)
    if path.suffix != ".png":
        raise ValueError(f"a figure is saved as .png, not as {path.name!r}")
    with replacing(path) as scratch, _style():
        # Software is matplotlib's version; None leaves the field out.
        figure.savefig(scratch, format="png", metadata={"Software": None})


def to_svg(figure: Figure, name: str, label: str, height_in: float) -> str:
    """Draw a figure as an ``svg`` element of a page, whose colours it takes: it suits light and dark ones.

    Args:
        figure: What a function in ``@styled`` returned.
        name: Letters; unlike that of any other figure of the page.
        label: What the figure shows, for those who do not see it.
        height_in: Of the drawing.
    """
    figure.set_size_inches(4.6, height_in)  # so narrow that a phone does not shrink the letters
    buffer = io.StringIO()
    with _style(), matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "hyojo"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawing = buffer.getvalue()
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing[drawing.index("<svg") :], flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', drawing).group()
    head = f'<svg class="chart" role="img" aria-label="{html.escape(label)}" {box}>'
    drawing = head + drawing[drawing.index(">") + 1 :]
    drawing = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", drawing)
    for colour, variable in _PAGE_COLOURS.items():
        drawing = re.sub(colour, f"var(--{variable})", drawing, flags=re.IGNORECASE)
    return drawing.strip()


def new_figure(width_in: float, height_in: float) -> Figure:
    """Return an empty figure with an Agg canvas, never larger than Agg can draw."""
    figure = Figure(figsize=(min(width_in, 40), min(height_in, 80)))
    FigureCanvasAgg(figure)
    return figure


def shorten(text: str, length: int) -> str:
    """Return ``text``, with its middle left out when it is longer than ``length``."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 2
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"
