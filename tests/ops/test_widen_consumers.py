"""widen with consumers: what reads new rows gets columns; net2wider keeps the function."""

import numpy as np
import pytest
import torch
from torch import nn

from surgeon.base.errors import SurgeonError
from surgeon.lazy import Stream
from surgeon.ops.widen import _drawn
from tests.manifest.test_optimizer_state import operate
from tests.network import assert_identical


def step(target, consumers, **parameters):
    return {"op": "widen", "target": target, "consumers": consumers, **parameters}


def wider(target, consumers, **parameters):
    return step(target, consumers, init="net2wider", **parameters)


def perceptron(width=4, norm=None):
    torch.manual_seed(0)
    between = {"norm": norm(width)} if norm else {}
    return {"a": nn.Linear(3, width), **between, "b": nn.Linear(width, 5)}


def module(layers):
    return nn.ModuleDict(layers).double()


def run(layers, inputs):
    """Run layers one after the other, with a tanh after the first and after a norm."""
    for name, layer in layers.items():
        inputs = layer(inputs)
        inputs = torch.tanh(inputs) if name in ("a", "norm") else inputs
    return inputs


def problem(bench, *steps):
    with pytest.raises(SurgeonError) as caught:
        bench.plan(*steps)
    return str(caught.value).replace("recipe.json: steps[0] (widen): ", "")


# --- Columns for new rows -------------------------------------------------------------------------


def test_consumers_get_a_column_for_each_new_row(bench):
    old = module(perceptron()).state_dict()
    consumers = [{"target": "b", "init": "zeros"}]
    made = bench.given(old).operate(step("a", consumers, rows=3)).tensors
    assert made["a.weight"].shape == (7, 3)
    expected = torch.cat([old["b.weight"], torch.zeros(5, 3).double()], 1)
    assert_identical({"b.weight": made["b.weight"]}, {"b.weight": expected})
    assert_identical({"b.bias": made["b.bias"]}, {"b.bias": old["b.bias"]})


def test_columns_are_default_for_the_final_size(bench):
    bench.given({"a.weight": torch.ones(4, 3), "b.weight": torch.ones(200, 4)})
    made = bench.operate(step("a", "b", to=16)).tensors["b.weight"][:, 4:]
    assert 0.98 / 4 < made.abs().max() <= 1 / 4


def test_a_flattened_convolution_has_several_columns_for_a_channel(bench):
    old = {"conv.weight": torch.randn(2, 1, 3, 3), "fc.weight": torch.randn(3, 2 * 5)}
    consumers = [{"target": "fc", "block": 5, "init": "zeros"}]
    made = bench.given(old).operate(step("conv", consumers, rows=2)).tensors["fc.weight"]
    torch.testing.assert_close(made, torch.cat([old["fc.weight"], torch.zeros(3, 10)], 1))


def test_a_layer_that_reads_itself_grows_both_ways(bench):
    old = {"cell.weight": torch.randn(3, 3)}
    consumers = [{"target": "cell", "init": "zeros"}]
    made = bench.given(old).operate(step("cell", consumers, rows=2, init="zeros")).tensors
    torch.testing.assert_close(
        made["cell.weight"], nn.functional.pad(old["cell.weight"], [0, 2, 0, 2])
    )


def test_lineage_names_new_rows_and_new_columns(bench):
    bench.given(module(perceptron()).state_dict())
    made = bench.operate(wider("a", "b", rows=2))
    news = {name: made.lineage(name)[0]["new"] for name in ("a.weight", "a.bias", "b.weight")}
    assert news == {"a.weight": ["a.weight[4:6]"], "a.bias": ["a.bias[4:6]"],
                    "b.weight": ["b.weight[:,4:6]"]}  # fmt: skip
    assert made.lineage("b.bias") == []


