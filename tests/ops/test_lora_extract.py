"""lora_extract: against torch's SVD, and there and back; peft itself is in tests/acceptance."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from surgeon import surgery
from surgeon.base.errors import PlanError
from surgeon.output.execute import Options
from tests.network import assert_identical

BASE = "base_model.model."


def step(target="**", rank=2, **parameters):
    return {"op": "lora_extract", "base": "base", "target": target, "rank": rank, **parameters}


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def trained(bench, seed=3, **shapes):
    """A model and its base, which differ in everything."""
    base = {name.replace("_", "."): normal(*shape) for name, shape in shapes.items()}
    state = {name: old + 0.1 * normal(*old.shape, seed=seed) for name, old in base.items()}
    bench.given(state, base=base)
    return state, base


def change(state, base, name):
    return state[name].double() - base[name].double()


def nearest(matrix, rank):
    """The nearest matrix of a rank, by torch."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] @ torch.diag(s[:rank]) @ v[:rank]


def of(made, module, part, kind="lora", leaf=".weight"):
    return made[f"{BASE}{module}.{kind}_{part}{leaf}"].double()


def as_folder(bench, *steps, **rest):
    with surgery.opened(bench.recipe(*steps, **rest), str(bench.input), bench.models) as opened:
        surgery.write(opened, bench.folder / "out", Options(), force=True)
    return bench.folder / "out"


def problems(bench, parameters):
    with pytest.raises(PlanError) as raised:
        bench.plan(parameters)
    return [line.split(": ", 2)[2] for line in raised.value.problems]


@pytest.mark.parametrize("shape", [(9, 7), (7, 9), (30, 4), (1, 5)])
@pytest.mark.parametrize("rank", [1, 3])
def test_product_is_the_nearest_matrix_of_its_rank(bench, shape, rank):
    state, base = trained(bench, q_weight=shape)
    made = bench.operate(step(rank=rank)).tensors
    a, b = (of(made, "q", part) for part in "AB")
    kept = min(rank, *shape)
    assert (a.shape, b.shape) == ((kept, shape[1]), (shape[0], kept))
    expected = nearest(change(state, base, "q.weight"), kept)
    torch.testing.assert_close(b @ a, expected, rtol=1e-6, atol=1e-7)


def test_directions_are_orthonormal_and_their_largest_entry_is_positive(bench):
    trained(bench, q_weight=(9, 7))
    a = of(bench.operate(step(rank=4)).tensors, "q", "A")
    torch.testing.assert_close(a @ a.T, torch.eye(4).double(), rtol=0, atol=1e-6)
    assert (a.gather(1, a.abs().argmax(1, keepdim=True)) > 0).all()


