"""A server in a process of its own, for the tests of ``hyojo serve``."""

import atexit
import os
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from builders import ROOT

# Of training and of the registry; a bundle is served without any of them.
ABSENT = (
    "torch", "torchvision", "timm", "dvc", "sklearn", "matplotlib", "onnx", "safetensors", "mlflow", "pandas",
    "pyarrow", "sqlalchemy", "alembic",
)  # fmt: skip


def block(*names: str) -> str:
    """A prelude without these packages."""
    return f"import sys\nfor name in {names!r}: sys.modules[name] = None\n"


class Running:
    """A server in a process of its own; ``prelude`` is Python that it and each of its processes run first."""

    def __init__(self, *options: str, prelude: str = "", cwd: Path = ROOT, before: Callable | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="prelude-")
        Path(self._folder.name, "sitecustomize.py").write_text(prelude)
        env = {**os.environ, "PYTHONPATH": f"{self._folder.name}:{ROOT}"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", "serve", "--port", "0", *options],
            cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=before,
        )  # fmt: skip
        atexit.register(self.process.kill)  # where a test fails
        self.line = self.process.stdout.readline()
        if not self.line:
            raise AssertionError(self.process.stderr.read())
        self.url = self.line.split(" on ")[1].split()[0]
        self.port = int(self.url.rsplit(":", 1)[1])

    def send(
        self, path: str, data: bytes | None = None, kind: str = "application/json", **headers: str
    ) -> tuple[int, str, dict]:
        headers |= {"Content-Type": kind} if data is not None else {}
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read().decode(), dict(answer.headers)
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(), dict(error.headers)

    def stop(self) -> tuple[int, str]:
        """Status and stderr."""
        self.process.send_signal(signal.SIGTERM)
        _, errors = self.process.communicate(timeout=40)
        self._folder.cleanup()
        return self.process.returncode, errors
