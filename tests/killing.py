"""Ends a command after any of its calls to MLflow."""

from collections.abc import Callable

import pytest

from pipeline.tracking import store


class Killed(BaseException):
    """The process ends."""


def kill_after(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """End what runs once so many calls to MLflow were made that write; between these nothing changes."""
    ask, made = store._Told.__getattr__, [0]

    def ask_and_count(self: object, name: str) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            answer = ask(self, name)(*args, **kwargs)
            made[0] += name.startswith(("create", "set", "delete", "update", "log"))
            if made[0] == calls:
                raise Killed
            return answer

        return call

    monkeypatch.setattr(store._Told, "__getattr__", ask_and_count)