def test_float64_is_kept(bench):
    base = {"q.weight": normal(6, 5, dtype=torch.float64)}
    state = {"q.weight": base["q.weight"] + normal(6, 5, seed=1, dtype=torch.float64)}
    made = bench.given(state, base=base).operate(step()).tensors
    a, b = (of(made, "q", part) for part in "AB")
    expected = nearest(change(state, base, "q.weight"), 2)
    torch.testing.assert_close(b @ a, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_factors_of_narrow_weights_are_float32(bench, dtype):
    bench.given({"q.weight": normal(6, 5, dtype=dtype)}, base={"q.weight": normal(6, 5, seed=1)})
    made = bench.operate(step()).tensors
    assert {tensor.dtype for tensor in made.values()} == {torch.float32}


def test_transposed_weights_and_embeddings(bench):
    state, base = trained(bench, c_weight=(5, 9), e_weight=(8, 6))
    made = bench.operate(step(transposed="c", embeddings="e")).tensors
    for module, kind, leaf in (("c", "lora", ".weight"), ("e", "lora_embedding", "")):
        a, b = (of(made, module, part, kind, leaf) for part in "AB")
        expected = nearest(change(state, base, f"{module}.weight").T, 2)
        torch.testing.assert_close(b @ a, expected, rtol=1e-6, atol=1e-7)


def test_weight_that_did_not_change_gets_zeros(bench):
    old = {"q.weight": normal(4, 3)}
    made = bench.given(old, base=old).operate(step(energy=1)).tensors
    assert of(made, "q", "B").abs().max() == 0


def test_there_and_back_with_full_rank_is_the_trained_model(bench):
    state, base = trained(bench, q_weight=(6, 8), e_weight=(9, 4), c_weight=(5, 5), n_bias=(4,))
    folder = as_folder(bench, step(rank=9, transposed="c", embeddings="e", save="n"))
    # One flag for all: of the square weight, beside others, the recipe says which way round it is.
    adapter = {"adapter": str(folder), "config": {"fan_in_fan_out": True}}
    made = bench.given(base).operate({"op": "lora_merge", "adapter": adapter}).tensors
    assert sorted(made) == sorted(state)
    for name in state:
        torch.testing.assert_close(made[name], state[name], rtol=1e-5, atol=1e-6)


# --- Files ----------------------------------------------------------------------------------------


def test_folder_is_a_peft_folder(bench):
    state, _ = trained(bench, q_weight=(6, 8), k_weight=(1, 8), n_bias=(4,), n_weight=(4,))
    folder = as_folder(bench, step(target=["q", "k"], save="n.bias"))
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "surgeon.manifest.json",
    ]  # fmt: skip
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (2, 2, False)
    assert config["target_modules"] == ["k", "q"]
    assert config["rank_pattern"] == config["alpha_pattern"] == {"^k": 1}
    assert config["modules_to_save"] == ["n"]
    assert config["fan_in_fan_out"] is False
    tensors = load_file(folder / "adapter_model.safetensors")
    assert_identical({"": tensors[f"{BASE}n.weight"]}, {"": state["n.weight"]})


def test_tied_tensors_are_saved_under_both_names(bench):
    bench.given({"e.weight": normal(4, 3), "q.weight": normal(3, 3)}, {"h.weight": "e.weight"})
    bench.models["base"] = str(bench.input)
    folder = as_folder(bench, step(target="q", save=["e", "h"]))
    tensors = load_file(folder / "adapter_model.safetensors")
    assert_identical({"": tensors[f"{BASE}h.weight"]}, {"": normal(4, 3)})
    assert_identical({"": tensors[f"{BASE}e.weight"]}, {"": normal(4, 3)})


def test_nothing_of_the_inputs_folder_comes_along(bench):
    trained(bench, q_weight=(6, 8))
    source = bench.folder / "source"
    source.mkdir()
    bench.input.rename(source / "model.safetensors")
    (source / "config.json").write_text("{}")
    bench.input = source
    assert not (as_folder(bench, step()) / "config.json").exists()


def test_file_gets_no_configuration_and_says_so(bench):
    trained(bench, q_weight=(6, 8))
    made = bench.operate(step())
    assert any(note.endswith("only a folder as output gets adapter_config.json")
               for note in made.notes)  # fmt: skip


def test_adapter_folder_stays_one(bench):
    trained(bench, q_weight=(6, 8))
    as_folder(bench, step()).rename(bench.folder / "adapter")
    bench.input = bench.folder / "adapter"
    folder = as_folder(bench, {"op": "cast", "target": "**", "dtype": "F16"})
    found = {path.name for path in folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} < found
    assert "model.safetensors" not in found


def test_steps_after_it_see_the_adapters_tensors(bench):
    trained(bench, q_weight=(6, 8))
    made = bench.operate(step(), {"op": "cast", "target": "**.lora_*", "dtype": "BF16"})
    assert {tensor.dtype for tensor in made.tensors.values()} == {torch.bfloat16}


# --- What is wrong --------------------------------------------------------------------------------


def test_energy_that_the_rank_does_not_keep_is_an_error(bench):
    state, base = trained(bench, q_weight=(6, 8))
    squares = torch.linalg.svdvals(change(state, base, "q.weight")) ** 2
    share, needed = (squares[:2].sum() / squares.sum()).item(), int(
        (squares.cumsum(0) / squares.sum() < 0.9).sum()) + 1  # fmt: skip
    bench.operate(step(energy=share - 1e-6))
    pattern = rf"rank 2 keeps {share:.4g} of .*, less than 0.9; rank {needed} would do"
    with pytest.raises(PlanError, match=pattern):
        bench.operate(step(energy=0.9), to=bench.folder / "new.safetensors")
    assert not (bench.folder / "new.safetensors").exists()