# --- Net2Wider ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 4, 9])
def test_the_function_stays(bench, count):
    layers = perceptron()
    old = module(layers)
    bench.given(old.state_dict())
    made = bench.operate(wider("a", "b", rows=count)).tensors
    new = module(perceptron(4 + count))
    new.load_state_dict(made)
    inputs = torch.randn(20, 3).double()
    torch.testing.assert_close(run(new, inputs), run(old, inputs), rtol=0, atol=1e-14)


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_a_norm_keeps_the_function_in_a_whole_multiple(bench, norm):
    old = module(perceptron(norm=norm))
    for parameter in old["norm"].parameters():
        nn.init.normal_(parameter)
    bench.given(old.state_dict())
    made = bench.operate(wider(["a", "norm"], "b", to=12)).tensors
    new = module(perceptron(12, norm))
    new.load_state_dict(made)
    inputs = torch.randn(20, 3).double()
    torch.testing.assert_close(run(new, inputs), run(old, inputs), rtol=0, atol=1e-14)


def test_batch_norm_between_is_copied_with_its_statistics(bench):
    old = module(perceptron(norm=nn.BatchNorm1d))
    for _ in range(3):
        run(old, torch.randn(20, 3).double())
    bench.given(old.state_dict())
    made = bench.operate(wider(["a", "norm"], "b", rows=3)).tensors
    new = module(perceptron(7, nn.BatchNorm1d))
    new.load_state_dict(made)
    inputs = torch.randn(20, 3).double()
    for training in (False, True):
        old.train(training), new.train(training)
        torch.testing.assert_close(run(new, inputs), run(old, inputs), rtol=0, atol=1e-14)


def test_depthwise_convolutions_between_are_copied(bench):
    torch.manual_seed(0)

    def network(width):
        return nn.Sequential(
            nn.Conv2d(2, width, 3), nn.Conv2d(width, width, 3, groups=width), nn.Tanh(),
            nn.Conv2d(width, 3, 2), nn.Tanh(), nn.ConvTranspose2d(3, 2, 2),
        ).double()  # fmt: skip

    old, new = network(4), network(7)
    bench.given(old.state_dict())
    new.load_state_dict(bench.operate(wider(["0", "1"], "3", rows=3)).tensors)
    inputs = torch.randn(2, 2, 8, 8).double()
    torch.testing.assert_close(new(inputs), old(inputs), rtol=0, atol=1e-14)


def test_flattened_channels_are_shared_out(bench):
    torch.manual_seed(0)

    def network(width):
        return nn.Sequential(
            nn.ConvTranspose2d(2, width, 3), nn.Tanh(), nn.Flatten(), nn.Linear(width * 36, 3)
        ).double()

    old, new = network(3), network(8)
    bench.given(old.state_dict())
    grow = wider("0", [{"target": "3", "block": 36}], rows=5, dim=1)
    new.load_state_dict(bench.operate(grow).tensors)
    inputs = torch.randn(2, 2, 4, 4).double()
    torch.testing.assert_close(new(inputs), old(inputs), rtol=0, atol=1e-14)


def test_layouts_with_outputs_in_columns(bench):
    generator = torch.Generator().manual_seed(0)
    old = {"c_fc.weight": torch.randn(3, 4, generator=generator).double(),
           "c_fc.bias": torch.randn(4, generator=generator).double(),
           "c_proj.weight": torch.randn(4, 3, generator=generator).double()}  # fmt: skip
    grow = wider("c_fc", [{"target": "c_proj", "dim": 0}], rows=2, dim=1)
    made = bench.given(old).operate(grow).tensors
    inputs = torch.randn(5, 3).double()

    def out(state):
        return (
            torch.tanh(inputs @ state["c_fc.weight"] + state["c_fc.bias"]) @ state["c_proj.weight"]
        )

    assert made["c_fc.weight"].shape == (3, 6)
    torch.testing.assert_close(out(made), out(old), rtol=0, atol=1e-14)


