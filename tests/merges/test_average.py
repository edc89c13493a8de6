"""average: against naive loops in float64, and against exact arithmetic."""

import time
from fractions import Fraction
from itertools import product

import pytest
import torch

from surgeon.base.errors import PlanError, UsageError
from tests.network import assert_identical, correctly_rounded, write

FLOATS = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
NAMES = ["b", "c", "d", "e"]


def step(*models, **parameters):
    return {"op": "average", "models": list(models), **parameters}


def random_models(count, dtype, size=3000, spread=3):
    generator = torch.Generator().manual_seed(count)
    scale = torch.exp2(torch.randn(size, generator=generator) * spread)
    return [(torch.randn(size, generator=generator) * scale).to(dtype) for _ in range(count)]


def naive_average(tensors, weights, normalize=True):
    """Sum of weight times value, divided by the sum of weights; element by element."""
    total = sum(weights) if normalize else 1.0
    rows = zip(*(tensor.double().tolist() for tensor in tensors), strict=True)
    sums = [sum(w * x for w, x in zip(weights, row, strict=True)) for row in rows]
    return torch.tensor([value / total for value in sums], dtype=torch.float64)


def given(bench, tensors):
    models = dict(zip(NAMES, ({"x": tensor} for tensor in tensors[1:]), strict=False))
    return bench.given({"x": tensors[0]}, **models), list(models)


def assert_rounded(found, reference, dtype):
    """100 % correctly rounded; float64 to the last few bits."""
    assert found.dtype == dtype
    if dtype == torch.float64:
        torch.testing.assert_close(found, reference, rtol=1e-12, atol=1e-13)
    else:
        expected = correctly_rounded(reference, dtype)
        wrong = (found.double() != expected.double()).sum()
        assert wrong == 0, f"{wrong} of {len(found)} differ"


def test_equal_shares_are_the_default(bench):
    for dtype, count in product(FLOATS, [2, 3, 4, 5]):
        tensors = random_models(count, dtype)
        bench, models = given(bench, tensors)
        made = bench.operate(step(*models))["x"]
        assert_rounded(made, naive_average(tensors, [1.0] * count), dtype)


@pytest.mark.parametrize(
    "weights", [[1, 2], [0.3, 0.7], [0, 1], [3, -1], [0.25, 0.5, 1], [1, 2, 3]]
)
@pytest.mark.parametrize("normalize", [True, False])
def test_weights_are_one_per_operand(bench, weights, normalize):
    for dtype in FLOATS:
        tensors = random_models(len(weights), dtype)
        bench, models = given(bench, tensors)
        made = bench.operate(step(*models, weights=weights, normalize=normalize))["x"]
        assert_rounded(made, naive_average(tensors, weights, normalize), dtype)


@pytest.mark.parametrize(
    ("values", "weights"),
    [
        ([1.0, 2.0**-8, 2.0**-30, 0.0], [1, 1, 1, 1]),
        ([1.0, 2.0**-8, 2.0**-40], [1, 1, 1]),
        ([1.0, 2.0**-8, -(2.0**-30), 0.0], [1, 1, 1, 1]),
        ([1.0078125, 1.0, 1.0, 1.0078125], [1, 1, 1, 1]),
        ([1.0, 1.0078125, 1.015625], [1, 2, 3]),
        ([3e38, 3e38], [1, 1]),
        ([3e38, 3e38, 3e38, 3e38], [1, 1, 1, 1]),
        ([1e-40, 3e-40], [1, 1]),
        ([-1.0, 1.0], [1, 1]),
    ],
)
def test_bfloat16_results_are_rounded_once(bench, values, weights):
    tensors = [torch.tensor([value] * 4).bfloat16() for value in values]
    bench, models = given(bench, tensors)
    made = bench.operate(step(*models, weights=weights))["x"]
    exact = sum(Fraction(t[0].item()) * w for t, w in zip(tensors, weights, strict=True))
    expected = nearest_bfloat16(exact / sum(weights))
    assert made.tolist() == [expected] * 4


def nearest_bfloat16(exact):
    """Of all bfloat16 the nearest, the even one of two."""
    codes = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    values = codes.view(torch.bfloat16)
    codes, values = codes[values.isfinite()], values[values.isfinite()].double()
    order = (values - float(exact)).abs().argsort()[:8].tolist()
    return min(
        (abs(Fraction(values[i].item()) - exact), int(codes[i]) & 1, values[i].item())
        for i in order
    )[2]


