"""layers: numbered layers dropped, repeated, reordered, and stacked across models."""

import pytest
import torch

from surgeon.base.errors import PlanError, UsageError
from tests.network import assert_identical


def network(layers, seed=0, dtype=torch.float32, width=3):
    generator = torch.Generator().manual_seed(seed)
    tensors = {"embed.weight": torch.randn(4, width, generator=generator)}
    for index in range(layers):
        for name, shape in (("mlp.up.weight", (2, width)), ("mlp.up.bias", (2,)), ("norm", (1,))):
            values = torch.randn(shape, generator=generator)
            tensors[f"h.{index}.{name}"] = values.to(dtype)
    return {**tensors, "h.final.weight": torch.randn(width, generator=generator)}


HERE, THERE = network(4), network(6, seed=1)


def step(*take, container="h", **rest):
    return {"op": "layers", "container": container, "take": list(take), **rest}


def made_of(*sources):
    """What these layers, (tensors, index) each, make under new numbers."""
    rest = {n: t for n, t in HERE.items() if n.split(".")[1] in ("weight", "final")}
    for number, (tensors, index) in enumerate(sources):
        prefix = f"h.{index}."
        rest |= {f"h.{number}.{name.removeprefix(prefix)}": tensor
                 for name, tensor in tensors.items() if name.startswith(prefix)}  # fmt: skip
    return rest


@pytest.mark.parametrize(
    ("take", "expected"),
    [
        (["0:2"], [0, 1]),
        (["1:"], [1, 2, 3]),
        ([":-1"], [0, 1, 2]),
        (["-2:"], [2, 3]),
        ([":"], [0, 1, 2, 3]),
        (["0:4:2"], [0, 2]),
        (["::3"], [0, 3]),
        (["2"], [2]),
        ([2], [2]),
        ([-1, "-4", "0"], [3, 0, 0]),
        (["0:3", "1:4"], [0, 1, 2, 1, 2, 3]),
        ([{"range": ["3", "0:2", 1]}], [3, 0, 1, 1]),
        ([{"range": ":", "every": 2}], [0, 1, 1, 2, 3, 3]),
    ],
)
def test_result_is_what_was_taken_in_order(bench, take, expected):
    made = bench.given(HERE).operate(step(*take))
    assert_identical(made.tensors, made_of(*((HERE, index) for index in expected)))


def test_layers_of_two_models_are_stacked(bench):
    bench.given(HERE, b=THERE)
    made = bench.operate(step("0:3", {"model": "b", "range": "2:6"}, 0))
    sources = [*((HERE, i) for i in (0, 1, 2)), *((THERE, i) for i in (2, 3, 4, 5)), (HERE, 0)]
    assert_identical(made.tensors, made_of(*sources))


def test_layers_of_a_model_are_kept_as_a_model_and_merged(bench):
    cut = step("2:6", base="b", into="cut")
    made = bench.given(HERE, b=THERE).operate(cut, {"op": "average", "models": ["cut"]}).tensors
    rest = {"embed.weight": THERE["embed.weight"], "h.final.weight": THERE["h.final.weight"]}
    other = {**made_of(*((THERE, i) for i in (2, 3, 4, 5))), **rest}
    for name, tensor in made.items():
        expected = ((HERE[name].double() + other[name].double()) / 2).float()
        assert torch.equal(tensor, expected)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ({"base": "b"}, "'base' is for a result that is kept 'into' a model"),
        ({"base": "b", "into": "b"}, "there is a model 'b' already"),
    ],
)
def test_a_model_of_layers_has_a_name_of_its_own(bench, words, problem):
    bench.given(HERE, b=THERE)
    with pytest.raises(PlanError, match=problem):
        bench.operate(step("0:2", **words))


def test_only_copies_count_as_created(bench):
    made = bench.given(HERE, b=THERE).operate(step(1, 0, 1, {"model": "b", "range": 5}))
    assert made.lineage("h.0.norm") == [{"step": "0", "op": "layers", "from": ["h.1.norm"]}]
    assert made.lineage("h.2.norm") == [
        {"step": "0", "op": "layers", "from": ["h.1.norm"], "new": ["h.2.norm"]}
    ]
    assert made.lineage("h.3.norm") == [
        {"step": "0", "op": "layers", "from": ["b:h.5.norm"], "new": ["h.3.norm"]}
    ]
    assert made.lineage("embed.weight") == []


