"""truncate_rank: against torch.linalg.svd, and against every other matrix of that rank."""

import pytest
import torch

from surgeon.base.errors import PlanError
from tests.network import assert_identical, correctly_rounded


def step(target="w", rank=2, **parameters):
    return {"op": "truncate_rank", "target": target, "rank": rank, **parameters}


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (40, 40)])
@pytest.mark.parametrize("rank", [1, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_truncated_decomposition(bench, shape, rank, dtype):
    weight = normal(*shape).to(dtype)
    made = bench.given({"w": weight}).operate(step(rank=rank))
    u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
    nearest = u[:, :rank] * s[:rank] @ v[:rank]
    assert_identical(made.tensors, {"w": correctly_rounded(nearest, dtype)})


def test_the_rank_is_the_one_asked_for_and_nothing_of_it_is_nearer(bench):
    weight = normal(8, 7).double()
    made = bench.given({"w": weight}).operate(step(rank=3))["w"]
    assert torch.linalg.matrix_rank(made) == 3
    distance = (made - weight).norm()
    left, right = torch.randn(500, 8, 3).double(), torch.randn(500, 3, 7).double()
    fitted = left @ torch.linalg.lstsq(left, weight.expand(500, 8, 7)).solution
    assert ((fitted - weight).flatten(1).norm(dim=1) >= distance).all()
    assert (left @ right).shape == fitted.shape


def test_what_has_the_rank_already_keeps_its_bits(bench):
    old = {
        "m.weight": normal(3, 9),
        "m.bias": normal(3),
        "m.conv": normal(3, 2, 2),
        "w": normal(5, 5),
    }
    made = bench.given(old).operate(step(["m", "w"], rank=3))
    assert_identical({n: made[n] for n in old if n != "w"}, {n: old[n] for n in old if n != "w"})
    assert any("'m.weight' is F32 (3, 9), whose rank is 3 or less" in note for note in made.notes)
    assert any("'m.conv' is F32 (3, 2, 2), no matrix" in note for note in made.notes)


def test_too_little_energy_is_an_error(bench):
    weight = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    bench.given({"w": weight})
    with pytest.raises(
        PlanError, match=r"rank 1 keeps 0\.6429 of its squared norm, less than 0\.7"
    ):
        bench.operate(step(rank=1, energy=0.7))
    made = bench.operate(step(rank=1, energy=0.64))
    torch.testing.assert_close(made["w"], torch.diag(torch.tensor([3.0, 0.0, 0.0])))


def test_no_matrix_and_nan_are_errors(bench):
    bench.given({"v": torch.ones(3), "w": torch.full((3, 3), float("nan"))})
    with pytest.raises(PlanError, match=r"'v' is F32 \(3,\), no matrix of floats"):
        bench.plan(step("v"))
    with pytest.raises(PlanError, match="'w' holds NaN or Inf"):
        bench.operate(step())
