"""What stands in deploy/ is what the program has: its options, its files, its health; no image is built here."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from builders import ROOT
from ruamel.yaml import YAML

from pipeline.cli import build_parser

DOCKERFILE = ROOT / "deploy" / "Dockerfile"


def read_steps() -> list[tuple[str, str]]:
    """Instruction and argument of each step of the Dockerfile, lines that are continued put together."""
    text = re.sub(r"\\\n\s*", "", DOCKERFILE.read_text())
    return [tuple(line.split(" ", 1)) for line in text.splitlines() if line and not line.startswith("#")]


def read_json(instruction: str) -> list[str]:
    """The words of an instruction in its JSON form."""
    (words,) = [argument for name, argument in read_steps() if name == instruction]
    return json.loads(words[words.index("[") :])


def test_the_container_s_command_is_one_of_ours() -> None:
    words = [*read_json("ENTRYPOINT"), *read_json("CMD")]
    assert words[0] == "hyojo"
    found = build_parser().parse_args(words[1:])
    assert (found.host, found.model, found.follow) == ("0.0.0.0", "models:/hyojo@champion", True)
    for name, argument in read_steps():
        if name == "COPY" and "--from" not in argument:
            assert all((ROOT / source).exists() for source in argument.split()[:-1])


def test_compose_names_options_and_services_that_there_are() -> None:
    from mlflow.cli import server

    services = YAML(typ="safe").load(ROOT / "deploy" / "compose.yaml")["services"]
    words = shlex.split(services["mlflow"]["command"])
    assert words[:2] == ["mlflow", "server"]
    known = {option for parameter in server.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known
    for service in services.values():
        assert set(service.get("depends_on", ())) <= set(services)
    assert (
        ROOT / "deploy" / services["server"]["build"]["context"] / services["server"]["build"]["dockerfile"]
    ).exists()
    for name in ("server", "mlflow"):
        assert services[name]["read_only"]
        assert services[name]["cap_drop"] == ["ALL"]


@pytest.mark.slow
def test_the_dockerfile_s_steps_in_a_bare_environment(tmp_path: Path, bright_bundle: Path) -> None:
    """Its files and commands, in a folder in place of ``/``; the server starts, is healthy, and ends when told to."""
    source, prefix = tmp_path / "src", tmp_path / "opt" / "hyojo"
    for name, argument in read_steps():
        if name == "COPY" and "--from" not in argument:
            for file in argument.split()[:-1]:
                copy = shutil.copytree if (ROOT / file).is_dir() else shutil.copy2
                source.mkdir(exist_ok=True)
                copy(ROOT / file, source / file)
        elif name == "RUN":
            command = argument.replace("/opt/hyojo", str(prefix)).replace("--no-cache-dir ", "")
            subprocess.run(command, shell=True, cwd=source, check=True)
    home = tmp_path / "home"
    home.mkdir()
    clean = {"PATH": f"{prefix / 'bin'}:/usr/bin:/bin", "HOME": str(home), "TMPDIR": str(home), "PYTHONUNBUFFERED": "1"}
    clean |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    shutil.rmtree(source)
    words = [*read_json("ENTRYPOINT"), "--port", "0", "--model", str(bright_bundle)]
    server = subprocess.Popen(words, cwd=home, env=clean, stdout=subprocess.PIPE, text=True)
    try:
        port = re.search(r":(\d+) ", server.stdout.readline())[1]
        check = [word.replace("5001", port) for word in read_json("HEALTHCHECK")]
        for _ in range(20):
            status = subprocess.run(check, env=clean, capture_output=True).returncode
            if status == 0:
                break
            time.sleep(0.5)
        assert status == 0
    finally:
        server.send_signal(signal.SIGTERM)
    assert server.wait(30) == 0
    assert not list(home.iterdir())
