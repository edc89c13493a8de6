"""split: several tensors of one, cut along a dimension."""

import pytest
import torch

from surgeon.base.errors import PlanError, UsageError
from tests.network import assert_identical

HEADS, HEAD, WIDTH = 3, 4, 5
QKV = {
    f"h.{i}.qkv.{leaf}": torch.randn(3 * HEADS * HEAD, *rest)
    for i in range(2)
    for leaf, rest in (("weight", (WIDTH,)), ("bias", ()))
}
PARTS = ["h.{i}.q", "h.{i}.k", "h.{i}.v"]


def step(target, into, dim=0, **rest):
    return {"op": "split", "target": target, "dim": dim, "into": into, **rest}


@pytest.mark.parametrize(("dim", "sizes"), [(0, [2, 1, 3]), (1, [4, 4]), (-1, [1, 7]), (0, [6])])
def test_parts_are_those_of_torch(bench, dim, sizes):
    tensor = torch.randn(6, 8)
    into = [f"part{number}" for number in range(len(sizes))]
    made = bench.given({"w": tensor}).operate(step("w", into, dim, sizes=sizes)).tensors
    assert_identical(made, dict(zip(into, tensor.split(sizes, dim), strict=True)))


def test_one_step_serves_all_layers_and_both_tensors(bench):
    made = bench.given(QKV).operate(step("h.{i}.qkv", PARTS, parts=3)).tensors
    expected = {
        name.replace("qkv", part): chunk
        for name, tensor in QKV.items()
        for part, chunk in zip("qkv", tensor.chunk(3), strict=True)
    }
    assert_identical(made, expected)


def of_head(tensor, part):
    """Row by row: head h of part p begins at row (3 h + p) * HEAD."""
    rows = [(3 * head + part) * HEAD + row for head in range(HEADS) for row in range(HEAD)]
    return torch.stack([tensor[row] for row in rows])


def test_parts_that_alternate_by_head_come_out_whole(bench):
    made = bench.given(QKV).operate(step("h.{i}.qkv", PARTS, parts=3, groups=HEADS)).tensors
    expected = {
        name.replace("qkv", letter): of_head(tensor, part)
        for name, tensor in QKV.items()
        for part, letter in enumerate("qkv")
    }
    assert_identical(made, expected)


def test_groups_of_unequal_parts_along_columns(bench):
    # Two groups of queries (4 columns), a key (2) and a value (2) each.
    tensor = torch.randn(3, 16)
    made = bench.given({"w": tensor}).operate(
        step("w", ["q", "k", "v"], -1, sizes=[8, 4, 4], groups=2)
    )
    columns = {"q": [0, 1, 2, 3, 8, 9, 10, 11], "k": [4, 5, 12, 13], "v": [6, 7, 14, 15]}
    assert_identical(made.tensors, {part: tensor[:, those] for part, those in columns.items()})


def test_rows_are_copied_not_computed(bench):
    made = bench.given(QKV).plan(step("h.{i}.qkv", PARTS, parts=3, groups=HEADS))
    kinds = {type(piece).__name__ for t in made.tensors.values() for piece in t.pieces(0, 1)}
    assert kinds == {"ByteRange"}


def test_parts_may_be_numbered(bench):
    tensor = torch.randn(2, 6)
    made = bench.given({"a.3.w": tensor}).operate(step("a.{i}.w", "b.{i}.{n+1}", -1, parts=3))
    names = ["b.3.1", "b.3.2", "b.3.3"]
    assert_identical(made.tensors, dict(zip(names, tensor.chunk(3, -1), strict=True)))


def test_parts_of_tied_tensors_are_tied(bench):
    bench.given({"a.w": torch.randn(4, 2)}, {"b.w": "a.w"})
    made = bench.operate(step("{m}.w", ["{m}.x", "{m}.y"], parts=2))
    assert made.manifest["ties"] == {"b.x": "a.x", "b.y": "a.y"}


