"""Small input that asks for much: refused, or done, within seconds and 500 MB."""

# ruff: noqa: E501  (a bad file is a line)

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

pytestmark = [pytest.mark.attack, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
MOST_MEGABYTES = 500
MOST_SECONDS = 20  # of the processor; what waits is killed after some time
MOST_WAITED = 120
SPARSE = 1 << 40
Job = tuple[int, ...], list[str]
JOBS: dict[str, Callable[[Path], Job]] = {}


def job(make: Callable[[Path], Job]) -> Callable[[Path], Job]:
    JOBS[make.__name__] = make
    return make


def measured(folder: Path, arguments: list[str]) -> tuple[int, str, float, float]:
    """Run a command line; returns exit code, stderr, processor seconds, megabytes."""
    said = folder / "said"
    start = time.monotonic()
    with said.open("wb") as stderr, (folder / "answer").open("wb") as stdout:
        process = subprocess.Popen(
            [sys.executable, "-m", "surgeon", *arguments], cwd=folder, stdout=stdout, stderr=stderr,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip
        while not (waited := os.wait4(process.pid, os.WNOHANG))[0]:
            if time.monotonic() - start > MOST_WAITED:
                process.kill()
            time.sleep(0.01)
    process.returncode = os.waitstatus_to_exitcode(waited[1])
    used = waited[2]
    seconds, megabytes = used.ru_utime + used.ru_stime, used.ru_maxrss / 1000
    return process.returncode, said.read_text(errors="replace"), seconds, megabytes


def write_recipe(folder: Path, *steps: Any, **rest: Any) -> None:
    document = {"surgeon": 1, "steps": list(steps), **rest}
    (folder / "r.json").write_text(json.dumps(document))


def write_input(folder: Path, shape: tuple[int, ...] = (4, 4), count: int = 1) -> None:
    tensors = {f"a{i}.weight": np.ones(shape, np.float32) for i in range(count)}
    save_file(tensors, folder / "in.safetensors")


def apply(*more: str) -> list[str]:
    return ["apply", "r.json", "in.safetensors", "out.safetensors", *more]


# --- Recipes ---


@job
def a_long_variable_used_often(folder: Path) -> Job:
    step = {"op": "expect", "target": "${long}", "rank": 2, "optional": True}
    write_input(folder)
    write_recipe(folder, *[step] * 1000, vars={"long": "x" * 100_000})
    return (0, 2), apply()


@job
def a_long_variable_used_often_in_one_text(folder: Path) -> Job:
    write_input(folder)
    write_recipe(folder, {"op": "delete", "target": "${long}" * 1000}, vars={"long": "x" * 100_000})
    return (2, 4), apply()


@job
def a_large_variable_used_often(folder: Path) -> Job:
    steps = [{"op": "delete", "target": "${many}", "optional": True}] * 1000
    write_input(folder)
    write_recipe(folder, *steps, vars={"many": [f"a{i}" for i in range(10_000)]})
    return (0, 2, 4), apply()


@job
def rows_without_end(folder: Path) -> Job:
    write_input(folder)
    step = {"op": "widen", "target": "a0", "rows": 1_000_000_000, "init": "orthogonal"}
    write_recipe(folder, step)
    return (4,), apply()


@job
def rows_without_end_that_repeat(folder: Path) -> Job:
    write_input(folder)
    write_recipe(folder, {"op": "widen", "target": "a0", "rows": 10**12, "init": "normal"})
    return (0, 4), ["plan", "r.json", "in.safetensors"]


@job
def expressions_with_no_end(folder: Path) -> Job:
    write_input(folder)
    patterns = ["re:(a+)+b", "re:" + "(a|a)" * 30, "re:(.*a){30}", "re:(x+x+)+y", "*a" * 60]
    steps = [{"op": "delete", "target": p, "optional": True} for p in patterns]
    save_file({"a" * 60: np.ones(1), "x" * 5000: np.ones(1)}, folder / "in.safetensors")
    write_recipe(folder, *steps)
    return (0,), apply()


@job
def a_recipe_that_is_a_fifo(folder: Path) -> Job:
    write_input(folder)
    os.mkfifo(folder / "r.json")
    return (2,), apply()


@job
def shapes_that_are_a_fifo(folder: Path) -> Job:
    write_input(folder)
    os.mkfifo(folder / "shapes.json")
    write_recipe(folder, {"op": "match", "shapes": "shapes.json"})
    return (2, 3, 4), apply()


@job
def a_recipe_without_end(folder: Path) -> Job:
    write_input(folder)
    with (folder / "r.json").open("wb") as file:
        file.truncate(SPARSE)
    return (2,), apply()


# --- Configurations of others ---


def mergekit(folder: Path, text: str) -> Job:
    write_input(folder)
    (folder / "merge.yml").write_text(text)
    return (2,), ["import", "mergekit", "merge.yml"]


@job
def anchors_that_multiply(folder: Path) -> Job:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    models = "models: *a11\nmerge_method: linear\n"
    return mergekit(folder, "\n".join(lines) + "\n" + models)


@job
def anchors_that_multiply_in_parameters(folder: Path) -> Job:
    lines = ["a0: &a0 {x: 1, y: 2}"]
    lines += [f"a{i}: &a{i} {{p: *a{i - 1}, q: *a{i - 1}}}" for i in range(1, 40)]
    rest = "models:\n- model: in.safetensors\n  parameters: {weight: *a39}\nmerge_method: linear\n"
    return mergekit(folder, "\n".join(lines) + "\n" + rest)


@job
def merge_keys_that_multiply(folder: Path) -> Job:
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 9)]
    rest = "models:\n- model: in.safetensors\n  parameters: *a8\nmerge_method: linear\n"
    return mergekit(folder, "\n".join(lines) + "\n" + rest)


