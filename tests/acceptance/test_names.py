"""Renames there and back, swaps, and what the field writes a step per layer for."""

from __future__ import annotations

import json

import torch

from tests.network import Bench, Operated, assert_identical

LAYERS = 36
TENSORS = {
    f"h.{layer}.{part}.weight": torch.full((2, 3), float(layer)) + number / 10
    for layer in range(LAYERS)
    for number, part in enumerate(("q", "k", "v", "out"))
}


def without_hash(made: Operated) -> bytes:
    """The file without the hash of the recipe, which is another for other steps."""
    content = made.path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    sha256 = json.loads(header["__metadata__"]["surgeon"])["recipe_sha256"]
    assert content.count(sha256.encode()) == 1
    return content.replace(sha256.encode(), b"")


def test_a_rename_there_and_back_gives_the_same_bytes(bench: Bench) -> None:
    bench.given(TENSORS)
    untouched = without_hash(bench.operate())
    there = {"op": "rename", "from": "h.{i}.{rest**}", "to": "model.layers.{i+1}.{rest}"}
    back = {"op": "rename", "from": "model.layers.{i}.{rest**}", "to": "h.{i-1}.{rest}"}
    assert without_hash(bench.operate(there)) != untouched
    assert without_hash(bench.operate(there, back)) == untouched


def test_two_names_are_swapped_in_one_step(bench: Bench) -> None:
    step = {"op": "rename", "from": ["h.{i}.q", "h.{i}.k"], "to": ["h.{i}.k", "h.{i}.q"]}
    made = bench.given(TENSORS).operate(step).tensors
    swapped = {"q": "k", "k": "q"}
    expected = {}
    for name, tensor in TENSORS.items():
        h, layer, part, leaf = name.split(".")
        expected[f"{h}.{layer}.{swapped.get(part, part)}.{leaf}"] = tensor
    assert_identical(made, expected)


def test_thirty_six_steps_are_one(bench: Bench) -> None:
    bench.given(TENSORS)
    one = {"op": "concat", "from": [f"h.{{i}}.{part}.weight" for part in "qkv"], "dim": 0,
           "into": "h.{i}.qkv.weight", "expect": 3}  # fmt: skip
    many = [
        {"op": "concat", "from": [f"h.{layer}.{part}.weight" for part in "qkv"], "dim": 0,
         "into": f"h.{layer}.qkv.weight"}
        for layer in range(LAYERS)
    ]  # fmt: skip
    by_many = bench.operate(*many)
    expected, written = by_many.tensors, without_hash(by_many)
    by_one = bench.operate(one)
    assert len(by_one.tensors) == 2 * LAYERS
    assert without_hash(by_one) == written
    assert_identical(by_one.tensors, expected)
    row = expected["h.35.qkv.weight"][:, 0].double()
    torch.testing.assert_close(
        row, torch.tensor([35.0, 35.0, 35.1, 35.1, 35.2, 35.2], dtype=torch.float64), atol=1e-5,
        rtol=0,
    )  # fmt: skip
