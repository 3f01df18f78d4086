"""The command line: ``hyojo --help`` lists the commands.

Nothing heavy is imported before a command runs, so that ``--help`` answers at once.
"""

import argparse
import os
import re
import sys
from pathlib import Path

from pipeline.core.errors import UserError, stage_main

CHAMPION_URI = "models:/hyojo@champion"


def main() -> None:
    """Entry point of ``hyojo``."""
    arguments = build_parser().parse_args()
    stage_main(lambda: sys.exit(arguments.command(arguments) or 0))


def build_parser() -> argparse.ArgumentParser:
    """All commands with their help."""
    parser = argparse.ArgumentParser(
        prog="hyojo",
        description="Labelled face images in, a tracked and served expression classifier out.",
        epilog="The pipeline itself runs by `dvc repro`; params.yaml is the one file to edit.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    use = commands.add_parser("use", help="write a recipe to params.yaml")
    use.add_argument("recipe", help="a complete params file, such as recipes/fer2013.yaml")
    use.add_argument("overrides", nargs="*", metavar="key=value", help="such as train.epochs=10")
    use.set_defaults(command=_use)

    seeds = commands.add_parser(
        "seeds",
        help="train several seeds of one setting: mean, spread and interval of each score",
        description="Trains and evaluates params.yaml under N seeds, each a DVC experiment and an MLflow run below a "
        "common parent run. Interrupted and run again, it goes on.",
    )
    seeds.add_argument("count", type=int, metavar="N", help="how many seeds")
    seeds.add_argument("--start", type=int, default=0, metavar="S", help="the first seed (%(default)s)")
    seeds.add_argument(
        "--set",
        dest="overrides",
        action="append",
        nargs="+",
        default=[],
        metavar="key=value",
        help="on top of params.yaml, such as train.epochs=10",
    )
    seeds.add_argument("--name", help="of the family and, with -SEED, of its experiments (from the params)")
    seeds.set_defaults(command=_seeds)

    probe = commands.add_parser(
        "probe",
        help="find the fastest dtype, layout and batch size here, and write them to params.yaml",
        description="Times updates of params.yaml's training on the prepared data under each dtype and memory layout, "
        "then under other batch sizes, and writes the fastest into params.yaml.",
    )
    probe.add_argument("--seconds", type=float, default=8.0, help="time to measure for (%(default)s)")
    probe.add_argument("--keep-batch-size", action="store_true", help="choose dtype and layout alone")
    probe.add_argument("--dry-run", action="store_true", help="only print; leave params.yaml as it is")
    probe.set_defaults(command=_probe)

    lr_range = commands.add_parser(
        "lr-range",
        help="raise the learning rate update by update and plot the loss",
        description="A learning-rate range test of params.yaml's training on the prepared data.",
    )
    lr_range.add_argument("--from", dest="lowest", type=float, default=1e-5, help="first rate (%(default)s)")
    lr_range.add_argument("--to", dest="highest", type=float, default=3.0, help="last rate (%(default)s)")
    lr_range.add_argument("--updates", type=int, default=100, help="updates between them (%(default)s)")
    lr_range.add_argument("--plot", default="reports/lr_range.png", help="picture to write (%(default)s)")
    lr_range.set_defaults(command=_lr_range)

    suspects = commands.add_parser(
        "suspects",
        help="find training labels that are probably wrong, by cross-validation",
        description="Trains params.yaml's net anew on all folds of the training split but one, in turn, has it judge "
        "that one, and writes the labels that it doubts to reports/label_suspects_train.csv and .html.",
    )
    suspects.add_argument("--folds", type=int, default=4, help="parts, and so trainings (%(default)s)")
    suspects.add_argument(
        "--epochs", type=int, help="of each training (train.epochs); fewer cost less and doubt more"
    )
    suspects.set_defaults(command=_suspects)

    predict = commands.add_parser("predict", help="classify pictures")
    predict.add_argument("paths", nargs="+", metavar="PATH", help="a picture, or a folder of pictures")
    predict.add_argument(
        "--model",
        default="models/bundle",
        help=f"a bundle folder or a model URI such as {CHAMPION_URI} (%(default)s)",
    )
    _add_faces(predict)
    form = predict.add_mutually_exclusive_group()
    form.add_argument("--json", dest="form", action="store_const", const="json", help="print JSON")
    form.add_argument("--csv", dest="form", action="store_const", const="csv", help="print CSV")
    predict.set_defaults(command=_predict, form="table")

    batch = commands.add_parser(
        "batch",
        help="classify very many pictures into a Parquet file",
        description="Scores a folder, an archive or a table of pictures, in constant memory. Killed and run again, it "
        "goes on where it was.",
    )
    batch.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder or zip or tar archive of pictures, or a table (.parquet, .csv) with pictures or paths in it",
    )
    batch.add_argument("--out", required=True, metavar="FILE", help="Parquet file to make")
    batch.add_argument(
        "--model",
        default="models/bundle",
        help=f"a bundle folder or a model URI such as {CHAMPION_URI} (%(default)s)",
    )
    batch.add_argument("--column", help="of a table: where its pictures or paths are (default: a usual name)")
    batch.add_argument("--workers", type=int, help="threads (default: one a core)")
    batch.add_argument(
        "--batch-size", type=int, default=64, help="pictures that a thread takes at a time (%(default)s)"
    )
    batch.add_argument(
        "--chunk", type=int, default=8192, help="pictures between two points to go on from (%(default)s)"
    )
    _add_faces(batch)
    _add_runtime(batch)
    again = batch.add_mutually_exclusive_group()
    again.add_argument(
        "--resume",
        dest="restart",
        action="store_false",
        default=False,
        help="go on where a former run stopped (the default)",
    )
    again.add_argument("--restart", action="store_true", help="throw away what is there, and begin anew")
    batch.set_defaults(command=_batch)

    register = commands.add_parser("register", help="register the bundle; the first version becomes champion")
    register.set_defaults(command=_register)

    compare = commands.add_parser(
        "compare",
        help="compare two models on the same test samples",
        description="A and B are registry versions (3, v3), aliases (champion), models:/ URIs, MLflow runs by id, "
        "beginning of an id or name, DVC experiments, git revisions, or . for what stands in reports/.",
    )
    compare.add_argument("a", metavar="A", help="what B is compared with, such as champion")
    compare.add_argument("b", metavar="B", help="the newer one, such as .")
    compare.add_argument(
        "--html", metavar="FILE", help="page to write (reports/compare.html, and none with --json)"
    )
    compare.add_argument("--json", action="store_true", help="print JSON")
    compare.set_defaults(command=_compare)

    promote = commands.add_parser("promote", help="make a version champion, if the gate lets it through")
    promote.add_argument("version", nargs="?", type=int, metavar="VERSION", help="the latest if left out")
    promote.add_argument("--force", action="store_true", help="whatever the gate says; needs --reason")
    promote.add_argument(
        "--reason", metavar="TEXT", help="why the gate is overruled; recorded on the version"
    )
    promote.set_defaults(command=_promote)

    rollback = commands.add_parser("rollback", help="make the former champion champion again")
    rollback.set_defaults(command=_rollback)

    serve = commands.add_parser(
        "serve",
        help="serve a model over HTTP, with a page for people",
        description="MLflow's scoring server (POST /invocations) and, at /, a page on which to try the model.",
    )
    serve.add_argument(
        "--model",
        default=CHAMPION_URI,
        help="a model URI, a version's number, or a bundle folder (%(default)s)",
    )
    serve.add_argument("--workers", type=int, default=1, metavar="N", help="processes (%(default)s)")
    serve.add_argument("--threads", type=int, metavar="N", help="of each (the cores that it has for itself)")
    _add_runtime(serve)
    serve.add_argument("--max-mb", type=float, default=32, metavar="MB", help="largest request (%(default)s)")
    serve.add_argument("--no-page", dest="page", action="store_false", help="only the REST API")
    serve.set_defaults(command=_serve)
    ui = commands.add_parser("ui", help="open the MLflow UI on this project's store")
    ui.set_defaults(command=_ui)
    for command, port in ((serve, 5001), (ui, 5000)):
        command.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
        command.add_argument("--port", type=int, default=port, help="port to listen on (%(default)s)")

    sync = commands.add_parser("sync", help="bring MLflow in line with DVC's files")
    sync.add_argument(
        "--relocate", action="store_true", help="after the project's folder was moved: mend locations"
    )
    sync.set_defaults(command=_sync)
    return parser


