"""What is published can be read again, tensor by tensor and entry by entry, or is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open

from surgeon import surgery
from surgeon.base.errors import PlanError
from surgeon.formats import open_checkpoint

TENSORS = {"2": torch.zeros(3), "w": torch.ones(3)}
TIED = {**TENSORS, "about": torch.zeros(3)}
LONG = {f"{i}{'n' * 9_000_000}": torch.ones(1) for i in range(2)}


def metadata_of(path):
    with safe_open(path, "numpy") as file:
        return file.metadata()


def opened(path):
    found = open_checkpoint(str(path))
    found.close()
    return found


@pytest.mark.parametrize("metadata", [{"stage": "2"}, {"a": "w", "b": "2"}, {"format": "2"}])
def test_metadata_that_names_a_tensor_is_no_tie(bench, metadata):
    bench.given(TENSORS).operate(output={"metadata": metadata})
    found = opened(bench.output)
    assert set(found.tensors) == set(TENSORS)
    assert metadata.items() <= found.metadata.items()
    assert metadata.items() <= metadata_of(bench.output).items()


def test_ties_beside_metadata_that_names_a_tensor_stay_ties(bench):
    bench.given(TENSORS, ties={"z": "w"}).operate(output={"metadata": {"stage": "2"}})
    found = opened(bench.output)
    assert found.tensors["z"] is found.tensors["w"]
    assert set(found.tensors) == {"2", "w", "z"}
    assert metadata_of(bench.output)["z"] == "w"


def test_an_empty_recipe_says_nothing_of_ties(bench):
    bench.given(TENSORS, ties={"z": "w"}).operate()
    assert "ties" not in json.loads(metadata_of(bench.output)["surgeon"])


def test_another_round_keeps_both(bench):
    bench.given(TENSORS, ties={"z": "w"}).operate(output={"metadata": {"stage": "2"}})
    bench.input = bench.output.rename(bench.folder / "again.safetensors")
    bench.operate()
    found = opened(bench.output)
    assert set(found.tensors) == {"2", "w", "z"}
    assert found.metadata["stage"] == "2"


@pytest.mark.parametrize(
    ("tensors", "step", "metadata", "problem"),
    [
        (LONG, {"op": "keep", "target": "**"}, "y" * 9_000_000, "its header would have 27,...,"),
        (TENSORS, {"op": "reshape", "target": "w", "shape": [1] * 32 + [3]}, "", "found 33 dimen"),
        (TIED, {"op": "tie", "target": "about", "to": "2"}, "", "an entry 'about', and so has"),
    ],
)  # fmt: skip
def test_what_could_not_be_read_is_refused_by_plan(bench, tensors, step, metadata, problem):
    bench.given(tensors)
    with pytest.raises(PlanError, match=problem):
        planned(bench, step, {"about": metadata})


def planned(bench, step, metadata):
    made = bench.recipe(step, output={"metadata": metadata})
    with surgery.opened(made, str(bench.input), {}) as opened:
        return surgery.output_plan(opened, bench.output)
