"""rename: other names for the same tensors."""

import pytest
import torch

from surgeon.base.errors import PlanError
from tests.network import assert_identical

OLD = {
    "layers.0.attn.weight": torch.randn(2, 3),
    "layers.0.mlp.weight": torch.randn(3),
    "layers.1.attn.weight": torch.randn(2, 3),
    "layers.1.mlp.weight": torch.randn(3),
    "head.weight": torch.randn(4),
}


def step(source, to):
    return {"op": "rename", "from": source, "to": to}


def renamed(**by_old_name):
    names = {name.replace("__", "."): new for name, new in by_old_name.items()}
    return {names.get(name, name): tensor for name, tensor in OLD.items()}


def shifted(by):
    def new_name(name):
        head, _, rest = name.partition(".")
        index, _, rest = rest.partition(".")
        return f"layers.{int(index) + by}.{rest}" if head == "layers" else name

    return {new_name(name): tensor for name, tensor in OLD.items()}


@pytest.mark.parametrize(
    ("source", "to", "expected"),
    [
        ("head.weight", "fc.weight", renamed(head__weight="fc.weight")),
        ("head", "fc", renamed(head__weight="fc.weight")),
        ("head", "a.b.c", renamed(head__weight="a.b.c.weight")),
        ("layers.{i}.{rest**}", "h.{i}.{rest}",
         {name.replace("layers", "h"): tensor for name, tensor in OLD.items()}),
        ("layers.{i}", "h.{i}",
         {name.replace("layers", "h"): tensor for name, tensor in OLD.items()}),
        ("layers.{i}", "layers.{i+1}", shifted(1)),
        ("layers.{i}.{rest**}", "layers.{i*2+3}.{rest}",
         {n.replace("layers.1", "layers.5").replace("layers.0", "layers.3"): t
          for n, t in OLD.items()}),
        ("re:(?P<a>.*)\\.weight", "{a}.w", {n[:-6] + "w": t for n, t in OLD.items()}),
        ("layers.{i}.(attn|mlp).weight", "layers.{i}.{i}.weight", None),
        (["layers.0", "layers.1"], ["layers.1", "layers.0"],
         {n.translate(str.maketrans("01", "10")): t for n, t in OLD.items()}),
        ("layers.{i}", "layers.{1-i}",
         {n.translate(str.maketrans("01", "10")): t for n, t in OLD.items()}),
        ("{rest**}", "model.{rest}", {f"model.{name}": t for name, t in OLD.items()}),
    ],
)  # fmt: skip
def test_rename_moves_names(bench, source, to, expected):
    bench.given(OLD)
    if expected is None:
        with pytest.raises(PlanError, match="would both be"):
            bench.plan(step(source, to))
    else:
        assert_identical(bench.operate(step(source, to)).tensors, expected)


def test_chain_of_shifts_happens_at_once(bench):
    made = bench.given(OLD).operate(step("layers.{i}", "layers.{i+1}"), step("layers.1", "first"))
    names = {"first.attn.weight", "first.mlp.weight", "layers.2.attn.weight"}
    assert names <= made.tensors.keys()


def test_lineage_says_where_a_name_came_from(bench):
    made = bench.given(OLD).operate(step("layers.{i}", "layers.{i+1}"))
    for index in (0, 1):
        assert made.lineage(f"layers.{index + 1}.mlp.weight") == [
            {"step": "0", "op": "rename", "from": [f"layers.{index}.mlp.weight"]}
        ]
    assert made.lineage("head.weight") == []


def test_ties_survive_a_rename(bench):
    bench.given({"a.weight": torch.randn(3)}, {"b.weight": "a.weight"})
    made = bench.operate(step("a", "c"))
    assert made.manifest["ties"] == {"b.weight": "c.weight"}


@pytest.mark.parametrize(
    ("source", "to", "problems"),
    [
        ("layers.0.mlp", "head",
         ["'head.weight' and 'layers.0.mlp.weight' would both be 'head.weight'"]),
        ("layers.*.mlp", "mlp",
         ["'layers.0.mlp.weight' and 'layers.1.mlp.weight' would both be 'mlp.weight'"]),
        ("layers.*", "x",
         ["'layers.0.attn.weight' and 'layers.1.attn.weight' would both be 'x.attn.weight'",
          "'layers.0.mlp.weight' and 'layers.1.mlp.weight' would both be 'x.mlp.weight'"]),
        ("layers.{i}", "layers.{i-1}", ["{i-1} is -1 in 'layers.{i-1}'"]),
        ("haed", "x", ["no tensor matches 'haed'; did you mean 'head'?"]),
        (["head", "head.weight"], ["a", "b"], ["'head.weight' matches both 'head' and "]),
        (["head"], ["a", "b"], ["'from' has 1 entries but 'to' has 2"]),
        ("head", "{x}", ["'x' is neither a capture nor arithmetic with captures"]),
    ],
)  # fmt: skip
def test_impossible_rename_says_why(bench, source, to, problems):
    bench.given(OLD)
    with pytest.raises(PlanError) as caught:
        bench.plan(step(source, to))
    assert len(caught.value.problems) == len(problems)
    for line, problem in zip(caught.value.problems, problems, strict=True):
        assert line.startswith(f"recipe.json: steps[0] (rename): {problem}")


@pytest.mark.parametrize("name", ["__metadata__", "a\nb", "a\u0000b", "\u202ea"])
def test_name_that_no_tensor_can_have_is_refused(bench, name):
    bench.given({"x": torch.ones(1)})
    with pytest.raises(PlanError, match="cannot be a tensor's name"):
        bench.plan(step("x", name))


@pytest.mark.parametrize("name", ["a..b", ".a", "a.", "ü.ж", 'a"b', "a\\b", "a b", "format"])
def test_odd_names_are_written_and_read(bench, name):
    bench.given({"x": torch.ones(1)})
    assert_identical(bench.operate(step("x", name)).tensors, {name: torch.ones(1)})