def test_other_tensor_that_changed_is_an_error_or_dropped(bench):
    trained(bench, q_weight=(6, 8), n_bias=(4,))
    with pytest.raises(PlanError, match=r"'n.bias' differs from model 'base', and is not in the"):
        bench.operate(step(target="q"))
    made = bench.operate(step(target="q", others="drop"))
    assert any("'n.bias' differs from model 'base'" in note for note in made.notes)
    assert not any("n.bias" in name for name in made.tensors)


def test_other_tensor_that_did_not_change_is_no_matter(bench):
    old = {"q.weight": normal(4, 3), "n.bias": normal(3)}
    made = bench.given({**old, "q.weight": normal(4, 3, seed=1)}, base=old).operate(step())
    assert len(made.tensors) == 2


def test_every_difference_to_the_base_is_listed(bench):
    bench.given(
        {"a.weight": normal(4, 3), "b.weight": normal(4, 3), "c.bias": normal(3), "d": normal(3)},
        base={"a.weight": normal(4, 4), "c.bias": normal(4), "e": normal(3)},
    )
    assert problems(bench, step()) == [
        "'a.weight' is F32 (4, 3) here but F32 (4, 4) in model 'base'",
        "'b.weight' is not in model 'base'",
        "'c.bias' is F32 (3,) here but F32 (4,) in model 'base'",
        "'d' is not in model 'base'",
        "'e' is in model 'base' only",
    ]


def test_tied_weights_are_an_error(bench):
    bench.given({"a.weight": normal(4, 3)}, {"b.weight": "a.weight"})
    bench.models["base"] = str(bench.input)
    assert problems(bench, step()) == [
        "'b.weight' is tied to 'a.weight', and merging would change both twice; leave one out"
    ]
    assert len(bench.operate(step(target="a")).tensors) == 2


def test_target_without_weights_is_an_error(bench):
    trained(bench, n_bias=(4,))
    assert problems(bench, step()) == ["'**' selects no floating-point '.weight' of two dimensions"]


def test_tensor_in_no_module_cannot_be_saved(bench):
    trained(bench, q_weight=(6, 8), x=(4,))
    assert problems(bench, step(save="x")) == ["'x' is in no module, and PEFT saves modules"]


@pytest.mark.parametrize("which", ["state", "base"])
def test_nan_is_an_error_that_names_the_weight(bench, which):
    state, base = trained(bench, q_weight=(6, 8))
    {"state": state, "base": base}[which]["q.weight"][0, 0] = float("nan")
    bench.given(state, base=base)
    with pytest.raises(PlanError, match=r"'q.weight'.* holds NaN or Inf"):
        bench.operate(step())


def test_change_beyond_float32_is_an_error(bench):
    base = {"q.weight": torch.full((3, 3), -3e38)}
    bench.given({"q.weight": torch.full((3, 3), 3e38)}, base=base)
    with pytest.raises(PlanError, match=r"'q.weight': its change is too large for F32"):
        bench.operate(step(rank=1))


# --- Same bytes -----------------------------------------------------------------------------------


def test_bytes_do_not_depend_on_the_number_of_threads(bench):
    trained(bench, q_weight=(320, 310))
    bench.recipe(step(rank=40))
    written = []
    for threads in ("1", "3"):
        other = bench.folder / f"{threads}.safetensors"
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        words = ["apply", bench.folder / "recipe.json", bench.input, other, "--model",
                 f"base={bench.models['base']}"]  # fmt: skip
        subprocess.run([sys.executable, "-m", "surgeon", *map(str, words)], env=environment,
                       check=True, capture_output=True)  # fmt: skip
        written.append(other.read_bytes())
    assert written[0] == written[1]