@job
def an_anchor_that_refers_to_itself(folder: Path) -> Job:
    return mergekit(folder, "models: &m\n- model: a\n  parameters: *m\nmerge_method: &x [*x]\n")


@job
def weights_that_refer_to_themselves(folder: Path) -> Job:
    rest = "models:\n- model: in.safetensors\n  parameters: {weight: &w [*w]}\n"
    return mergekit(folder, rest + "merge_method: linear\n")


@job
def yaml_that_is_nested_deeply(folder: Path) -> Job:
    return mergekit(folder, "models: " + "[" * 100_000)


@job
def layers_without_end(folder: Path) -> Job:
    text = "slices:\n- sources:\n  - {model: in.safetensors, layer_range: [0, 1000000000000]}\n"
    return mergekit(folder, text + "merge_method: passthrough\n")


@job
def a_mergekit_configuration_without_end(folder: Path) -> Job:
    write_input(folder)
    with (folder / "merge.yml").open("wb") as file:
        file.truncate(SPARSE)
    return (2,), ["import", "mergekit", "merge.yml"]


@job
def a_mergekit_configuration_that_is_a_fifo(folder: Path) -> Job:
    os.mkfifo(folder / "merge.yml")
    return (2, 3), ["import", "mergekit", "merge.yml"]


# --- Folders ---


def model(folder: Path) -> Path:
    inside = folder / "model"
    inside.mkdir()
    save_file({"a.weight": np.ones((4, 4), np.float32)}, inside / "model.safetensors")
    (inside / "config.json").write_text('{"model_type": "none", "hidden_size": 4}')
    return inside


CHANGES = {"op": "widen", "target": "a", "rows": 1}


@job
def a_config_without_end(folder: Path) -> Job:
    with (model(folder) / "config.json").open("wb") as file:
        file.truncate(SPARSE)
    write_recipe(folder, CHANGES)
    return (3, 4), ["apply", "r.json", "model", "out"]


@job
def a_config_that_is_a_fifo(folder: Path) -> Job:
    path = model(folder) / "config.json"
    path.unlink()
    os.mkfifo(path)
    write_recipe(folder, CHANGES)
    return (3, 4), ["apply", "r.json", "model", "out"]


def with_manifest(folder: Path, make: Callable[[Path], object], *command: str) -> Job:
    write_input(folder)
    path = folder / "in.manifest.json"
    make(path)
    return (3,), [*command, "in.safetensors"]


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(SPARSE)