def _add_faces(command: argparse.ArgumentParser) -> None:
    """The option to look for faces in pictures, or not to."""
    look = command.add_mutually_exclusive_group()
    look.add_argument(
        "--faces",
        action="store_true",
        default=None,
        help="find the faces in each picture and classify those (default: as the model was trained)",
    )
    look.add_argument(
        "--no-faces", dest="faces", action="store_false", help="take every picture for a cut-out face"
    )


def _add_runtime(command: argparse.ArgumentParser) -> None:
    """The option of what computes."""
    command.add_argument(
        "--runtime",
        choices=("onnx", "torch", "int8"),
        help="what computes: ONNX Runtime, torch, or ONNX Runtime in 8-bit integers (the first that the model has)",
    )


def _use(arguments: argparse.Namespace) -> None:
    from pipeline.core.params import PARAMS_FILE, apply_overrides, parse_params, read_text, write_params

    text = read_text(arguments.recipe)
    if Path(arguments.recipe).resolve() != Path(PARAMS_FILE).resolve():
        text = re.sub(r"\A(#.*\n)+", "", text)  # what a recipe gave would not hold with another word in it
    text = apply_overrides(text, arguments.overrides)
    parse_params(text, arguments.recipe)
    write_params(text)
    print(f"Wrote {PARAMS_FILE} from {arguments.recipe}. `dvc repro` runs it.")


