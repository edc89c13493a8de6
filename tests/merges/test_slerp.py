"""slerp: against naive loops in float64."""

import math

import pytest
import torch

from surgeon.base.errors import PlanError
from surgeon.output.execute import Options
from tests.network import assert_identical, correctly_rounded

FLOATS = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def step(t, **parameters):
    return {"op": "slerp", "models": ["b"], "t": t, **parameters}


def naive_slerp(b, x, t):
    """Shoemake's formula on plain Python floats, exact sums."""
    b, x = b.double().flatten().tolist(), x.double().flatten().tolist()
    dot = math.fsum(p * q for p, q in zip(b, x, strict=True))
    norms = math.sqrt(math.fsum(p * p for p in b)) * math.sqrt(math.fsum(q * q for q in x))
    cosine = max(-1.0, min(1.0, dot / norms)) if norms else 1.0
    if abs(cosine) > 0.9995:
        shares = 1 - t, t
    else:
        angle = math.acos(cosine)
        shares = (math.sin(s * angle) / math.sin(angle) for s in (1 - t, t))
    first, second = shares
    mixed = [first * p + second * q for p, q in zip(b, x, strict=True)]
    return torch.tensor(mixed, dtype=torch.float64)


def pair(dtype, size=2000, alike=0.0):
    generator = torch.Generator().manual_seed(7)
    b, x = torch.randn(2, size, generator=generator)
    return b.to(dtype), (x + alike * b).to(dtype)


def assert_rounded(found, reference):
    if found.dtype == torch.float64:
        torch.testing.assert_close(found, reference, rtol=1e-12, atol=1e-13)
    else:
        expected = correctly_rounded(reference, found.dtype)
        wrong = (found.double() != expected.double()).sum()
        assert wrong == 0, f"{wrong} of {len(found)} differ"


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("alike", [0.0, 1.0, -1.0, 20.0])
def test_slerp_follows_the_arc(bench, t, alike):
    for dtype in FLOATS:
        b, x = pair(dtype, alike=alike)
        made = bench.given({"w": b}, b={"w": x}).operate(step(t))["w"]
        assert made.dtype == dtype
        assert_rounded(made, naive_slerp(b, x, t))


@pytest.mark.parametrize("dtype", FLOATS)
def test_ends_are_the_models_themselves(bench, dtype):
    b, x = pair(dtype)
    bench.given({"w": b}, b={"w": x})
    assert_identical(bench.operate(step(0)).tensors, {"w": b})
    assert_identical(bench.operate(step(1)).tensors, {"w": x})


def test_norm_is_kept_on_the_way(bench):
    b, x = pair(torch.float64)
    made = bench.given({"w": b / b.norm()}, b={"w": x / x.norm()}).operate(step(0.3))["w"]
    torch.testing.assert_close(made.norm(), torch.tensor(1.0).double(), rtol=1e-14, atol=0)


@pytest.mark.parametrize(("b", "x"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_zero_vectors_are_mixed_linearly(bench, b, x):
    bench.given({"w": torch.full((4,), b)}, b={"w": torch.full((4,), x)})
    made = bench.operate(step(0.25))["w"]
    assert made.tolist() == [0.75 * b + 0.25 * x] * 4


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_parallel_vectors_are_mixed_linearly(bench, sign):
    b = torch.randn(50, dtype=torch.float64)
    made = bench.given({"w": b}, b={"w": 3 * sign * b}).operate(step(0.5))["w"]
    torch.testing.assert_close(made, (b + 3 * sign * b) / 2, rtol=1e-14, atol=1e-15)


def test_angle_is_that_of_the_whole_tensor(bench):
    b, x = pair(torch.float32, size=300_000)
    bench.given({"w": b.view(600, 500)}, b={"w": x.view(600, 500)})
    made = bench.operate(step(0.5))["w"].flatten()
    assert_rounded(made[:5000], naive_slerp(b, x, 0.5)[:5000])


@pytest.mark.parametrize("shape", [(), (1,), (0, 3)])
def test_tiny_tensors_are_interpolated(bench, shape):
    b, x = torch.full(shape, 2.0), torch.full(shape, 4.0)
    made = bench.given({"w": b}, b={"w": x}).operate(step(0.5)).tensors
    assert_identical(made, {"w": torch.full(shape, 3.0)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_extreme_sizes_neither_overflow_nor_vanish(bench, dtype, size):
    b = torch.tensor([1.0, 0.0, 0.0], dtype=dtype) * size
    x = torch.tensor([0.0, 1.0, 0.0], dtype=dtype) * size
    made = bench.given({"w": b}, b={"w": x}).operate(step(0.5))["w"]
    expected = (torch.tensor([1.0, 1.0, 0.0]) * size * math.sqrt(0.5)).to(dtype)
    torch.testing.assert_close(made, expected, rtol=1e-2, atol=0)


def test_t_varies_by_layer(bench):
    names = ["embed.weight", "h.0.w", "h.1.w", "h.2.w", "head.weight"]
    b, x = pair(torch.float64, size=10)
    bench.given({n: b.clone() for n in names}, b={n: x.clone() for n in names})
    made = bench.operate(step({"by_layer": [0, 1]})).tensors
    for name, t in zip(names, [0, 0, 0.5, 1, 1], strict=True):
        assert_rounded(made[name], naive_slerp(b, x, t))


def test_t_varies_by_name(bench):
    b, x = pair(torch.float32, size=10)
    names = ["a.w", "b.w"]
    bench.given({n: b.clone() for n in names}, b={n: x.clone() for n in names})
    made = bench.operate(step([{"target": "a", "value": 0}, {"value": 1}])).tensors
    assert_identical(made, {"a.w": b, "b.w": x})


@pytest.mark.parametrize("models", [["b", "c"], "*"])
def test_slerp_takes_one_other_model(bench, models):
    one = {"w": torch.ones(2)}
    bench.given(one, b=one, c=one)
    with pytest.raises(PlanError, match=r"takes 1 other model\(s\), not 2"):
        bench.plan({"op": "slerp", "models": models, "t": 0.5})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("t", [0, 0.5, 1])
def test_nonfinite_operand_is_an_error(bench, value, t):
    bench.given({"w": torch.ones(3)}, b={"w": torch.tensor([1.0, value, 1.0])})
    with pytest.raises(PlanError, match="'w' in model 'b' holds NaN or Inf"):
        bench.operate(step(t))


def test_result_does_not_depend_on_workers(bench):
    b, x = pair(torch.bfloat16, size=1_000_000)
    bench.given({"w": b}, b={"w": x})
    results = [bench.operate(step(0.5), options=Options(workers=n)) for n in (1, 2, 8)]
    first = results[0].path.read_bytes()
    assert all(result.path.read_bytes() == first for result in results)
