"""The training section, resolved: every element of every parameter in one place, in every stage."""

import pytest
import torch

from surgeon.base.errors import PlanError, UsageError
from surgeon.base.regions import count, intersection, parsed, split_block, whole

NET = {
    "blocks.0.weight": torch.zeros(4, 4),
    "blocks.0.bias": torch.zeros(4),
    "blocks.1.weight": torch.zeros(4, 4),
    "blocks.1.bias": torch.zeros(4),
    "blocks.2.weight": torch.zeros(4, 4),
    "bn.weight": torch.zeros(4),
    "bn.bias": torch.zeros(4),
    "bn.running_mean": torch.zeros(4),
    "bn.running_var": torch.ones(4),
    "bn.num_batches_tracked": torch.tensor(0),
    "embed.weight": torch.zeros(6, 4),
    "fc.weight": torch.zeros(7, 4),
    "fc.bias": torch.zeros(7),
    "ids": torch.arange(3),
}
PARAMETERS = [n for n, t in NET.items() if t.is_floating_point() and "running" not in n]
GROW = {"op": "widen", "target": "fc", "rows": 1}
SGD = {"class": "torch.optim.SGD", "args": {"lr": 0.1}}


def stages_of(bench, *stages, steps=(GROW,), ties=None, **section):
    """Operate on the example and return the manifest's stages."""
    bench.given(NET, ties)
    training = {"optimizer": SGD, **section} | ({"stages": list(stages)} if stages else {})
    return bench.operate(*steps, training=training).manifest["stages"]


def stage_of(bench, steps=(GROW,), ties=None, **stage):
    return stages_of(bench, {"name": "s", **stage}, steps=steps, ties=ties)[0]


def problems_of(bench, steps=(GROW,), ties=None, **stage):
    with pytest.raises(PlanError) as caught:
        stage_of(bench, steps=steps, ties=ties, **stage)
    place = "recipe.json: training: stage 's': "
    assert all(line.startswith(place) for line in caught.value.problems)
    return [line.removeprefix(place) for line in caught.value.problems]


def groups(stage):
    return {group["name"]: group["params"] for group in stage["groups"]}


def assert_exact_cover(manifest_stage, shapes):
    """Every element of every parameter exactly once, counted here once more."""
    listed = [p for group in manifest_stage["groups"] for p in group["params"]]
    seen = {name: [] for name in shapes}
    for entry in [*listed, *manifest_stage["frozen"]]:
        name, slices = split_block(entry)
        seen[name].append(parsed(slices, shapes[name]))
    for name, regions in seen.items():
        assert sum(map(count, regions)) == count(whole(shapes[name])), name
        pairs = [(a, b) for i, a in enumerate(regions) for b in regions[:i]]
        assert not any(intersection(a, b) for a, b in pairs), name


# --- train, freeze, default -----------------------------------------------------------------------


def test_recipe_without_training_trains_everything(bench):
    made = bench.given(NET).operate(GROW).manifest
    (stage,) = made["stages"]
    assert stage["groups"] == [{"name": "default", "params": stage["groups"][0]["params"]}]
    assert sorted(stage["groups"][0]["params"]) == sorted(PARAMETERS)
    assert stage["frozen"] == []
    assert "optimizer" not in made


def test_checkpoint_without_parameters_has_nothing_to_train(bench):
    made = bench.given({"ids": torch.arange(3)}).operate().manifest
    assert made["stages"][0]["groups"] == []


@pytest.mark.parametrize(
    "stage",
    [
        {"train": ["@new"]},
        {"train": ["fc"]},
        {"train": ["fc", "!@new"]},
        {"train": ["fc.weight[2:5]", "blocks.1"]},
        {"train": "fc.weight[:,1:3]"},
        {"freeze": ["@new"]},
        {"freeze": ["fc.weight[2:5,1:3]", "bn"]},
        {"freeze": ["**", "!fc"]},
        {"freeze": []},
        {"groups": [{"name": "a", "params": ["fc.weight[0:7]"]}]},
        {"train": ["fc", "bn"], "groups": [{"name": "a", "params": ["@new"], "lr": 1}]},
        {"layer_decay": {"container": "blocks", "factor": 0.5}},
    ],
)
def test_every_element_is_in_one_place(bench, stage):
    shapes = {name: tuple(NET[name].shape) for name in PARAMETERS}
    shapes |= {"fc.weight": (8, 4), "fc.bias": (8,)}
    assert_exact_cover(stage_of(bench, **stage), shapes)


