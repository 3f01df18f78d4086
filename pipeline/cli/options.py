"""Options that several commands have."""

import argparse
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.core.files import write_text

CHAMPION = "@champion"  # of the project's registered model, whatever its name


def add_model(command: argparse.ArgumentParser, default: str = "models/bundle") -> None:
    """The options of which model answers, and whether it may."""
    about = f"a bundle folder, a version's number, {CHAMPION}, or a model URI (%(default)s)"
    command.add_argument("--model", default=default, help=about)
    command.add_argument("--trust", action="store_true", help="let a model's folder run code of its own")
    add_signature(command)


def add_signature(command: argparse.ArgumentParser) -> None:
    """The option to take only what was signed."""
    about = "refuse a model that is not signed by this public key (see `hyojo sign`)"
    command.add_argument("--require-signature", metavar="KEY", help=about)


def add_column(command: argparse.ArgumentParser) -> None:
    """The option of which column of a table leads to pictures."""
    command.add_argument("--column", help="of a table: where its pictures or paths are (default: a usual name)")


def add_faces(command: argparse.ArgumentParser) -> None:
    """The option to look for faces in pictures, or not to."""
    look = command.add_mutually_exclusive_group()
    look.add_argument(
        "--faces",
        action="store_true",
        default=None,
        help="find the faces in each picture and classify those (default: as the model was trained)",
    )
    look.add_argument("--no-faces", dest="faces", action="store_false", help="take every picture for a cut-out face")


def add_runtime(command: argparse.ArgumentParser) -> None:
    """The option of what computes."""
    command.add_argument(
        "--runtime",
        choices=("onnx", "torch", "int8"),
        help="what computes: ONNX Runtime, torch, or ONNX Runtime in 8-bit integers (the first that the model has)",
    )


def add_address(command: argparse.ArgumentParser, port: int) -> None:
    """Where a server listens."""
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    command.add_argument("--port", type=int, default=port, help="port to listen on (%(default)s)")


def write_page(path: str, page: str, option: str) -> None:
    """Write a page, HTML, to where an option says; raises ``UserError`` where that cannot be."""
    target = Path(path)
    try:
        if target.exists() and not target.is_file():  # such as /dev/null, which no file must take the place of
            target.write_text(page, encoding="utf-8")
        else:
            write_text(target, page)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}). Give another {option} FILE.") from None
