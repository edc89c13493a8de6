"""Weight norm and spectral norm, as torch saves them, under widen and narrow."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm

from surgeon.base.errors import PlanError

PARTS = ["0.parametrizations.weight.original0", "0.parametrizations.weight.original1", "0.bias"]


def network(kind):
    torch.manual_seed(0)
    first, second = nn.Linear(5, 6), nn.Linear(6, 3)
    wrapped = {
        "weight": lambda: nn.Sequential(parametrizations.weight_norm(first), second),
        "consumer": lambda: nn.Sequential(first, parametrizations.weight_norm(second)),
        "spectral": lambda: nn.Sequential(parametrizations.spectral_norm(first), second),
        "old spectral": lambda: nn.Sequential(spectral_norm(first), second),
        "pruned": lambda: nn.Sequential(prune.l1_unstructured(first, "weight", 0.5), second),
        "pruned consumer": lambda: nn.Sequential(
            first, prune.random_unstructured(second, "weight", 0.5)
        ),
    }
    return wrapped[kind]()


def state_of(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("kind", "step", "problem"),
    [("weight", {"target": "0", "rows": 2}, "'0' has a weight norm"),
     ("weight", {"target": PARTS[1], "rows": 2}, "whose rows change together"),
     ("weight", {"target": PARTS, "rows": 2, "init": "zeros"}, "would be NaN"),
     ("weight", {"target": PARTS[1], "columns": 2}, "whose rows change together"),
     ("consumer", {"target": "0", "rows": 2, "consumers": "1.parametrizations.weight"},
      "change what its norms mean"),
     ("spectral", {"target": "0", "rows": 2}, "has a spectral norm"),
     ("old spectral", {"target": "0", "rows": 2, "init": "normal", "bias_init": "zeros"},
      "has a spectral norm")],
)  # fmt: skip
def test_parts_are_not_taken_apart(kind, step, problem, bench):
    with pytest.raises(PlanError, match=problem):
        bench.given(state_of(network(kind))).plan({"op": "widen", **step})


@pytest.mark.parametrize(
    ("kind", "target"),
    [("old spectral", "0"), ("old spectral", "0.weight_orig"), ("old spectral", "0.weight_v"),
     ("spectral", "0.parametrizations.weight.original")],
)  # fmt: skip
def test_fresh_weights_beside_vectors_of_the_old_are_refused(kind, target, bench):
    """torch divides by u W v when it evaluates, which is no norm of another weight."""
    step = {"op": "reinit", "target": target, "init": "normal"}
    with pytest.raises(PlanError, match="is of a spectral norm, whose vectors"):
        bench.given(state_of(network(kind))).plan(step)


@pytest.mark.parametrize(
    ("kind", "problem"), [("weight", "would not be those of"), ("pruned", "are no mask")]
)
def test_fresh_values_of_a_whole_module_leave_out_no_part(kind, problem, bench):
    with pytest.raises(PlanError, match=problem):
        bench.given(state_of(network(kind))).plan({"op": "reinit", "target": "0"})


@pytest.mark.parametrize(
    ("step", "problem"),
    [({"op": "widen", "target": "0", "rows": 1, "init": "normal"}, "no initialiser makes a mask"),
     ({"op": "narrow", "target": "0.weight_orig", "drop": 1}, "whose parts change together")],
)  # fmt: skip
def test_masks_of_pruned_weights_are_not_made_or_left(step, problem, bench):
    with pytest.raises(PlanError, match=f"is pruned .*{problem}"):
        bench.given(state_of(network("pruned"))).plan(step)


@pytest.mark.parametrize("kind", ["pruned", "pruned consumer"])
def test_masks_narrow_with_their_weights(kind, bench):
    """prune.remove, which multiplies, then a smaller network: the same outputs."""
    model = network(kind)
    step = {"op": "narrow", "target": "0", "keep": [0, 2, 5], "consumers": "1"}
    made = bench.given(state_of(model)).operate(step).tensors
    small = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 3))
    for layer in range(2):
        if f"{layer}.weight_mask" in made:
            prune.identity(small[layer], "weight")
    small.load_state_dict(made)
    for pruned in (model, small):
        prune.remove(pruned[kind == "pruned consumer"], "weight")
    torch.testing.assert_close(small[0].weight, model[0].weight[[0, 2, 5]], rtol=0, atol=0)
    torch.testing.assert_close(small[1].weight, model[1].weight[:, [0, 2, 5]], rtol=0, atol=0)


def test_rows_of_norms_and_directions_narrow_together(bench):
    model = network("weight")
    step = {"op": "narrow", "target": PARTS, "keep": [0, 2, 5], "consumers": "1"}
    made = bench.given(state_of(model)).operate(step).tensors
    small = nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 3)), nn.Linear(3, 3))
    small.load_state_dict(made)
    kept = model[0].weight[[0, 2, 5]]
    torch.testing.assert_close(small[0].weight, kept, rtol=0, atol=0)


def test_rows_of_norms_and_directions_widen_together(bench):
    model = network("weight")
    step = {"op": "widen", "target": PARTS, "rows": 2, "init": "normal"}
    made = bench.given(state_of(model)).operate(step).tensors
    large = nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 8)), nn.Linear(6, 3))
    large.load_state_dict(made)
    torch.testing.assert_close(large[0].weight[:6], model[0].weight, rtol=0, atol=0)
    assert large[0].weight.isfinite().all()


def test_neighbour_that_no_longer_fits_is_named(bench):
    bench.given(state_of(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))))
    (note,) = bench.operate({"op": "widen", "target": "0", "rows": 2}).notes
    assert "'2.weight' has 6 columns, as '0' had rows: a consumer?" in note
