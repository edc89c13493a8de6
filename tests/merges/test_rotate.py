"""rotate: against scipy's orthogonal Procrustes, and by what a turn leaves alone."""

import pytest
import torch

from tests.merges.compare import FLOATS, assert_rounded, given
from tests.network import assert_identical


def step(**parameters):
    return {"op": "rotate", "models": ["b"], **parameters}


def pair(*shape, dtype=torch.float64, apart=0.5):
    generator = torch.Generator().manual_seed(sum(shape))
    first, noise = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in "ab")
    return first.to(dtype), (first + apart * noise).to(dtype)


def reference(ours, theirs, t, center):
    """(1 - t) A Q + t B + ν, with Q from the whole of AᵀB."""
    a, b = (tensor.double().flatten(1) for tensor in (ours, theirs))
    middle = b.mean(0) if center else torch.zeros(b.shape[1], dtype=torch.float64)
    a, b = a - a.mean(0) if center else a, b - middle
    u, _, z = torch.linalg.svd(a.T @ b)
    return ((1 - t) * a @ u @ z + t * b + middle).reshape(ours.shape)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(12, 5), (40, 8), (30, 3, 2)])
@pytest.mark.parametrize(("t", "center"), [(0.0, True), (0.3, True), (0.0, False)])
def test_it_is_the_turn_of_the_whole_product(bench, dtype, shape, t, center):
    tensors = pair(*shape, dtype=dtype)
    given(bench, tensors)
    made = bench.operate(step(t=t, center=center))["w"]
    assert_rounded(made, reference(*tensors, t, center))


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (6, 6)])
def test_no_other_turn_comes_nearer(bench, shape):
    ours, theirs = pair(*shape)
    given(bench, [ours, theirs])
    made = bench.operate(step(center=False))["w"]
    turns = torch.linalg.qr(torch.randn(300, shape[1], shape[1], dtype=torch.float64)).Q
    others = (ours @ turns - theirs).flatten(1).norm(dim=1)
    assert (others >= (made - theirs).norm()).all()
    assert (ours - theirs).norm() >= (made - theirs).norm()


@pytest.mark.parametrize("shape", [(12, 5), (5, 12)])
def test_a_turn_keeps_lengths_and_angles(bench, shape):
    ours, theirs = pair(*shape)
    given(bench, [ours, theirs])
    made = bench.operate(step(center=False))["w"]
    torch.testing.assert_close(made @ made.T, ours @ ours.T)


@pytest.mark.parametrize("shape", [(9, 4), (4, 9)])
def test_a_model_that_was_turned_is_turned_back(bench, shape):
    ours, _ = pair(*shape)
    turn = torch.linalg.qr(torch.randn(shape[1], shape[1], dtype=torch.float64)).Q
    theirs = ours @ turn + torch.randn(shape[1], dtype=torch.float64)
    given(bench, [ours, theirs])
    torch.testing.assert_close(bench.operate(step())["w"], theirs)


def test_all_the_way_is_the_other_model_and_vectors_are_interpolated(bench):
    first = {"w": torch.randn(3, 4), "v": torch.tensor([1.0, 2.0]), "n": torch.tensor(2.0)}
    second = {"w": torch.randn(3, 4), "v": torch.tensor([2.0, 4.0]), "n": torch.tensor(4.0)}
    bench.given(first, b=second)
    assert_identical(bench.operate(step(t=1)).tensors, second)
    made = bench.operate(step(t=0.25))
    assert (made["v"].tolist(), made["n"].item()) == ([1.25, 2.5], 2.5)


def test_towards_nothing_there_is_no_turn(bench):
    ours, _ = pair(4, 6)
    given(bench, [ours, torch.zeros_like(ours)])
    assert_identical(bench.operate(step(center=False)).tensors, {"w": ours})
