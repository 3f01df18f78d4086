"""The page for people at ``/``: files of ``templates/`` and ``static/``, filled in for the model that is served."""

from pathlib import Path

from pipeline.reporting import html
from pipeline.serve.locate import Located

STATIC = Path(__file__).with_name("static")
_KINDS = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
HTML = "text/html; charset=utf-8"


def render_files(found: Located, max_bytes: int, page: bool = True) -> dict[str, tuple[bytes, str]]:
    """Render every file of the page for a server that takes requests of so many bytes; without it, of ``/docs`` alone.

    Returns:
        Content and media type by path; no script or style in the page itself, and nothing of other hosts.
    """
    bundle, card = found.record, found.bundle / "MODEL_CARD.md"
    text = html.render(
        "serve.html",
        title=found.title,
        version=found.version,
        backbone=bundle.backbone,
        class_names=bundle.class_names,
        accuracy=bundle.metrics.get("test", {}).get("accuracy"),
        threshold=bundle.abstain.get("threshold"),
        max_bytes=max_bytes,
        card=html.from_markdown(card.read_text(encoding="utf-8") if card.exists() else "", level=1),
    )
    static = {
        f"/static/{path.name}": (path.read_bytes(), _KINDS[path.suffix])
        for path in STATIC.iterdir()
        if path.suffix in _KINDS
    }
    static["/favicon.ico"] = static["/static/face.svg"]
    return static | ({"/": (text.encode(), HTML)} if page else {})
