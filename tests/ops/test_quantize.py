"""quantize: against transformers' and compressed-tensors' own code, and back again."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from surgeon import surgery
from surgeon.base.errors import PlanError
from surgeon.output.execute import Options
from tests.network import assert_identical, correctly_rounded, write_adapter
from tests.ops.quantised_weights import normal

FP8 = torch.float8_e4m3fn


def quantized(bench, weight, granularity):
    step = {"op": "quantize", "target": "q", "granularity": granularity}
    return bench.given({"q.weight": weight}).operate(step).tensors


def naive(weight, high, wide):
    """Codes and scales, block by block."""
    codes = torch.empty(weight.shape, dtype=FP8)
    scales = torch.empty(weight.shape[0] // high, weight.shape[1] // wide)
    for row in range(scales.shape[0]):
        for column in range(scales.shape[1]):
            place = (slice(row * high, row * high + high),
                     slice(column * wide, column * wide + wide))  # fmt: skip
            block = weight[place].float()
            factor = 448 / block.abs().max() if block.any() else torch.tensor(1.0)
            codes[place] = (block * factor).clamp(-448, 448).to(FP8)
            scales[row, column] = 1 / factor
    return codes, scales


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("granularity", ["block", "row"])
def test_codes_and_scales(granularity, dtype, bench):
    weight = normal(256, 384).to(dtype)
    weight[:128, :128] = 0
    weight[200] = 0
    block = (128, 128) if granularity == "block" else (1, 384)
    codes, scales = naive(weight, *block)
    name = {"block": "q.weight_scale_inv", "row": "q.weight_scale"}[granularity]
    assert_identical(quantized(bench, weight, granularity), {"q.weight": codes, name: scales})


@pytest.mark.slow
def test_blocks_are_those_of_transformers(bench):
    integration = pytest.importorskip("transformers.integrations.finegrained_fp8")
    from types import SimpleNamespace

    settings = SimpleNamespace(weight_block_size=(128, 128), scale_fmt="float")
    weight = normal(256, 256).bfloat16()
    theirs = integration.Fp8Quantize(SimpleNamespace(quantization_config=settings))
    expected = theirs.convert({"q.weight": weight})
    assert_identical(quantized(bench, weight, "block"), expected)


def test_embeddings_heads_and_routers_stay(bench):
    tensors = {f"{name}.weight": normal(128, 128) for name in ("embed_tokens", "mlp.gate", "q")}
    made = bench.given({**tensors, "norm.weight": normal(128)}).operate(
        {"op": "quantize", "target": "**"}
    )
    assert [n for n, t in made.tensors.items() if t.dtype == FP8] == ["q.weight"]
    assert "stay as they are" in made.notes[0]


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [({"q.weight": normal(100, 128)}, "not whole blocks of 128 x 128"),
     ({"q.bias": normal(4)}, "selects no matrix"),
     ({"q.weight": torch.full((128, 128), float("nan"))}, "holds NaN")],
)  # fmt: skip
def test_what_cannot_be_quantised_is_an_error(tensors, problem, bench):
    with pytest.raises(PlanError, match=problem):
        bench.given(tensors).operate({"op": "quantize", "target": "q"})


# --- In a model's folder --------------------------------------------------------------------------


def llama(folder, **config):
    """A folder as transformers writes it, but for the layers, of which there is one."""
    folder.mkdir()
    shapes = {"q_proj": (128, 128), "o_proj": (128, 128)}
    tensors = {f"model.layers.0.self_attn.{n}.weight": normal(*s).bfloat16() / 8
               for n, s in shapes.items()}  # fmt: skip
    tensors |= {"model.embed_tokens.weight": normal(32, 128).bfloat16()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"dtype": "bfloat16", **config}))
    return folder


def operated(bench, source, name, *steps, **rest):
    with surgery.opened(bench.recipe(*steps, **rest), str(source), {}) as opened:
        opened.folder_files.check()
        surgery.write(opened, bench.folder / name, Options(), force=True)
    written = bench.folder / name
    config = json.loads((written / "config.json").read_text())
    return load_file(written / "model.safetensors"), config


@pytest.mark.parametrize(
    ("granularity", "method"), [("block", "fp8"), ("row", "compressed-tensors")]
)
def test_config_entry_comes_and_goes(granularity, method, bench):
    source = llama(bench.folder / "in")
    step = {"op": "quantize", "target": "model.layers", "granularity": granularity}
    _, config = operated(bench, source, "fp8", step)
    assert config["quantization_config"]["quant_method"] == method
    assert config["dtype"] == "bfloat16"
    made, config = operated(bench, bench.folder / "fp8", "back", {"op": "dequantize"})
    assert config == {"dtype": "bfloat16"}
    before = load_file(source / "model.safetensors")
    assert {n: t.dtype for n, t in made.items()} == {n: t.dtype for n, t in before.items()}
    torch.testing.assert_close(made, before, rtol=0.07, atol=0.01)


def test_weights_that_become_numbers_are_excepted(bench):
    source = llama(bench.folder / "in")
    operated(bench, source, "fp8", {"op": "quantize", "target": "model.layers"})
    step = {"op": "dequantize", "target": "**.q_proj"}
    _, config = operated(bench, bench.folder / "fp8", "part", step)
    excepted = config["quantization_config"]["modules_to_not_convert"]
    assert excepted == ["model.embed_tokens", "model.layers.0.self_attn.q_proj"]
    again = {"op": "quantize", "target": "**.q_proj"}
    _, config = operated(bench, bench.folder / "part", "again", again)
    assert config["quantization_config"]["modules_to_not_convert"] == ["model.embed_tokens"]


def test_adapter_is_folded_into_codes(bench):
    source = llama(bench.folder / "in")
    codes, _ = operated(bench, source, "fp8", {"op": "quantize", "target": "model.layers"})
    module = "model.layers.0.self_attn.q_proj"
    a, b = normal(2, 128), normal(128, 2, seed=1)
    factors = {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    write_adapter(bench.folder / "adapter", factors)
    step = {"op": "lora_merge", "adapter": "adapter", "dequantize": True}
    made, config = operated(bench, bench.folder / "fp8", "merged", step)
    weight = codes[f"{module}.weight"].float() * codes[f"{module}.weight_scale_inv"]
    changed = weight.bfloat16().double() + 2 * b.double() @ a.double()
    expected = correctly_rounded(changed, torch.bfloat16)
    assert_identical({"": made[f"{module}.weight"]}, {"": expected})
    assert module in config["quantization_config"]["modules_to_not_convert"]
    assert made["model.layers.0.self_attn.o_proj.weight"].dtype == FP8


def test_method_without_exceptions_is_all_or_nothing(bench):
    source = llama(bench.folder / "in", quantization_config={"quant_method": "gptq", "bits": 4})
    tensors = load_file(source / "model.safetensors")
    for name in ("a", "b"):
        tensors |= {f"{name}.qweight": torch.zeros(1, 8, dtype=torch.int32),
                    f"{name}.qzeros": torch.zeros(1, 1, dtype=torch.int32),
                    f"{name}.scales": torch.ones(1, 8)}  # fmt: skip
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    (source / "quantize_config.json").write_text("{}")
    with pytest.raises(PlanError, match="gptq cannot say; dequantize all"):
        operated(bench, source, "out", {"op": "dequantize", "target": "a"})
    _, config = operated(bench, source, "out", {"op": "dequantize"})
    assert "quantization_config" not in config
    assert not (bench.folder / "out" / "quantize_config.json").exists()
