"""Serve a model over HTTP, with a page for people.

MLflow's protocol at /invocations, one picture's bytes at /predict, and, at /, a page on which to try the model.
"""

import argparse

from pipeline.cli import options


def add_options(command: argparse.ArgumentParser) -> None:
    options.add_model(command, options.CHAMPION)
    command.add_argument("--workers", type=int, metavar="N", help="processes with the model (one for each core)")
    command.add_argument("--threads", type=int, default=1, metavar="N", help="of each, for one batch (%(default)s)")
    command.add_argument("--max-mb", type=float, default=32, metavar="MB", help="largest request (%(default)s)")
    command.add_argument("--no-page", dest="page", action="store_false", help="only the REST API")
    command.add_argument("--follow", action="store_true", help="have the version answer that --model's alias moves to")
    about = "write a line of JSON for each picture to FILE, or to stdout: the answer, never the picture"
    command.add_argument("--log-requests", nargs="?", const="-", metavar="FILE", help=about)
    about = "names by which clients call the server (any; on this machine's own address its own names)"
    command.add_argument("--allowed-hosts", nargs="+", metavar="NAME", help=about)
    options.add_runtime(command)
    options.add_address(command, port=5001)


def run(arguments: argparse.Namespace) -> None:
    from pipeline.serve.server import Options, serve

    serve(arguments.model, Options(*(getattr(arguments, name) for name in Options._fields)))
