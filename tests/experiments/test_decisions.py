"""The gate cannot fail open, and what was cut short is finished: over MLflow's own server, and killed at every call."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from builders import add_version, log_version, read_champion, run_hyojo
from faulty_server import Faulty, serve_mlflow
from killing import Killed, kill_after
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from pipeline.core.errors import UserError
from pipeline.experiments import promotion
from pipeline.tracking import decisions, registry, store
from pipeline.tracking.decisions import REFUSED
from pipeline.tracking.store import connect
from pipeline.tracking.trouble import TrackingError


@pytest.fixture
def server(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    """MLflow's server is where the project's store is; nothing is measured."""
    monkeypatch.setattr(promotion, "measure", lambda *_: "it was not loaded")
    with serve_mlflow(project / "mlflow.db", project / "artifacts") as found:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", found.url)
        yield found


@pytest.fixture
def _two(server: Faulty) -> None:
    """Version 1, right on 70 of 100, is champion; version 2 is worse, and was refused."""
    add_version(70, "first")
    add_version(30, "second")
    assert promotion.promote(2).refused


def alias(server: Faulty) -> int | None:
    """Where the alias is, asked of MLflow without any fault."""
    server.fault = lambda method, path: None
    return read_champion()


@pytest.mark.usefixtures("_two")
@pytest.mark.parametrize("fault", [("500 No", "<html>"), ("401 No", "who?"), ("403 No", "{}"), ("200 OK", "{}")])
@pytest.mark.parametrize("command", ["promote", "register", "rollback"])
def test_no_answer_is_ever_taken_for_none(
    server: Faulty, command: str, fault: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Whichever question gets another answer than MLflow's: the alias stays where it is."""
    arguments = {"promote": ["promote", "2"]}.get(command, [command])
    log_version(40, "third").rename("models/bundle")
    server.asked.clear()
    run_hyojo(*arguments)
    asked = dict.fromkeys(server.asked)
    assert alias(server) == 1
    assert "GET /api/2.0/mlflow/registered-models/get" in asked
    capsys.readouterr()
    for question in asked:
        server.fault = lambda method, path, question=question: fault if f"{method} {path}" == question else None
        server.asked.clear()
        status = run_hyojo(*arguments)
        printed = capsys.readouterr().err
        assert "Traceback" not in printed
        if fault[0] != "200 OK" and question in server.asked:
            assert (status, printed.count("error: ")) == (1, 1)
        assert alias(server) == 1, question


@pytest.mark.usefixtures("_two")
def test_the_first_look_ups_fail(server: Faulty) -> None:
    """As behind a proxy that answered 500 to the first six look-ups of an alias, and then let a refused version in."""
    for failing in range(1, 8):
        left = [failing]

        def fault(method: str, path: str, left: list[int] = left) -> tuple[str, str] | None:
            if "registered-models" not in path or not left[0]:
                return None
            left[0] -= 1
            return "500 No", "<html>"

        server.fault = fault
        assert run_hyojo("promote", "2") == 1
        assert alias(server) == 1


@pytest.mark.parametrize("asked", ["get_registered_model", "search_model_versions", "get_run", "search_runs"])
@pytest.mark.parametrize("command", ["promote", "register", "rollback"])
def test_a_database_that_fails_at_a_look_up_moves_nothing(
    project: Path, command: str, asked: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

    monkeypatch.setattr(promotion, "measure", lambda *_: "it was not loaded")
    add_version(70, "first")
    add_version(30, "second")
    log_version(40, "third").rename("models/bundle")
    calls = []

    def fail(*given: object, **named: object) -> None:
        calls.append(given)
        raise MlflowException("(sqlite3.OperationalError) database is locked", TEMPORARILY_UNAVAILABLE)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, asked, fail)
        status = run_hyojo(*{"promote": ["promote", "2"]}.get(command, [command]))
    assert status == 1 or not calls
    assert bool(calls) == ("another process holds the database" in capsys.readouterr().err)
    assert read_champion() == 1


