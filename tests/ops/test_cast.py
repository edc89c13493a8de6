"""cast: every pair of dtypes against torch, and what does not fit."""

import itertools
from itertools import product

import pytest
import torch

from surgeon.base.errors import PlanError
from tests.network import assert_identical, correctly_rounded, raw_bytes

FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
LARGEST = {name: torch.finfo(dtype).max for name, dtype in FLOATS.items()}


def step(target, dtype, **parameters):
    return {"op": "cast", "target": target, "dtype": dtype, **parameters}


def assert_same_values(found, expected):
    """Bit for bit, but for the payload of NaNs."""
    assert found.dtype == expected.dtype
    nan = expected.double().isnan()
    assert torch.equal(found.double().isnan(), nan)
    assert raw_bytes(found[~nan]) == raw_bytes(expected[~nan])


@pytest.mark.parametrize(("source", "wanted"), list(itertools.permutations(FLOATS, 2)))
def test_floats_are_rounded_as_torch_does(bench, source, wanted):
    generator = torch.Generator().manual_seed(0)
    bound = min(LARGEST[source], LARGEST[wanted], 1e30)
    scales = torch.exp2(
        torch.empty(4000, dtype=torch.float64).uniform_(-20, 8, generator=generator)
    )
    values = torch.randn(4000, dtype=torch.float64, generator=generator) * scales
    special = torch.tensor([0.0, -0.0, float("nan"), 1.0, -1.5, 2.0**-30], dtype=torch.float64)
    old = torch.cat([values.clamp(-bound, bound), special]).to(FLOATS[source])
    made = bench.given({"x": old}).operate(step("x", wanted))["x"]
    assert_same_values(made, correctly_rounded(old.double(), FLOATS[wanted]))


def test_halfway_float64_is_rounded_once(bench):
    # Just above halfway between two bfloat16: float32 in between would round it down to even.
    old = torch.tensor([1 + 2**-8 + 2**-40, 1 + 2**-8 - 2**-40, 1 + 2**-8], dtype=torch.float64)
    made = bench.given({"x": old}).operate(step("x", "BF16"))["x"]
    assert made.tolist() == [1 + 2**-7, 1.0, 1.0]


@pytest.mark.parametrize("word", ["BF16", "bf16", "bfloat16", "torch.bfloat16"])
def test_dtypes_have_several_spellings(bench, word):
    made = bench.given({"x": torch.ones(2)}).operate(step("x", word))
    assert made["x"].dtype == torch.bfloat16


def test_same_dtype_changes_nothing(bench):
    plan = bench.given({"x": torch.ones(2)}).plan(step("x", "F32"))
    assert plan.lineage == {"x": ()}


def test_shape_is_kept(bench):
    old = {"a": torch.randn(2, 3, 4), "b": torch.tensor(2.0), "c": torch.zeros(0, 3)}
    made = bench.given(old).operate(step("**", "F16")).tensors
    assert_identical(made, {name: tensor.half() for name, tensor in old.items()})


def test_output_dtype_casts_all_floats_at_the_end(bench):
    old = {"x": torch.randn(3), "n": torch.tensor(4), "b": torch.tensor([True])}
    made = bench.given(old).operate(output={"dtype": "bfloat16"})
    assert_identical(made.tensors, {**old, "x": old["x"].bfloat16()})
    assert made.lineage("x") == [{"step": "output", "op": "cast"}]


def test_ties_survive_a_cast(bench):
    bench.given({"a": torch.ones(2)}, {"b": "a"})
    made = bench.operate(step("b", "F16"))
    assert_identical(made.tensors, {"a": torch.ones(2).half(), "b": torch.ones(2).half()})


# --- Overflow -------------------------------------------------------------------------------------

TOO_LARGE = {"F16": 1e5, "BF16": 3.4e38, "F32": 1e39, "F8_E4M3": 500.0, "F8_E5M2": 1e5}


def test_overflow_is_an_error_that_names_the_tensor(bench):
    for dtype, sign in product(TOO_LARGE, [1, -1]):
        bench.given({"x": torch.tensor([1.0, sign * TOO_LARGE[dtype]], dtype=torch.float64)})
        with pytest.raises(PlanError, match=rf"'x' holds .*, beyond {dtype}'s largest value"):
            bench.operate(step("x", dtype))
        assert not bench.output.exists()


@pytest.mark.parametrize("dtype", TOO_LARGE)
def test_overflow_saturates_on_demand(bench, dtype):
    large = TOO_LARGE[dtype]
    bench.given({"x": torch.tensor([large, -large, 1.0], dtype=torch.float64)})
    made = bench.operate(step("x", dtype, overflow="saturate"))["x"]
    assert made.double().tolist() == [LARGEST[dtype], -LARGEST[dtype], 1.0]


@pytest.mark.parametrize("dtype", TOO_LARGE)
def test_overflow_becomes_what_the_format_has_on_demand(bench, dtype):
    bench.given({"x": torch.tensor([TOO_LARGE[dtype], 1.0], dtype=torch.float64)})
    made = bench.operate(step("x", dtype, overflow="inf"))["x"].double()
    assert torch.isnan(made[0]) if dtype == "F8_E4M3" else torch.isinf(made[0])
    assert made[1] == 1


