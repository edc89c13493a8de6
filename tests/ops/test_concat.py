"""concat: one tensor of several, end to end."""

import pytest
import torch

from surgeon.base.errors import PlanError
from tests.network import assert_identical

HEADS, HEAD, WIDTH = 3, 2, 5
SEPARATE = {
    f"h.{i}.{part}.{leaf}": torch.randn(HEADS * HEAD, *rest)
    for i in range(11)
    for part in "qkv"
    for leaf, rest in (("weight", (WIDTH,)), ("bias", ()))
}
FROM = ["h.{i}.q", "h.{i}.k", "h.{i}.v"]


def step(source, into, dim=0, **rest):
    return {"op": "concat", "from": source, "dim": dim, "into": into, **rest}


def fused(join):
    return {
        f"h.{i}.qkv.{leaf}": join([SEPARATE[f"h.{i}.{part}.{leaf}"] for part in "qkv"])
        for i in range(11)
        for leaf in ("weight", "bias")
    }


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_result_is_that_of_torch(bench, dim):
    parts = [torch.randn(2, 3), torch.randn(2, 3), torch.randn(2, 3)]
    names = ["c", "a", "b"]
    bench.given(dict(zip(names, parts, strict=True)))
    assert_identical(bench.operate(step(names, "w", dim)).tensors, {"w": torch.cat(parts, dim)})


def test_one_step_serves_all_layers_and_both_tensors(bench):
    made = bench.given(SEPARATE).operate(step(FROM, "h.{i}.qkv", expect=3)).tensors
    assert_identical(made, fused(torch.cat))


def by_head(parts):
    """Row by row: for each head its rows of each part."""
    return torch.stack(
        [part[head * HEAD + row] for head in range(HEADS) for part in parts for row in range(HEAD)]
    )


def test_parts_alternate_by_head(bench):
    made = bench.given(SEPARATE).operate(step(FROM, "h.{i}.qkv", groups=HEADS)).tensors
    assert_identical(made, fused(by_head))


@pytest.mark.parametrize("dim", [0, -1])
def test_unequal_parts_alternate_along_any_dimension(bench, dim):
    q, k = (torch.randn(*size) for size in ((6, 6), (6, 3)))
    q, k = (q, k) if dim else (q, k.T.contiguous())
    made = bench.given({"q": q, "k": k}).operate(step(["q", "k"], "qk", dim, groups=3))
    pieces = [part.narrow(dim, g * n, n) for g in range(3) for part, n in ((q, 2), (k, 1))]
    assert_identical(made.tensors, {"qk": torch.cat(pieces, dim)})


def test_there_and_back_is_the_same_file(bench):
    bench.given(SEPARATE)
    parts = ["h.{i}.q", "h.{i}.k", "h.{i}.v"]
    for groups in (1, HEADS):
        back = {"op": "split", "target": "h.{i}.qkv", "dim": 0, "parts": 3, "into": parts,
                "groups": groups}  # fmt: skip
        made = bench.operate(step(FROM, "h.{i}.qkv", groups=groups), back).tensors
        assert_identical(made, SEPARATE)


def test_parts_of_one_pattern_come_in_the_order_of_their_numbers(bench):
    tensors = {f"e.{i}.w": torch.tensor([i]) for i in range(12)}
    made = bench.given(tensors).operate(step("e.{i}.w", "e.w", expect=12)).tensors
    assert_identical(made, {"e.w": torch.arange(12)})


def test_result_stands_in_the_place_of_the_first_part(bench):
    bench.given({name: torch.ones(n + 1) for n, name in enumerate("abcd")})
    assert [*bench.plan(step(["d", "b"], "x")).tensors] == ["a", "c", "x"]


def test_a_part_may_stay_under_a_second_name(bench):
    bench.given({"embed": torch.randn(3, 2), "extra": torch.randn(1, 2)}, {"head": "embed"})
    made = bench.operate(step(["embed", "extra"], "embed")).tensors
    assert made["embed"].shape == (4, 2)
    assert torch.equal(made["embed"][:3], made["head"])


