"""Reports as web pages: one file each, with their pictures inside, that need no network."""

import base64
import io
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markdown_it import MarkdownIt
from markupsafe import Markup
from PIL import Image

TEMPLATES = Path(__file__).with_name("templates")
THUMBNAIL_PX = 96  # at most; twice of what is shown, for fine screens
HEAT_COLOUR, HEAT_OPACITY = (255, 110, 0), 0.7


def render(template: str, **values: Any) -> str:
    """Fill in one of the ``TEMPLATES``; in HTML, what it is given is text and never becomes markup."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name is None or not name.endswith(".md"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(**values)


def thumbnail(image: np.ndarray) -> str:
    """A picture, uint8 (H, W, C), as the text of a data URI."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def overlay(image: np.ndarray, heat: np.ndarray) -> str:
    """A picture, uint8 (H, W, C), under a heat map, floats (H, W) from 0 to 1, as the text of a data URI."""
    size = (THUMBNAIL_PX, THUMBNAIL_PX)
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("RGB")
    mask = Image.fromarray(np.rint(255 * HEAT_OPACITY * heat).astype(np.uint8)).resize(size)
    glowing = Image.composite(Image.new("RGB", size, HEAT_COLOUR), picture.resize(size), mask)
    return thumbnail(np.asarray(glowing))


def from_markdown(text: str, level: int) -> Markup:
    """HTML of Markdown with tables, whose headings begin at a level; HTML in the text never becomes markup."""
    # Pages need no network, so pictures from elsewhere and links to it stay text.
    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["image", "link", "autolink"])
    tokens = parser.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + level - 1)}"
    found = parser.renderer.render(tokens, parser.options, {})
    return Markup(found.replace("<table>", '<div class="scroll"><table>').replace("</table>", "</table></div>"))