@pytest.mark.usefixtures("_two")
def test_history_tells_who_when_and_what_was_moved_by_hand(server: Faulty, capsys: pytest.CaptureFixture[str]) -> None:
    server.fault = lambda method, path: (
        ("200 OK", '{"user": {"username": "anna"}}') if path.endswith("users/current") else None
    )
    promotion.promote(2, force=True, reason="a demo")
    registry.rollback()
    connect().set_registered_model_alias("hyojo", "champion", "2")
    capsys.readouterr()
    assert run_hyojo("history") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "version 1 champion (first)" in lines[0]
    assert "version 2 refused in place of 1: version 2 is not better" in lines[1]
    assert "anna  version 2 champion (forced) in place of 1: forced: a demo (against: version 2 is" in lines[2]
    assert "anna  version 1 champion (rolled back) in place of 2" in lines[3]
    assert lines[4] == "Champion of hyojo: version 1. Ever champion: 1, 2."
    assert lines[5].startswith("The alias was moved outside the gate since: version 2")
    assert "already" in promotion.promote(2).message
    assert run_hyojo("history", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["champion"] == found["alias"] == 2
    assert (found["decisions"][-1]["kind"], found["decisions"][-1]["by"]) == ("outside the gate", "anna")
    assert float(found["decisions"][2]["figures"]["difference"]) == pytest.approx(-0.4)
    assert connect().get_model_version("hyojo", "1").tags["hyojo.by"]


def name_project(name: str) -> None:
    """Another registered model, in the same store."""
    path = Path("params.yaml")
    path.write_text(path.read_text().replace(f"name: {store.project_name()} ", f"name: {name} "))
    store.project_name.cache_clear()
    assert store.project_name() == name


COMMANDS: dict[str, Callable[[], object]] = {
    "register": lambda: registry.register(Path("models/first")),
    "promote": lambda: promotion.promote(2),
    "rollback": registry.rollback,
}


def begin_project(name: str, command: str) -> None:
    """Have a project of this name stand where a command finds something to do."""
    name_project(name)
    if command != "register":
        for digest in ("first", "second"):
            registry.register(Path("models") / digest)
    if command == "rollback":
        promotion.promote(2)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_killed_after_any_write_is_finished_by_the_next(
    project: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promotion, "measure", lambda *_: "it was not loaded")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "hyojo")
    for right, digest in ((70, "first"), (80, "second")):
        log_version(right, digest)
    for calls in range(1, 100):
        begin_project(f"p{calls}", command)
        with monkeypatch.context() as patch:
            kill_after(patch, calls)
            try:
                COMMANDS[command]()
            except Killed:
                finished = False
            else:
                finished = True
        if not finished:
            # Of a rollback that was killed when all was done there is none left.
            with contextlib.suppress(UserError):
                COMMANDS[command]()
        history = decisions.read_history(connect())
        expected = {"register": [1], "promote": [1, 2], "rollback": [1, 2, 1]}[command]
        assert [each.version for each in history.decisions if each.kind != REFUSED] == expected
        assert not any(each.void for each in history.decisions)
        assert read_champion() == history.champion == expected[-1]
        assert history.pending is None
        if finished:
            assert calls > 4
            return
    raise AssertionError("it never ended")


@pytest.mark.usefixtures("project")
def test_a_first_version_whose_register_was_killed_is_champion_whatever_is_registered_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for digest in ("first", "second"):
        log_version(70, digest)
    create = connect().create_model_version

    def create_and_die(*args: object, **kwargs: object) -> None:
        create(*args, **kwargs)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(connect(), "create_model_version", create_and_die)
        with pytest.raises(Killed):
            registry.register(Path("models/first"))
    assert read_champion() is None
    assert "Version 1, the first, is champion" in registry.register(Path("models/second")).message
    assert read_champion() == 1


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_process_ended_at_any_call_is_finished_by_the_next(
    project: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with processes that end at once, whatever they hold."""
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "hyojo")
    for right, digest in ((70, "first"), (80, "second")):
        log_version(right, digest)
    Path("models/bundle").symlink_to("first")
    code = """
import os, sys
from pipeline.tracking import store
ask, left = store._Told.__getattr__, [int(sys.argv.pop(1))]
def ask_and_count(self, name):
    def call(*args, **kwargs):
        answer = ask(self, name)(*args, **kwargs)
        left[0] -= 1
        if left[0] == 0:
            os._exit(9)
        return answer
    return call
store._Told.__getattr__ = ask_and_count
from pipeline import cli
cli.main()
"""
    given = {"register": ["register"], "promote": ["promote", "2"], "rollback": ["rollback"]}[command]
    for calls in range(1, 100):
        begin_project(f"p{calls}", command)
        status = subprocess.run([sys.executable, "-c", code, str(calls), *given], capture_output=True).returncode
        assert status in (0, 9)
        if status == 9:
            assert run_hyojo(*given) == 0 or command == "rollback"
        expected = {"register": [1], "promote": [1, 2], "rollback": [1, 2, 1]}[command]
        history = decisions.read_history(connect())
        assert [each.version for each in history.decisions if not each.void] == expected
        assert read_champion() == expected[-1]
        if status == 0:
            return
    raise AssertionError("it never ended")


@pytest.mark.usefixtures("project")
def test_a_server_with_users_denies_versions_of_models_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    client = connect()
    create = client._client.create_model_version

    def deny(name: str, *args: object, **kwargs: object) -> object:
        try:
            client.get_registered_model(name)
        except TrackingError:
            raise MlflowException("Permission denied", PERMISSION_DENIED) from None
        return create(name, *args, **kwargs)

    monkeypatch.setattr(client._client, "create_model_version", deny)
    assert add_version(70, "first") == 1
    assert read_champion() == 1
