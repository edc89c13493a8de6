"""rebasin: permuted copies are brought back, functions stay the same, naive matching agrees."""

import itertools

import pytest
import torch
from torch import nn

from surgeon.base.errors import PlanError, UsageError
from surgeon.output.execute import Options
from tests.merges.compare import assert_rounded, relatives
from tests.network import assert_identical, write

MLP = [{"rows": "0", "columns": "2.weight"}, {"rows": "2", "columns": "4.weight"}]
CNN = [{"rows": ["0", "1"], "columns": "3.weight"}, {"rows": ["3", "4"], "columns": "7.weight"}]


def step(groups, **parameters):
    return {"op": "rebasin", "models": ["b"], "groups": groups, **parameters}


def mlp():
    layers = [nn.Linear(6, 11), nn.Tanh(), nn.Linear(11, 9), nn.Tanh(), nn.Linear(9, 3)]
    return nn.Sequential(*layers).double()


def cnn():
    """Two convolutions with BatchNorm, flattened to 2 x 2 columns per channel."""
    network = nn.Sequential(
        nn.Conv2d(3, 7, 3, padding=1), nn.BatchNorm2d(7), nn.ReLU(),
        nn.Conv2d(7, 5, 3, padding=1, stride=2), nn.BatchNorm2d(5), nn.ReLU(),
        nn.Flatten(), nn.Linear(5 * 4, 4),
    ).double()  # fmt: skip
    network(torch.randn(8, 3, 4, 4, dtype=torch.float64))  # running statistics of its own
    return network.eval()


def shuffled(tensors, groups):
    """The same network with its units in another order; naive, by name."""
    made = dict(tensors)
    for group in groups:
        rows = [group["rows"]] if isinstance(group["rows"], str) else group["rows"]
        names = [n for n in made if n.rpartition(".")[0] in rows and made[n].dim()]
        size = len(made[names[0]])
        order = torch.randperm(size)
        for name in names:
            made[name] = made[name][order]
        reader = made[group["columns"]]
        width = reader.shape[1] // size
        columns = [i * width + j for i in order.tolist() for j in range(width)]
        made[group["columns"]] = reader[:, columns]
    return {name: tensor.clone() for name, tensor in made.items()}


CASES = pytest.mark.parametrize(
    ("network", "groups", "shape"), [(mlp, MLP, (5, 6)), (cnn, CNN, (5, 3, 4, 4))]
)


@CASES
@pytest.mark.parametrize("t", [0.3, 1])
def test_permuted_copy_is_brought_back(bench, network, groups, shape, t):
    torch.manual_seed(0)
    tensors = network().state_dict()
    bench.given(tensors, b=shuffled(tensors, groups))
    assert_identical(bench.operate(step(groups, t=t)).tensors, tensors)


@CASES
def test_reordered_model_computes_the_same(bench, network, groups, shape):
    torch.manual_seed(1)
    state, model = network(), network()
    bench.given(state.state_dict(), b=model.state_dict())
    made = bench.operate(step(groups, t=1)).tensors
    assert any(not torch.equal(made[n], t) for n, t in model.state_dict().items())
    inputs = torch.randn(shape, dtype=torch.float64)
    expected = model(inputs)
    model.load_state_dict(made)
    torch.testing.assert_close(model(inputs), expected, rtol=1e-12, atol=1e-12)


def test_best_of_all_permutations_is_found(bench):
    """One group of 5 units, against trying all 120 orders."""
    torch.manual_seed(2)
    b, x = ({"a": torch.randn(5, 3).double(), "c": torch.randn(4, 5).double()} for _ in range(2))
    bench.given(b, b=x)
    made = bench.operate(step([{"rows": "a", "columns": "c"}], t=1)).tensors

    def likeness(order):
        order = list(order)
        return (b["a"] * x["a"][order]).sum() + (b["c"] * x["c"][:, order]).sum()

    best = list(max(itertools.permutations(range(5)), key=likeness))
    assert_identical(made, {"a": x["a"][best], "c": x["c"][:, best]})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_result_is_interpolated_and_rounded_once(bench, dtype):
    b, x = (t.view(20, 10) for t in relatives(2, dtype))
    order = torch.randperm(20)
    bench.given({"w": b}, b={"w": x[order]})
    made = bench.operate(step([{"rows": "w"}], t=0.3))["w"]
    assert_rounded(made, b.double() * (1 - 0.3) + x.double() * 0.3)


def test_halfway_is_the_default(bench):
    b, x = (t.view(20, 10) for t in relatives(2, torch.float64))
    bench.given({"w": b}, b={"w": x.flip(0)})
    torch.testing.assert_close(bench.operate(step([{"rows": "w"}]))["w"], (b + x) / 2)