def _seeds(arguments: argparse.Namespace) -> int:
    from pipeline.experiments.seeds import train_seeds

    overrides = [pair for group in arguments.overrides for pair in group]
    return train_seeds(arguments.count, arguments.start, overrides, arguments.name)


def _probe(arguments: argparse.Namespace) -> None:
    from pipeline.core.params import PARAMS_FILE, apply_overrides, parse_params, read_text, write_params
    from pipeline.experiments import tuning as probe

    text = read_text(PARAMS_FILE)
    params = parse_params(text).train
    chosen, measured = probe.fastest_settings(params, arguments.seconds)
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
    changes = [
        f"train.{name}={str(value).lower()}" for name, value in chosen.items() if value != current[name]
    ]
    if not changes:
        print(f"{PARAMS_FILE} has the fastest settings already.")
    elif arguments.dry_run:
        print(f"Faster: {', '.join(changes)}; {PARAMS_FILE} is left as it is.")
    else:
        changed = apply_overrides(text, changes)
        parse_params(changed)
        write_params(changed)
        print(f"Wrote {', '.join(changes)} to {PARAMS_FILE}.")
    if chosen["batch_size"] != params.batch_size:
        print(
            f"train.lr ({params.lr:g}) was chosen for batches of {params.batch_size}; `hyojo lr-range` looks anew."
        )


def _lr_range(arguments: argparse.Namespace) -> None:
    from pipeline.core.params import load_params
    from pipeline.experiments import tuning as probe
    from pipeline.reporting import plots

    if not 0 < arguments.lowest < arguments.highest or arguments.updates < 10:
        raise UserError("lr-range wants 0 < --from < --to and at least 10 --updates")
    params = load_params().train
    curve = probe.lr_range(params, arguments.lowest, arguments.highest, arguments.updates)
    suggestion = probe.suggested_lr(curve)
    path = Path(arguments.plot)
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.save(plots.lr_range(curve, suggestion), path)
    print(
        f"{len(curve)} updates from {curve['lr'].iloc[0]:.2g} to {curve['lr'].iloc[-1]:.2g}; the loss falls most "
        f"steeply at {suggestion:.2g} (train.lr is {params.lr:g}). Curve: {path}"
    )


def _suspects(arguments: argparse.Namespace) -> None:
    from pipeline.experiments.suspects import doubt_training_labels

    if arguments.folds < 2:
        raise UserError(f"--folds {arguments.folds}: two at least")
    print(doubt_training_labels(arguments.folds, arguments.epochs))


