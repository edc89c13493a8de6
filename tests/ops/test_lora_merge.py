"""lora_merge: against sums written out in float64; peft's own merge is in tests/acceptance."""

import math
import os
import subprocess
import sys

import pytest
import torch

from surgeon.base.errors import CheckpointError, PlanError
from tests.network import assert_identical, correctly_rounded, write_adapter


def step(adapter="adapter", **parameters):
    return {"op": "lora_merge", "adapter": adapter, **parameters}


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def factors(module, rows, *inputs, rank=2, seed=1, dtype=torch.float32):
    ones = (1,) * (len(inputs) - 1)
    return {
        f"{module}.lora_A.weight": normal(rank, *inputs, seed=seed, dtype=dtype),
        f"{module}.lora_B.weight": normal(rows, rank, *ones, seed=seed + 1, dtype=dtype),
    }


def naive(weight, a, b, scaling):
    """W + scaling B A, one term after the other."""
    total = weight.double().clone()
    a, b = a.double(), b.double().flatten(1)
    for rank in range(len(a)):
        for row in range(len(b)):
            total[row] += scaling * b[row, rank] * a[rank]
    return total


def merged(old, adapter, module, scaling):
    a, b = (adapter[f"{module}.lora_{part}.weight"] for part in "AB")
    weight = old[f"{module}.weight"]
    return correctly_rounded(naive(weight, a, b, scaling), weight.dtype)


def problems(bench, *steps):
    with pytest.raises(PlanError) as raised:
        bench.plan(*(steps or [step()]))
    return [line.split(": ", 2)[2] for line in raised.value.problems]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("adapter_dtype", [torch.float32, torch.bfloat16])
def test_linear_weights_are_correctly_rounded(bench, dtype, adapter_dtype):
    old = {"q.weight": normal(40, 30, dtype=dtype), "q.bias": normal(40), "k.weight": normal(3, 3)}
    adapter = factors("q", 40, 30, dtype=adapter_dtype)
    write_adapter(bench.folder / "adapter", adapter)
    made = bench.given(old).operate(step()).tensors
    assert_identical(made, {**old, "q.weight": merged(old, adapter, "q", 4 / 2)})


@pytest.mark.parametrize("shape", [(300, 301), (3, 70000), (70000, 3)])
def test_weights_of_many_blocks_are_close_to_the_exact_sum(bench, shape):
    old = {"q.weight": normal(*shape, dtype=torch.float64)}
    adapter = factors("q", *shape, rank=3, dtype=torch.float64)
    write_adapter(bench.folder / "adapter", adapter, r=3)
    made = bench.given(old).operate(step())["q.weight"]
    expected = old["q.weight"] + 4 / 3 * (adapter["q.lora_B.weight"] @ adapter["q.lora_A.weight"])
    torch.testing.assert_close(made, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    ("config", "scaling"),
    [
        ({"lora_alpha": 16}, 8),
        ({"lora_alpha": 16, "use_rslora": True}, 16 / math.sqrt(2)),
        ({"r": 64, "rank_pattern": {"q": 2}}, 2),
        ({"r": 64, "rank_pattern": {"layers.0.q": 64, "layers.*.q": 2}}, 2),
        ({"alpha_pattern": {"layers.1.q": 10, "other": 3}}, 5),
    ],
)
def test_scaling_is_what_the_configuration_says(bench, config, scaling):
    old = {"layers.1.q.weight": normal(6, 5)}
    adapter = factors("layers.1.q", 6, 5)
    write_adapter(bench.folder / "adapter", adapter, **config)
    made = bench.given(old).operate(step())
    expected = merged(old, adapter, "layers.1.q", scaling)
    assert_identical(made.tensors, {"layers.1.q.weight": expected})


@pytest.mark.parametrize("flag", [False, True])
def test_shape_says_whether_a_weight_is_transposed(bench, flag):
    old = {"c.weight": normal(5, 6)}  # as Conv1D keeps it: inputs, outputs
    adapter = factors("c", 6, 5)
    write_adapter(bench.folder / "adapter", adapter, fan_in_fan_out=flag)
    made = bench.given(old).operate(step())["c.weight"]
    a, b = adapter.values()
    assert_identical({"": made}, {"": naive(old["c.weight"].T, a, b, 2).float().T})


