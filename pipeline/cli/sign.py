"""Sign a bundle or a registered version.

The signature lies beside the bundle's folder (models/bundle.sig), or beside the version's model in MLflow. It needs
the extra hyojo[sign], and asks no network. A key is made by: openssl ecparam -name prime256v1 -genkey -noout -out
team.pem; its public part by: openssl ec -in team.pem -pubout -out team.pub
"""

import argparse


def add_options(command: argparse.ArgumentParser) -> None:
    about = "a bundle folder, a version's number, or a model URI (%(default)s)"
    command.add_argument("model", nargs="?", default="models/bundle", metavar="MODEL", help=about)
    about = "PEM file with the private key; its password, if it has one, is taken from HYOJO_KEY_PASSWORD"
    command.add_argument("--key", required=True, metavar="FILE", help=about)


def run(arguments: argparse.Namespace) -> None:
    from pipeline.serve import signatures

    print(f"Signed {signatures.sign(arguments.model, arguments.key)}.")
