"""What an earlier run wrote down, or somebody else did."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from surgeon.base.errors import WriteError
from surgeon.output.cluster.journal import Journal
from surgeon.output.cluster.work import Found
from surgeon.output.units import Done

FOUND = [Found([("w", Done(4, 7, "", 0))])]


def written(folder: Path) -> Path:
    journal = Journal(folder / "out.safetensors", is_resumed=True)
    journal.begin()
    journal.note_task("key", ["out.safetensors"], FOUND)
    journal.close(is_done=False)
    return folder / ".out.safetensors.journal.surgeon-unfinished"


def test_damaged_lines_are_no_tasks(tmp_path: Path) -> None:
    path = written(tmp_path)
    bad = ["", "{", "7", "[" * 100_000, json.dumps({"task": [], "parts": [], "files": []}),
           json.dumps({"file": {}, "inode": 1}),
           json.dumps({"task": "t", "parts": [7]})]  # fmt: skip
    path.write_text("\n".join([*bad, path.read_text()]))
    journal = Journal(tmp_path / "out.safetensors", is_resumed=True)
    assert journal.tasks == {"key": FOUND}


def test_a_link_or_a_fifo_is_neither_read_nor_written(tmp_path: Path) -> None:
    path = written(tmp_path)
    victim = path.rename(tmp_path / "victim")
    before = victim.read_bytes()
    for make in (lambda: path.symlink_to(victim), lambda: os.mkfifo(path)):
        make()
        with pytest.raises(WriteError, match="look at it and move it away"):
            Journal(tmp_path / "out.safetensors", is_resumed=True)
        path.unlink()
    path.hardlink_to(victim)
    with pytest.raises(WriteError, match="look at it and move it away"):
        Journal(tmp_path / "out.safetensors", is_resumed=True).begin()
    assert victim.read_bytes() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another user")
def test_another_users_is_not_gone_on_with(tmp_path: Path) -> None:
    os.chown(written(tmp_path), 65534, 65534)
    with pytest.raises(WriteError, match="is another user's"):
        Journal(tmp_path / "out.safetensors", is_resumed=True)
