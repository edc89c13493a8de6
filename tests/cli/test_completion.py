"""Completion is asked for in real shells, as somebody types; the manual page is read by groff."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from surgeon import samples
from surgeon.cli import shells
from surgeon.cli.commands import commands

# A shell without its user's settings, and without what it would ask or colour.
SHELLS = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-i"],
}
FIRST = {"bash": "", "zsh": "autoload -U compinit; compinit -u -D\n", "fish": ""}
INSTALLED = [name for name in SHELLS if shutil.which(name)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with checkpoints, and a `surgeon` on the path."""
    samples.main(tmp_path)
    (tmp_path / "tied.json").write_text('{"surgeon": 1, "steps": []}')
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "surgeon"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m surgeon "$@"\n')
    program.chmod(0o755)
    return tmp_path


def typed(shell: str, folder: Path, keys: str, until: str) -> str:
    """Type keys into a shell that completes, and return what its terminal shows."""
    script = CliRunner().invoke(commands, ["completion", shell]).stdout
    (folder / "script").write_text(script)
    path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(sys.path),
                   "TERM": "dumb", "HOME": str(folder), "PS1": "> "}  # fmt: skip
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        os.execvpe(SHELLS[shell][0], SHELLS[shell], environment)
    try:
        os.write(terminal, f"{FIRST[shell]}source ./script; echo re''ady\n".encode())
        shown = read(terminal, "ready")
        os.write(terminal, keys.encode())
        shown = read(terminal, until)
    finally:
        os.kill(process, 9)
        os.close(terminal)
        os.waitpid(process, 0)
    return shown


def read(terminal: int, until: str) -> str:
    """Return what appears until a text has."""
    shown, end = "", time.monotonic() + 30
    while not re.search(until, shown):
        assert time.monotonic() < end, f"no '{until}' in {shown!r}"
        if select.select([terminal], [], [], 1)[0]:
            shown += os.read(terminal, 65536).decode(errors="replace")
            shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[\x07\x08]", "", shown)
    return shown


# What is typed, and what the shell has made of it, less what it may show between.
CASES = {
    "command": ("surgeon inspec\t", r"surgeon inspect "),
    "option": ("surgeon inspect --tr\t", r"surgeon inspect --tree "),
    "op": ("surgeon ops wid\t", r"surgeon ops widen "),
    "ready-made": ("surgeon plan add-out\t", r"add-output-nodes "),
    "file": ("surgeon plan tied\t", r"tied\.json "),
    "tensor": ("surgeon inspect in.safetensors bo\t2.w\t", r"body\.2\.weight"),
    "variable": ("surgeon plan add-output-nodes in.safetensors --set la\t", r"--set layer="),
    "init": ("surgeon plan add-output-nodes in.safetensors --set init=ro\t", r"init=rows_normal"),
    "layer": ("surgeon plan add-output-nodes in.safetensors --set layer=f\t", r"layer=fc"),
}


def cases() -> Iterator[object]:
    for shell in INSTALLED:
        for name, (keys, made) in CASES.items():
            # One in the default run, which takes as long as a shell to start.
            marks = () if (shell, name) == ("bash", "tensor") else pytest.mark.slow
            yield pytest.param(shell, keys, made, id=f"{shell}-{name}", marks=marks)


@pytest.mark.parametrize(("shell", "keys", "made"), list(cases()))
def test_shells_complete(shell: str, keys: str, made: str, folder: Path) -> None:
    assert typed(shell, folder, keys, made)


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("surgeon verify ", [""]),  # a file
        ("surgeon recipes tie", ["tie-embeddings", "ties"]),
        ("surgeon ops training", ["training"]),
        (
            "surgeon inspect base.safetensors model.layers.",
            [f"model.layers.{i}." for i in range(4)],
        ),
        ("surgeon diff in.safetensors in.safetensors '!fc", ["!fc.bias", "!fc.weight"]),
        ("surgeon inspect --tree no-such-file ", []),
        ("surgeon inspect tied.json ", []),
        ("surgeon apply no-such-recipe in.safetensors --set ", []),
        ("surgeon apply interpolate-two-models in.safetensors --model ", ["other="]),
        ("surgeon search ties base.safetensors --vary den", ["density="]),
        ("surgeon apply cast-for-export in.safetensors --set dtype=F16", ["dtype=F16"]),
    ],
)
def test_answers(
    line: str, values: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COMP_LINE", line)
    found = [row.split("\t") for row in shells.answer("zsh", commands).splitlines() if row]
    assert [value for _, value, _ in found] == values


def test_names_cannot_steer_the_shell(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tab or a line break in a tensor's name would be a field or an answer of its own."""
    monkeypatch.chdir(folder)
    save_file({"a\nword\t$(reboot)\t": np.zeros(1), "ab": np.zeros(1)}, "odd.safetensors")
    monkeypatch.setenv("COMP_LINE", "surgeon inspect odd.safetensors a")
    assert shells.answer("bash", commands).split("\n") == ["", "word\tab\t", ""]


def test_the_manual_has_all_commands_and_options() -> None:
    page = CliRunner().invoke(commands, ["man"]).stdout
    for name, command in commands.commands.items():
        assert f'.SS "surgeon {name}' in page
        names = [n for p in command.params if isinstance(p, click.Option) for n in p.opts]
        assert all(name.replace("-", "\\-") in page for name in names)


@pytest.mark.skipif(not shutil.which("groff"), reason="groff is not installed")
def test_the_manual_is_sound_roff() -> None:
    page = CliRunner().invoke(commands, ["man"]).stdout
    words = ["groff", "-man", "-Tutf8", "-ww"]
    done = subprocess.run(words, input=page, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "EXIT" in done.stdout.replace("\b", "").replace("EEXXIITT", "EXIT")