@pytest.mark.parametrize("flag", [False, True])
def test_configuration_says_whether_a_square_weight_is_transposed(bench, flag):
    old = {"c.weight": normal(5, 5)}
    adapter = factors("c", 5, 5)
    write_adapter(bench.folder / "adapter", adapter, fan_in_fan_out=flag)
    made = bench.given(old).operate(step())["c.weight"]
    weight = old["c.weight"].T if flag else old["c.weight"]
    expected = naive(weight, *adapter.values(), 2).float()
    assert_identical({"": made}, {"": expected.T if flag else expected})


def test_square_weight_beside_one_that_contradicts_the_flag_is_an_error(bench):
    old = {"c.weight": normal(5, 5), "d.weight": normal(5, 6)}
    write_adapter(bench.folder / "adapter", {**factors("c", 5, 5), **factors("d", 6, 5)})
    assert problems(bench.given(old)) == [
        "adapter: 'c' is square, and fan_in_fan_out is false although it is not so for 'd'; say it "
        'for the square ones: "config": {"fan_in_fan_out": ...}'
    ]
    made = bench.operate(step({"adapter": "adapter", "config": {"fan_in_fan_out": True}}))
    expected = naive(old["c.weight"].T, *factors("c", 5, 5).values(), 2).float().T
    assert_identical({"": made["c.weight"]}, {"": expected})


def test_embeddings_are_transposed_even_if_square(bench):
    old = {"embed.weight": normal(5, 5)}
    adapter = {"embed.lora_embedding_A": normal(2, 5), "embed.lora_embedding_B": normal(5, 2)}
    write_adapter(bench.folder / "adapter", adapter)
    made = bench.given(old).operate(step())["embed.weight"]
    expected = naive(old["embed.weight"].T, *adapter.values(), 2).float().T
    assert_identical({"": made}, {"": expected})


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 3), (3,)])
def test_convolutions(bench, kernel):
    old = {"c.weight": normal(6, 4, *kernel)}
    adapter = factors("c", 6, 4, *kernel)
    write_adapter(bench.folder / "adapter", adapter)
    made = bench.given(old).operate(step())
    assert_identical(made.tensors, {"c.weight": merged(old, adapter, "c", 2)})


def test_trained_biases_and_modules_replace_the_states(bench):
    old = {"q.weight": normal(4, 4), "q.bias": normal(4), "head.weight": normal(2, 4).half(),
           "norm.count": torch.tensor(3)}  # fmt: skip
    adapter = {
        "q.base_layer.bias": normal(4, seed=5),
        "head.modules_to_save.weight": normal(2, 4, seed=6),
        "head.original_module.weight": normal(2, 4, seed=7),
        "norm.count": torch.tensor(8),
    }
    write_adapter(bench.folder / "adapter", adapter)
    made = bench.given(old).operate(step()).tensors
    expected = {"q.bias": normal(4, seed=5), "head.weight": normal(2, 4, seed=6).half(),
                "norm.count": torch.tensor(8)}  # fmt: skip
    assert_identical(made, {**old, **expected})


def test_bias_of_b_is_scaled_too(bench):
    old = {"q.weight": normal(4, 4), "q.bias": normal(4)}
    adapter = {**factors("q", 4, 4), "q.lora_B.bias": normal(4, seed=5)}
    write_adapter(bench.folder / "adapter", adapter, lora_bias=True)
    made = bench.given(old).operate(step()).tensors
    bias = (old["q.bias"].double() + 2 * adapter["q.lora_B.bias"].double()).float()
    assert_identical(made, {"q.weight": merged(old, adapter, "q", 2), "q.bias": bias})


def test_several_adapters_are_added_with_their_weights(bench):
    old = {"q.weight": normal(4, 6, dtype=torch.bfloat16)}
    one, two = factors("q", 4, 6), factors("q", 4, 6, rank=3, seed=5)
    write_adapter(bench.folder / "one", one)
    write_adapter(bench.folder / "two", two, r=3)
    made = bench.given(old).operate(
        step(["one", {"adapter": "two", "weight": -0.5, "config": {"lora_alpha": 9}}])
    )
    expected = naive(naive(old["q.weight"], *one.values(), 2), *two.values(), -1.5)
    expected = correctly_rounded(expected, torch.bfloat16)
    assert_identical(made.tensors, {"q.weight": expected})