def test_repeated_layers_are_no_ties(bench):
    made = bench.given(HERE).operate(step("0:4", "0:4"))
    assert made.manifest["ties"] == {}


def test_copies_of_tied_layers_are_tied_to_each_other(bench):
    tensors = {"h.0.w": torch.ones(2), "h.1.v": torch.zeros(2), "h.0.v": torch.zeros(2)}
    bench.given(tensors, {"h.1.w": "h.0.w"})
    made = bench.operate(step("0:2", "0:2"))
    assert made.manifest["ties"] == {"h.1.w": "h.0.w", "h.3.w": "h.2.w"}


def test_zeros_of_tied_tensors_are_tied(bench):
    bench.given({"h.0.a": torch.ones(2)}, {"h.0.b": "h.0.a"})
    made = bench.operate(step(0, {"range": 0, "zero": ["(a|b)"]}))
    assert made.manifest["ties"] == {"h.0.b": "h.0.a", "h.1.b": "h.1.a"}
    assert not made["h.1.b"].any()


@pytest.mark.parametrize(
    ("zero", "names"),
    [
        (["up"], {"mlp.up.weight", "mlp.up.bias"}),
        (["mlp.up.bias"], {"mlp.up.bias"}),
        (["norm", "*ias"], {"norm", "mlp.up.bias"}),
        (["re:.*weight"], {"mlp.up.weight"}),
    ],
)
def test_zeroed_modules_are_zeros_in_that_copy_alone(bench, zero, names):
    made = bench.given(HERE).operate(step("0:4", {"range": "3", "zero": zero})).tensors
    expected = made_of(*((HERE, index) for index in (0, 1, 2, 3, 3)))
    for name in names:
        expected[f"h.4.{name}"] = torch.zeros_like(expected[f"h.4.{name}"])
    assert_identical(made, expected)


def test_every_so_many_layers_a_zeroed_copy_follows(bench):
    bench.given(HERE)
    made = bench.operate(step({"range": ":", "every": 2, "zero": ["up.weight"]}))
    zero = [not made[f"h.{index}.mlp.up.weight"].any() for index in range(6)]
    assert zero == [False, False, True, False, False, True]
    assert made.lineage("h.5.mlp.up.weight")[-1]["init"] == "zeros"
    assert torch.equal(made["h.2.mlp.up.bias"], HERE["h.1.mlp.up.bias"])


def test_containers_of_a_pattern_are_each_rebuilt(bench):
    towers = {f"{t}.h.{i}.w": torch.tensor([i]) for t, n in (("a", 3), ("b", 4)) for i in range(n)}
    made = bench.given(towers).operate(step("-2:", container="{tower}.h")).tensors
    assert {name: int(tensor) for name, tensor in made.items()} == {
        "a.h.0.w": 1, "a.h.1.w": 2, "b.h.0.w": 2, "b.h.1.w": 3
    }  # fmt: skip


def test_layers_may_be_tensors_themselves(bench):
    made = bench.given({f"p.{i}": torch.tensor([i]) for i in range(12)})
    found = made.operate(step("10:12", 2, container="p")).tensors
    assert {name: int(tensor) for name, tensor in found.items()} == {"p.0": 10, "p.1": 11, "p.2": 2}


def test_layers_of_another_dtype_keep_it_and_are_noted(bench):
    bench.given(HERE, b=network(2, dtype=torch.bfloat16))
    made = bench.operate(step(0, {"model": "b", "range": 1}))
    assert made["h.1.norm"].dtype == torch.bfloat16
    note = "'h': layers of model 'b' are BF16, those here F32; each keeps its dtype"
    assert made.notes == [f"layers: {note}"]


def test_unlike_layers_of_one_model_are_no_problem(bench):
    uneven = {"h.0.dense": torch.ones(2), "h.1.router": torch.ones(3), "h.2.router": torch.ones(3)}
    other = {"h.0.router": torch.zeros(3)}
    made = bench.given(uneven, b=other).operate(step(0, 2, {"model": "b", "range": 0})).tensors
    expected = {"h.0.dense": torch.ones(2), "h.1.router": torch.ones(3)}
    assert_identical(made, {**expected, "h.2.router": torch.zeros(3)})