@pytest.mark.parametrize(
    ("dtype", "fits", "too_large"),
    [
        ("F16", 65519.99, 65520.0),
        ("F8_E4M3", 464.0, 464.001),
        ("F8_E5M2", 61439.9, 61440.0),
        ("F32", 3.4028235677973362e38, 3.4028235677973366e38),
    ],
)
def test_what_rounds_to_the_largest_is_no_overflow(bench, dtype, fits, too_large):
    bench.given({"x": torch.tensor([fits, -fits], dtype=torch.float64)})
    assert bench.operate(step("x", dtype))["x"].double().tolist() == [
        LARGEST[dtype],
        -LARGEST[dtype],
    ]
    bench.given({"x": torch.tensor([too_large], dtype=torch.float64)})
    with pytest.raises(PlanError, match="beyond"):
        bench.operate(step("x", dtype))


@pytest.mark.parametrize("overflow", ["error", "saturate", "inf"])
def test_infinities_and_nan_stay(bench, overflow):
    old = torch.tensor([float("inf"), -float("inf"), float("nan"), 1.0])
    made = bench.given({"x": old}).operate(step("x", "F16", overflow=overflow))["x"]
    assert_same_values(made, old.half())


# --- Integers and booleans ------------------------------------------------------------------------

MIXED = {
    "x": torch.tensor([1.0, -2.0, 3.0]),
    "n": torch.tensor([1, 2, 300]),
    "b": torch.tensor([True, False, True]),
}


def test_integers_and_booleans_are_kept_and_reported(bench):
    made = bench.given(MIXED).operate(step("**", "BF16"))
    assert_identical(made.tensors, {**MIXED, "x": MIXED["x"].bfloat16()})
    assert "cast: 'n' and 1 more: not float; kept as is" in made.notes


def test_floats_are_kept_in_a_cast_to_integers(bench):
    made = bench.given(MIXED).operate(step("**", "I32"))
    assert_identical(made.tensors, {**MIXED, "n": MIXED["n"].int()})


@pytest.mark.parametrize("name", ["n", "b"])
def test_other_kinds_can_be_an_error(bench, name):
    bench.given(MIXED)
    with pytest.raises(PlanError, match=f'\'{name}\' is .*; "integers": "keep" leaves it'):
        bench.plan(step(name, "F32", integers="error"))


@pytest.mark.parametrize(
    ("name", "dtype", "expected"),
    [
        ("n", "F32", torch.tensor([1.0, 2.0, 300.0])),
        ("n", "BF16", torch.tensor([1, 2, 300]).bfloat16()),
        ("b", "F16", torch.tensor([1, 0, 1]).half()),
        ("b", "I8", torch.tensor([1, 0, 1], dtype=torch.int8)),
        ("x", "I16", torch.tensor([1, -2, 3], dtype=torch.int16)),
    ],
)
def test_other_kinds_are_cast_on_demand(bench, name, dtype, expected):
    made = bench.given(MIXED).operate(step(name, dtype, integers="cast"))
    assert_identical({name: made[name]}, {name: expected})


@pytest.mark.parametrize(
    ("old", "dtype", "problem"),
    [
        (torch.tensor([1, 300]), "I8", "'x' holds 300, which I8 cannot hold exactly"),
        (torch.tensor([1, -1]), "U8", "'x' holds -1, which U8 cannot hold exactly"),
        (torch.tensor([1, 2]), "BOOL", "'x' holds 2, which BOOL cannot hold exactly"),
        (torch.tensor([1.0, 0.5]), "I32", "'x' holds 0.5, which I32 cannot hold exactly"),
        (torch.tensor([float("nan")]), "I32", "'x' holds nan, which I32 cannot hold exactly"),
        (torch.tensor([2.0**63], dtype=torch.float64), "I64", "which I64 cannot hold exactly"),
        (torch.tensor([2.0**31], dtype=torch.float32), "I32", "which I32 cannot hold exactly"),
        (torch.tensor([70000]), "F16", "'x' holds 70000, beyond F16's largest value 65504"),
    ],
)  # fmt: skip
def test_integers_that_do_not_fit_are_an_error(bench, old, dtype, problem):
    bench.given({"x": old})
    with pytest.raises(PlanError, match=problem):
        bench.operate(step("x", dtype, integers="cast"))


def test_large_integers_are_rounded_once(bench):
    # Just above halfway between two bfloat16: float32 in between would round it down to even.
    old = torch.tensor([2**40 + 2**32 + 1, 2**40 + 2**32, 2**24 + 1])
    made = bench.given({"x": old}).operate(step("x", "BF16", integers="cast"))["x"]
    assert made.double().tolist() == [2.0**40 + 2.0**33, 2.0**40, 2.0**24]


def test_complex_numbers_cannot_be_cast(bench):
    bench.given({"x": torch.ones(2, dtype=torch.complex64)})
    with pytest.raises(PlanError, match="'x' is C64"):
        bench.plan(step("x", "F32", integers="cast"))
