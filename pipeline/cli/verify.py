"""Check that a bundle or a registered version is what was exported, and signed.

Every file of its bundle is held against the sums in bundle.json and, with --key, all files against the signature.
"""

import argparse


def add_options(command: argparse.ArgumentParser) -> None:
    about = "a bundle folder, a version's number, or a model URI (%(default)s)"
    command.add_argument("model", nargs="?", default="models/bundle", metavar="MODEL", help=about)
    command.add_argument("--key", metavar="FILE", help="PEM file with the public key by which it has to be signed")


def run(arguments: argparse.Namespace) -> None:
    from pipeline.serve import signatures

    title, count = signatures.verify(arguments.model, arguments.key)
    signed = f", and signed by the owner of {arguments.key}" if arguments.key else ""
    print(f"{title}: {count} files are as they were exported{signed}.")