def test_new_rows_are_trained_alone(bench):
    stage = stage_of(bench, train=["@new"])
    assert set(groups(stage)["default"]) == {"fc.bias[7:8]", "fc.weight[7:8]"}
    assert {"fc.bias[0:7]", "fc.weight[0:7]", "embed.weight"} <= set(stage["frozen"])


def test_new_columns_are_trained_alone(bench):
    steps = [{"op": "widen", "target": "blocks.0.weight", "columns": 2}]
    stage = stage_of(bench, steps=steps, train=["@new"])
    assert groups(stage)["default"] == ["blocks.0.weight[:,4:6]"]
    assert "blocks.0.weight[:,0:4]" in stage["frozen"]


def test_what_no_group_names_joins_the_default(bench):
    stage = stage_of(
        bench, train=["fc", "bn"], groups=[{"name": "norm", "params": ["bn"], "lr_scale": 2}]
    )
    assert {name: sorted(params) for name, params in groups(stage).items()} == {
        "norm": ["bn.bias", "bn.weight"],
        "default": ["fc.bias", "fc.weight"],
    }


def test_freezing_the_rest_of_a_layer_leaves_a_block(bench):
    stage = stage_of(bench, freeze=["**", "!fc.weight[7:8]"])
    assert groups(stage) == {"default": ["fc.weight[7:8]"]}
    assert "fc.weight[0:7]" in stage["frozen"]


def test_buffers_and_statistics_are_neither_trained_nor_frozen(bench):
    stage = stage_of(bench, freeze=["bn"])
    listed = [*stage["frozen"], *groups(stage)["default"]]
    assert not [name for name in listed if "running" in name or name in ("ids",)]
    assert not [name for name in listed if "num_batches" in name]


# --- Settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"lr": 0.1}),
        ({"lr": 0.5}, {"lr": 0.5}),
        ({"lr_scale": 5}, {"lr": 0.5}),
        ({"weight_decay": 0}, {"lr": 0.1, "weight_decay": 0}),
        ({"lr": 1, "dampening": 0.5, "foreach": False},
         {"lr": 1, "dampening": 0.5, "foreach": False}),
    ],
)  # fmt: skip
def test_settings_of_a_group_reach_the_manifest(bench, settings, expected):
    stage = stage_of(bench, groups=[{"name": "g", "params": ["fc.bias"], **settings}])
    assert stage["groups"][0] == {"name": "g", "params": ["fc.bias"], **expected}


def test_no_weight_decay_for_vectors_is_one_line(bench):
    stage = stage_of(bench, groups=[{"name": "v", "params": ["@vectors"], "weight_decay": 0}])
    expected = [name for name in PARAMETERS if NET[name].dim() <= 1]
    assert sorted(groups(stage)["v"]) == sorted(expected)
    assert stage["groups"][0]["weight_decay"] == 0


def test_layer_decay_scales_by_depth(bench):
    stage = stage_of(bench, layer_decay={"container": "blocks", "factor": 0.5})
    rates = {name: group["lr"] for group in stage["groups"] for name in group["params"]}
    assert rates == {
        "embed.weight": 0.1 / 16,
        "blocks.0.weight": 0.1 / 8,
        "blocks.0.bias": 0.1 / 8,
        "blocks.1.weight": 0.1 / 4,
        "blocks.1.bias": 0.1 / 4,
        "blocks.2.weight": 0.1 / 2,
        "bn.weight": 0.1,
        "bn.bias": 0.1,
        "fc.weight": 0.1,
        "fc.bias": 0.1,
    }


def test_layer_decay_counts_layers_and_not_their_numbers(bench):
    # Sequential(Linear, ReLU, Linear, BatchNorm(affine=False), Linear)
    names = [f"net.{number}.weight" for number in (0, 2, 10)]
    bench.given({"net.3.running_mean": torch.zeros(1), **{n: torch.zeros(1) for n in names}})
    stage = {"name": "s", "layer_decay": {"container": "net", "factor": 0.5}}
    made = bench.operate(training={"optimizer": SGD, "stages": [stage]}).manifest
    found = {tuple(group["params"]): group["lr"] for group in made["stages"][0]["groups"]}
    assert found == {(names[0],): 0.1 / 8, (names[1],): 0.1 / 4, (names[2],): 0.1 / 2}