def test_every_copy_is_an_old_row_and_shares_are_unequal(bench):
    old = module(perceptron()).state_dict()
    made = bench.given(old).operate(wider("a", "b", rows=20)).tensors
    rows = [np.flatnonzero((old["a.weight"] == row).all(1)) for row in made["a.weight"]]
    members = {source: [i for i, (row,) in enumerate(rows) if row == source] for source in range(4)}
    assert sum(map(len, members.values())) == 24
    for source, indices in members.items():
        shares = made["b.weight"][0, indices] / old["b.weight"][0, source]
        assert len(set(shares.tolist())) == len(indices)
        assert shares.sum().item() == pytest.approx(1, abs=1e-15)
        assert shares.max() < 2 * shares.min()
        assert made["a.bias"][indices].unique().tolist() == [old["a.bias"][source].item()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_shares_differ_in_every_dtype(bench, dtype):
    old = {name: tensor.to(dtype) for name, tensor in module(perceptron()).state_dict().items()}
    made = bench.given(old).operate(wider("a", "b", rows=4 * 7)).tensors
    assert made["b.weight"].dtype == dtype
    for source in old["a.weight"]:
        shares = made["b.weight"][0, (made["a.weight"] == source).all(1)]
        assert len(shares.unique()) == len(shares)


def test_rows_without_copies_keep_their_columns(bench):
    old = module(perceptron(50)).state_dict()
    made = bench.given(old).operate(wider("a", "b", rows=1)).tensors["b.weight"][:, :50]
    assert (made == old["b.weight"]).all(0).sum() == 49


def test_the_choice_follows_seed_and_step_not_order(bench):
    old = {name: torch.randn(shape) for name, shape in
           {"a.weight": (6, 2), "c.weight": (6, 2), "b.weight": (3, 6)}.items()}  # fmt: skip
    bench.given(old)
    first = bench.operate(wider(["a", "c"], "b", rows=5)).tensors
    again = bench.operate(wider(["c", "a"], "b", rows=5)).tensors
    assert_identical(first, again)
    other = bench.operate(wider(["a", "c"], "b", rows=5), seed=1).tensors
    assert not torch.equal(first["a.weight"], other["a.weight"])


def test_balanced_choices_take_each_row_as_often():
    made = _drawn(Stream(0, "0", "x"), 7, 21, balanced=True)
    assert np.bincount(made.sources).tolist() == [3] * 7
    assert made.sources[:7] != sorted(made.sources[:7])


def test_thousands_of_rows_are_chosen_and_shared_at_once():
    made = _drawn(Stream(0, "0", "x"), 20_000, 30_000, balanced=False)
    totals = made.old_shares + np.bincount(made.sources, made.new_shares, minlength=20_000)
    np.testing.assert_allclose(totals, 1, rtol=0, atol=1e-15 * 3)


def test_optimizer_state_of_old_rows_and_columns_is_kept(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model.named_parameters())
    model(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    made = operate(tmp_path, saved, wider("0", "2", rows=3))
    assert {"0.weight[0:4]", "0.bias[0:4]", "2.weight[:,0:4]"} < set(made.blocks)
    state = optimizer.state[model[2].weight]
    found = made.tensors["2.weight/exp_avg"]
    torch.testing.assert_close(found[:, :4], state["exp_avg"], rtol=0, atol=0)
    assert not found[:, 4:].any()


def test_a_plan_with_copies_writes_what_it_reads(bench):
    """Widths beyond one block, against index arithmetic in torch."""
    generator = torch.Generator().manual_seed(0)
    old = {"a.weight": torch.randn(300, 2, generator=generator),
           "b.weight": torch.randn(400, 300, generator=generator)}  # fmt: skip
    made = bench.given(old).operate(wider("a", "b", rows=500)).tensors
    matches = (made["a.weight"][:, None] == old["a.weight"][None]).all(-1)
    back = made["b.weight"].double() @ matches.double()
    torch.testing.assert_close(back, old["b.weight"].double(), rtol=0, atol=2e-6)


# --- Mistakes -------------------------------------------------------------------------------------

WRONG = {
    "rows that nothing reads": (
        {"op": "widen", "target": "a", "rows": 1, "init": "net2wider"},
        "'net2wider' shares out the columns of consumers; name them",
    ),
    "columns": (
        {"op": "widen", "target": "a", "columns": 1, "consumers": "b"},
        "'columns' are inputs, which have no consumers; widen 'rows'",
    ),
    "columns and dim": (
        {"op": "widen", "target": "a", "columns": 1, "dim": 1},
        "'columns' are dimension 1 already; leave 'dim' out",
    ),
    "a bias_init": (
        wider("a", "b", rows=1, bias_init="zeros"),
        "'net2wider' copies biases with their rows; leave 'bias_init' out",
    ),
    "an init of a consumer": (
        wider("a", [{"target": "b", "init": "zeros"}], rows=1),
        "'net2wider' makes the consumers' columns; leave their 'init' out",
    ),
    "no such consumer": (wider("a", "bb", rows=1), "no tensor matches 'bb'; did you mean 'b'?"),
    "another width": (
        wider("a", ["b", "other"], rows=1),
        "consumer 'other.weight' is F32 (2, 7), but dimension 1 should have 4 entries",
    ),
    "a width that is a multiple": (
        wider("a", "flat", rows=1),
        "consumer 'flat.weight' is F32 (2, 12), but dimension 1 should have 4 entries; "
        "say \"block\": 3 if it reads 3 of them for each output",
    ),
    "a block that does not fit": (
        wider("a", [{"target": "flat", "block": 5}], rows=1),
        "consumer 'flat.weight' is F32 (2, 12), but dimension 1 should have 4 x 5 = 20 entries; "
        "say \"block\": 3 if it reads 3 of them for each output",
    ),
    "the other dimension": (
        wider("a", "turned", rows=1),
        "consumer 'turned.weight' is F32 (4, 7), but dimension 1 should have 4 entries; "
        "say \"dim\": 0 if its inputs lie there",
    ),
    "a consumer without columns": (
        wider("a", "norm", rows=1),
        "consumer 'norm.weight' is F32 (4,), but dimension 1 should have 4 entries",
    ),
    "a consumer twice": (
        wider("a", ["b", {"target": "b", "block": 1}], rows=1),
        "'b.weight' is named as a consumer twice",
    ),
    "layers of several sizes": (
        wider(["a", "other"], "b", rows=1),
        "what shares its consumers has one size, but 'a' has 4 outputs and 'other' 2; "
        "give each size a step of its own",
    ),
    "a norm": (
        wider(["a", "norm"], "b", to=6),
        "'norm' normalises over its 4 entries, since it has no running statistics: only a whole "
        "multiple of 4 keeps the function, not 6; name its tensors if it acts on each entry alone",
    ),
    "integers": (
        wider("a", "codes", rows=1),
        "'codes.weight' is I8 (2, 4), whose columns cannot be shared out",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_consumers_are_plan_errors(bench, case):
    shapes = {"a.weight": (4, 3), "b.weight": (5, 4), "other.weight": (2, 7), "norm.weight": (4,),
              "flat.weight": (2, 12), "turned.weight": (4, 7)}  # fmt: skip
    tensors = {name: torch.ones(shape) for name, shape in shapes.items()}
    bench.given(tensors | {"codes.weight": torch.ones(2, 4, dtype=torch.int8)})
    wrong, line = WRONG[case]
    assert problem(bench, wrong) == line


def test_all_wrong_consumers_are_listed(bench):
    bench.given(
        {"a.weight": torch.ones(4, 3), "b.weight": torch.ones(5, 5), "c.weight": torch.ones(5, 6)}
    )
    lines = problem(bench, step("a", ["b", "c"], rows=1)).splitlines()
    assert [line.split("'")[1] for line in lines] == ["b.weight", "c.weight"]


@pytest.mark.parametrize(
    ("consumers", "line"),
    [
        (3, "steps[0].consumers: 3 is not of type string or array"),
        ([{"block": 2}], "steps[0].consumers[0]: 'target' is missing"),
        ([{"target": "b", "blok": 2}], "steps[0].consumers[0]: 'blok' is unknown; did you mean"),
        ([{"target": "b", "init": "zeroes"}], "steps[0].consumers[0].init: 'zeroes' is unknown"),
        (["(b"], "steps[0].consumers[0]: '(b': '(' without a ')'"),
    ],
)
def test_malformed_consumers_are_schema_errors(bench, consumers, line):
    bench.given({"a.weight": torch.ones(4, 3)})
    assert line in problem(bench, step("a", consumers, rows=1))
