"""Two people, one MLflow server on PostgreSQL and S3, one DVC remote on S3: docs/team.md, played on real servers.

Run by ``make test-platform``, as one story: the page's own commands, in its order, with servers that are stopped, hung
and started again at each step.
"""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from builders import FOREIGN, ROOT, to_base64
from PIL import Image
from team_servers import LIMIT_S, Server, free_port, list_missing, start_postgres, start_s3

pytestmark = pytest.mark.platform
PAGE = (ROOT / "docs" / "team.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"<!-- ([\w.: ]+) -->\n```(?:bash|ini)\n(.*?)```", PAGE, re.DOTALL))
PLAIN, USERS = "server", "server with users"
QUICK = "train.epochs=2 evaluate.corruptions=[] evaluate.explain=0 evaluate.tta=[] 'export.formats=[onnx]'"


@dataclass
class Person:
    """Somebody with a shell: where they are, and what their environment adds."""

    name: str
    folder: Path
    environment: dict[str, str]
    addresses: dict[str, str]

    def fill(self, text: str) -> str:
        """The page's text with this machine's addresses."""
        for name, value in self.addresses.items():
            text = text.replace(name, value)
        return text

    def begin(self, script: str) -> subprocess.Popen[str]:
        own = {name: value for name, value in os.environ.items() if name not in FOREIGN and not name.startswith("AWS_")}
        command = ["bash", "-euo", "pipefail", "-c", self.fill(script)]
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=self.folder, env=own | self.environment, start_new_session=True, **pipes)

    def try_(self, script: str) -> tuple[int, str]:
        """Run a script; its status and all that it said."""
        started, process = time.monotonic(), self.begin(script)
        said = process.communicate(timeout=900)[0]
        ended = f"[{process.returncode}, {time.monotonic() - started:.0f} s]"
        print(f"\n{self.name}$ {script.strip()}   {ended}\n{said[-1500:]}")
        return process.returncode, said

    def type(self, script: str) -> str:
        """Run what has to succeed; returns what it said."""
        status, said = self.try_(script)
        assert status == 0, said
        return said

    def type_through(self, script: str, server: Server, how: str) -> str:
        """Run a command while a server is away, which must end with a sentence, and again once it is back.

        ``hung`` for some seconds, it may as well succeed.
        """
        with getattr(server, how)():
            print(f"\n--- {server.name} is {how}")
            if how == "hung":
                threading.Timer(8, server.send, [signal.SIGCONT]).start()
            status, said = self.try_(script)
        assert how == "hung" or status
        assert "Traceback" not in said
        return said if status == 0 else self.type(script)

    def lines(self, block: str) -> list[str]:
        """The commands of a block of the page."""
        return [line for line in BLOCKS[block].replace("\\\n", " ").splitlines() if line.strip()]


@dataclass
class Team:
    """The servers, and who works with them."""

    postgres: Server
    s3: Server
    mlflow: Server
    ada: Person
    grace: Person

    def client(self) -> Any:
        import mlflow

        mlflow.set_tracking_uri(f"http://127.0.0.1:{self.mlflow.port}")
        return mlflow.MlflowClient()