def test_tied_weights_get_what_both_names_get(bench):
    old = {"embed.weight": normal(5, 4)}
    bench.given(old, {"head.weight": "embed.weight"})
    adapter = {"embed.lora_embedding_A": normal(2, 5), "embed.lora_embedding_B": normal(4, 2)}
    head = factors("head", 5, 4)
    write_adapter(bench.folder / "adapter", {**adapter, **head})
    made = bench.operate(step())
    once = naive(old["embed.weight"].T, *adapter.values(), 2).T
    expected = naive(once, *head.values(), 2).float()
    assert_identical(made.tensors, {"embed.weight": expected, "head.weight": expected})


# --- Where an adapter is --------------------------------------------------------------------------


def test_file_of_a_folder_is_read_with_the_configuration_beside_it(bench):
    old, adapter = {"q.weight": normal(4, 6)}, factors("q", 4, 6)
    write_adapter(bench.folder / "adapter", adapter)
    made = bench.given(old).operate(step("adapter/adapter_model.safetensors"))
    assert_identical(made.tensors, {"q.weight": merged(old, adapter, "q", 2)})


def test_torch_file_is_read_too(bench):
    old, adapter = {"q.weight": normal(4, 6)}, factors("q", 4, 6)
    folder = write_adapter(bench.folder / "adapter", adapter)
    named = {f"base_model.model.{name}": tensor for name, tensor in adapter.items()}
    torch.save(named, folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    made = bench.given(old).operate(step())
    assert_identical(made.tensors, {"q.weight": merged(old, adapter, "q", 2)})
    assert list(made.manifest["inputs"]) == ["adapter", "input"]


def test_lone_file_needs_a_rank_and_an_alpha(bench):
    old, adapter = {"q.weight": normal(4, 6)}, factors("q", 4, 6)
    folder = write_adapter(bench.folder / "adapter", adapter)
    (folder / "adapter_config.json").unlink()
    (found,) = problems(bench.given(old))
    assert found.startswith("adapter: has no adapter_config.json; say")
    config = {"r": 2, "lora_alpha": 6}
    made = bench.operate(step({"adapter": "adapter", "config": config}))
    assert_identical(made.tensors, {"q.weight": merged(old, adapter, "q", 3)})


def test_folder_without_an_adapter_is_an_error(bench):
    (bench.folder / "adapter").mkdir()
    with pytest.raises(
        CheckpointError, match=r"adapter: found none of .*adapter_model.safetensors"
    ):
        bench.given({"q.weight": normal(4, 6)}).plan(step())


def test_malformed_configuration_is_an_error(bench):
    folder = write_adapter(bench.folder / "adapter", factors("q", 4, 6))
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"adapter/adapter_config.json: not an object$"):
        bench.given({"q.weight": normal(4, 6)}).plan(step())


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.write_text("{")])
def test_unreadable_configuration_is_that_of_a_checkpoint(bench, make):
    folder = write_adapter(bench.folder / "adapter", factors("q", 4, 6))
    (folder / "adapter_config.json").unlink()
    make(folder / "adapter_config.json")
    with pytest.raises(CheckpointError, match=r"adapter/adapter_config\.json: (not a reg|line 1)"):
        bench.given({"q.weight": normal(4, 6)}).plan(step())


# --- What cannot be merged ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"peft_type": "VERA"}, "is a VERA adapter; only LORA, LOHA, LOKR, IA3, TRAINABLE_TOKENS"),
        ({"use_dora": True}, "use_dora is True, but 'q' has no magnitude vector"),
        ({"init_lora_weights": "pissa_niter_4"}, "was started with 'pissa_niter_4', which changes"),
        ({"init_lora_weights": "olora"}, "was started with 'olora', which changes the base's"),
        ({"new": {"x": 1}}, "adapter_config.json: new: what it does is not known; say null if"),
        ({"r": 3}, "'q': has rank 2, but its configuration says 3"),
        ({"r": 0}, "adapter_config.json: r is 0, expected a number above 0"),
        ({"rank_pattern": {"q": "2"}}, "adapter_config.json: r is '2', expected a number"),
        ({"alpha_pattern": {"(": 2}}, "alpha_pattern: '(': missing )"),
        ({"alpha_pattern": {"(?=(q+)+x)q": 2}}, "alpha_pattern: '(?=(q+)+x)q': assert is followed"),
        ({"alpha_pattern": 1.5}, "adapter_config.json: alpha_pattern is not an object"),
    ],
)  # fmt: skip
def test_configurations_that_are_not_understood_are_an_error(bench, config, problem):
    write_adapter(bench.folder / "adapter", factors("q", 4, 6), **config)
    (found,) = problems(bench.given({"q.weight": normal(4, 6)}))
    assert found.startswith(f"adapter: {problem}")