def test_lineage_says_what_parts_are_of(bench):
    made = bench.given(QKV).operate(step("h.{i}.qkv", PARTS, parts=3))
    assert made.lineage("h.1.v.bias") == [{"step": "0", "op": "split", "from": ["h.1.qkv.bias"]}]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (step("w", ["a", "b"], sizes=[2, 3]), "'w' is F32 (6, 8): sizes [2, 3] are 5 together"),
        (step("w", ["a", "b", "c", "d"], parts=4), "'w' is F32 (6, 8): 6 in dimension 0 is not 4"),
        (step("w", ["a", "b"], parts=3), "'into' has 2 entries, but there are 3 parts"),
        (step("w", ["a", "b"], 2, parts=2), "'w' is F32 (6, 8), and has no dimension 2"),
        (step("w", ["a", "b"], -3, parts=2), "'w' is F32 (6, 8), and has no dimension -3"),
        (step("w", ["a", "v"], parts=2), "'v' and 'w' would both be 'v'"),
        (step("w", ["a", "a"], parts=2), "'w' and 'w' would both be 'a'"),
        (step("{n}", ["a{n}", "b{n}"], parts=4), "'v' is F32 (3,): 3 in dimension 0 is not 4"),
        (step("w", ["a", "b"], parts=2, groups=2), "'w': a part of 3 is not 2 equal groups"),
        (step("w", "a", parts=2), "'into' is 'a'; list the parts' names, or number them"),
        (step("x", ["a", "b"], parts=2), "no tensor matches 'x'"),
    ],
)
def test_impossible_split_says_why(bench, given, problem):
    bench.given({"w": torch.ones(6, 8), "v": torch.ones(3)})
    with pytest.raises(PlanError) as caught:
        bench.plan(given)
    assert str(caught.value).startswith(f"recipe.json: steps[0] (split): {problem}")


def test_a_name_that_a_part_takes_over_is_free(bench):
    made = bench.given({"w": torch.arange(4)}).operate(step("w", ["w", "x"], parts=2)).tensors
    assert_identical(made, {"w": torch.tensor([0, 1]), "x": torch.tensor([2, 3])})


@pytest.mark.parametrize("rest", [{}, {"parts": 2, "sizes": [1, 1]}])
def test_sizes_or_parts_must_be_given(bench, rest):
    with pytest.raises(UsageError, match="give exactly one of 'sizes', 'parts'"):
        bench.recipe(step("w", ["a", "b"], **rest))


def test_several_patterns_are_cut_in_one_step(bench):
    old = {"a.0.qkv": torch.randn(6, 2), "b.x.kqv": torch.randn(6), "c": torch.randn(6)}
    into = ["{kind}.{i}.first", "{kind}.{i}.second"]
    target = ["{kind}.{i}.qkv", "{kind}.{i}.kqv"]
    made = bench.given(old).operate(step(target, into, parts=2)).tensors
    expected = {
        f"{name[:3]}.{part}": old[name].chunk(2)[number]
        for name in ("a.0.qkv", "b.x.kqv")
        for number, part in enumerate(("first", "second"))
    }
    assert_identical(made, {**expected, "c": old["c"]})


def test_a_tensor_that_two_patterns_match_is_an_error(bench):
    with pytest.raises(PlanError, match=r"'h.0.qkv.weight' matches both 'h\.0\.qkv' and"):
        bench.given(QKV).plan(step(["h.0.qkv", "h.{i}.qkv"], PARTS, parts=3))


def test_proportions_share_a_dimension_out(bench):
    bench.given({"w": QKV["h.0.qkv.weight"]})
    made = bench.operate(step("w", ["q", "k", "v"], proportions=[4, 1, 1])).tensors
    wanted = QKV["h.0.qkv.weight"].split([24, 6, 6])
    assert_identical(made, dict(zip("qkv", wanted, strict=True)))
    with pytest.raises(PlanError, match=r"36 in dimension 0 is not parts as \[4, 1\]"):
        bench.plan(step("w", ["q", "k"], proportions=[4, 1]))


def test_proportions_are_what_the_config_says_or_an_error(bench):
    bench.given({"w": QKV["h.0.qkv.weight"]})
    shares = [{"config": ["n_head", "text.heads"]}, 1]
    with pytest.raises(PlanError, match=r"no config .* says 'n_head', 'text\.heads'"):
        bench.plan(step("w", ["q", "k"], proportions=shares))
