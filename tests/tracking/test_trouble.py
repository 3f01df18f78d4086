"""Any trouble with MLflow is one sentence, with the address and the remedy, whichever command meets it."""

import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from builders import log_version, run_hyojo, write_files, write_sidecars
from faulty_server import serve_mlflow

from pipeline.tracking import registry, store, trouble
from pipeline.tracking.store import connect, experiment_id
from pipeline.tracking.trouble import TrackingError

STORE = "sqlite:///{root}/mlflow.db"


@contextlib.contextmanager
def damaged(root: Path) -> Iterator[None]:
    (root / "mlflow.db").write_bytes(b"no database " * 1000)
    yield


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(root / "mlflow.db", isolation_level=None)) as connection:
        connection.execute("begin exclusive")
        yield


@contextlib.contextmanager
def foreign(root: Path) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(root / "mlflow.db")) as connection, connection:
        connection.execute("update alembic_version set version_num = 'fedcba987654'")
    yield


@contextlib.contextmanager
def of_another_program(root: Path) -> Iterator[None]:
    (root / "mlflow.db").unlink()
    with contextlib.closing(sqlite3.connect(root / "mlflow.db")) as connection, connection:
        connection.execute("create table recipes (name)")
    yield


@contextlib.contextmanager
def as_it_is(_root: Path) -> Iterator[None]:
    yield