def test_exact_ties_go_to_even(bench):
    """Thirds of small integers lie halfway between two bfloat16 again and again."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(128, 256, (4000,), generator=generator).bfloat16() for _ in range(2))
    bench, models = given(bench, [a, b])
    made = bench.operate(step(*models, weights=[1, 2]))["x"]
    assert_rounded(made, (a.double() + 2 * b.double()) / 3, torch.bfloat16)


@pytest.mark.parametrize("dtype", FLOATS)
def test_large_values_do_not_overflow_on_the_way(bench, dtype):
    largest = torch.finfo(dtype).max
    tensors = [torch.full((5,), largest, dtype=dtype)] * 3
    bench, models = given(bench, tensors[:2] if dtype == torch.float64 else tensors)
    if dtype != torch.float64:
        assert bench.operate(step(*models))["x"].tolist() == [largest] * 5


def test_result_beyond_the_dtype_is_an_error(bench):
    bench, models = given(bench, [torch.full((5,), 60000.0).half()] * 2)
    with pytest.raises(PlanError, match=r"'x'.* beyond F16's largest value 65504"):
        bench.operate(step(*models, normalize=False))
    assert not bench.output.exists()


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 4, 5)])
def test_shapes_of_any_rank_are_averaged(bench, shape):
    old = [torch.randn(shape) for _ in range(2)]
    bench, models = given(bench, old)
    expected = {"x": ((old[0].double() + old[1].double()) / 2).float()}
    assert_identical(bench.operate(step(*models)).tensors, expected)


def test_mixed_floats_are_raised_and_the_states_dtype_stays(bench):
    a, b = torch.randn(1000).bfloat16(), torch.randn(1000, dtype=torch.float64)
    bench, models = given(bench, [a, b])
    made = bench.operate(step(*models))["x"]
    assert_rounded(made, (a.double() + b) / 2, torch.bfloat16)


def test_many_blocks_are_averaged(bench):
    a, b = torch.randn(300_001).bfloat16(), torch.randn(300_001).bfloat16()
    bench, models = given(bench, [a, b])
    made = bench.operate(step(*models))["x"]
    assert_rounded(made, (a.double() + b.double()) / 2, torch.bfloat16)


# --- Which models, which tensors ------------------------------------------------------------------


def numbers(bench, **models):
    """A state and models of one tensor each, all filled with a number."""
    tensors = {name: {"x": torch.full((3,), float(value))} for name, value in models.items()}
    return bench.given(tensors.pop("state"), **tensors)


def test_star_is_every_model(bench):
    bench = numbers(bench, state=1, b=2, c=6)
    assert bench.operate({"op": "average", "models": "*"})["x"].tolist() == [3.0] * 3


def test_one_weight_for_all_is_an_equal_share(bench):
    bench = numbers(bench, state=1, b=2, c=6)
    assert bench.operate(step("b", "c", weights=0.5))["x"].tolist() == [3.0] * 3
    made = bench.operate(step("b", "c", weights=0.5, normalize=False))
    assert made["x"].tolist() == [4.5] * 3


def test_target_limits_what_is_merged(bench):
    old = {"a.w": torch.ones(2), "b.w": torch.ones(2)}
    bench.given(old, other={name: tensor * 3 for name, tensor in old.items()})
    made = bench.operate(step("other", target="a")).tensors
    assert_identical(made, {"a.w": torch.full((2,), 2.0), "b.w": torch.ones(2)})


def test_into_keeps_the_result_as_a_model_for_later_steps(bench):
    bench = numbers(bench, state=1, b=3)
    steps = [step("b", into="mean"), step("mean", weights=[0, 1])]
    assert bench.operate(steps[0])["x"].tolist() == [1.0] * 3
    assert bench.operate(*steps)["x"].tolist() == [2.0] * 3


def test_into_cannot_take_the_name_of_a_model(bench):
    bench = numbers(bench, state=1, b=3)
    with pytest.raises(PlanError, match="there is a model 'b' already"):
        bench.plan(step("b", into="b"))


@pytest.mark.parametrize(
    ("models", "problem"),
    [
        (["d"], "there is no model 'd'"),
        (["b", "d"], "there is no model 'd'"),
        ("*", None),
    ],
)
def test_unknown_model_is_an_error(bench, models, problem):
    bench = numbers(bench, state=1, b=3)
    if problem:
        with pytest.raises(PlanError, match=problem):
            bench.plan({"op": "average", "models": models})
    else:
        bench.plan({"op": "average", "models": models})


def test_star_without_any_model_is_an_error(bench):
    bench = numbers(bench, state=1)
    with pytest.raises(PlanError, match="there is no other model to merge with"):
        bench.plan({"op": "average", "models": "*"})


def test_lineage_names_all_operands(bench):
    bench = numbers(bench, state=1, b=3, c=4)
    made = bench.operate({**step("b", "c"), "id": "soup"})
    parameters = {"weights": [1, 1, 1], "normalize": True}
    assert made.lineage("x") == [
        {"step": "soup", "op": "average", "from": ["b:x", "c:x"], "parameters": parameters}
    ]


# --- Weights that vary ----------------------------------------------------------------------------

DEEP = ["embed.weight", *(f"h.{i}.w" for i in range(5)), "norm.weight", "head.weight"]


def deep(bench):
    return bench.given(
        {name: torch.zeros(1) for name in DEEP}, b={name: torch.ones(1) for name in DEEP}
    )


def shares(made):
    """With the state 0 and the model 1, a result is the model's share."""
    return {name: round(tensor.item(), 6) for name, tensor in made.tensors.items()}


