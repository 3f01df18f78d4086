"""Reports as web pages: one file each, with their pictures inside, that need no network."""

import base64
import io
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

TEMPLATES = Path(__file__).with_name("templates")
THUMBNAIL_PX = 96  # at most; twice of what is shown, for fine screens


def render(template: str, **values: Any) -> str:
    """Fill in one of the ``TEMPLATES``; what it is given is text, and never becomes markup."""
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template(template).render(**values)


def thumbnail(image: np.ndarray) -> str:
    """A picture, uint8 (H, W, C), as the text of a data URI."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
