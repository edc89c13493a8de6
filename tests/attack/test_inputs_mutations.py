"""Good files with bytes flipped, cut out, doubled or put elsewhere: read, or refused in order."""

# ruff: noqa: E501  (a mutation is a line)

from __future__ import annotations

import io
import json
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.attack.test_inputs_files import desk, tried

# Tests of training are no package.
sys.path.append(str(Path(__file__).parents[1] / "training"))
from small import network, train
from test_damaged_state import DELETED, ODD, mutant, places, saved_state

from surgeon.training import Manifest, ManifestError

__all__ = ["desk"]
pytestmark = [pytest.mark.attack, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
SECONDS = 14
TRIES = 100_000  # more than there is time for
READ = ["inspect BAD --stats", "plan scale.json BAD",
        "apply scale.json BAD out.safetensors --workers 1"]  # fmt: skip
WEIGHTS = {"a.weight": torch.ones(8, 4), "a.bias": torch.zeros(8, dtype=torch.bfloat16)}
WORDS = [b"\0", b"\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\xff" * 8, b"{", b"[", b'"', b"}", b"0",
         b"-1", b"1e999", b"null", b"\x80", b".", b"R", b"(", b"q\0", b"h\0", b"\\u0000", b"../"]  # fmt: skip


def changed(data: bytes, source: random.Random) -> bytes:
    """Return bytes with one to four things done to them."""
    made = bytearray(data)
    # Half of the time where things are described, which is at the start or at the end.
    near = min(len(made), 600)
    for _ in range(source.choice([1, 1, 1, 2, 4])):
        size = len(made)
        spot = source.choice([source.randrange(near + 1), size - source.randrange(near + 1),
                              source.randrange(size + 1), source.randrange(size + 1)])  # fmt: skip
        spot = max(0, min(spot, size))
        length = source.choice([1, 1, 2, 4, 8, source.randrange(64)])
        match source.randrange(6):
            case 0 if spot < size:
                made[spot] ^= 1 << source.randrange(8)
            case 1:
                made[spot : spot + length] = source.randbytes(length)
            case 2:
                del made[spot : spot + length]
            case 3:
                other = source.randrange(size + 1)
                made[spot:spot] = made[other : other + length]
            case 4:
                word = source.choice(WORDS)
                made[spot : spot + len(word) * source.randrange(2)] = word
            case _ if not source.randrange(4):
                del made[spot:]
    return bytes(made)


def of_torch(**options: Any) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        data = io.BytesIO()
        torch.save(
            {"model": WEIGHTS, "optimizer": {"state": {}, "param_groups": []}}, data, **options
        )
        path.write_bytes(data.getvalue())

    return make


def of_gguf(path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, "none")
    writer.add_uint32("none.block_count", 1)
    writer.add_array("none.words", ["a", "b"])
    writer.add_tensor("a.weight", np.ones((4, 32), np.float32))
    quantised = gguf.quants.quantize(np.ones((4, 32), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("b.weight", quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def of_dcp(path: Path) -> None:
    from torch.distributed.checkpoint import FileSystemWriter, save

    save(dict(WEIGHTS), storage_writer=FileSystemWriter(path), no_dist=True)


def of_folder(path: Path) -> None:
    path.mkdir()
    shards = {"a-1.safetensors": "a.weight", "a-2.safetensors": "a.bias"}
    for file, name in shards.items():
        save_file({name: WEIGHTS[name]}, path / file, {"format": "pt"})
    index = {"metadata": {"total_size": 144}, "weight_map": {n: f for f, n in shards.items()}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {"model_type": "llama", "hidden_size": 4, "vocab_size": 8, "architectures": ["X"],
              "id2label": {"0": "a"}, "quantization_config": {"quant_method": "gptq", "bits": 4}}  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))


FORMATS: dict[str, tuple[Callable[[Path], object], str]] = {
    "safetensors": (lambda path: save_file(WEIGHTS, path, {"format": "pt", "b": "a.bias"}), ""),
    "torch": (of_torch(), ""),
    "legacy": (of_torch(_use_new_zipfile_serialization=False), ""),
    "GGUF": (of_gguf, ""),
    "DCP": (of_dcp, ".metadata"),
    "index": (of_folder, "model.safetensors.index.json"),
    "config": (of_folder, "config.json"),
}


def mutations(target: Path, attack: Any) -> Iterator[int]:
    """Write one mutant after another, while there is time."""
    good = target.read_bytes()
    for number in attack.within(range(TRIES), SECONDS):
        target.write_bytes(changed(good, attack.random))
        attack.count("mutated files")
        yield number


def attacked(desk: Path, target: Path, commands: list[str], attack: Any, keep: Path) -> None:
    """Try commands on mutants; fails with those that did not end in order, which are kept."""
    wrong = []
    for number in mutations(target, attack):
        for command in commands:
            try:
                code, problem = tried(desk, command)
            except AssertionError as error:
                code, problem = -1, str(error)
            attack.count("commands on mutated files")
            attack.count(f"commands on mutated files that ended with {code}")
            if problem:
                kept = keep / f"{number}"
                shutil.copy(target, kept)
                wrong.append(f"seed {attack.seed}: {command}: {problem}: {kept}")
        if len(wrong) > 10:
            break
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("kind", FORMATS)
def test_mutants_of_checkpoints(desk: Path, attack: Any, kind: str, tmp_path_factory: Any) -> None:
    make, inside = FORMATS[kind]
    make(desk / "BAD")
    commands = [*READ, "apply scale.json BAD out --workers 1"] if inside == "config.json" else READ
    keep = tmp_path_factory.mktemp("mutants")
    attacked(desk, desk / "BAD" / inside if inside else desk / "BAD", commands, attack, keep)


RECIPE = {
    "surgeon": 1, "about": "x", "vars": {"n": 2, "t": "w"}, "models": {"m": "other.safetensors"},
    "seed": 7,
    "steps": [
        {"op": "slerp", "models": ["m"], "t": 0.5},
        {"id": "a", "op": "widen", "target": "${t}", "rows": "${n}", "init": "orthogonal"},
        {"op": "rename", "from": "re:(?P<x>w+)", "to": "h.{x}"},
        {"op": "scale", "target": ["h.*", "!h.z"], "by": 0.5, "optional": True},
        {"op": "copy", "from": "h.{i}", "to": "layers.{i}.w"},
    ],
    "training": {"optimizer": {"class": "torch.optim.AdamW", "args": {"lr": 1e-3}}, "stages": [
        {"name": "one", "duration": {"epochs": 2}, "train": ["@new"],
         "groups": [{"name": "new", "params": ["@new"], "lr": 0.1}]}]},
    "output": {"dtype": "bfloat16", "metadata": {"stage": "2"}},
}  # fmt: skip


def test_mutants_of_recipes(desk: Path, attack: Any, tmp_path_factory: Any) -> None:
    Path("BAD.json").write_text(json.dumps(RECIPE))
    commands = ["validate BAD.json", "plan BAD.json good.safetensors",
                "apply BAD.json good.safetensors -o out.safetensors --workers 1"]  # fmt: skip
    assert tried(desk, commands[2])[0] == 0
    attacked(desk, desk / "BAD.json", commands, attack, tmp_path_factory.mktemp("mutants"))


def test_mutants_of_adapters(desk: Path, attack: Any, tmp_path_factory: Any) -> None:
    Path("BAD").mkdir()
    factors = {f"base_model.model.w.lora_{x}.weight": torch.ones(2, 2) for x in "AB"}
    save_file(
        {n.replace(".w.", "."): t for n, t in factors.items()}, "BAD/adapter_model.safetensors"
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["w"],
              "alpha_pattern": {"(.*)w": 3}, "rank_pattern": {"^w": 2}, "bias": "none"}  # fmt: skip
    path = Path("BAD/adapter_config.json")
    path.write_text(json.dumps(config))
    commands = ["plan lora.json good.safetensors", "plan scale.json BAD",
                "apply scale.json BAD out --workers 1"]  # fmt: skip
    attacked(desk, path, commands, attack, tmp_path_factory.mktemp("mutants"))


def test_mutants_of_manifests(desk: Path, attack: Any, tmp_path_factory: Any) -> None:
    Path("grow.json").write_text(json.dumps({**RECIPE, "output": {}}))
    assert tried(desk, "plan grow.json good.safetensors")[0] == 0
    from click.testing import CliRunner

    from surgeon.cli.commands import commands

    arguments = "apply grow.json good.safetensors -o grown.safetensors --workers 1"
    assert CliRunner().invoke(commands, arguments.split()).exit_code == 0
    path = desk / "grown.manifest.json"
    for _ in mutations(path, attack):
        attack.count("manifests loaded for training")
        with suppress(ManifestError):
            Manifest.load(path)
        code, problem = tried(desk, "verify grown.safetensors")
        assert not problem, (code, problem, attack.seed)


def test_mutants_of_a_runs_state(tmp_path: Path, attack: Any) -> None:
    manifest, state = saved_state(tmp_path)
    spots = [*places(state)]
    refused = 0
    for _ in attack.within(range(TRIES), SECONDS):
        made = state
        for _ in range(attack.random.choice([1, 1, 2, 3])):
            spot, other = attack.random.choice(spots), attack.random.choice(spots)
            value = attack.random.choice([*ODD, _at(state, other), _at(state, other)])
            if _at(made, spot) is not DELETED:
                made = mutant(made, spot, value)
        model = network()
        attack.count("mutated states of runs")
        try:
            optimizer, _ = manifest.bind(model).load_state_dict(made)
        except ManifestError:
            refused += 1
        else:
            train(model, optimizer, 1)
    assert refused


def _at(value: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return DELETED
    return value
