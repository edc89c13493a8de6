"""weight_align: new rows get the mean norm of the old ones, which keep their bits."""

import math

import pytest
import torch
from torch import nn

from surgeon.base.errors import PlanError
from tests.network import assert_identical, correctly_rounded, raw_bytes

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def step(target="fc", **parameters):
    return {"op": "weight_align", "target": target, **parameters}


def widen(rows=2, init="normal"):
    return {"op": "widen", "target": "fc", "rows": rows, "init": init}


def state(dtype=torch.float32, rows=5):
    torch.manual_seed(0)
    model = nn.ModuleDict({"body": nn.Linear(4, 3), "fc": nn.Linear(3, rows)})
    return {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}


def naive(weight, new):
    """Zhao et al.'s equation 8, element by element in float64."""
    rows = weight.flatten(1).tolist()
    norms = [math.sqrt(sum(x * x for x in row)) for row in rows]
    old_norms = [norm for row, norm in enumerate(norms) if row not in new]
    new_norms = [norms[row] for row in new]
    factor = (sum(old_norms) / len(old_norms)) / (sum(new_norms) / len(new_norms))
    values = [[x * factor if i in new else x for x in row] for i, row in enumerate(rows)]
    return torch.tensor(values, dtype=torch.float64).reshape(weight.shape)


@pytest.mark.parametrize("rows", [[4], [0], [1, 3], [2, 3, 4]])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_scaled_as_a_naive_loop_does(bench, dtype, rows):
    old = state(dtype)
    made = bench.given(old).operate(step(rows=rows)).tensors
    expected = naive(old["fc.weight"], rows)
    tolerances = {"rtol": 1e-15 if dtype == torch.float64 else 0, "atol": 0}
    found = made["fc.weight"]
    torch.testing.assert_close(found, correctly_rounded(expected, dtype), **tolerances)
    kept = [row for row in range(5) if row not in rows]
    assert raw_bytes(found[kept]) == raw_bytes(old["fc.weight"][kept])
    assert_identical({**made, "fc.weight": old["fc.weight"]}, old)


def test_new_rows_are_those_that_the_recipe_created(bench):
    bench.given(state())
    widened = bench.operate(widen()).tensors["fc.weight"]
    made = bench.operate(widen(), step()).tensors["fc.weight"]
    torch.testing.assert_close(made, naive(widened, [5, 6]).float(), rtol=0, atol=0)


def test_the_mean_norms_are_equal_afterwards(bench):
    bench.given(state(torch.float64))
    norms = bench.operate(widen(), step())["fc.weight"].norm(dim=1)
    torch.testing.assert_close(norms[5:].mean(), norms[:5].mean(), rtol=1e-14, atol=0)
    assert norms[5] != norms[6]


def test_aligning_twice_changes_nothing_more(bench):
    bench.given(state(torch.float64))
    once = bench.operate(step(rows=[4]))["fc.weight"]
    twice = bench.operate(step(rows=[4]), step(rows=[4]))["fc.weight"]
    torch.testing.assert_close(twice, once, rtol=1e-15, atol=0)


def test_rows_longer_and_shorter_than_a_block(bench):
    torch.manual_seed(0)
    weights = {"long.weight": torch.randn(3, 150_001), "short.weight": torch.randn(150_001, 3)}
    made = bench.given(weights).operate(step(["long", "short"], rows=[1, 2])).tensors
    for name, old in weights.items():
        norms = old.double().norm(dim=1)
        is_new = torch.isin(torch.arange(len(norms)), torch.tensor([1, 2]))
        factor = norms[~is_new].mean() / norms[is_new].mean()
        expected = (old[1:3].double() * factor).float()
        torch.testing.assert_close(made[name][1:3], expected, rtol=1e-7, atol=0)
        assert raw_bytes(made[name][3:]) == raw_bytes(old[3:])


def test_filters_of_a_convolution_are_rows(bench):
    torch.manual_seed(0)
    old = nn.ModuleDict({"fc": nn.Conv2d(2, 4, 3)}).state_dict()
    made = bench.given(old).operate(step(rows=[3])).tensors
    expected = naive(old["fc.weight"], [3]).float()
    torch.testing.assert_close(made["fc.weight"], expected, rtol=0, atol=0)


def test_tied_weights_stay_tied(bench):
    bench.given({"embed.weight": torch.randn(4, 3)}, {"fc.weight": "embed.weight"})
    made = bench.operate(step("fc", rows=[3]))
    assert made.manifest["ties"] == {"fc.weight": "embed.weight"}
    assert torch.equal(made["fc.weight"], made["embed.weight"])


def test_lineage_says_that_rows_were_aligned(bench):
    made = bench.given(state()).operate(widen(), step())
    assert [change["op"] for change in made.lineage("fc.weight")] == ["widen", "weight_align"]
    assert made.lineage("fc.weight")[1] == {"step": "1", "op": "weight_align"}


def test_rows_that_were_aligned_are_still_new(bench):
    training = {"stages": [{"name": "warm-up", "train": ["@new"]}]}
    made = bench.given(state()).operate(widen(), step(), training=training)
    (group,) = made.manifest["stages"][0]["groups"]
    assert group["params"] == ["fc.bias[5:7]", "fc.weight[5:7]"]


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ([step()], "'fc.weight' has no new rows; say which with \"rows\""),
        ([step(rows=[5])], "'fc.weight' has 5 rows, and no row 5"),
        ([step(rows=[0, 1, 2, 3, 4])], "'fc.weight' has no rows beside the new ones"),
        ([{"op": "reinit", "target": "fc"}, step()], "'fc.weight' has no rows beside the new"),
        ([step("fc.bias", rows=[1])], "'fc' has no weight with rows"),
        ([step("fcc")], "no tensor matches 'fcc'; did you mean 'fc'?"),
    ],
)
def test_impossible_alignment_says_why(bench, steps, problem):
    bench.given(state())
    with pytest.raises(PlanError) as caught:
        bench.plan(*steps)
    assert "(weight_align): " in str(caught.value)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("row", "value", "problem"),
    [
        (4, 0.0, "'fc.weight' cannot be aligned: the mean norm of its new rows is 0"),
        (4, math.nan, "'fc.weight' cannot be aligned: the mean norm of its new rows is nan"),
        (slice(4), 0.0, "'fc.weight' cannot be aligned: the mean norm of its old rows is 0"),
        (2, math.inf, "'fc.weight' cannot be aligned: the mean norm of its old rows is inf"),
    ],
)
def test_rows_without_a_norm_are_refused_while_writing(bench, row, value, problem):
    old = state()
    old["fc.weight"][row] = value
    bench.given(old)
    with pytest.raises(PlanError, match=problem):
        bench.operate(step(rows=[4]))
    assert not bench.output.exists()


def test_rows_beyond_the_dtype_are_refused_while_writing(bench):
    weight = torch.full((4, 2), 60000.0, dtype=torch.float16)
    weight[3] = torch.tensor([1.0, 60000.0], dtype=torch.float16)
    bench.given({"fc.weight": weight})
    with pytest.raises(PlanError, match="its dtype cannot hold the scaled rows"):
        bench.operate(step(rows=[3]))