def test_columns_of_one_group_may_be_rows_of_it_too(bench):
    """As in a residual stream: w reads and writes the same units."""
    torch.manual_seed(3)
    b = {"w": torch.randn(8, 8).double(), "v": torch.randn(8, 30).double()}
    order = torch.randperm(8)
    bench.given(b, b={"w": b["w"][order][:, order], "v": b["v"][order]})
    made = bench.operate(step([{"rows": ["w", "v"], "columns": "w"}], t=1)).tensors
    assert_identical(made, b)


@pytest.mark.parametrize("seed", range(8))
def test_recurrent_layers_end_where_they_are_more_alike(bench, seed):
    """Their columns are in the order of their rows, which makes the problem a quadratic one."""
    generator = torch.Generator().manual_seed(seed)
    state, model = ({"w": torch.randn(5, 5, generator=generator)} for _ in "ab")
    bench.given(state, b=model)
    found = bench.operate(step([{"rows": "w", "columns": "w"}], t=1)).tensors["w"]
    orders = [list(order) for order in itertools.permutations(range(5))]
    assert any(torch.equal(found, model["w"][order][:, order]) for order in orders)
    assert (state["w"] * found).sum() >= (state["w"] * model["w"]).sum()


def test_merging_with_itself_returns_it_to_the_bit(bench):
    tensors = cnn().state_dict()
    bench.given(tensors, b=tensors)
    assert_identical(bench.operate(step(CNN, t=0.3)).tensors, tensors)


def test_equal_units_stay_in_order(bench):
    bench.given({"w": torch.zeros(4, 2)}, b={"w": torch.arange(8.0).view(4, 2)})
    made = bench.operate(step([{"rows": "w"}], t=1))["w"]
    assert made.tolist() == torch.arange(8.0).view(4, 2).tolist()


def test_result_does_not_depend_on_workers(bench, monkeypatch):
    monkeypatch.setattr("surgeon.output.workers._SHARED_FROM", 0)
    bench.given(cnn().state_dict(), b=cnn().state_dict())
    results = [bench.operate(step(CNN), options=Options(workers=n)) for n in (1, 2)]
    assert results[0].path.read_bytes() == results[1].path.read_bytes()


@pytest.mark.parametrize(
    ("groups", "problem"),
    [
        ([{"rows": "a"}, {"rows": "a"}], "the rows of 'a' are in groups.0. already"),
        ([{"rows": ["a", "c"]}], r"'c' has 4 rows, but 'a' has 5 rows"),
        ([{"rows": "a", "columns": "a"}], r"'a' has 3 columns, but 'a' has 5 rows"),
        ([{"rows": "a", "columns": "v"}], r"'v' is F32 \(5,\), which has no columns"),
        ([{"rows": "n"}], r"'n' \(I64 \(5,\)\) cannot be permuted"),
        ([{"rows": "s"}], r"groups\[0\] has no rows"),
        ([{"rows": "x"}], "no tensor matches 'x'"),
    ],
)
def test_impossible_groups_are_errors(bench, groups, problem):
    tensors = {"a": torch.ones(5, 3), "c": torch.ones(4, 5), "v": torch.ones(5),
               "n": torch.arange(5), "s": torch.tensor(1.0)}  # fmt: skip
    bench.given(tensors, b=tensors)
    with pytest.raises(PlanError, match=problem):
        bench.plan(step(groups))


@pytest.mark.parametrize("rows", [[0], [["a"]], 1])
def test_groups_are_of_names(bench, rows):
    tensors = {"a": torch.ones(5, 3)}
    bench.given(tensors, b=tensors)
    with pytest.raises(UsageError, match=r"groups\[0\].rows.* is not of type"):
        bench.plan(step([{"rows": rows}]))


def test_permuted_tensors_must_be_merged(bench):
    tensors = {"a": torch.ones(5, 3), "c": torch.ones(4, 5)}
    bench.given(tensors, b=tensors)
    with pytest.raises(PlanError, match="'c' is permuted, but not merged"):
        bench.plan(step([{"rows": "a", "columns": "c"}], target="a"))


def test_tied_tensors_must_be_permuted_alike(bench):
    bench.given({"a": torch.ones(5, 3)}, {"z": "a"})
    path = write(bench.folder / "b.safetensors", {"a": torch.ones(5, 3)}, {"z": "a"})
    bench.models["b"] = str(path)
    with pytest.raises(PlanError, match="'a' and 'z' are tied, but not permuted alike"):
        bench.plan(step([{"rows": "a"}]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nonfinite_operand_is_an_error(bench, value):
    broken = torch.tensor([[1.0, value], [1.0, 1.0]])
    bench.given({"w": torch.ones(2, 2)}, b={"w": broken})
    with pytest.raises(PlanError, match="'w' in model 'b' holds NaN or Inf"):
        bench.operate(step([{"rows": "w"}]))
