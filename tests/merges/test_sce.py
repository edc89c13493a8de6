"""sce: against naive loops in float64, with exact variances."""

from fractions import Fraction

import pytest
import torch

from tests.merges.oracles import (
    FLOATS,
    assert_rounded,
    fine_tuned,
    merged,
    numbers,
    only,
    task_vectors,
)


def variance(values):
    exact = [Fraction(value) for value in values]
    mean = sum(exact) / len(exact)
    return sum((value - mean) ** 2 for value in exact)


def naive_sce(tensors, topk):
    changes = task_vectors(tensors)
    rows = list(zip(*changes, strict=True))
    if topk < 1:
        variances = [variance(row) for row in rows]
        order = sorted(range(len(rows)), key=lambda i: (-variances[i], i))
        chosen = [i for i in order[: max(1, int(topk * len(rows)))] if variances[i] > 0]
        changes = [only(change, chosen) for change in changes]
    squares = [sum(d * d for d in change) / len(change) for change in changes]
    shares = [q / sum(squares) if sum(squares) else 1 / len(squares) for q in squares]
    made = []
    for b, row in zip(numbers(tensors[0]), zip(*changes, strict=True), strict=True):
        sign = 1 if sum(row) >= 0 else -1
        left = [(q, d) for q, d in zip(shares, row, strict=True) if d * sign > 0]
        total = sum(q for q, _ in left)
        made.append(b + sum(q * d for q, d in left) / total if left else b)
    return torch.tensor(made, dtype=torch.float64).view(tensors[0].shape)


@pytest.mark.parametrize("topk", [0.0001, 0.1, 0.6, 1])
@pytest.mark.parametrize("models", [1, 2, 3, 7])
def test_select_calculate_erase(bench, topk, models):
    for dtype in FLOATS:
        tensors = fine_tuned(models, dtype)
        made = merged(bench, tensors, "sce", select_topk=topk)
        assert_rounded(made, naive_sce(tensors, topk))


def test_everything_is_selected_by_default(bench):
    tensors = fine_tuned(2, torch.float64)
    assert_rounded(merged(bench, tensors, "sce"), naive_sce(tensors, 1))


def test_equal_variances_are_resolved_by_position(bench):
    tensors = [torch.zeros(8), torch.ones(8), torch.full((8,), 3.0)]
    made = merged(bench, tensors, "sce", select_topk=0.5)
    # q is 1 : 9, so (1 · 1 + 9 · 3) / 10.
    torch.testing.assert_close(made, torch.tensor([2.8] * 4 + [0.0] * 4))


def test_elements_on_which_all_agree_are_not_selected(bench):
    """Seven equal changes: their mean, rounded, is not always one of them."""
    same = torch.full((6,), 0.1, dtype=torch.float64)
    models = [same.clone() for _ in range(7)]
    models[3][4] = 0.2
    made = merged(bench, [torch.zeros(6).double(), *models], "sce", select_topk=0.5)
    assert made[4] > 0.1
    assert made.tolist()[:4] + made.tolist()[5:] == [0.0] * 5


@pytest.mark.parametrize("change", [1e-9, 1e-200, 1e-310, 1e160])
def test_weights_of_tiny_and_huge_changes_are_in_proportion(bench, change):
    """mergekit compares sums of squares with 1e-6, and gives small changes equal weights."""
    models = [torch.tensor(v, dtype=torch.float64) * change for v in ([1.0, 1], [3.0, 3])]
    made = merged(bench, [torch.zeros(2).double(), *models], "sce")
    torch.testing.assert_close(made / change, torch.tensor([2.8, 2.8]).double())


@pytest.mark.slow
def test_tensor_of_many_blocks(bench):
    tensors = fine_tuned(2, torch.float32, (175, 400))
    assert_rounded(merged(bench, tensors, "sce", select_topk=0.2), naive_sce(tensors, 0.2))