@job
def a_manifest_without_end(folder: Path) -> Job:
    return with_manifest(folder, sparse, "verify")


@job
def a_manifest_that_is_a_fifo(folder: Path) -> Job:
    return with_manifest(folder, os.mkfifo, "verify")


@job
def an_adapter_configuration_that_is_a_fifo(folder: Path) -> Job:
    write_input(folder)
    (folder / "adapter").mkdir()
    os.mkfifo(folder / "adapter" / "adapter_config.json")
    factors = {f"base_model.model.a0.lora_{k}.weight": np.ones((4, 4), np.float32) for k in "AB"}
    save_file(factors, folder / "adapter" / "adapter_model.safetensors")
    write_recipe(folder, {"op": "lora_merge", "adapter": "adapter"})
    return (3,), apply()


@job
def an_adapter_whose_patterns_have_no_end(folder: Path) -> Job:
    write_input(folder)
    (folder / "adapter").mkdir()
    patterns = {"(a+)+b": 1, "(a|a)" * 30: 2, "(.*)*x": 3, "((a{1,30}){1,30}){1,9}x": 4}
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "alpha_pattern": patterns}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    factors = {f"base_model.model.a0.lora_{k}.weight": np.ones((4, 4), np.float32) for k in "AB"}
    save_file(factors, folder / "adapter" / "adapter_model.safetensors")
    write_recipe(folder, {"op": "lora_merge", "adapter": "adapter"})
    return (0, 4), apply()


# --- Torch files ---


def zipped(path: Path, pickled: bytes, members: dict[str, bytes] | None = None) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        for name, data in (members or {}).items():
            archive.writestr(f"archive/{name}", data)


@job
def dicts_in_dicts(folder: Path) -> Job:
    zipped(folder / "in.pt", b"\x80\x02" + b"}X\x01\x00\x00\x00a" * 1_000_000 + b"}" +
           b"s" * 1_000_000 + b".")  # fmt: skip
    return (3,), ["inspect", "in.pt"]


@job
def dicts_in_dicts_of_the_model(folder: Path) -> Job:
    zipped(folder / "in.pt", b"\x80\x02}X\x05\x00\x00\x00model" + b"}X\x01\x00\x00\x00a" * 1_000_000 +
           b"}" + b"s" * 1_000_001 + b".")  # fmt: skip
    return (3,), ["inspect", "in.pt"]


@job
def lists_in_lists(folder: Path) -> Job:
    zipped(folder / "in.pt", b"\x80\x02" + b"]" * 7_000_000 + b"a" * 6_999_999 + b".")
    return (3,), ["inspect", "in.pt"]


@job
def empty_lists(folder: Path) -> Job:
    zipped(folder / "in.pt", b"\x80\x02(" + b"]" * 60_000_000 + b"l.")
    return (3,), ["inspect", "in.pt"]


@job
def empty_dicts_of_a_legacy_file(folder: Path) -> Job:
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    (folder / "in.pt").write_bytes(magic + b"\x80\x02(" + b"}" * 60_000_000 + b"l.")
    return (3,), ["inspect", "in.pt"]


@job
def a_tensor_that_is_expanded(folder: Path) -> Job:
    torch.save({"a": torch.ones(4).expand(1 << 38, 4)}, folder / "in.pt")
    return (0, 2, 3), ["inspect", "in.pt", "--stats"]


@job
def expanded_tensors_that_are_compared(folder: Path) -> Job:
    for name in ("in.pt", "b.pt"):
        value = torch.full((4,), float(len(name)))
        torch.save({"a": value.expand(1 << 38, 4)}, folder / name)
    return (0, 1, 2, 3), ["diff", "in.pt", "b.pt"]


@job
def expanded_tensors_that_are_weighed(folder: Path) -> Job:
    for name in ("in.pt", "b.pt"):
        value = torch.full((4,), float(len(name)))
        torch.save({"a": value.expand(1 << 38, 4)}, folder / name)
    return (0, 1, 2, 3), ["compare", "in.pt", "b.pt"]