def test_setting_can_be_declared_to_be_without_effect(bench):
    old, adapter = {"q.weight": normal(4, 6)}, factors("q", 4, 6)
    write_adapter(bench.folder / "adapter", adapter, new={"x": 1})
    made = bench.given(old).operate(step({"adapter": "adapter", "config": {"new": None}}))
    assert_identical(made.tensors, {"q.weight": merged(old, adapter, "q", 2)})


def test_every_tensor_that_finds_no_place_is_an_error(bench):
    adapter = {
        **factors("q", 4, 6),
        **factors("v", 4, 7),
        **factors("missing", 4, 6),
        "bias": normal(3),
        "zzz": normal(3, 3),
    }
    write_adapter(bench.folder / "adapter", adapter)
    bench.given(
        {"q.weight": normal(4, 6).to(torch.int8), "v.weight": normal(4, 6), "bias": normal(4)}
    )
    assert sorted(problems(bench)) == [
        "adapter: changes 'bias' as (3,), but it is F32 (4,)",
        "adapter: changes 'missing.weight', which the state does not have; did you mean 'v.weight' "
        "or 'q.weight'?",
        "adapter: changes 'q.weight' as (4, 6) or (6, 4), but it is I8 (4, 6)",
        "adapter: changes 'v.weight' as (4, 7) or (7, 4), but it is F32 (4, 6)",
        "adapter: changes 'zzz', which the state does not have",
    ]


@pytest.mark.parametrize(
    ("extra", "problem"),
    [
        ({"q.lora_x": normal(4)}, "'base_model.model.q.lora_x' is a part of an adapter that is"),
        ({"v.lora_A.weight": normal(2, 6)}, "'v' has no lora_B"),
        ({"v.lora_B.weight": normal(4, 2)}, "'v' has no lora_A"),
    ],
)  # fmt: skip
def test_incomplete_or_unknown_parts_are_an_error(bench, extra, problem):
    write_adapter(bench.folder / "adapter", {**factors("q", 4, 6), **extra})
    (found,) = problems(bench.given({"q.weight": normal(4, 6)}))
    assert found.startswith(f"adapter: {problem}")


def test_names_of_no_known_habit_are_an_error(bench):
    bench.given({"q.weight": normal(4, 6)}, adapter={"q.other": normal(2, 6)})
    (problem,) = problems(bench, step("adapter.safetensors"))
    assert problem.startswith("adapter.safetensors: 'q.other' is named neither as PEFT names")


def test_placeholders_of_zero_3_are_an_error(bench):
    adapter = {"q.lora_A.weight": torch.empty(0), "q.lora_B.weight": torch.empty(0)}
    write_adapter(bench.folder / "adapter", adapter)
    with pytest.raises(CheckpointError, match=r"2 of 2 tensors of shape \(0,\), which DeepSpeed's"):
        bench.given({"q.weight": normal(4, 6)}).plan(step())


def test_patterns_of_an_adapter_take_no_exponential_time(bench):
    write_adapter(
        bench.folder / "adapter", factors("a" * 60, 4, 6), alpha_pattern={"(a+)+(a|aa)*b": 3}
    )
    old = {f"{'a' * 60}.weight": normal(4, 6)}
    bench.given(old).plan(step())


def test_factors_that_do_not_fit_each_other_are_an_error(bench):
    adapter = {"q.lora_A.weight": normal(2, 6), "q.lora_B.weight": normal(4, 3)}
    write_adapter(bench.folder / "adapter", adapter)
    assert problems(bench.given({"q.weight": normal(4, 6)})) == [
        "adapter: 'q': A is F32 (2, 6) and B F32 (4, 3), which cannot be multiplied"
    ]