def test_a_model_that_is_a_sequential_has_layers_under_no_name(bench):
    net = torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(4)))
    made = bench.given(net.state_dict()).operate(step("2:4", 0, container=""))
    expected = torch.nn.Sequential(net[2], net[3], net[0])
    assert_identical(made.tensors, expected.state_dict())


@pytest.mark.parametrize(
    ("given", "problems"),
    [
        (step("0:5"), ["'0:5' reaches outside of 'h', whose layers are 0 to 3"]),
        (step(4, "-5"), ["'4' reaches outside of", "'-5' reaches outside of"]),
        (step("2:2"), ["'2:2' holds no layer"]),
        (step("3:1"), ["'3:1' holds no layer"]),
        (step({"model": "c", "range": "0:2"}), ["there is no model 'c'; the models are: 'b', 'd'"]),
        (step({"model": "b", "range": "5:7"}),
         ["'5:7' reaches outside of 'h' of model 'b', whose layers are 0 to 5"]),
        (step({"range": ":", "every": 3}), ["a copy after every 3 of 4 layers leaves a rest"]),
        (step({"range": 0, "zero": ["upp"]}), ["'upp' is nothing in layer 0; did you mean 'up'?"]),
        (step(0, container="k"), ["'k' has no numbered layers in the state; those that have: 'h'"]),
        (step({"model": "d", "range": ":"}),
         ["'mlp.up.weight' is F32 (2, 5) in layer 0 of model 'd', but F32 (2, 3) here",
          "'mlp.up.weight' is F32 (2, 5) in layer 1 of model 'd', but F32 (2, 3) here"]),
    ],
)  # fmt: skip
def test_impossible_layers_say_why(bench, given, problems):
    bench.given(HERE, b=THERE, d=network(2, width=5))
    with pytest.raises(PlanError) as caught:
        bench.plan(given)
    assert len(caught.value.problems) == len(problems)
    for line, problem in zip(caught.value.problems, problems, strict=True):
        assert line.startswith(f"recipe.json: steps[0] (layers): {problem}")


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        ({"h.0.norm": torch.ones(1)}, "layer 0 of model 'b' has no 'mlp.up.bias', which the"),
        ({**network(1), "h.0.gate": torch.ones(1)}, "layer 0 of model 'b' has 'gate', which no"),
        ({"x": torch.ones(1)}, "'h' has no numbered layers in model 'b'; those that have: none"),
        ({"h.1.norm": torch.ones(1)}, "'h' has no layer 0 in model 'b', but a layer 1"),
    ],
)
def test_uneven_models_are_refused(bench, other, problem):
    bench.given(HERE, b=other)
    with pytest.raises(PlanError, match=f"steps\\[0\\] \\(layers\\): {problem}"):
        bench.plan(step({"model": "b", "range": 0}))


def test_gaps_in_the_numbers_are_refused(bench):
    bench.given({name: tensor for name, tensor in HERE.items() if ".1." not in name})
    with pytest.raises(PlanError, match="'h' has no layer 1, but a layer 3"):
        bench.plan(step("0:2"))


def test_problems_of_layers_under_no_name_say_where_they_lie(bench):
    bench.given({"0.weight": torch.ones(1), "2.weight": torch.ones(1), "h.0": torch.ones(1)})
    with pytest.raises(PlanError, match=r"'' \(the top level\) has no layer 1, but a layer 2"):
        bench.plan(step(0, container=""))
    with pytest.raises(PlanError, match=r"those that have: '' \(the top level\), 'h'"):
        bench.plan(step(0, container="net"))


@pytest.mark.parametrize("take", ["a:b", "", "1:2:3:4:", "1.5", {"range": ["0", "x"]}])
def test_what_is_no_range_is_an_invalid_recipe(bench, take):
    with pytest.raises(UsageError, match=r"steps\[0\].take\[0\].*is not an index like 3"):
        bench.recipe(step(take))
