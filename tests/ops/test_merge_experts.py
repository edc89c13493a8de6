"""merge_experts: means of experts, and of what the router has of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from surgeon.base.errors import PlanError
from tests.network import Bench, assert_identical, correctly_rounded, example_mixture

FIRST, SECOND = "layers.0.moe", "layers.1.moe"


def mean(parts: list[torch.Tensor], shares: list[float]) -> torch.Tensor:
    total = sum(part.double() * share for part, share in zip(parts, shares, strict=True))
    return correctly_rounded(total, parts[0].dtype)


def merged(
    old: dict[str, torch.Tensor], pair: tuple[int, int], rest: int, shares: list[float], at: int
) -> dict[str, torch.Tensor]:
    """The mixture of the example in which a pair is one expert, at a place among two."""

    def both(entry: Any) -> list[torch.Tensor]:
        found = [mean([entry(n) for n in pair], shares)]
        found.insert(1 - at, entry(rest))
        return found

    made = {}
    for w in "ab":
        for new, tensor in enumerate(both(lambda n: old[f"{FIRST}.experts.{n}.{w}.weight"])):  # noqa: B023
            made[f"{FIRST}.experts.{new}.{w}.weight"] = tensor
    for name in (f"{FIRST}.gate.weight", f"{SECOND}.experts.up", f"{SECOND}.router.weight",
                 f"{SECOND}.router.bias"):  # fmt: skip
        made[name] = torch.stack(both(lambda n: old[name][n]))  # noqa: B023
    return made


def test_listed_experts_become_their_mean(bench: Bench) -> None:
    old = example_mixture()
    found = bench.given(old).operate({"op": "merge_experts", "by": [[2], [0, 1]]}).tensors
    assert_identical(found, merged(old, (0, 1), 2, [0.5, 0.5], at=1))


def test_by_a_file_the_rest_goes_to_whom_the_router_takes_for_alike(bench: Bench) -> None:
    """Expert 0 is chosen least, and is like 2."""
    old = example_mixture()
    layer = {"frequency": [0.1, 0.6, 0.3],
             "similarity": [[1, -0.5, 0.4], [-0.5, 1, 0], [0.4, 0, 1]]}  # fmt: skip
    text = {"surgeon": "routing", "layers": {"layers.0": layer, "layers.1": layer}}
    (bench.folder / "routing.json").write_text(json.dumps(text))
    step = {"op": "merge_experts", "by": "routing.json", "keep": 2}
    found = bench.given(old).operate(step).tensors
    shares = [0.3 / (0.3 + 0.1), 0.1 / (0.3 + 0.1)]
    assert_identical(found, merged(old, (2, 0), 1, shares, at=1))


def test_router_may_keep_the_leader_s_entries(bench: Bench) -> None:
    old = example_mixture()
    step = {"op": "merge_experts", "by": [[1, 0], [2]], "router": "first"}
    found = bench.given(old).operate(step)
    for name in (f"{FIRST}.gate.weight", f"{SECOND}.router.weight", f"{SECOND}.router.bias"):
        torch.testing.assert_close(found[name], old[name][[1, 2]], rtol=0, atol=0)


@pytest.mark.parametrize(("by", "problem"), [
    ([[0, 1]], "no list names expert 2; a list of one stays as it is"),
    ([[0, 1], [1, 2]], "expert 1 is named twice"),
    ([[0, 1], [2, 3]], "there is no expert 3"),
])  # fmt: skip
def test_lists_that_leave_experts_out_or_name_them_twice_are_refused(
    bench: Bench, by: Any, problem: str
) -> None:
    with pytest.raises(PlanError, match=f"'layers.0.moe': {problem}"):
        bench.given(example_mixture()).plan({"op": "merge_experts", "by": by})