def test_layer_decay_of_a_sequential_names_no_container(bench):
    bench.given(torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(3))).state_dict())
    stage = {"name": "s", "layer_decay": {"container": "", "factor": 0.5}}
    made = bench.operate(training={"optimizer": SGD, "stages": [stage]}).manifest
    rates = {name: g["lr"] for g in made["stages"][0]["groups"] for name in g["params"]}
    expected = {"2": 0.1 / 2, "1": 0.1 / 4, "0": 0.1 / 8}
    assert rates == {f"{i}.{part}": expected[i] for i in "012" for part in ("weight", "bias")}


def test_layer_decay_counts_what_the_steps_have_left(bench):
    steps = [{"op": "delete", "target": "blocks.1"}]
    stage = stage_of(bench, steps=steps, layer_decay={"container": "blocks", "factor": 0.5})
    rates = {name: group["lr"] for group in stage["groups"] for name in group["params"]}
    assert (rates["blocks.0.weight"], rates["blocks.2.weight"]) == (0.1 / 4, 0.1 / 2)


def test_layer_decay_of_a_group_is_its_own(bench):
    decay = {"container": "blocks", "factor": 0.1}
    stage = stage_of(
        bench, groups=[{"name": "b", "params": ["blocks.1"], "lr": 1, "layer_decay": decay}]
    )
    decayed = stage["groups"][0]
    assert decayed["lr"] == pytest.approx(0.01)
    assert stage["groups"][-1]["lr"] == 0.1


def test_scheduler_and_duration_are_passed_on(bench):
    scheduler = {"class": "torch.optim.lr_scheduler.StepLR", "args": {"step_size": 3}}
    stage = stage_of(bench, scheduler=scheduler, duration={"epochs": 5})
    assert stage["scheduler"] == scheduler
    assert stage["duration"] == {"epochs": 5}


def test_state_that_is_carried_must_be_there(bench):
    with pytest.raises(
        PlanError, match="stage 's' carries an optimizer's state, and there is none"
    ):
        stage_of(bench, optimizer_state="carry")


def test_optimizer_state_is_reset_by_default(bench):
    assert stage_of(bench)["optimizer_state"] == "reset"


# --- Gradual unfreezing ---------------------------------------------------------------------------


def test_unfreeze_trains_one_entry_more_in_each_stage(bench):
    order = {"order": ["fc", ["blocks.2", "blocks.1"]], "duration": {"epochs": 2}}
    stages = stages_of(bench, unfreeze=order)
    assert [stage["name"] for stage in stages] == ["unfreeze fc", "unfreeze blocks.2, blocks.1"]
    assert [sum(len(params) for params in groups(stage).values()) for stage in stages] == [2, 5]
    assert all(stage["duration"] == {"epochs": 2} for stage in stages)


def test_unfreeze_decays_the_rates_of_deeper_entries(bench):
    order = {"order": ["fc", "blocks.2", "blocks.1"], "lr_decay": 0.5}
    last = stages_of(bench, unfreeze=order)[-1]
    rates = {group["name"]: group["lr"] for group in last["groups"]}
    assert rates == {"fc": 0.1, "blocks.2": 0.05, "blocks.1": 0.025}


def test_stages_come_after_unfreezing(bench):
    stages = stages_of(bench, {"name": "joint"}, unfreeze={"order": ["fc"]})
    assert [stage["name"] for stage in stages] == ["unfreeze fc", "joint"]


# --- Modules in eval mode -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "modules"),
    [
        ({"train": ["fc"]}, ["bn"]),
        ({"freeze": ["bn"]}, ["bn"]),
        ({"freeze": ["bn.weight"]}, []),
        ({"freeze": ["fc"]}, []),
        ({}, []),
    ],
)
def test_frozen_normalisation_is_in_eval_mode(bench, stage, modules):
    assert stage_of(bench, **stage)["eval_modules"] == modules


def test_partly_frozen_normalisation_is_not_in_eval_mode(bench):
    steps = [{"op": "widen", "target": "bn", "rows": 1}]
    assert stage_of(bench, steps=steps, train=["@new"])["eval_modules"] == []