def test_whole_replacements_take_no_weight_and_happen_once(bench):
    write_adapter(bench.folder / "adapter", {"q.weight": normal(4, 6)})
    bench.given({"q.weight": normal(4, 6)})
    assert problems(bench, step({"adapter": "adapter", "weight": 0.5})) == [
        "adapter: replaces 'q.weight' as a whole, which takes no weight"
    ]
    assert problems(bench, step(["adapter", "adapter"])) == [
        "adapter: 'q.weight' is replaced twice"
    ]
    write_adapter(bench.folder / "two", factors("q", 4, 6))
    assert problems(bench, step(["adapter", "two"])) == [
        "'q.weight' would be both replaced and added to"
    ]


def test_two_values_for_one_tensor_are_an_error(bench):
    adapter = {"q.bias": normal(4), "q.base_layer.bias": normal(4)}
    write_adapter(bench.folder / "adapter", adapter)
    made = bench.given({"q.bias": normal(4, seed=3)}).operate(step())
    assert_identical(made.tensors, {"q.bias": normal(4)})
    write_adapter(bench.folder / "adapter", {**adapter, "q.base_layer.bias": normal(4, seed=1)})
    with pytest.raises(PlanError, match=r"holds 'q.bias' twice, with different values"):
        bench.operate(step())


def test_nan_in_an_adapter_is_an_error_that_names_the_weight(bench):
    adapter = factors("q", 4, 6)
    adapter["q.lora_A.weight"][0, 0] = float("nan")
    write_adapter(bench.folder / "adapter", adapter)
    with pytest.raises(PlanError, match=r"what is added to 'q.weight' holds NaN or Inf"):
        bench.given({"q.weight": normal(4, 6)}).operate(step())


def test_residual_base_is_declared(bench):
    old, adapter = {"q.weight": normal(4, 6)}, factors("q", 4, 6)
    write_adapter(bench.folder / "adapter", adapter, init_lora_weights="pissa")
    entry = {"adapter": "adapter", "config": {"init_lora_weights": True}}
    made = bench.given(old).operate(step(entry))
    assert_identical(made.tensors, {"q.weight": merged(old, adapter, "q", 2)})


# --- Other tools' names ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "alpha", "scaling"),
    [(("lora_unet_blocks_0_to_q.lora_down.weight", "lora_unet_blocks_0_to_q.lora_up.weight"),
      "lora_unet_blocks_0_to_q.alpha", 0.5),
     (("unet.blocks.0.to_q.lora.down.weight", "unet.blocks.0.to_q.lora.up.weight"), None, 1),
     (("transformer.blocks.0.to_q.lora_A.weight", "transformer.blocks.0.to_q.lora_B.weight"),
      None, 1),
     (("blocks.0.to_q.lora_A.weight", "blocks.0.to_q.lora_B.weight"), None, 1)],
)  # fmt: skip
def test_names_of_kohyas_scripts_and_diffusers(names, alpha, scaling, bench):
    old = {"blocks.0.to_q.weight": normal(4, 6)}
    adapter = dict(zip(names, factors("q", 4, 6).values(), strict=True))
    extra = {alpha: torch.tensor(1.0)} if alpha else {}
    text = {"lora_te_layer.lora_down.weight": normal(2, 6), "lora_te_layer.lora_up.weight":
            normal(4, 2)} if alpha else {}  # fmt: skip
    made = bench.given(old, adapter={**adapter, **extra, **text}).operate(
        step("adapter.safetensors")
    )
    expected = correctly_rounded(naive(*old.values(), *adapter.values(), scaling), torch.float32)
    assert_identical(made.tensors, {"blocks.0.to_q.weight": expected})
    assert any("'lora_te_...' (1 modules) is for another model" in n for n in made.notes) is (
        alpha is not None
    )


# --- Same bytes -----------------------------------------------------------------------------------


def test_bytes_do_not_depend_on_the_number_of_threads(bench):
    old = {"q.weight": normal(700, 600, dtype=torch.float64)}
    adapter = factors("q", 700, 600, rank=300, dtype=torch.float64)
    write_adapter(bench.folder / "adapter", adapter, r=300)
    bench.given(old).recipe(step())
    written = []
    for threads in ("1", "3"):
        other = bench.folder / f"{threads}.safetensors"
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        paths = map(str, (bench.folder / "recipe.json", bench.input, other))
        subprocess.run([sys.executable, "-m", "surgeon", "apply", *paths], env=environment,
                       check=True, capture_output=True)  # fmt: skip
        written.append(other.read_bytes())
    assert written[0] == written[1]
