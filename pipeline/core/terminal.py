"""Names of files and classes on a terminal: shown and not obeyed, whatever is in them."""

import re
from typing import Any, TextIO

# Control characters of ASCII and Latin-1, line ends of Unicode, and what turns the direction of writing.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
# Likewise, but for lines and for what progress bars and colours are made of.
_STRAY = re.compile("(?!\x1b\\[[0-9;]*m)[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def show(text: str, kept: str = "") -> str:
    r"""A text in which control characters are written as ``\x1b``, but for those that are kept."""
    return _CONTROL.sub(lambda match: match[0] if match[0] in kept else _spell(match), text)


class Screen:
    """A terminal's stream that shows stray control characters; for all else it is that stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(_STRAY.sub(_spell, text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _spell(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")
