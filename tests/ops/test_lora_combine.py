"""lora_combine: against products and sums written out; peft's own is in tests/acceptance."""

import json

import pytest
import torch
from safetensors.torch import load_file

from surgeon import surgery
from surgeon.base.errors import PlanError
from surgeon.output.execute import Options
from tests.network import write_adapter
from tests.ops.test_lora_merge import factors, normal


def combined(bench, *others, **parameters):
    step = {"op": "lora_combine", "adapters": list(others), **parameters}
    output = bench.folder / "both"
    with surgery.opened(bench.recipe(step), str(bench.folder / "first"), {}) as opened:
        surgery.write(opened, output, Options(), force=True)
    return load_file(output / "adapter_model.safetensors"), json.loads(
        (output / "adapter_config.json").read_text()
    )


def change(tensors, module):
    a, b = (tensors[f"base_model.model.{module}.lora_{part}.weight"] for part in "AB")
    return b.double().flatten(1) @ a.double().flatten(1)


def test_factors_beside_each_other_are_the_sum(bench):
    one, two = factors("q", 5, 7), factors("q", 5, 7, rank=3, seed=8)
    only = factors("k", 4, 7, seed=20)
    write_adapter(bench.folder / "first", {**one, **only}, lora_alpha=6)
    write_adapter(bench.folder / "second", two, r=3, lora_alpha=-3, use_rslora=True)
    made, config = combined(bench, "second", weights=[0.5, 2.0])
    named = [{f"base_model.model.{n}": t for n, t in f.items()} for f in (one, two, only)]
    expected = 0.5 * 3 * change(named[0], "q") + 2 * -3 / 3**0.5 * change(named[1], "q")
    torch.testing.assert_close(change(made, "q"), expected, rtol=1e-5, atol=1e-5)
    expected = 0.5 * 3 * change(named[2], "k")
    torch.testing.assert_close(change(made, "k"), expected, rtol=1e-5, atol=1e-5)
    assert (config["r"], config["rank_pattern"]) in [(5, {"^k": 2}), (2, {"^q": 5})]
    assert config["alpha_pattern"] == config["rank_pattern"]


def test_best_of_a_rank_is_the_truncated_decomposition(bench):
    one, two = factors("q", 6, 7), factors("q", 6, 7, rank=3, seed=8)
    write_adapter(bench.folder / "first", one)
    write_adapter(bench.folder / "second", two, r=3)
    made, _ = combined(bench, "second", weights=[1.0, 1.0], method="svd", rank=2)
    named = [{f"base_model.model.{n}": t for n, t in f.items()} for f in (one, two)]
    total = 2 * change(named[0], "q") + 4 / 3 * change(named[1], "q")
    u, s, v = torch.linalg.svd(total)
    expected = u[:, :2] @ torch.diag(s[:2]) @ v[:2]
    torch.testing.assert_close(change(made, "q"), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("extra", "parameters", "problem"),
    [({}, {"weights": [1.0, 2.0, 3.0]}, "3 weights for 2 adapters"),
     ({}, {"weights": [1, 1], "method": "ties_svd"}, "needs 'density'"),
     ({}, {"weights": [1, 1], "rank": 3}, "'cat' takes no 'rank'"),
     ({"head.weight": normal(2, 2)}, {"weights": [1, 1]}, "replaces 'head.weight' as a whole")],
)  # fmt: skip
def test_what_cannot_be_combined_is_an_error(bench, extra, parameters, problem):
    write_adapter(bench.folder / "first", factors("q", 5, 7))
    write_adapter(bench.folder / "second", {**factors("q", 5, 7), **extra})
    with pytest.raises(Exception, match=problem):
        combined(bench, "second", **parameters)