def test_weights_vary_by_layer(bench):
    weights = [{"by_layer": [1, 0.5, 0]}, {"by_layer": [0, 0.5, 1]}]
    made = deep(bench).operate(step("b", weights=weights))
    assert shares(made) == {
        "embed.weight": 0.0,
        "h.0.w": 0.0,
        "h.1.w": 0.25,
        "h.2.w": 0.5,
        "h.3.w": 0.75,
        "h.4.w": 1.0,
        "norm.weight": 1.0,
        "head.weight": 1.0,
    }


def test_weights_vary_by_name_and_the_first_rule_wins(bench):
    rules = [
        {"target": "h.3", "value": 9},
        {"target": ["h", "!h.0"], "value": 1},
        {"target": "@vectors", "value": 3},
        {"value": 0},
    ]
    made = shares(deep(bench).operate(step("b", weights=[1, rules])))
    assert [made[f"h.{i}.w"] for i in range(5)] == [0.75, 0.5, 0.5, 0.9, 0.5]
    assert made["embed.weight"] == 0.75


def test_rule_may_vary_by_layer(bench):
    rules = [{"target": "h", "value": {"by_layer": [0, 1]}}, {"value": 0}]
    made = shares(deep(bench).operate(step("b", weights=[1, rules], normalize=False)))
    assert [made[f"h.{i}.w"] for i in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_weights_vary_by_layers_that_there_are(bench):
    names = [f"net.{number}.weight" for number in (0, 2, 10)]  # the others have no tensors
    bench.given({n: torch.zeros(1) for n in names}, b={n: torch.ones(1) for n in names})
    weights = [{"by_layer": [1, 0]}, {"by_layer": [0, 1]}]
    made = shares(bench.operate(step("b", weights=weights)))
    assert made == dict(zip(names, [0.0, 0.5, 1.0], strict=True))


def test_weights_vary_by_layers_that_are_left(bench):
    weights = [{"by_layer": [1, 0]}, {"by_layer": [0, 1]}]
    drop = {"op": "delete", "target": "h.(1|2)"}
    bench.given(
        {name: torch.zeros(1) for name in DEEP},
        b={name: torch.ones(1) for name in DEEP if name[:3] not in ("h.1", "h.2")},
    )
    made = shares(bench.operate(drop, step("b", weights=weights)))
    assert [made[f"h.{i}.w"] for i in (0, 3, 4)] == [0.0, 0.5, 1.0]


def test_rules_without_an_end_name_the_tensor(bench):
    deep(bench)
    with pytest.raises(PlanError, match=r"no rule gives a value for 'embed.weight'"):
        bench.plan(step("b", weights=[1, [{"target": "h", "value": 1}]]))


def test_many_tensors_with_rules_are_planned_in_seconds(bench):
    names = [f"h.{i}.w" for i in range(4000)]
    bench.given({n: torch.zeros(1) for n in names}, b={n: torch.zeros(1) for n in names})
    start = time.perf_counter()
    bench.plan(step("b", weights=[1, [{"target": "h.*.w", "value": 1}]]))
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("weights", [[1, -1], [0, 0], [0.1, 0.2, -0.3]])
def test_weights_that_add_up_to_zero_are_an_error(bench, weights):
    bench, models = given(bench, random_models(len(weights), torch.float32, size=3))
    with pytest.raises(PlanError, match="add up to zero"):
        bench.plan(step(*models, weights=weights))


def test_weights_may_add_up_to_zero_where_nothing_is_divided(bench):
    bench = numbers(bench, state=5, b=2)
    made = bench.operate(step("b", weights=[1, -1], normalize=False))
    assert made["x"].tolist() == [3.0] * 3


@pytest.mark.parametrize("weights", [[1], [1, 1, 1]])
def test_wrong_number_of_weights_is_an_error(bench, weights):
    bench = numbers(bench, state=1, b=3)
    with pytest.raises(PlanError, match=f"weights has {len(weights)} entries for 2 operands"):
        bench.plan(step("b", weights=weights))


def test_no_weights_are_a_mistake_of_the_recipe(bench):
    with pytest.raises((UsageError, PlanError), match="weights"):
        numbers(bench, state=1, b=3).plan(step("b", weights=[]))


# --- Names and shapes -----------------------------------------------------------------------------


def test_every_difference_is_listed(bench):
    bench.given(
        {"a": torch.zeros(4, 3), "b": torch.zeros(2), "c": torch.zeros(1), "n": torch.tensor(1)},
        other={"a": torch.zeros(5, 3), "c": torch.zeros(1), "d": torch.zeros(1),
               "n": torch.tensor(1, dtype=torch.int32)},
    )  # fmt: skip
    with pytest.raises(PlanError) as caught:
        bench.plan(step("other"))
    place = "recipe.json: steps[0] (average): "
    assert sorted(caught.value.problems) == [
        f"{place}'a' is F32 (4, 3) here but F32 (5, 3) in model 'other'",
        f"{place}'b' is not in model 'other'",
        f"{place}'d' is in model 'other' only",
        f"{place}'n' is I64 () here but I32 () in model 'other'",
    ]


def test_difference_outside_of_the_target_does_not_matter(bench):
    bench.given({"a": torch.zeros(1), "b": torch.zeros(1)}, other={"a": torch.ones(1)})
    bench.plan(step("other", target="a"))


def test_missing_tensors_are_kept_on_demand_and_reported(bench):
    old = {"a": torch.zeros(1), "only": torch.ones(1)}
    bench.given(old, other={"a": torch.ones(1), "extra": torch.ones(1)})
    made = bench.operate(step("other", missing="keep"))
    assert_identical(made.tensors, {"a": torch.full((1,), 0.5), "only": torch.ones(1)})
    assert sorted(made.notes) == [
        "average: 'extra' is in model 'other' only; left out",
        "average: 'only' is not in model 'other'; the base model keeps its own",
    ]


def test_wrong_shape_is_never_a_missing_tensor(bench):
    bench.given({"a": torch.zeros(1)}, other={"a": torch.zeros(2)})
    with pytest.raises(PlanError, match="'a' is F32"):
        bench.plan(step("other", missing="keep"))


# --- Integers, booleans, NaN ----------------------------------------------------------------------

COUNTS = {"x": torch.ones(2), "n": torch.tensor([1, 5]), "m": torch.tensor([True, False])}
OTHERS = {"x": torch.ones(2), "n": torch.tensor([3, 2]), "m": torch.tensor([False, False])}


def test_integers_keep_the_states_value_and_are_reported(bench):
    made = bench.given(COUNTS, b=OTHERS).operate(step("b"))
    assert_identical(made.tensors, COUNTS)
    place = "recipe.json: steps[0] (average): "
    assert sorted(made.notes) == [
        f"{place}'m' (BOOL) differs in model 'b'; the base model's is kept",
        f"{place}'n' (I64) differs in model 'b'; the base model's is kept",
    ]


def test_integers_that_agree_are_not_reported(bench):
    assert bench.given(COUNTS, b=COUNTS).operate(step("b")).notes == []


def test_largest_integer_on_demand(bench):
    made = bench.given(COUNTS, b=OTHERS).operate(step("b", integers="max")).tensors
    assert_identical(made, {**COUNTS, "n": torch.tensor([3, 5])})


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16,
              torch.uint32, torch.uint64]
)  # fmt: skip
def test_largest_of_any_integer_dtype(bench, dtype):
    low, high = torch.iinfo(dtype).min, torch.iinfo(dtype).max
    a, b = torch.tensor([low, high, 0], dtype=dtype), torch.tensor([high, low, 1], dtype=dtype)
    made = bench.given({"x": a}, b={"x": b}).operate(step("b", integers="max"))["x"]
    assert made.tolist() == [high, high, 1]


