"""Bad files of every format, through every command: an answer, no traceback, no debris."""

# ruff: noqa: E501  (a bad file is a line)

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from surgeon.cli.commands import commands
from tests.attack.inputs import checkpoints, recipes

pytestmark = [pytest.mark.attack, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
ALLOWED = {0, 1, 2, 3, 4, 5}
SECONDS_EACH = 20
MANY = 40  # lines of errors, of which there is one for each problem

# BAD is the file; all but the last three read it as what they are applied to.
COMMANDS = [
    "inspect BAD", "inspect BAD --stats --json", "inspect BAD --tree", "diff BAD good.safetensors",
    "compare good.safetensors BAD", "verify BAD", "plan scale.json BAD --json",
    "apply scale.json BAD out.safetensors --workers 1", "apply none.json BAD out --workers 1",
    "apply average.json good.safetensors BAD out.safetensors --workers 1",
    "apply lora.json good.safetensors out.safetensors --workers 1",
    "apply state.json good.safetensors out.safetensors --workers 1 --optimizer BAD",
]  # fmt: skip


@contextmanager
def no_longer_than(seconds: int) -> Iterator[None]:
    def ring(number: int, frame: Any) -> None:
        raise AssertionError(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def snapshot(folder: Path) -> set[str]:
    return {str(Path(top, name).relative_to(folder))
            for top, folders, files in os.walk(folder) for name in [*folders, *files]}  # fmt: skip


def tried(folder: Path, command: str) -> tuple[int, str]:
    """Run a command line in this process; returns exit code and what is wrong with how it went."""
    before = snapshot(folder)
    with no_longer_than(SECONDS_EACH):
        ran = CliRunner().invoke(commands, command.split())
    wrong = []
    if ran.exception is not None and not isinstance(ran.exception, SystemExit):
        wrong.append(f"raised {ran.exception!r}"[:300])
    if ran.exit_code not in ALLOWED:
        wrong.append(f"exit code {ran.exit_code}")
    if len(ran.stderr.splitlines()) > MANY:
        wrong.append(f"{len(ran.stderr.splitlines())} lines")
    if ran.exit_code and not ran.output:
        wrong.append("nothing was said")
    if [c for c in ran.output if not c.isprintable() and c != "\n"]:
        wrong.append("it was said raw")
    made = snapshot(folder) - before
    if made and (ran.exit_code or not all(name.startswith("out") for name in made)):
        wrong.append(f"left {sorted(made)}")
    for name in made:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return ran.exit_code, "; ".join(wrong)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with good files and recipes for them."""
    monkeypatch.chdir(tmp_path)
    weights = {"w": np.array([[1, 2], [3, 4]], np.float32)}
    save_file(weights, tmp_path / "good.safetensors")
    save_file(weights, tmp_path / "other.safetensors")
    stage = {"name": "one", "freeze": [], "optimizer_state": "carry"}
    optimizer = {"class": "torch.optim.Adam", "args": {"lr": 0.1}}
    average = {"op": "average", "models": ["m"], "weights": [0.5, 0.5]}
    documents: dict[str, Any] = {
        "none": {"steps": []},
        "scale": {"steps": [{"op": "scale", "target": "**", "by": 2}]},
        "average": {"models": {"m": None}, "steps": [average]},
        "lora": {"steps": [{"op": "lora_merge", "adapter": "BAD"}]},
        "state": {"steps": [], "training": {"optimizer": optimizer, "stages": [stage]}},
    }
    for name, document in documents.items():
        Path(f"{name}.json").write_text(json.dumps({"surgeon": 1, **document}))
    return tmp_path


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


@pytest.mark.parametrize("part", range(4))
def test_bad_checkpoints_end_every_command_in_order(desk: Path, attack: Any, part: int) -> None:
    wrong = []
    for what, make in [*checkpoints().items()][part::4]:
        make(desk / "BAD")
        attack.count("bad files")
        for command in COMMANDS:
            code, problem = tried(desk, command)
            attack.count("commands on bad files")
            attack.count(f"commands on bad files that ended with {code}")
            if problem:
                wrong.append(f"{what}: {command}: {problem}")
        remove(desk / "BAD")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("part", range(2))
def test_bad_recipes_end_every_command_in_order(desk: Path, attack: Any, part: int) -> None:
    wrong = []
    for what, text in attack.within([*recipes().items()][part::2], 30):
        Path("BAD.json").write_bytes(text)
        attack.count("bad recipes")
        for command in ("validate BAD.json", "plan BAD.json good.safetensors",
                        "apply BAD.json good.safetensors -o out.safetensors --workers 1"):  # fmt: skip
            _, problem = tried(desk, command)
            attack.count("commands on bad recipes")
            if problem:
                wrong.append(f"{what}: {command}: {problem}: {text[:200]!r}")
    assert not wrong, "\n".join(wrong)


MANIFESTS = [
    b"", b"{", b"[]", b"null", b"{}", b'{"surgeon_manifest": 1}', b'{"surgeon_manifest": true}',
    b'{"surgeon_manifest": 99}', b'{"surgeon_manifest": -1}', b'\xef\xbb\xbf{"surgeon_manifest": 1}',
    b'{"surgeon_manifest": 1, "surgeon_manifest": 1}', b"[" * 100_000, b'{"a": 1e999}', b"\xff",
]  # fmt: skip


def test_bad_manifests_and_configurations_end_every_command_in_order(
    desk: Path, attack: Any
) -> None:
    wrong = []
    Path("BAD").mkdir()
    factors = {f"base_model.model.w.lora_{x}.weight": np.ones((2, 2), np.float32) for x in "AB"}
    save_file(factors, "BAD/adapter_model.safetensors")
    commands = {
        "good.manifest.json": ["verify good.safetensors", "plan none.json good.safetensors",
                               "apply none.json good.safetensors out.safetensors --workers 1"],
        "BAD/adapter_config.json": [COMMANDS[10], "plan scale.json BAD", "inspect BAD",
                                    "apply scale.json BAD out --workers 1"],
        "merge.yml": ["import mergekit merge.yml"],
    }  # fmt: skip
    for name, tries in commands.items():
        for text in MANIFESTS:
            Path(name).write_bytes(text)
            attack.count("bad manifests and configurations")
            for command in tries:
                _, problem = tried(desk, command)
                attack.count("commands on bad manifests and configurations")
                if problem:
                    wrong.append(f"{name}: {text[:30]!r}: {command}: {problem}")
        Path(name).unlink()
    assert not wrong, "\n".join(wrong)


CHOSEN = ["short", "deep", "twice", "zip: code", "legacy: deep", "DCP: a dict in itself", "a FIFO",
          "a link to a device", "index: itself", "GGUF: arrays in arrays", "a name that steers"]  # fmt: skip


@pytest.mark.parametrize("what", CHOSEN)
def test_a_process_of_its_own_ends_in_order_too(desk: Path, attack: Any, what: str) -> None:
    checkpoints()[what](desk / "BAD")
    before = snapshot(desk)
    for command in (COMMANDS[0], COMMANDS[7]):
        attack.count("processes on bad files")
        ran = subprocess.run([sys.executable, "-m", "surgeon", *command.split()], timeout=60,
                             env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
                             capture_output=True, text=True, check=False)  # fmt: skip
        assert ran.returncode in ALLOWED
        assert "Traceback" not in ran.stderr
        Path("out.safetensors").unlink(missing_ok=True)
        Path("out.manifest.json").unlink(missing_ok=True)
    assert snapshot(desk) == before
