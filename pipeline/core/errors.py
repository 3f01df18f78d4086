"""Errors that a user can mend, and how a stage shows them."""

import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake the user can mend: the message names the file, key or row, and the remedy."""


def stage_main(main: Callable[[], None]) -> None:
    """Run a stage; a ``UserError`` is printed without a traceback and ends the process with status 1."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # whoever reads the output, such as `head`, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
