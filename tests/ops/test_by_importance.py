"""narrow and layers by a file of importances: what is kept, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from surgeon.base.errors import SurgeonError
from tests.network import Bench, assert_identical

FILE = {
    "surgeon": "importance",
    "neurons": {"h.0.down": [3, 1, 2, 2], "h.1.down": [0, 1, 2, 3]},
    "heads": {"h.0.o": [1, 2]},
    "channels": [5, 1, 5],
    "layers": {"h": [0.1, 0.3]},
}


def given(bench: Bench, **changes: Any) -> dict[str, torch.Tensor]:
    (bench.folder / "found.json").write_text(json.dumps({**FILE, **changes}))
    old = {f"h.{n}.{name}.weight": torch.randn(shape) for n in (0, 1)
           for name, shape in {"up": (4, 3), "down": (3, 4), "o": (3, 4)}.items()}  # fmt: skip
    bench.given(old)
    return old


def narrow(**more: Any) -> dict[str, Any]:
    return {"op": "narrow", "target": "h.*.up", "consumers": "h.*.down", "by": "found.json",
            "keep": 2, **more}  # fmt: skip


def test_each_layer_keeps_its_own_and_of_equal_ones_the_first(bench: Bench) -> None:
    old = given(bench)
    kept = {0: [0, 2], 1: [2, 3]}
    made = {f"h.{n}.up.weight": old[f"h.{n}.up.weight"][kept[n]] for n in kept}
    made |= {f"h.{n}.down.weight": old[f"h.{n}.down.weight"][:, kept[n]] for n in kept}
    assert_identical(bench.operate(narrow()).tensors, old | made)


def test_what_nothing_in_the_file_reads_is_channels(bench: Bench) -> None:
    old = given(bench)
    step = narrow(target="h.*.(down|o)", consumers="h.*.up")
    made = {name: tensor[:, [0, 2]] if ".up." in name else tensor[[0, 2]]
            for name, tensor in old.items()}  # fmt: skip
    assert_identical(bench.operate(step).tensors, made)


def test_layers_stay_in_their_order(bench: Bench) -> None:
    old = given(bench)
    step = {"op": "layers", "container": "h", "by": "found.json", "keep": 1}
    made = {f"h.0.{name}.weight": old[f"h.1.{name}.weight"] for name in ("up", "down", "o")}
    assert_identical(bench.operate(step).tensors, made)


@pytest.mark.parametrize(("step", "changes", "problem"), [
    (narrow(keep="0:2"), {}, "with 'by', 'keep' is how many are kept, a number"),
    (narrow(keep=5), {}, "'keep' is 5, and there are 4"),
    (narrow(), {"surgeon": "routing"}, "no file of importance scores: it holds routing"),
    (narrow(), {"neurons": {"h.0.down": [1, 2, 3, 4]}}, "neurons: says nothing of 'h.1.down'"),
    (narrow(), {"neurons": {"h.0.down": [1], "h.1.down": [1]}}, "h.0.down: has 1 scores, but"),
    (narrow(consumers="h.*.o", target="h.*.down", dim=1), {}, "heads: says nothing of 'h.1.o'"),
    (narrow(keep=3, shared={"target": "h.*.o", "by": 2}), {}, "'keep' is 3: neither whole groups"),
    ({"op": "layers", "container": "h", "by": "found.json"}, {}, "give both"),
    ({"op": "layers", "container": "h", "by": "found.json", "keep": 3}, {}, "2 layers, and no 3"),
    ({"op": "layers", "container": "h", "by": "found.json", "keep": 1}, {"layers": {}},
     "found.json: says nothing of 'h'"),
])  # fmt: skip
def test_what_the_file_does_not_tell_is_refused(
    bench: Bench, step: Any, changes: Any, problem: str
) -> None:
    given(bench, **changes)
    with pytest.raises(SurgeonError, match=problem):
        bench.plan(step)
