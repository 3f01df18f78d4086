"""How things look: figures, HTML, model card, templates; no result hangs on it."""
