"""regmean: against the normal equations, and what they are for: least squares."""

import pytest
import torch

from surgeon.base.errors import PlanError, UsageError
from tests.merges.compare import FLOATS, assert_rounded, given, relatives
from tests.network import assert_identical, write


def step(models, **parameters):
    return {"op": "regmean", "models": models, "grams": ["ga", *(f"g{m}" for m in models)],
            **parameters}  # fmt: skip


def inputs(count, size=10, rows=60):
    generator = torch.Generator().manual_seed(4)
    mixed = torch.randn(count, size, size, generator=generator, dtype=torch.float64)
    made = torch.randn(count, rows, size, generator=generator, dtype=torch.float64)
    return [x @ m for x, m in zip(made, mixed, strict=True)]


def grams_of(given_inputs):
    return [x.T @ x for x in given_inputs]


def collected(bench, grams, name="w"):
    for i, gram in enumerate(grams):
        model = f"g{chr(ord('a') + i)}"
        bench.models[model] = str(write(bench.folder / f"{model}.safetensors", {name: gram}))


def naive(weights, grams, alpha):
    """(Σ G)^-1 Σ G W', by an explicit inverse."""
    kept = [g * alpha + torch.diag(g.diagonal()) * (1 - alpha) for g in grams]
    right = sum(g @ w.double().T for g, w in zip(kept, weights, strict=True))
    return (torch.linalg.inv(sum(kept)) @ right).T


def layers(count, dtype, outputs=20, size=10):
    return [t.view(outputs, size) for t in relatives(count, dtype, size=outputs * size)]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("count", [2, 3])
def test_weights_solve_the_normal_equations(bench, alpha, count):
    for dtype in FLOATS:
        weights, grams = layers(count, dtype), grams_of(inputs(count))
        models = given(bench, weights)
        collected(bench, grams)
        made = bench.operate(step(models, alpha=alpha))["w"]
        reference = naive(weights, grams, alpha)
        if dtype == torch.float64:
            torch.testing.assert_close(made, reference, rtol=1e-10, atol=1e-11)
        else:
            assert_rounded(made, reference)


def test_outputs_change_least(bench):
    weights, given_inputs = layers(3, torch.float64), inputs(3)
    models = given(bench, weights)
    collected(bench, grams_of(given_inputs))
    made = bench.operate(step(models, alpha=1))["w"]
    outputs = torch.cat([x @ w.T for x, w in zip(given_inputs, weights, strict=True)])
    expected = torch.linalg.lstsq(torch.cat(given_inputs), outputs).solution.T
    torch.testing.assert_close(made, expected, rtol=1e-9, atol=1e-10)


def test_alpha_is_that_of_the_paper_by_default(bench):
    weights, grams = layers(2, torch.bfloat16), grams_of(inputs(2))
    models = given(bench, weights)
    collected(bench, grams)
    assert_rounded(bench.operate(step(models))["w"], naive(weights, grams, 0.9))


def test_tensors_without_gram_matrices_are_averaged_and_reported(bench):
    a, b = layers(2, torch.float32)
    state, model = ({"w": t, "v": t.clone(), "bias": t[0].clone()} for t in (a, b))
    bench.given(state, b=model)
    collected(bench, grams_of(inputs(2)))
    made = bench.operate(step(["b"]))
    assert_rounded(made["v"], (a.double() + b.double()) / 2)
    assert_rounded(made["bias"], (a[0].double() + b[0].double()) / 2)
    (note,) = made.notes
    assert "there is nothing in model 'ga', 'gb' for" in note
    assert "'v'" in note


def test_columns_of_inputs_that_are_always_zero_are_averaged(bench):
    weights, given_inputs = layers(2, torch.float64), inputs(2)
    for x in given_inputs:
        x[:, 3] = 0
    models = given(bench, weights)
    collected(bench, grams_of(given_inputs))
    made = bench.operate(step(models, alpha=1))["w"]
    rest = [i for i in range(10) if i != 3]
    grams = [g[rest][:, rest] for g in grams_of(given_inputs)]
    torch.testing.assert_close(made[:, 3], sum(weights)[:, 3] / 2, rtol=1e-14, atol=1e-15)
    expected = naive([w[:, rest] for w in weights], grams, 1.0)
    torch.testing.assert_close(made[:, rest], expected, rtol=1e-9, atol=1e-10)


def test_too_few_inputs_are_an_error_that_names_the_tensor(bench):
    models = given(bench, layers(2, torch.float32))
    collected(bench, grams_of(inputs(2, rows=4)))
    with pytest.raises(PlanError, match="'w': the sum of its Gram matrices is singular"):
        bench.operate(step(models, alpha=1))
    bench.operate(step(models, alpha=0.9))


def test_matrix_that_is_no_gram_matrix_is_an_error(bench):
    models = given(bench, layers(2, torch.float32))
    collected(bench, [-gram for gram in grams_of(inputs(2))])
    with pytest.raises(PlanError, match="'w': the sum of its Gram matrices is singular"):
        bench.operate(step(models))


def test_gram_matrix_of_wrong_shape_is_an_error(bench):
    models = given(bench, layers(2, torch.float32))
    collected(bench, [torch.eye(10), torch.eye(20)])
    with pytest.raises(PlanError, match=r"'w' in model 'gb' is F32 \(20, 20\), not of shape"):
        bench.plan(step(models))


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_alpha_outside_of_its_range_is_an_error(bench, alpha):
    models = given(bench, layers(2, torch.float32))
    collected(bench, grams_of(inputs(2)))
    with pytest.raises(UsageError, match="alpha"):
        bench.plan(step(models, alpha=alpha))


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_merging_with_itself_returns_it_to_the_bit(bench, alpha):
    weight = layers(1, torch.float64)[0]
    models = given(bench, [weight] * 3)
    collected(bench, grams_of(inputs(3)))
    assert_identical(bench.operate(step(models, alpha=alpha)).tensors, {"w": weight})


def test_order_of_models_does_not_matter(bench):
    a, b, c = layers(3, torch.bfloat16)
    bench.given({"w": a}, b={"w": b}, c={"w": c})
    collected(bench, grams_of(inputs(3)))
    first = bench.operate(step(["b", "c"])).tensors
    assert_identical(bench.operate(step(["c", "b"])).tensors, first)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["b", "gb"])
def test_nonfinite_operand_is_an_error(bench, value, place):
    weights, grams = layers(2, torch.float32), grams_of(inputs(2))
    (weights if place == "b" else grams)[1][1, 1] = value
    models = given(bench, weights)
    collected(bench, grams)
    with pytest.raises(PlanError, match=f"'w' in model '{place}' holds NaN or Inf"):
        bench.operate(step(models))