# Without an affine transformation, running statistics are all that a normalisation layer has.
PLAIN = {
    "encoder.0.weight": torch.zeros(4, 4),
    "encoder.1.running_mean": torch.zeros(4),
    "encoder.1.running_var": torch.ones(4),
    "norm.running_mean": torch.zeros(4),
    "norm.running_var": torch.ones(4),
    "fc.weight": torch.zeros(7, 4),
}


@pytest.mark.parametrize(
    ("stage", "modules"),
    [
        ({"freeze": ["encoder"]}, ["encoder.1"]),
        ({"freeze": ["encoder.0"]}, []),
        ({"freeze": ["norm"]}, ["norm"]),
        ({"freeze": ["**", "!fc"]}, ["encoder.1", "norm"]),
        ({"train": ["fc"]}, ["encoder.1", "norm"]),
        ({"train": ["fc.weight[0:2]"]}, ["encoder.1", "norm"]),
        ({"train": ["fc", "norm"]}, ["encoder.1"]),
        ({"train": ["**"]}, []),
        ({}, []),
    ],
)
def test_normalisation_without_parameters_is_frozen_as_statistics(bench, stage, modules):
    made = bench.given(PLAIN).operate(training={"stages": [{"name": "s", **stage}]}).manifest
    (found,) = made["stages"]
    assert found["eval_modules"] == modules
    assert_exact_cover(found, {"encoder.0.weight": (4, 4), "fc.weight": (7, 4)})


@pytest.mark.parametrize("step", [{"op": "widen", "target": "norm", "rows": 1},
                                  {"op": "copy", "from": "norm", "to": "new"}])  # fmt: skip
def test_new_normalisation_without_parameters_moves(bench, step):
    steps = [step, {"op": "widen", "target": "fc", "rows": 1}]
    bench.given(PLAIN)
    made = bench.operate(*steps, training={"stages": [{"name": "s", "train": ["@new"]}]}).manifest
    old = ["norm"] if step["op"] == "copy" else []
    assert made["stages"][0]["eval_modules"] == ["encoder.1", *old]


@pytest.mark.parametrize(
    ("stage", "problem"),
    [
        ({"train": ["norm"]}, "nothing is left to train"),
        ({"groups": [{"name": "g", "params": ["norm"]}]}, "group 'g': no tensor matches 'norm'"),
    ],
)
def test_statistics_alone_cannot_be_trained(bench, stage, problem):
    bench.given(PLAIN)
    with pytest.raises(PlanError, match=problem):
        bench.plan(training={"stages": [{"name": "s", **stage}]})


# --- Ties -----------------------------------------------------------------------------------------

TIES = {"head.weight": "embed.weight"}


@pytest.mark.parametrize("name", ["head", "embed", "head.weight"])
def test_tied_tensor_is_listed_once_under_its_owner(bench, name):
    stage = stage_of(bench, ties=TIES, train=[name])
    assert groups(stage) == {"default": ["embed.weight"]}
    assert not [entry for entry in stage["frozen"] if entry.startswith("head")]


def test_tied_tensor_in_two_groups_names_the_alias(bench):
    found = [{"name": "a", "params": ["embed"]}, {"name": "b", "params": ["head"]}]
    assert problems_of(bench, ties=TIES, groups=found) == [
        "group 'b': 'embed.weight' (tied to 'head.weight') is in group 'a' too"
    ]


