"""Every call of a run fails once, and kills it once; runs are killed at random moments."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.attack.conftest import SECONDS, Attack

HERE = Path(__file__).parent
RENAME = {"op": "rename", "from": "fc", "to": "head"}
BACK = {"op": "rename", "from": "head", "to": "fc"}
CARRYING = {
    "optimizer": {"class": "torch.optim.Adam", "args": {"lr": 0.1}},
    "stages": [{"name": "one", "freeze": [], "optimizer_state": "carry"}],
}
# What runs import when they need it.
IMPORTS = [
    "surgeon.cli.commands", "surgeon.surgery", "surgeon.recipe", "surgeon.output.report",
    "surgeon.output.memory", "surgeon.recipe.locations", "surgeon.manifest.optimizer_state",
    "surgeon.inspection.verify", "surgeon.training.live", "concurrent.futures.process",
]  # fmt: skip


@dataclass(frozen=True)
class Mode:
    """What lies there before, and the command that is attacked; `again` runs once it is done.

    In a folder that is shared the names of temporaries cannot be guessed.
    """

    output: str
    before: tuple[str, ...]
    command: str
    again: str = ""
    is_shared: bool = False


MODES = {
    "fresh": Mode("out.safetensors", (), "apply step.json in.pt out.safetensors"),
    "replaced": Mode(
        "out.safetensors",
        ("apply none.json in.pt out.safetensors",),
        "apply step.json in.pt out.safetensors --force",
    ),
    "state in place": Mode(
        "out.safetensors",
        ("apply none.json in.pt out.safetensors --optimizer in.pt#optimizer",),
        "apply step.json out.safetensors out.safetensors --force "
        "--optimizer out.optimizer.safetensors",
        "apply back.json out.safetensors out.safetensors --force "
        "--optimizer out.optimizer.safetensors",
    ),
    "state that goes": Mode(
        "out.safetensors",
        ("apply none.json in.pt out.safetensors --optimizer in.pt#optimizer",),
        "apply plain.json in.pt out.safetensors --force --optimizer none",
    ),
    "shared": Mode(
        "out.safetensors",
        ("apply none.json in.pt out.safetensors --optimizer in.pt#optimizer",),
        "apply step.json in.pt out.safetensors --force --optimizer in.pt#optimizer",
        is_shared=True,
    ),
    "shared folder": Mode(
        "out", ("apply shards.json model out",), "apply one.json model out --force", is_shared=True
    ),
    "folder": Mode("out", (), "apply shards.json model out"),
    "folder in place": Mode(
        "model",
        (),
        "apply shards.json model model --force",
        "apply shards-back.json model model --force",
    ),
}  # fmt: skip


def written(folder: Path) -> None:
    """Write a model with its optimizer's state, a model folder, and recipes."""
    torch.manual_seed(0)
    model = torch.nn.Sequential()
    model.add_module("fc", torch.nn.Linear(200, 200))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(torch.randn(8, 200)).sum().backward()
    optimizer.step()
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(states, folder / "in.pt")
    (folder / "model").mkdir()
    torch.save(model.state_dict(), folder / "model" / "pytorch_model.bin")
    (folder / "model" / "config.json").write_text('{"model_type": "none"}')
    (folder / "model" / "notes.txt").write_text("mine")
    carried, shards = {"training": CARRYING}, {"output": {"shard_size": "1KB"}}
    recipes: dict[str, Any] = {
        "none": {"steps": [], **carried}, "step": {"steps": [RENAME], **carried},
        "one": {"steps": [RENAME]}, "plain": {"steps": [RENAME]},
        "back": {"steps": [BACK], **carried},
        "shards": {"steps": [RENAME], **shards}, "shards-back": {"steps": [BACK], **shards},
    }  # fmt: skip
    for name, recipe in recipes.items():
        (folder / f"{name}.json").write_text(json.dumps({"surgeon": 1, **recipe}))


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile what fails calls."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("calls are failed by a library that takes a C compiler, and Linux")
    built = tmp_path_factory.mktemp("shim") / "shim.so"
    flags = ["-O1", "-shared", "-fPIC", "-D_LARGEFILE64_SOURCE", "-o", str(built)]
    subprocess.run([compiler, *flags, str(HERE / "shim.c"), "-ldl"], check=True)
    return built


def surgeon(folder: Path, command: str) -> None:
    subprocess.run([sys.executable, "-m", "surgeon", *command.split()], cwd=folder, check=True,
                   capture_output=True)  # fmt: skip


def attacked(
    tmp_path: Path, mode: Mode, attack: Attack, seconds: float, shim: Path | None = None, **job: Any
) -> None:
    """Have the driver attack a mode; counts what it counted, and fails with what was wrong."""
    start = tmp_path / "start"
    start.mkdir()
    written(start)
    for command in mode.before:
        surgeon(start, command)
    start.chmod(0o777 if mode.is_shared else 0o755)
    workers = ["--workers", "1"]
    job |= {
        "start": str(start), "command": [*mode.command.split(), *workers], "output": mode.output,
        "again": [*(mode.again or f"{mode.command} --force").split(), *workers],
        "imports": IMPORTS, "seed": attack.seed, "shim": str(shim) if shim else "",
        "seconds": seconds * SECONDS / 420,
    }  # fmt: skip
    (tmp_path / "job.json").write_text(json.dumps(job))
    environment = os.environ | ({"LD_PRELOAD": str(shim)} if shim else {})
    done = subprocess.run(
        [sys.executable, "-m", "tests.attack.driver", str(tmp_path / "job.json")],
        cwd=HERE.parents[1], env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    for what, times in found["counts"].items():
        attack.count(what, times)
    assert found["wrong"] == []


@pytest.mark.parametrize("mode", MODES)
def test_every_call_may_fail(tmp_path, attack, shim, mode):
    lacking = ["", "exchange", "exchange and links", "locks"]
    attacked(tmp_path, MODES[mode], attack, 75, shim, do="fail_every_call", lacking=lacking)


@pytest.mark.parametrize(
    "mode", [mode for mode in MODES if mode not in ("state that goes", "shared")]
)
def test_killed_at_any_moment(tmp_path, attack, mode):
    attacked(tmp_path, MODES[mode], attack, 60, do="kill_at_random", moments=60)
