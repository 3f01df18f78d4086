"""What names do to a terminal: nothing."""

import io
import sys

import pytest

from pipeline.core.errors import UserError, stage_main
from pipeline.core.terminal import Screen, show


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_show_spells_what_a_terminal_would_obey() -> None:
    assert show("a\x1b[2J\x07\r\n\x9b\u202eb") == r"a\x1b[2J\x07\r\n\x9b\u202eb"
    assert show("\u00fc \u8868\u60c5\n", kept="\n") == "\u00fc \u8868\u60c5\n"


def test_screen_lets_lines_bars_and_colours_through() -> None:
    terminal = Terminal()
    print("\r50%|##  |\x1b[31mred\x1b[0m\ttab \x1b]0;title\x07 \x1b[2J", file=Screen(terminal))
    assert terminal.getvalue() == "\r50%|##  |\x1b[31mred\x1b[0m\ttab \\x1b]0;title\\x07 \\x1b[2J\n"


def test_stage_main_prints_names_harmlessly(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)

    def main() -> None:
        print("class \x1b[2Jhappy")
        raise UserError("file \x1b[31mx\ry\nremedy")

    with pytest.raises(SystemExit):
        stage_main(main)
    assert out.getvalue() == "class \\x1b[2Jhappy\n"
    assert err.getvalue() == "error: file \\x1b[31mx\\ry\nremedy\n"