def test_differing_integers_are_an_error_on_demand(bench):
    bench.given(COUNTS, b=OTHERS)
    with pytest.raises(PlanError, match=r"'[nm]' .* differs in model 'b'"):
        bench.operate(step("b", integers="error"))
    assert not bench.output.exists()


@pytest.mark.parametrize("in_model", [True, False])
def test_nonfinite_operand_is_an_error_that_names_tensor_and_model(bench, in_model):
    for dtype, value in product(FLOATS, [float("nan"), float("inf"), -float("inf")]):
        good, bad = torch.ones(5, dtype=dtype), torch.tensor([1, 1, value, 1, 1], dtype=dtype)
        bench.given({"x": good if in_model else bad}, b={"x": bad if in_model else good})
        with pytest.raises(PlanError) as caught:
            bench.operate(step("b"))
        where = "'x' in model 'b'" if in_model else "'x'"
        assert f"{where} holds NaN or Inf" in str(caught.value)
        assert not bench.output.exists()


def test_nonfinite_operand_of_weight_zero_is_an_error_too(bench):
    bench = numbers(bench, state=1, b=float("inf"))
    with pytest.raises(PlanError, match="'x' in model 'b' holds NaN or Inf"):
        bench.operate(step("b", weights=[1, 0]))


def test_infinities_that_cancel_are_an_error_too(bench):
    bench = numbers(bench, state=float("inf"), b=-float("inf"))
    with pytest.raises(PlanError, match="'x' holds NaN or Inf"):
        bench.operate(step("b"))


