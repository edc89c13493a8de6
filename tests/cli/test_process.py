"""Signals, wherever Python is when they come."""

from __future__ import annotations

import os
import signal

import pytest

from surgeon.cli.process import Signalled, ending


class _Interrupted:
    """Hears of its name while the class that holds it is made, as a cached property does."""

    def __set_name__(self, owner: type, name: str) -> None:
        raise Signalled(signal.SIGTERM)


@pytest.fixture
def stdout_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever ends points stdout at nothing, and hears no more signals."""
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    monkeypatch.setattr("surgeon.cli.process._finish", lambda: None)


@pytest.mark.usefixtures("stdout_stays")
def test_a_signal_while_a_class_is_made_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, ending():
        type("Class", (), {"name": _Interrupted()})
    assert caught.value.code == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "terminated\n"


def test_what_else_is_wrong_is_raised() -> None:
    with pytest.raises(RuntimeError, match="other"), ending():
        raise RuntimeError("other")
