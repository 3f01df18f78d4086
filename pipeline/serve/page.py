"""The page for people at ``/``: files of ``templates/`` and ``static/``, filled in for the model that is served."""

from pathlib import Path
from typing import Any

from pipeline.core.stage_files import BundleFile
from pipeline.reporting import html
from pipeline.serve.locate import Located

STATIC = Path(__file__).with_name("static")
_KINDS = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
HTML = "text/html; charset=utf-8"


def render_files(found: Located, knows_faces: bool, max_bytes: int) -> dict[str, tuple[bytes, str]]:
    """Render every file of the page.

    Args:
        found: The model that is served.
        knows_faces: Whether it can look for faces.
        max_bytes: Largest request that the server takes.

    Returns:
        Content and media type by path; no script or style in the page itself, and nothing of other hosts.
    """
    bundle, card = BundleFile.load(found.bundle), found.bundle / "MODEL_CARD.md"
    values: dict[str, Any] = {
        "title": found.title,
        "backbone": bundle.backbone,
        "class_names": bundle.class_names,
        "accuracy": bundle.metrics.get("test", {}).get("accuracy"),
        "threshold": bundle.abstain.get("threshold"),
        "knows_faces": knows_faces,
        # Base64 takes 4 bytes for 3, and the JSON around it a few.
        "max_bytes": (max_bytes - 1024) * 3 // 4,
        "card": html.from_markdown(card.read_text(encoding="utf-8") if card.exists() else "", level=1),
    }
    page = html.render("serve.html", **values).encode()
    static = {
        f"/static/{path.name}": (path.read_bytes(), _KINDS[path.suffix])
        for path in STATIC.iterdir()
        if path.suffix in _KINDS
    }
    return {"/": (page, HTML), "/favicon.ico": static["/static/face.svg"], **static}