# --- What cannot be -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ({"train": ["fcc"]}, ["no tensor matches 'fcc'; did you mean 'fc'?"]),
        ({"freeze": ["fcc", "x.y"]},
         ["no tensor matches 'fcc'; did you mean 'fc'?", "no tensor matches 'x.y'"]),
        ({"train": ["fc.weight[8:9]"]},
         ["'fc.weight[8:9]': [8:9] is empty or outside of dimension 0, which has 8 entries"]),
        ({"train": ["fc.weight[3:3]"]},
         ["'fc.weight[3:3]': [3:3] is empty or outside of dimension 0, which has 8 entries"]),
        ({"train": ["fc.bias[0:1,0:1]"]},
         ["'fc.bias[0:1,0:1]': 2 slices for a tensor of shape (8,)"]),
        ({"train": ["fc.bias[a:b]"]},
         ["no tensor matches 'fc.bias[a:b]'; did you mean 'fc.bias'?"]),
        ({"freeze": ["**"]}, ["nothing is left to train"]),
        ({"train": ["fc", "!fc"]}, ["nothing is left to train"]),
        ({"train": ["fc"], "groups": [{"name": "g", "params": ["bn.bias"]}]},
         ["group 'g': 'bn.bias' is frozen in this stage"]),
        ({"train": ["@new"], "groups": [{"name": "g", "params": ["fc.bias"]}]},
         ["group 'g': 'fc.bias[0:7]' is frozen in this stage"]),
        ({"groups": [{"name": "a", "params": ["fc"]}, {"name": "b", "params": ["fc.bias"]}]},
         ["group 'b': 'fc.bias' is in group 'a' too"]),
        ({"groups": [{"name": "a", "params": ["fc.bias[0:5]"]},
                     {"name": "b", "params": ["fc.bias[3:8]"]}]},
         ["group 'b': 'fc.bias[3:5]' is in group 'a' too"]),
        ({"groups": [{"name": "a", "params": ["fc"]}, {"name": "a", "params": ["bn"]}]},
         ["group 'a': there are two groups of this name"]),
        ({"groups": [{"name": "a", "params": ["fc", "!fc"]}]}, ["group 'a': is empty"]),
        ({"groups": [{"name": "default", "params": ["fc"]}]},
         ["group 'default': is the name of the group of everything else"]),
        ({"groups": [{"name": "a", "params": ["ids"]}]}, ["group 'a': no tensor matches 'ids'"]),
        ({"groups": [{"name": "a", "params": ["fc"], "lr": 0}]},
         ["group 'a': a learning rate of 0 still moves statistics; freeze it instead"]),
        ({"groups": [{"name": "a", "params": ["fc"], "lr_scale": 0}]},
         ["group 'a': a learning rate of 0 still moves statistics; freeze it instead"]),
        ({"layer_decay": {"container": "layers", "factor": 0.5}},
         ["group 'default': layer_decay: 'layers' has no numbered layers; those that have: "
          "'blocks'"]),
    ],
)  # fmt: skip
def test_contradiction_is_an_error_that_names_it(bench, stage, expected):
    assert problems_of(bench, **stage) == expected


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({"optimizer": {"class": "torch.optim.SGD", "args": {"lr": ["x"]}}},
         'training.optimizer.args.lr: ["x"] is not of type number or null'),
        ({"optimizer": {"class": "torch.optim.SGD", "args": {"weight_decay": -1}}},
         "training.optimizer.args.weight_decay: -1 is less than the minimum of 0"),
        ({"stages": [{"name": "s", "groups": [
            {"name": "g", "params": ["fc"], "weight_decay": "1"}]}]},
         'training.stages[0].groups[0].weight_decay: "1" is not of type number or null'),
    ],
)  # fmt: skip
def test_rates_are_numbers(bench, section, problem):
    with pytest.raises(UsageError) as caught:
        bench.plan(training=section)
    assert problem in str(caught.value)


def test_rates_are_finite(bench):
    bench.given(NET)
    optimizer = {"class": "torch.optim.SGD", "args": {"lr": 10}}
    group = {"name": "a", "params": ["fc"], "lr_scale": 1e308}
    with pytest.raises(PlanError, match="group 'a': a learning rate beyond the largest number"):
        bench.plan(training={"optimizer": optimizer, "stages": [{"name": "s", "groups": [group]}]})


def test_new_rows_that_there_are_not(bench):
    found = problems_of(bench, steps=(), train=["@new"])
    assert found == ["'@new' matches nothing: this recipe has created nothing"]


def test_all_contradictions_of_all_stages_are_listed(bench):
    with pytest.raises(PlanError) as caught:
        stages_of(bench, {"name": "a", "train": ["x"]}, {"name": "b", "freeze": ["y"]},
                  {"name": "a"})  # fmt: skip
    assert [line.partition("training: ")[2] for line in caught.value.problems] == [
        "stage 'a': no tensor matches 'x'",
        "stage 'b': no tensor matches 'y'",
        "stage 'a': there are two stages of this name",
    ]


@pytest.mark.parametrize(
    "settings", [{"lr_scale": 2}, {"layer_decay": {"container": "blocks", "factor": 0.5}}]
)
def test_scaled_rate_without_a_rate_is_an_error(bench, settings):
    bench.given(NET)
    group = {"name": "g", "params": ["fc"], **settings}
    training = {"stages": [{"name": "s", "groups": [group]}]}
    with pytest.raises(PlanError, match=r"group 'g': .* needs an lr"):
        bench.plan(training=training)