@job
def an_expanded_tensor_that_is_written(folder: Path) -> Job:
    torch.save({"a": torch.ones(4).expand(1 << 38, 4)}, folder / "in.pt")
    write_recipe(folder)
    return (3, 4, 5), ["apply", "r.json", "in.pt", "out.safetensors"]


@job
def one_record_for_many(folder: Path) -> Job:
    """A distributed checkpoint whose 100 000 tensors are one record of 4 MB."""
    from torch.distributed.checkpoint import FileSystemWriter, save

    weight = torch.zeros(1000, 1000)
    save({"w": weight}, storage_writer=FileSystemWriter(folder / "dcp"), no_dist=True)
    path = folder / "dcp" / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    (index,) = metadata.storage_data
    stored, described = metadata.storage_data[index], metadata.state_dict_metadata["w"]
    metadata.storage_data, metadata.state_dict_metadata = {}, {}
    for i in range(100_000):
        name = f"w{i}"
        metadata.storage_data[type(index)(name, index.offset, 0)] = stored
        metadata.state_dict_metadata[name] = described
    path.write_bytes(pickle.dumps(metadata))
    return (0, 3), ["inspect", "dcp"]


# --- Headers ---


@job
def a_header_that_is_nested_deeply(folder: Path) -> Job:
    text = b'{"a":' * 4_000_000 + b"1" + b"}" * 4_000_000
    (folder / "in.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    return (3,), ["inspect", "in.safetensors"]


@job
def names_that_are_all_dots(folder: Path) -> Job:
    name = "." * 5_000_000
    entry = {name: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}
    text = json.dumps(entry).encode()
    (folder / "in.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    return (0, 2, 3), ["inspect", "in.safetensors", "--tree"]


@job
def a_long_name_that_embeds(folder: Path) -> Job:
    names = ["_embed" * 300_000 + "-", "embed" * 300_000 + "-", "0." * 500_000, "_" * 3_000_000]
    entries = {n: {"dtype": "F32", "shape": [0, 4], "data_offsets": [0, 0]} for n in names}
    text = json.dumps(entries).encode()
    (folder / "in.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    optimizer = {"class": "torch.optim.SGD", "args": {"lr": 1}}
    decay = {"container": "0", "factor": 0.9}
    stage = {"name": "a", "freeze": [], "layer_decay": decay}
    step = {"op": "scale", "target": "**", "factor": {"by_layer": [0, 1]}}
    write_recipe(folder, step, training={"optimizer": optimizer, "stages": [stage]})
    return (0, 2, 4), ["plan", "r.json", "in.safetensors"]


@job
def a_gguf_that_counts_without_end(folder: Path) -> Job:
    head = b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60)
    (folder / "in.gguf").write_bytes(head + b"\0" * 64)
    return (3,), ["inspect", "in.gguf"]


@job
def a_gguf_of_arrays_in_arrays(folder: Path) -> Job:
    key = struct.pack("<Q", 1) + b"a" + struct.pack("<I", 9)
    nested = struct.pack("<IQ", 9, 1) * 1_000_000 + struct.pack("<IQ", 4, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    (folder / "in.gguf").write_bytes(head + key + nested)
    return (0, 3), ["inspect", "in.gguf"]


def zip_of_many(count: int) -> Iterator[bytes]:
    yield from (str(i).encode() for i in range(count))


@job
def a_zip_of_many_members(folder: Path) -> Job:
    data = io.BytesIO()
    torch.save({"a": torch.ones(1)}, data)
    (folder / "in.pt").write_bytes(data.getvalue())
    with zipfile.ZipFile(folder / "in.pt", "a") as archive:
        for name in zip_of_many(200_000):
            archive.writestr(f"archive/data/x{name.decode()}", b"")
    return (0, 3), ["inspect", "in.pt"]


@pytest.mark.parametrize("name", JOBS)
def test_small_input_takes_little(name: str, tmp_path: Path) -> None:
    codes, arguments = JOBS[name](tmp_path)
    code, said, seconds, megabytes = measured(tmp_path, arguments)
    assert code in codes, said
    assert "Traceback" not in said
    assert (code == 0) or 1 <= len(said.splitlines()) <= 50
    assert megabytes < MOST_MEGABYTES
    assert seconds < MOST_SECONDS
