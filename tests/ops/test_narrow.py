"""narrow: rows by index and range, with everything that has one entry per row, and consumers."""

import pytest
import torch
from torch import nn

from surgeon.base.errors import SurgeonError
from tests.manifest.test_optimizer_state import operate
from tests.network import assert_identical


def step(target, **parameters):
    return {"op": "narrow", "target": target, **parameters}


def state(**shapes):
    generator = torch.Generator().manual_seed(0)
    return {
        name.replace("__", "."): torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }


def problem(bench, *steps):
    with pytest.raises(SurgeonError) as caught:
        bench.plan(*steps)
    return str(caught.value).replace("recipe.json: steps[0] (narrow): ", "")


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ({"keep": "0:3"}, [0, 1, 2]),
        ({"keep": [5, "1:3"]}, [5, 1, 2]),
        ({"keep": 2}, [2]),
        ({"drop": "3"}, [0, 1, 2, 4, 5]),
        ({"drop": [0, "4:"]}, [1, 2, 3]),
        ({"drop": 1, "block": 2}, [0, 1, 4, 5]),
        ({"keep": [1], "parts": 3}, [1, 3, 5]),
        ({"drop": [1], "parts": 2}, [0, 2, 3, 5]),
        ({"keep": 0, "parts": 1, "block": 3}, [0, 1, 2]),
    ],
)
def test_rows_that_are_kept_keep_their_bits(bench, words, kept):
    old = state(fc__weight=(6, 4), fc__bias=(6,), other__weight=(6, 6))
    made = bench.given(old).operate(step("fc", **words)).tensors
    expected = {name: old[name][kept] for name in ("fc.weight", "fc.bias")}
    assert_identical(made, {**old, **expected})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_any_dtype_narrows(bench, dtype):
    old = {"fc.weight": (torch.randn(6, 4) * 3).to(dtype)}
    made = bench.given(old).operate(step("fc", drop=[0, 3])).tensors
    assert_identical(made, {"fc.weight": old["fc.weight"].view(6, 4)[[1, 2, 4, 5]]})


def test_consumers_keep_the_same_columns(bench):
    old = state(a__weight=(6, 4), a__bias=(6,), b__weight=(3, 6), b__bias=(3,))
    made = bench.given(old).operate(step("a", keep=[4, "0:2"], consumers="b")).tensors
    kept = [4, 0, 1]
    expected = {"a.weight": old["a.weight"][kept], "a.bias": old["a.bias"][kept],
                "b.weight": old["b.weight"][:, kept], "b.bias": old["b.bias"]}  # fmt: skip
    assert_identical(made, expected)


def test_channels_narrow_with_batch_norm_and_what_is_flattened(bench):
    torch.manual_seed(0)

    def network(width):
        return nn.Sequential(
            nn.Conv2d(2, width, 3), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 1, groups=width), nn.Flatten(), nn.Linear(width * 16, 3),
        ).double().eval()  # fmt: skip

    old, new, inputs = network(5), network(3), torch.randn(2, 2, 6, 6).double()
    nn.init.zeros_(old[3].weight[[1, 3]].detach())
    with torch.no_grad():
        old[3].weight[[1, 3]], old[3].bias[[1, 3]] = 0.0, 0.0
    bench.given(old.state_dict())
    consumers = [{"target": "5", "block": 16}]
    made = bench.operate(step(["0", "1", "3"], drop=[1, 3], consumers=consumers)).tensors
    new.load_state_dict(made)
    torch.testing.assert_close(new(inputs), old(inputs), rtol=0, atol=1e-14)


def test_heads_of_a_fused_projection(bench):
    """Against loops over parts and heads, with outputs in columns as GPT-2 has them."""
    old = state(qkv__weight=(8, 3 * 4 * 2), qkv__bias=(3 * 4 * 2,), out__weight=(4 * 2, 8))
    words = {"drop": [1], "block": 2, "parts": 3, "dim": 1}
    consumers = [{"target": "out", "dim": 0}]
    made = bench.given(old).operate(step("qkv", **words, consumers=consumers)).tensors
    columns = [(part * 4 + head) * 2 + i for part in range(3) for head in (0, 2, 3) for i in (0, 1)]
    rows = [head * 2 + i for head in (0, 2, 3) for i in (0, 1)]
    expected = {"qkv.weight": old["qkv.weight"][:, columns], "qkv.bias": old["qkv.bias"][columns],
                "out.weight": old["out.weight"][rows]}  # fmt: skip
    assert_identical(made, expected)


def test_heads_that_each_have_their_own_q_k_and_v(bench):
    old = state(qkv__weight=(4 * 3 * 2, 8), out__weight=(8, 4 * 2))
    consumers = [{"target": "out", "block": 2}]
    made = bench.given(old).operate(step("qkv", drop=1, block=6, consumers=consumers)).tensors
    expected = {
        "qkv.weight": torch.cat([old["qkv.weight"][:6], old["qkv.weight"][12:]]),
        "out.weight": torch.cat([old["out.weight"][:, :2], old["out.weight"][:, 4:]], 1),
    }
    assert_identical(made, expected)


