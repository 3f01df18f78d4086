"""Serve a model over HTTP, with a page for people.

MLflow's scoring server (POST /invocations) and, at /, a page on which to try the model.
"""

import argparse

from pipeline.cli import options


def add_options(command: argparse.ArgumentParser) -> None:
    options.add_model(command, options.CHAMPION)
    command.add_argument("--workers", type=int, default=1, metavar="N", help="processes (%(default)s)")
    command.add_argument("--threads", type=int, metavar="N", help="of each (the cores that it has for itself)")
    command.add_argument("--max-mb", type=float, default=32, metavar="MB", help="largest request (%(default)s)")
    command.add_argument("--no-page", dest="page", action="store_false", help="only the REST API")
    options.add_runtime(command)
    options.add_address(command, port=5001)


def run(arguments: argparse.Namespace) -> None:
    from pipeline.serve.server import Options, serve

    serve(arguments.model, Options(*(getattr(arguments, name) for name in Options._fields)))