def _predict(arguments: argparse.Namespace) -> int:
    from pipeline.serve import files as predict

    rows = list(predict.predict_paths(arguments.paths, arguments.model, arguments.faces))
    show = {"json": predict.format_json, "csv": predict.format_csv, "table": predict.format_table}
    print(show[arguments.form](rows))
    return int(all(row["error"] for row in rows))


def _batch(arguments: argparse.Namespace) -> int:
    from pipeline.serve.batch import Settings, score

    settings = Settings(
        arguments.batch_size,
        arguments.chunk,
        arguments.workers,
        arguments.faces,
        arguments.column,
        arguments.restart,
        arguments.runtime,
    )
    try:
        found = score(arguments.source, arguments.out, arguments.model, settings)
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return 130
    how = (
        f"{found.scored / found.seconds:,.0f} img/s"
        if found.scored
        else "finished before; --restart scores anew"
    )
    others = f", {found.passed_over:,} other files passed over" * (found.passed_over > 0)
    rows = f"{found.pictures:,} pictures, {found.rows:,} rows, {found.errors:,} of them errors"
    print(f"{arguments.out}: {rows}{others} ({how})")
    return int(found.errors == found.rows)


def _register(_arguments: argparse.Namespace) -> None:
    from pipeline.tracking import registry

    if not registry.has_model():  # a fresh clone with pulled outs, or a store that was lost
        from pipeline.tracking.sync import sync

        sync()
    print(registry.register().message)


def _compare(arguments: argparse.Namespace) -> None:
    import json

    from pipeline.experiments import contenders, two_families
    from pipeline.experiments import page as compare_page
    from pipeline.experiments.two_models import compare

    if families := two_families.find_pair(arguments.a, arguments.b):
        found = two_families.compare(*families)
        text, page, shown = compare_page.families_text, compare_page.families_page, "as a page"
    else:
        found = compare(contenders.find(arguments.a), contenders.find(arguments.b))
        text, page, shown = compare_page.text, compare_page.page, "with pictures"
    print(json.dumps(found.as_dict(), indent=2) if arguments.json else text(found))
    if arguments.json and not arguments.html:
        return
    path = Path(arguments.html or "reports/compare.html")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(found), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}. Give another --html FILE.") from None
    if not arguments.json:
        print(f"\n{shown}: {path}")


def _promote(arguments: argparse.Namespace) -> int:
    from pipeline.experiments import promotion

    outcome = promotion.promote(arguments.version, arguments.force, arguments.reason)
    print(outcome.message)
    return int(outcome.refused)


def _rollback(_arguments: argparse.Namespace) -> None:
    from pipeline.tracking import registry

    print(registry.rollback().message)


def _serve(arguments: argparse.Namespace) -> None:
    from pipeline.serve import server

    server.serve(
        arguments.model, arguments.host, arguments.port, arguments.workers, arguments.threads, arguments.runtime,
        arguments.page, arguments.max_mb,
    )  # fmt: skip


def _ui(arguments: argparse.Namespace) -> None:
    uri = _configure()
    # Background jobs are for MLflow's own LLM features: three processes that nobody here needs.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    if uri.startswith("http"):
        raise UserError(f"MLFLOW_TRACKING_URI is a server already: open {uri} in a browser.")
    print(f"MLflow UI: http://{arguments.host}:{arguments.port}", flush=True)
    _run_mlflow(
        "ui",
        "--backend-store-uri",
        uri,
        "--host",
        arguments.host,
        "--port",
        str(arguments.port),
        "--workers",
        "1",
    )


def _sync(arguments: argparse.Namespace) -> None:
    from pipeline.core.project import project_root
    from pipeline.tracking import store

    if arguments.relocate:
        print(f"{store.relocate(project_root())} locations changed.")
        return
    from pipeline.tracking.sync import sync

    for line in sync():
        print(f"in place: {line}")


def _configure() -> str:
    """Make the store if need be; returns its address, which is in the environment too."""
    from pipeline.tracking import store

    store.connect()
    return os.environ["MLFLOW_TRACKING_URI"]


def _run_mlflow(*arguments: str) -> None:
    """Become an mlflow command; its folder is the project's root."""
    from pipeline.core.project import project_root

    os.chdir(project_root())
    # mlflow starts uvicorn by name, which must be the one of this environment.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", *arguments])
