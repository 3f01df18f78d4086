"""Write params.yaml: the default, a recipe, and changes.

Writes params.yaml as the default with what RECIPE and the key=value words say. With params.yaml itself as
RECIPE, it is changed in place, and keys that it lacks are added with their defaults.
"""

import argparse
from pathlib import Path


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("recipe", metavar="RECIPE", help="a YAML file, such as recipes/fer2013.yaml")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="such as train.epochs=10")


def run(arguments: argparse.Namespace) -> None:
    from pipeline.core import params_file
    from pipeline.core.paths import PARAMS

    text = params_file.read_text(arguments.recipe)
    if Path(arguments.recipe).resolve() == PARAMS.resolve():
        text, added = params_file.add_missing(text, arguments.recipe)
    else:
        text, added = params_file.apply_recipe(text, arguments.recipe), []
    text = params_file.apply_overrides(text, arguments.overrides)
    params_file.parse_params(text, arguments.recipe)
    params_file.write_params(text)
    print(f"Wrote {PARAMS} from {arguments.recipe}. `dvc repro` runs it.")
    if added:
        print(f"New keys, with their defaults: {', '.join(added)}.")