def start_mlflow(block: str, person: Person, folder: Path) -> Server:
    """Start the MLflow server that a block of the page starts."""
    port = int(person.addresses["mlflow.example.org:5000"].rpartition(":")[2])
    script = (
        BLOCKS[block].replace("--port 5000", f"--port {port} --workers 1").replace("--host 0.0.0.0", "--host 127.0.0.1")
    )
    server = Server(f"mlflow {block}", ["bash", "-ec", person.fill(script)], port, folder, person.environment)
    return server.start()


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    if missing := list_missing():
        pytest.fail("test-platform needs\n  " + "\n  ".join(missing), pytrace=False)
    root = tmp_path_factory.mktemp("team")
    (root / "bin").mkdir()
    # The code of the clone in which it is typed.
    (root / "bin" / "hyojo").write_text(f'#!/bin/sh\nexec {sys.executable} -m pipeline.cli "$@"\n')
    (root / "bin" / "hyojo").chmod(0o755)
    packages = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and Path(path) != ROOT]
    git = {f"GIT_{role}_{what}": "team@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    basis = git | {
        "PATH": os.pathsep.join([str(root / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(packages),
        "OMP_NUM_THREADS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "DVC_SITE_CACHE_DIR": str(root / "dvc-site"),
    }
    servers = [start_postgres(root), start_s3(root)]
    mlflow_port = free_port()
    addresses = {
        "https://s3.example.org": f"http://127.0.0.1:{servers[1].port}",
        "db.example.org": f"127.0.0.1:{servers[0].port}",
        "mlflow.example.org*": "127.0.0.1*",
        "mlflow.example.org:5000": f"127.0.0.1:{mlflow_port}",
        "https://git.example.org": str(root / "git"),
    }
    people = []
    for name in ("ada", "grace"):
        (root / name).mkdir()
        own = {"HOME": str(root / name), "LOGNAME": name, "USER": name}
        own["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{mlflow_port}"
        people.append(Person(name, root / name, basis | own, addresses))
    try:
        servers.append(start_mlflow(PLAIN, Person("server", root, basis, addresses), root))
        yield Team(*servers, *people)
    finally:
        for server in reversed(servers):
            server.stop()


def write_upstream(folder: Path, ada: Person) -> None:
    """Hyojo's repository as the work tree is, and an empty one of the team."""
    source = folder / "upstream"
    for name in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name)
    (folder / "git" / "team").mkdir(parents=True)
    ada.type(
        f"cd {source} && git init -qb main && git add -A && git commit -qm 'Version 1'"
        f" && git clone -q --bare . {folder / 'git' / 'hyojo.git'}"
        f" && git init -q --bare -b main {folder / 'git' / 'team' / 'faces.git'}"
    )


def test_a_project_of_ones_own_is_trained_while_servers_come_and_go(team: Team) -> None:
    ada = team.ada
    write_upstream(ada.folder.parent, ada)
    ada.type(BLOCKS["first: begin"])
    ada.folder /= "faces"
    ada.type(f"hyojo use params.yaml {QUICK} && git commit -qam Small")
    ada.type(BLOCKS["first: remote"])
    repro, register, commit, push = ada.lines("first: train")
    with team.mlflow.hung():  # for all of it: a training is worth more than its record
        said = ada.type(repro)
    assert "warning: MLflow" in said
    assert "hyojo sync" in said
    ada.type_through("hyojo sync", team.postgres, "stopped")
    ada.type_through("hyojo sync", team.mlflow, "hung")
    ada.type_through(register, team.mlflow, "stopped")
    assert "is version 1 of hyojo already" in ada.type(register)
    ada.type(commit)
    ada.type_through(push, team.s3, "stopped")
    assert ada.type("git status --porcelain") == ""
    ada.type(repro)
    assert ada.type("git status --porcelain") == ""
    (run,) = team.client().search_runs(["1"])
    assert (run.info.user_id, run.info.status) == ("ada", "FINISHED")
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")


def test_the_second_person_has_all_of_it(team: Team) -> None:
    grace = team.grace
    clone, *keys, pull, sync, compare = grace.lines("second: begin")
    grace.type(clone)
    grace.folder /= "faces"
    for line in keys:
        grace.type(line)
    grace.type_through(pull, team.s3, "stopped")
    grace.type_through(sync, team.mlflow, "stopped")
    assert "Indistinguishable" in grace.type_through(compare, team.postgres, "stopped")
    assert len(team.client().search_runs(["1"])) == 1  # Ada's, which the server had


def test_experiments_go_to_and_fro(team: Team) -> None:
    run, apply, register, push = team.grace.lines("second: experiment")
    training = team.grace.begin(run)
    time.sleep(10)
    with team.postgres.stopped():
        time.sleep(5)
    said = training.communicate(timeout=900)[0]
    print(said[-1500:])
    assert training.returncode == 0
    team.grace.type(apply)
    team.grace.type("hyojo sync")
    assert "Registered version 2" in team.grace.type_through(register, team.s3, "hung")
    team.grace.type_through(push, team.s3, "hung")
    pull, compare = team.ada.lines("first: experiment")
    team.ada.type_through(pull, team.s3, "hung")
    assert "bolder" in team.ada.type_through(compare, team.mlflow, "hung")
    assert "bolder" in team.ada.type("make -o .venv/.ready experiments")


def test_of_two_who_promote_at_once_one_wins(team: Team) -> None:
    promote, history = team.grace.lines("second: promote")
    both = [person.begin(promote) for person in (team.ada, team.grace)]
    said = [process.communicate(timeout=300)[0] for process in both]
    print(said)
    assert 0 in [process.returncode for process in both]
    assert not any("Traceback" in text for text in said)
    assert team.client().get_model_version_by_alias("hyojo", "champion").version == "2"
    assert "Grace likes it" in team.grace.type_through(history, team.postgres, "stopped")
    (rollback,) = team.ada.lines("first: rollback")
    team.ada.type_through(rollback, team.mlflow, "stopped")
    assert team.client().get_model_version_by_alias("hyojo", "champion").version == "1"


def write_face(folder: Path) -> Path:
    with zipfile.ZipFile(ROOT / "data" / "sample.zip") as archive:
        name = next(name for name in archive.namelist() if not name.endswith("/"))
        Image.open(io.BytesIO(archive.read(name))).save(folder / "face.png")
    return folder / "face.png"


def ask(port: int, face: Path) -> dict[str, Any]:
    body = json.dumps({"dataframe_records": [{"image": to_base64(face.read_bytes())}]}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request, timeout=30))["predictions"][0]


def test_a_bare_machine_serves(team: Team) -> None:
    """A new environment with the extra ``serve`` alone, outside of any project."""
    install, predict, serve = team.ada.lines("serve")
    machine = Person("machine", team.ada.folder.parent, team.ada.environment | {"PYTHONPATH": ""}, team.ada.addresses)
    face, port = write_face(machine.folder), free_port()
    machine.type(install)
    assert "torch" not in machine.type("serving/bin/pip list")
    assert "face.png" in machine.type_through(predict, team.mlflow, "stopped")
    serving = Server(
        "serve", ["bash", "-c", serve.replace("5001", str(port))], port, machine.folder, machine.environment
    )
    serving.start()
    try:
        with team.mlflow.stopped():
            assert ask(port, face)["error"] is None
    finally:
        serving.stop()


def test_an_update_leaves_what_is_ones_own(team: Team) -> None:
    root, ada = team.ada.folder.parents[1], team.ada
    source = root / "upstream"
    ada.type("git stash -uq || true")
    own = {name: (ada.folder / name).read_bytes() for name in ("params.yaml", "reports/metrics.json", ".dvc/config")}
    for name in ("dvc.lock", "reports/metrics.json", "params.yaml"):
        (source / name).write_text((source / name).read_text().replace("0.", "0.1") + "\n")
    code = source / "pipeline" / "evaluate" / "summary.py"
    code.write_text(code.read_text().replace("test split, ", "the test split, "))
    ada.type(f"cd {source} && git commit -qam 'Version 2' && git push -q {root / 'git' / 'hyojo.git'} main")
    fetch, merge, use, repro, commit = ada.lines("first: update")
    ada.type(f"{fetch} && {merge}")
    assert {name: (ada.folder / name).read_bytes() for name in own} == own
    ada.type(use)
    said = ada.type(repro)
    assert "Stage 'train' didn't change" in said
    assert "the test split, " in said
    ada.type(commit)
    assert ada.type("git status --porcelain") == ""


def test_users_may_do_what_their_permissions_say(team: Team, tmp_path: Path) -> None:
    ada, port = team.ada, free_port()
    addresses = ada.addresses | {"mlflow.example.org:5000": f"127.0.0.1:{port}"}
    (tmp_path / "basic_auth.ini").write_text(ada.fill(BLOCKS["basic_auth.ini"]))
    plain = {name: value for name, value in ada.environment.items() if name != "MLFLOW_TRACKING_URI"}
    admin = Person("administrator", tmp_path, plain, addresses)
    server = start_mlflow(USERS, admin, tmp_path)
    try:
        end = time.monotonic() + LIMIT_S
        while admin.try_("curl -sf http://mlflow.example.org:5000/health")[0]:
            assert time.monotonic() < end
            time.sleep(1)
        admin.type(BLOCKS["administrator"])
        login = BLOCKS["person"]
        ada = Person("ada", ada.folder, plain, addresses)
        ada.type(f"{login}\nhyojo sync && hyojo register && hyojo history")
        wrong = login.replace("ada-has-a-password", "wrong-password")
        status, said = ada.try_(f"{wrong}\nhyojo history")
        assert status == 1
        assert "it knows no such user or password" in said
        reader = login.replace("=ada", "=reader").replace("ada-has", "reader-has").replace("=reader-has", "=reader-has")
        face = write_face(tmp_path)
        assert "face.png" in ada.type(f"{reader}\nhyojo predict --model models:/hyojo@champion {face}")
        ada.type(f"{reader}\nhyojo compare champion 1 && hyojo history")
        crown = "import mlflow; mlflow.MlflowClient().set_registered_model_alias('hyojo', 'champion', '1')"
        status, said = ada.try_(f'{reader}\npython -c "{crown}"')
        assert status == 1
        assert "Permission denied" in said
        with server.stopped():
            assert ada.try_(f"{login}\nhyojo history")[0] == 1
        ada.type(f"{login}\nhyojo history")
    finally:
        server.stop()
