"""A server in a process of its own, for the tests of ``hyojo serve``."""

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

from builders import ROOT

# Of training; the serving environment has none of them.
ABSENT = ("torch", "torchvision", "timm", "dvc", "sklearn", "matplotlib", "onnx", "safetensors")


class Running:
    """A server in a process of its own."""

    def __init__(self, *options: str, blocked: tuple[str, ...] = (), cwd: Path = ROOT) -> None:
        code = f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\n"
        code += f"sys.argv = ['hyojo', 'serve', '--port', '0', *{options!r}]\nfrom pipeline.cli import main\nmain()"
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.line = self.process.stdout.readline()
        if not self.line:
            raise AssertionError(self.process.stderr.read())
        self.url = self.line.split(" on ")[1].split()[0]

    def send(self, path: str, data: bytes | None = None, kind: str = "application/json") -> tuple[int, str, dict]:
        request = urllib.request.Request(self.url + path, data, {"Content-Type": kind} if data is not None else {})
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read().decode(), dict(answer.headers)
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(), dict(error.headers)

    def stop(self) -> tuple[int, str]:
        """Status and stderr."""
        self.process.send_signal(signal.SIGTERM)
        _, errors = self.process.communicate(timeout=40)
        return self.process.returncode, errors
