"""A configuration that cannot be read: an error where it is needed, and never a guess."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.cli.test_cli import run

WIDEN = {"op": "widen", "target": "fc", "rows": 1}
LORA = {"op": "lora_merge", "adapter": "adapter"}
MALFORMED = {
    "bad JSON": b'{"r": 4,}',
    "byte order mark": b'\xef\xbb\xbf{"r": 4}',
    "a list": b"[]",
    "UTF-16": '{"r": 4}'.encode("utf-16"),
    "twice": b'{"r": 4, "r": 5}',
    "nothing": b"",
    "a number too large": b'{"r": 1e999}',
}


def write_model(folder: Path) -> Path:
    folder.mkdir()
    save_file({"fc.weight": torch.ones(4, 4)}, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_adapter(folder: Path) -> Path:
    folder.mkdir()
    factors = {f"base_model.model.fc.lora_{x}.weight": torch.ones(4, 4) for x in "AB"}
    save_file(factors, folder / "adapter_model.safetensors")
    return folder


def spoil(path: Path, how: str) -> None:
    match how:
        case "a folder":
            path.mkdir()
        case "a FIFO":
            os.mkfifo(path)
        case _:
            path.write_bytes(MALFORMED[how])


@pytest.fixture
def apply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def run_steps(*steps: dict[str, object]):
        Path("r.json").write_text(json.dumps({"surgeon": 1, "steps": steps}))
        return run("apply", "r.json", "model", "out")

    return run_steps


@pytest.mark.parametrize("how", [*MALFORMED, "a folder", "a FIFO"])
def test_malformed_config_is_an_error_where_steps_would_change_it(apply, how):
    spoil(write_model(Path("model")) / "config.json", how)
    ran = apply(WIDEN)
    assert ran.exit_code == 4
    assert "config.json: " in ran.stderr
    assert not Path("out").exists()


@pytest.mark.parametrize("how", ["bad JSON", "byte order mark", "a list"])
def test_malformed_config_is_carried_where_nothing_changes_it(apply, how):
    spoil(write_model(Path("model")) / "config.json", how)
    ran = apply()
    assert ran.exit_code == 0, ran.stderr
    assert Path("out/config.json").read_bytes() == MALFORMED[how]


@pytest.mark.parametrize("how", [*MALFORMED, "a folder", "a FIFO"])
def test_unreadable_adapter_configuration_is_a_bad_checkpoint(apply, how):
    write_model(Path("model"))
    spoil(write_adapter(Path("adapter")) / "adapter_config.json", how)
    ran = apply(LORA)
    assert ran.exit_code == 3
    assert "adapter_config.json" in ran.stderr
    Path("adapter").rename("model2")
    Path("model").rename("model1")
    Path("model2").rename("model")
    assert apply({"op": "scale", "target": "**", "by": 2}).exit_code == 3


def test_what_a_step_reads_of_a_malformed_config_is_not_guessed(apply):
    spoil(write_model(Path("model")) / "config.json", "bad JSON")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4}
    (write_adapter(Path("adapter")) / "adapter_config.json").write_text(json.dumps(config))
    assert apply(LORA).exit_code == 3