@pytest.mark.parametrize("dtype", FLOATS)
def test_nonfinite_values_are_let_through_on_demand(bench, dtype):
    nan, inf = float("nan"), float("inf")
    bench.given(
        {"x": torch.tensor([1, nan, inf, inf], dtype=dtype)},
        b={"x": torch.tensor([3, 1, 1, -inf], dtype=dtype)},
    )
    made = bench.operate(step("b", nonfinite="allow"))["x"].double()
    expected = torch.tensor([2, nan, inf, nan], dtype=torch.float64)
    torch.testing.assert_close(made, expected, rtol=0, atol=0, equal_nan=True)


# --- Ties -----------------------------------------------------------------------------------------


def tied(bench, other_ties):
    bench.given({"embed.w": torch.zeros(2), "z": torch.zeros(1)}, {"head.w": "embed.w"})
    other = {"embed.w": torch.ones(2), "z": torch.ones(1)}
    if other_ties is None:
        other["head.w"] = torch.ones(2)
    path = write(bench.folder / "b.safetensors", other, other_ties)
    bench.models["b"] = str(path)
    return bench


def test_tied_names_stay_tied(bench):
    made = tied(bench, {"head.w": "embed.w"}).operate(step("b"))
    assert made.manifest["ties"] == {"head.w": "embed.w"}
    assert made["head.w"].tolist() == [0.5, 0.5]


def test_merging_one_tied_name_merges_both(bench):
    made = tied(bench, {"head.w": "embed.w"}).operate(step("b", target="head"))
    assert made.manifest["ties"] == {"head.w": "embed.w"}
    assert made["embed.w"].tolist() == made["head.w"].tolist() == [0.5, 0.5]


def test_alias_that_a_model_lacks_stays_tied(bench):
    made = tied(bench, {}).operate(step("b", missing="keep"))
    assert made.manifest["ties"] == {"head.w": "embed.w"}
    assert made["head.w"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e8m0fnu])
def test_values_without_arithmetic_must_agree(bench, dtype):
    ours = torch.tensor([1, 2], dtype=torch.uint8)
    a, b = ((x.to(dtype) if dtype.is_complex else x.view(dtype)) for x in (ours, ours + 1))
    bench.given({"x": a}, other={"x": a}).operate(step("other"))
    with pytest.raises(PlanError, match=r"'x' .* differs in model 'other' and cannot be merged"):
        bench.given({"x": a}, other={"x": b}).operate(step("other"))


@pytest.mark.parametrize("target", [0, [0.5], [["w"]]])
def test_rules_are_for_names(bench, target):
    bench.given({"w": torch.ones(2)}, b={"w": torch.ones(2)})
    with pytest.raises(UsageError, match=r"weights\[0\].target.* is not of type"):
        bench.plan(step("b", weights=[{"target": target, "value": 1}]))


def test_model_of_another_architecture_is_one_line(bench):
    bench.given({f"layers.{n}.w": torch.ones(2) for n in range(30)})
    path = bench.folder / "other.safetensors"
    write(path, {f"h.{n}.w": torch.ones(2) for n in range(30)})
    bench.models["other"] = str(path)
    with pytest.raises(PlanError, match=r"has none of these 30 tensors, but 'h\.0\.w'") as caught:
        bench.plan({"op": "average", "models": ["other"]})
    assert len(caught.value.problems) == 1