@pytest.mark.parametrize(
    ("uri", "state", "said", "remedy"),
    [
        ("http://127.0.0.1:9", as_it_is, "http://127.0.0.1:9: nobody answers", "unset MLFLOW_TRACKING_URI"),
        ("http://nowhere.invalid", as_it_is, "no machine of that name", "unset MLFLOW_TRACKING_URI"),
        ("./mlruns", as_it_is, "./mlruns: MLflow takes no folder", "sqlite:////absolute/path/mlflow.db"),
        ("ftp://host/x", as_it_is, "ftp://host/x: MLflow knows no such kind", "sqlite:////absolute/path/mlflow.db"),
        (
            "postgresql+psycopg2://anna:secret@host/x",
            as_it_is,
            "postgresql+psycopg2://host/x: it needs psycopg2-binary",
            "pip install psycopg2-binary",
        ),
        ("", damaged, f"{STORE}: this file is no database", "hyojo sync"),
        ("", locked, f"{STORE}: another process holds the database", "try again"),
        ("", foreign, "mlflow.db has schema fedcba987654", "the newer MLflow that made it"),
        ("", of_another_program, "mlflow.db is no database of MLflow's", "another file"),
    ],
)
def test_a_store_that_cannot_be_opened(
    project: Path,
    uri: str,
    state: Callable[[Path], contextlib.AbstractContextManager[None]],
    said: str,
    remedy: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("pipeline.tracking.database.LOCKED_S", 0.1)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    if uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with state(project):
        content = (project / "mlflow.db").read_bytes()
        assert run_hyojo("history") == 1
        assert (project / "mlflow.db").read_bytes() == content
        expect_sentence(capfd, said.format(root=project), remedy)
        if state is damaged:
            assert run_hyojo("sync", "--relocate") == 1
            expect_sentence(capfd, said.format(root=project), remedy)
    assert sorted(path.name for path in project.glob("mlflow.db*")) == ["mlflow.db"]


@pytest.mark.parametrize(
    ("status", "body", "said", "remedy"),
    [
        ("401 No", "You are not authenticated", "no such user or password", "MLFLOW_TRACKING_USERNAME"),
        ("403 No", "Permission denied", "this user may not do that", "EDIT"),
        ("403 No", '{"error_code": "PERMISSION_DENIED", "message": "no"}', "this user may not do that", "EDIT"),
        ("503 No", "<html>", "it answers with HTTP status 503", "the server's log"),
        ("404 No", "<html>", "no MLflow server", "correct the address"),
        ("200 OK", "<html>Welcome</html>", "no MLflow server", "correct the address"),
    ],
)
def test_a_server_that_answers_otherwise(
    project: Path, status: str, body: str, said: str, remedy: str, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with serve_mlflow(project / "mlflow.db", project / "artifacts") as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        server.fault = lambda method, path: (status, body)
        assert run_hyojo("history") == 1
        expect_sentence(capfd, f"{server.url}: ", said, remedy)


@pytest.mark.parametrize(
    "arguments",
    [
        ["register"], ["sync"], ["compare", "champion", "1"], ["promote", "2"], ["rollback"], ["history"],
        ["predict", "x.png", "--model", "models:/hyojo@champion"], ["serve"], ["serve", "--model", "3"],
        ["ui"],
        ["batch", "pictures", "--out", "x.parquet", "--model", "models:/hyojo/1"],
    ],
    ids=lambda arguments: " ".join(arguments[:4]),
)  # fmt: skip
def test_every_command_says_so(
    project: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A server that is gone; what a command wants besides is there."""
    log_version(70, "bundle")
    write_sidecars(project / "models/train")
    (project / "x.png").write_bytes(b"")
    write_files(project / "pictures", "a.png")
    store.connect.cache_clear()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    capfd.readouterr()
    assert run_hyojo(*arguments) == 1
    expect_sentence(capfd, "MLflow at http://127.0.0.1:9: nobody answers", "start the server")


@pytest.mark.parametrize(
    "arguments",
    [
        ["compare", "1", "2"], ["promote", "2"], ["predict", "x.png", "--model", "models:/hyojo/1"], ["serve"],
        ["predict", "x.png", "--model", "{source}"], ["sync"],
    ],
    ids=lambda arguments: " ".join(arguments[:4]),
)  # fmt: skip
def test_artifacts_out_of_reach_are_told_by_their_own_address(
    project: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The server is there, and what it keeps artifacts in is not: they are neither missing nor moved."""
    with serve_mlflow(project / "mlflow.db", project / "artifacts") as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        for right, digest in ((70, "first"), (80, "bundle")):
            registry.register(log_version(right, digest))
        write_sidecars(project / "models/train", json.loads(Path("models/bundle/bundle.json").read_text())["run_id"])
        (project / "models/train/history.csv").write_text("epoch,train/loss\n0,1.0\n")
        (project / "x.png").write_bytes(b"")
        source = connect().get_model_version("hyojo", "1").source
        server.fault = lambda method, path: ("500 No", "<html>") if "mlflow-artifacts" in path else None
        capfd.readouterr()
        assert run_hyojo(*(each.format(source=source) for each in arguments)) == 1
        expect_sentence(capfd, f"{server.url}/api/2.0/mlflow-artifacts/artifacts/", "HTTP status 500", "log")


def test_storage_whose_package_is_missing_is_told(project: Path) -> None:
    client = connect()
    number = client.create_experiment("s3", artifact_location="s3://bucket/place")
    run_id = client.create_run(number).info.run_id
    with pytest.raises(
        TrackingError, match=r"^MLflow at s3://bucket/place/\S+: it needs 'hyojo\[s3\]', .*`pip install 'hyojo\[s3\]'"
    ):
        client.list_artifacts(run_id)


def test_an_older_database_is_copied_before_it_is_migrated(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from alembic import command
    from mlflow.store.db.utils import _get_alembic_config, create_sqlalchemy_engine
    from mlflow.store.tracking.dbmodels.initial_models import Base

    path = project / "mlflow.db"
    path.unlink()
    engine = create_sqlalchemy_engine(f"sqlite:///{path}")
    Base.metadata.create_all(engine)
    config = _get_alembic_config(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "acf3f17fdcc7")  # as of MLflow 2.9
    engine.dispose()
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        for name in ("older", "hyojo"):
            connection.execute(f"insert into experiments values (null, '{name}', '{project.as_uri()}', 'active', 0, 0)")
        before = list(connection.iterdump())
    capfd.readouterr()
    assert connect().get_experiment_by_name("older") is not None
    assert experiment_id(connect())
    copy = project / "mlflow.db.acf3f17fdcc7"
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert f"{path} is of an older MLflow" in printed.err
    assert copy.name in printed.err
    with contextlib.closing(sqlite3.connect(copy)) as connection:
        assert list(connection.iterdump()) == before


def test_secrets_are_not_told() -> None:
    with pytest.raises(TrackingError) as caught, trouble.told("https://anna:secret@host:5000/x"):
        raise ValueError("https://anna:secret@host:5000/x said no")
    assert str(caught.value).count("secret") == 0
    assert "https://host:5000/x said no" in str(caught.value)


def expect_sentence(capfd: pytest.CaptureFixture[str], *parts: str) -> None:
    """What was printed is one line, with these parts in it."""
    printed = capfd.readouterr()
    lines = [line for line in printed.err.splitlines() if "Downloading artifacts" not in line]
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]