def test_results_of_tied_parts_are_tied(bench):
    bench.given({"0.a": torch.ones(2), "0.b": torch.zeros(2)}, {"1.a": "0.a", "1.b": "0.b"})
    made = bench.operate(step(["{i}.a", "{i}.b"], "{i}.ab"))
    assert made.manifest["ties"] == {"1.ab": "0.ab"}


def test_lineage_names_all_parts(bench):
    made = bench.given(SEPARATE).operate(step(FROM, "h.{i}.qkv"))
    names = [f"h.3.{part}.bias" for part in "qkv"]
    assert made.lineage("h.3.qkv.bias") == [{"step": "0", "op": "concat", "from": names}]


def test_new_rows_stay_new(bench):
    bench.given({"a": torch.ones(3, 2), "b": torch.ones(3, 2)})
    grow = {"op": "widen", "target": "a", "rows": 1, "init": "zeros"}
    made = bench.operate(grow, step(["b", "a"], "w"))
    (stage,) = bench.operate(
        grow, step(["b", "a"], "w"), training={"stages": [{"name": "new", "train": ["@new"]}]}
    ).manifest["stages"]
    assert made["w"].shape == (7, 2)
    assert stage["groups"][0]["params"] == ["w[6:7]"]


MIXED = {
    "a": torch.ones(2, 3),
    "b": torch.ones(2, 4),
    "v": torch.ones(3),
    "half": torch.ones(2, 3).half(),
    **{name: torch.ones(1) for name in ("e.0", "e.1", "e.3", "f.0", "f.1", "m.0.0", "m.0.1")},
    "m.1.0": torch.ones(1),
}


@pytest.mark.parametrize(
    ("given", "problems"),
    [
        (step(["a", "b"], "w"),
         ["'b' is F32 (2, 4) but 'a' is F32 (2, 3); parts have one dtype and may differ in "
          "dimension 0 alone"]),
        (step(["a", "half"], "w"), ["'half' is F16 (2, 3) but 'a' is F32 (2, 3)"]),
        (step(["a", "v"], "w"), ["'v' is F32 (3,) but 'a' is F32 (2, 3)"]),
        (step(["a", "b"], "v"), ["'v' and 'a' would both be 'v'"]),
        (step(["a", "(a|b)"], "w"), ["'a' matches both 'a' and '(a|b)'"]),
        (step(["a", "x", "y"], "w"), ["no tensor matches 'x'", "no tensor matches 'y'"]),
        (step(["e.{i}", "f.{i}"], "g.{i}"), ["'g.3' lacks a part: no 'f.{i}' for it"]),
        (step("e.{i}", "g"), ["'g' lacks a part between 'e.1' and 'e.3'"]),
        (step("re:(?P<l>a|b)", "g"),
         ["'a': {l} is 'a', no number to order by; list the parts in 'from', in order",
          "'b': {l} is 'b', no number to order by; list the parts in 'from', in order"]),
        (step(["a", "b"], "w", 1, expect=3), ["'w' has 2 parts, but expected 3"]),
        (step("m.{l}.{i}", "m.{l}"), ["'m.1' has 1 parts, but 'm.0' has 2"]),
        (step(["a", "b"], "w", 2), ["'a' is F32 (2, 3), and has no dimension 2"]),
        (step(["a", "b"], "w", 1, groups=2),
         ["'a' is F32 (2, 3): 3 in dimension 1 is not 2 equal groups"]),
        (step("a", "w.{i}"), ["'i' is neither a capture nor arithmetic with captures"]),
    ],
)  # fmt: skip
def test_impossible_concat_says_why(bench, given, problems):
    bench.given(MIXED)
    with pytest.raises(PlanError) as caught:
        bench.plan(given)
    assert len(caught.value.problems) == len(problems)
    for line, problem in zip(caught.value.problems, problems, strict=True):
        assert line.startswith(f"recipe.json: steps[0] (concat): {problem}")
