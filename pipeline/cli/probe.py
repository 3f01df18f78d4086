"""Find the fastest dtype, layout and batch size here, and write them to params.yaml.

Times updates of params.yaml's training on the prepared data under each dtype and memory layout, then under
other batch sizes, and writes the fastest into params.yaml.
"""

import argparse


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--seconds", type=float, default=8.0, help="time to measure for (%(default)s)")
    command.add_argument("--keep-batch-size", action="store_true", help="choose dtype and layout alone")
    command.add_argument("--dry-run", action="store_true", help="only print; leave params.yaml as it is")


def run(arguments: argparse.Namespace) -> None:
    from pipeline.core.params_file import apply_overrides, parse_params, read_text, write_params
    from pipeline.core.paths import PARAMS
    from pipeline.experiments import tuning

    text = read_text(PARAMS)
    params = parse_params(text).train
    if params.compile != "none":
        print("train.compile: each setting is compiled first, which takes minutes.", flush=True)
    chosen, measured = tuning.fastest_settings(params, arguments.seconds)
    current = {name: getattr(params, name) for name in chosen}
    print(f"{params.backbone}, img/s: median (quartiles, updates)")
    print(f"  {'amp':5} {'channels_last':14} {'batch_size':>10}")
    for found in measured:
        marks = " <- fastest" * (found.settings == chosen) + " <- params.yaml" * (found.settings == current)
        speed = f"{found.rate:8.0f} ({found.low:.0f} to {found.high:.0f}, {found.updates})"
        print(
            f"  {found.settings['amp']:5} {str(found.settings['channels_last']).lower():14} "
            f"{found.settings['batch_size']:10} {found.failure or speed}{marks}"
        )
    if arguments.keep_batch_size:
        chosen["batch_size"] = params.batch_size
    changes = [f"train.{name}={str(value).lower()}" for name, value in chosen.items() if value != current[name]]
    if not changes:
        print(f"{PARAMS} has the fastest settings already.")
    elif arguments.dry_run:
        print(f"Faster: {', '.join(changes)}; {PARAMS} is left as it is.")
    else:
        changed = apply_overrides(text, changes)
        parse_params(changed)
        write_params(changed)
        print(f"Wrote {', '.join(changes)} to {PARAMS}.")
    if chosen["batch_size"] != params.batch_size:
        print(f"train.lr ({params.lr:g}) was chosen for batches of {params.batch_size}; `hyojo lr-range` looks anew.")