def test_gated_layers_keep_the_same_of_both_halves(bench):
    old = state(up__weight=(2 * 4, 3), down__weight=(3, 4))
    made = bench.given(old).operate(step("up", drop=0, parts=2, consumers="down")).tensors
    expected = {"up.weight": old["up.weight"][[1, 2, 3, 5, 6, 7]],
                "down.weight": old["down.weight"][:, 1:]}  # fmt: skip
    assert_identical(made, expected)


def test_wildcards_narrow_every_layer(bench):
    shapes = {f"h__{i}__{n}__weight": shape for i in range(3) for n, shape in
              {"up": (4, 2), "down": (2, 4)}.items()}  # fmt: skip
    made = bench.given(state(**shapes)).operate(step("h.*.up", drop=0, consumers="h.*.down"))
    assert {tuple(t.shape) for t in made.tensors.values()} == {(3, 2), (2, 3)}


def test_tied_names_narrow_together(bench):
    old = state(embed__weight=(5, 4), head__bias=(5,))
    bench.given(old, {"head.weight": "embed.weight"})
    made = bench.operate(step("embed", drop=[0]))
    expected = {"embed.weight": old["embed.weight"][1:], "head.weight": old["embed.weight"][1:],
                "head.bias": old["head.bias"][1:]}  # fmt: skip
    assert_identical(made.tensors, expected)
    assert made.manifest["ties"] == {"head.weight": "embed.weight"}


def test_a_tensor_named_by_itself_narrows_alone(bench):
    old = state(fc__weight=(6, 4), fc__bias=(6,))
    made = bench.given(old).operate(step("fc.weight", keep="1:3", dim=1)).tensors
    assert_identical(made, {"fc.weight": old["fc.weight"][:, 1:3], "fc.bias": old["fc.bias"]})


def test_nothing_of_it_is_new(bench):
    old = state(a__weight=(6, 4), b__weight=(3, 6))
    made = bench.given(old).operate(step("a", drop=0, consumers="b"))
    assert made.lineage("a.weight") == made.lineage("b.weight") == [{"step": "0", "op": "narrow"}]


def test_optimizer_state_follows(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model.named_parameters())
    model(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    made = operate(tmp_path, saved, step("0", keep=[3, 1], consumers="2"))
    rows, columns = (optimizer.state[model[i].weight]["exp_avg"] for i in (0, 2))
    assert torch.equal(made.tensors["0.weight/exp_avg"], rows[[3, 1]])
    assert torch.equal(made.tensors["2.weight/exp_avg"], columns[:, [3, 1]])
    assert made.blocks == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_narrowed_rows_that_were_added_stay_new(bench):
    bench.given(state(fc__weight=(3, 2)))
    grow = {"op": "widen", "target": "fc", "rows": 3}
    stage = {"name": "s", "train": ["@new"], "groups": [{"name": "new", "params": ["@new"]}]}
    made = bench.operate(grow, step("fc", keep="2:5"), training={"stages": [stage]})
    assert made.manifest["stages"][0]["groups"][0]["params"] == ["fc.weight[1:3]"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ({"keep": 6}, "'a': 6 is not among the entries, which are 0 to 5"),
        ({"drop": ":"}, "'a': all 6 would be dropped"),
        ({"keep": 0, "block": 4}, "'a' has 6 outputs, not a multiple of 4"),
        ({"keep": 0, "block": 2, "parts": 2}, "'a' has 6 outputs, not a multiple of 2 x 2"),
        ({"keep": 0, "block": 2, "consumers": "b"},
         "consumer 'b.weight' is F32 (2, 5), but dimension 1 should have 3 x 2 = 6 entries"),
        ({"keep": 0, "consumers": [{"target": "c", "dim": 1}]},
         "consumer 'c.weight' is F32 (6, 2), but dimension 1 should have 6 entries; "
         "say \"dim\": 0 if its inputs lie there"),
        ({"keep": "x"}, "recipe.json: steps[0].keep: 'x' is not an index"),
        ({"keep": []}, "recipe.json: steps[0].keep: [] should be non-empty"),
        ({"keep": 0, "drop": 1}, "recipe.json: steps[0]: give exactly one of 'keep', 'drop'"),
    ],
)  # fmt: skip
def test_impossible_narrowing_says_why(bench, words, line):
    bench.given(state(a__weight=(6, 4), b__weight=(2, 5), c__weight=(6, 2)))
    assert problem(bench, step("a", **words)).startswith(line)


def test_all_layers_that_cannot_narrow_are_listed(bench):
    bench.given(state(a__weight=(6, 4), b__weight=(2, 5)))
    lines = problem(bench, step(["a", "b"], drop="7")).splitlines()
    assert [line[:4] for line in lines] == ["'a':", "'b':"]


def test_a_scalar_has_no_rows(bench):
    bench.given({"t": torch.tensor(1.0)})
    assert problem(bench, step("t", keep=0)) == "'t' has no rows: it is F32 ()"