def test_merges_refuse_adapters(bench):
    for name in ("first", "second"):
        write_adapter(bench.folder / name, factors("q", 5, 7))
    recipe = bench.recipe({"op": "average", "models": ["second"]})
    locations = {"second": str(bench.folder / "second")}
    with (
        pytest.raises(PlanError, match="lora_combine makes one of several"),
        surgery.opened(recipe, str(bench.folder / "first"), locations),
    ):
        pass


@pytest.mark.parametrize("model", [None, "other"])
def test_model_with_an_adapter_is_a_model_of_a_merge(bench, model):
    weights = {"q.weight": normal(5, 7, seed=3)}, {"q.weight": normal(5, 7, seed=4)}
    write_adapter(bench.folder / "adapter", factors("q", 5, 7))
    entry = {"model": model, "adapter": "adapter"} if model else {"adapter": "adapter"}
    bench.given(weights[0], **({"other": weights[1]} if model else {}))
    made = bench.operate({"op": "average", "models": [entry]})
    named = {f"base_model.model.{n}": t for n, t in factors("q", 5, 7).items()}
    adapted = weights[1 if model else 0]["q.weight"].double() + 2 * change(named, "q")
    expected = (weights[0]["q.weight"].double() + adapted) / 2
    torch.testing.assert_close(made["q.weight"].double(), expected, rtol=1e-6, atol=1e-6)


# --- An adapter's own configuration ---------------------------------------------------------------


def operated(bench, *steps, **rest):
    output = bench.folder / "out"
    with surgery.opened(bench.recipe(*steps, **rest), str(bench.folder / "first"), {}) as opened:
        opened.folder_files.check()
        surgery.write(opened, output, Options(), force=True)
    assert not (output / "config.json").exists()
    return json.loads((output / "adapter_config.json").read_text())


RANKS = [
    {"op": "widen", "target": "**.lora_A.weight", "rows": 4, "init": "zeros"},
    {"op": "widen", "target": "**.lora_B.weight", "columns": 4, "init": "zeros"},
]


@pytest.mark.parametrize(("rslora", "alpha"), [(False, 12), (True, 4 * 3**0.5)])
def test_rank_and_alpha_follow_the_factors(bench, rslora, alpha):
    write_adapter(bench.folder / "first", factors("m.q", 5, 7), use_rslora=rslora,
                  target_modules=["q"])  # fmt: skip
    config = operated(bench, *RANKS)
    assert (config["r"], config["target_modules"]) == (6, ["q"])
    assert config["lora_alpha"] == pytest.approx(alpha)


def test_patterns_and_targets_follow_the_modules(bench):
    write_adapter(
        bench.folder / "first", {**factors("m.q", 5, 7), **factors("m.k", 5, 7, rank=3)},
        rank_pattern={"k": 3}, alpha_pattern={"k": 9}, target_modules=["q", "k"],
    )  # fmt: skip
    config = operated(
        bench, {"op": "rename", "from": "**.k.{rest**}", "to": "base_model.model.m.other.{rest}"}
    )
    assert config["rank_pattern"] in ({"^m\\.other": 3}, {"^m\\.q": 2})
    assert config["target_modules"] == ["m.other", "m.q"]
    scaling = {"m.other": 9 / 3, "m.q": 4 / 2}
    for module, expected in scaling.items():
        rank = config["rank_pattern"].get("^" + module.replace(".", "\\."), config["r"])
        alpha = config["alpha_pattern"].get("^" + module.replace(".", "\\."), config["lora_alpha"])
        assert alpha / rank == pytest.approx(expected)


def test_output_config_goes_into_the_adapters_own(bench):
    write_adapter(bench.folder / "first", factors("m.q", 5, 7), target_modules=["q"])
    stated = {"task_type": "CAUSAL_LM", "base_model_name_or_path": "here"}
    config = operated(bench, output={"config": stated})
    assert config.items() >= {**stated, "r": 2, "lora_alpha": 4}.items()
    with pytest.raises(PlanError, match="keeps what it computes"):
        operated(bench, *RANKS, output={"config": {"lora_alpha": 4}})
