"""Errors that a user can mend, and how a stage shows them."""

import difflib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from pipeline.core.signals import ended_by_exceptions
from pipeline.core.terminal import Screen, show


class UserError(Exception):
    """A mistake the user can mend: the message names the file, key or row, and the remedy."""


@contextmanager
def telling(*kinds: type[Exception]) -> Iterator[None]:
    """Have errors of other kinds, whose messages name file and remedy too, be ones that a user can mend."""
    try:
        yield
    except kinds as error:
        raise UserError(str(error)) from None


def suggest(name: str, known: Iterable[str], otherwise: str, *, most: int = 1, cutoff: float = 0.6) -> str:
    """Hint at what an unknown name was meant to be: up to ``most`` near ones of the known, else ``otherwise``."""
    near = difflib.get_close_matches(name, list(known), most, cutoff)
    shown = repr(near[0]) if near and most == 1 else ", ".join(near)
    return f"did you mean {shown}?" if near else otherwise


def stage_main(main: Callable[[], None]) -> None:
    """Run a stage or a command.

    A ``UserError`` is printed without a traceback and ends the process with status 1. A signal that ends it lets it
    clear up first.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name).isatty():
            setattr(sys, name, Screen(getattr(sys, name)))
    try:
        with ended_by_exceptions():
            main()
    except KeyboardInterrupt:
        sys.exit(130)
    except UserError as error:
        print(f"error: {show(str(error), kept=chr(10))}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # whoever reads the output, such as `head`, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
