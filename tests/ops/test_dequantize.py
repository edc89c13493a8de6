"""dequantize: against torch's own float8, loops over bits, and what other libraries made."""

import json
from itertools import product

import pytest
import torch
from safetensors.torch import load_file, save_file

from surgeon import surgery
from surgeon.base.errors import PlanError
from surgeon.output.execute import Options
from tests.network import assert_identical
from tests.ops.quantised_weights import KEPT, bitsandbytes_cases, normal, packed_cases

FP8 = torch.float8_e4m3fn


def dequantized(bench, tensors, dtype="float32", config=None, target="**"):
    """What becomes of tensors; in a folder where there is a config."""
    step = {"op": "dequantize", "target": target, "dtype": dtype}
    if config is None:
        return bench.given(tensors).operate(step).tensors
    folder, output = bench.folder / "model", bench.folder / "out"
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    with surgery.opened(bench.recipe(step), str(folder), {}) as opened:
        surgery.write(opened, output, Options(), force=True)
    return load_file(output / "model.safetensors")


def spread(scale, shape, block):
    """Each element's scale."""
    rows = scale.repeat_interleave(block[0], -2)
    return rows.repeat_interleave(block[1], -1)[..., : shape[-2], : shape[-1]]


@pytest.mark.parametrize("suffix", ["weight_scale_inv", "weight_scale"])
@pytest.mark.parametrize(
    ("shape", "scale", "block"),
    [((256, 384), (2, 3), (128, 128)), ((200, 130), (2, 2), (128, 128)), ((6, 9), (6, 1), (1, 9)),
     ((6, 32), (6, 4), (1, 8)), ((3, 130, 128), (3, 2, 1), (128, 128)), ((6, 9), (1, 1), (6, 9))],
)  # fmt: skip
def test_float8_times_its_scales(shape, scale, block, suffix, bench):
    codes, scales = normal(*shape).to(FP8), normal(*scale, seed=1).abs()
    found = dequantized(bench, {"q.weight": codes, f"q.{suffix}": scales})
    assert_identical(found, {"q.weight": codes.float() * spread(scales, shape, block)})


@pytest.mark.parametrize("scale", [torch.tensor(0.25), torch.tensor([0.25]), torch.rand(6)])
def test_scales_without_columns(scale, bench):
    codes = normal(6, 9).to(torch.float8_e5m2)
    tensors = {"q.weight": codes, "q.weight_scale": scale, "q.input_scale": torch.ones(1)}
    expected = codes.float() * scale.reshape(-1, 1)
    assert_identical(dequantized(bench, tensors), {"q.weight": expected})


def test_block_that_the_config_states(bench):
    codes, scales = normal(96, 96).to(FP8), normal(2, 2, seed=1)
    config = {"quant_method": "fp8", "weight_block_size": [64, 64]}
    tensors = {"q.weight": codes, "q.weight_scale_inv": scales}
    expected = codes.float() * spread(scales, (96, 96), (64, 64))
    assert_identical(dequantized(bench, tensors, config=config), {"q.weight": expected})


def test_int8_with_zero_points(bench):
    codes = torch.arange(-24, 24, dtype=torch.int8).reshape(6, 8)
    zeros, scales = torch.arange(6, dtype=torch.int8)[:, None], normal(6, 1)
    tensors = {"q.weight": codes, "q.weight_scale": scales, "q.weight_zero_point": zeros}
    expected = (codes.float() - zeros.float()) * scales
    assert_identical(dequantized(bench, tensors), {"q.weight": expected})


E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_microscaled_experts_are_turned(dtype, bench):
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (2, 3, 4, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(100, 140, (2, 3, 4), generator=generator, dtype=torch.uint8)
    found = dequantized(bench, {"up_blocks": blocks, "up_scales": scales}, dtype)
    expected = torch.empty(2, 128, 3)
    for expert, row, block, byte in product(range(2), range(3), range(4), range(16)):
        code = int(blocks[expert, row, block, byte])
        for half, nibble in enumerate((code & 15, code >> 4)):
            value = E2M1[nibble] * 2.0 ** (int(scales[expert, row, block]) - 127)
            expected[expert, block * 32 + byte * 2 + half, row] = value
    assert_identical(found, {"up": expected.to(getattr(torch, dtype))})


def bits_into_words(numbers, bits):
    """Pack numbers, the first in the lowest bits, into words of 32 bits; as GPTQ does."""
    text = "".join(f"{number:0{bits}b}"[::-1] for number in numbers)
    words = [int(text[at : at + 32][::-1], 2) for at in range(0, len(text), 32)]
    return [word - (1 << 32) if word >> 31 else word for word in words]


def words_of(matrix, bits, dim):
    lines = matrix.tolist() if dim else matrix.T.tolist()
    packed = torch.tensor([bits_into_words(line, bits) for line in lines], dtype=torch.int32)
    return packed if dim else packed.T.contiguous()


@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("order", ["in order", "acting"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq(bits, order, version, bench):
    generator = torch.Generator().manual_seed(bits)
    numbers = torch.randint(0, 1 << bits, (64, 32), generator=generator)
    zeros = torch.randint(1, 1 << bits, (4, 32), generator=generator)
    scales = torch.rand(4, 32, generator=generator).half()
    index = torch.arange(64, dtype=torch.int32) // 16
    index = index if order == "in order" else index[torch.randperm(64, generator=generator)]
    stored = zeros - 1 if version == "gptq" else zeros
    tensors = {"q.qweight": words_of(numbers, bits, 0), "q.qzeros": words_of(stored, bits, 1),
               "q.scales": scales, "q.g_idx": index}  # fmt: skip
    config = {"quant_method": "gptq", "bits": bits, "checkpoint_format": version}
    found = dequantized(bench, tensors, "float16", config)
    expected = ((numbers - zeros[index.long()]).float() * scales[index.long()].float()).half()
    assert_identical(found, {"q.weight": expected.T.contiguous()})


def test_awq(bench):
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(0, 16, (64, 24), generator=generator)
    zeros = torch.randint(0, 16, (2, 24), generator=generator)
    scales = torch.rand(2, 24, generator=generator).half()
    order = [column + place for column in range(0, 24, 8) for place in (0, 2, 4, 6, 1, 3, 5, 7)]
    tensors = {"q.qweight": words_of(numbers[:, order], 4, 1),
               "q.qzeros": words_of(zeros[:, order], 4, 1), "q.scales": scales}  # fmt: skip
    group = torch.arange(64) // 32
    expected = ((numbers - zeros[group]).float() * scales[group].float()).half()
    assert_identical(dequantized(bench, tensors, "float16"), {"q.weight": expected.T.contiguous()})


def kept_cases():
    cases = {}
    for name, tensor in load_file(KEPT).items():
        case, _, rest = name.partition("/")
        cases.setdefault(case, {})[rest] = tensor
    return cases


@pytest.mark.parametrize("case", kept_cases())
def test_what_other_libraries_made(case, bench):
    tensors = kept_cases()[case]
    expected = tensors.pop("expected")
    found = dequantized(bench, tensors, case.rpartition("-")[2])
    assert_identical(found, {"w.weight": expected})


@pytest.mark.slow
def test_what_other_libraries_make_of_large_weights(bench):
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("compressed_tensors")
    for case, tensors, expected in (*bitsandbytes_cases(300, 500), *packed_cases(264, 512)):
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        found = dequantized(bench, tensors, case.rpartition("-")[2])
        assert_identical(found, {"w.weight": expected})


def test_gptq_of_many_blocks_is_decoded_in_order(bench):
    numbers = torch.randint(0, 16, (512, 600), generator=torch.Generator().manual_seed(0))
    words = torch.zeros(64, 600, dtype=torch.int64)
    for place in range(8):
        words |= numbers[place::8] << (4 * place)
    words = torch.where(words >> 31 == 1, words - (1 << 32), words).int()
    scales = torch.rand(4, 600).half()
    tensors = {"q.qweight": words, "q.scales": scales, "q.g_idx": (torch.arange(512) // 128).int(),
               "q.qzeros": torch.full((4, 75), 0x77777777, dtype=torch.int32)}  # fmt: skip
    expected = (numbers - 8).float() * scales.float().repeat_interleave(128, 0)
    assert_identical(dequantized(bench, tensors), {"q.weight": expected.T.contiguous()})


def test_tied_weights_stay_tied_and_others_stay(bench):
    codes = normal(4, 8).to(FP8)
    tensors = {"a.weight": codes, "a.weight_scale": torch.ones(1), "b.bias": normal(3)}
    ties = {"c.weight": "a.weight", "c.weight_scale": "a.weight_scale"}
    bench.given(tensors, ties)
    made = bench.operate({"op": "dequantize", "dtype": "float32"})
    assert made.manifest["ties"] == {"c.weight": "a.weight"}
    assert_identical({"": made["b.bias"]}, {"": tensors["b.bias"]})


def test_model_is_dequantised_before_it_is_merged(bench):
    weight, codes = normal(4, 8), normal(4, 8, seed=1).to(FP8)
    bench.given({"q.weight": weight}, other={"q.weight": codes, "q.weight_scale": torch.ones(1)})
    made = bench.operate(
        {"op": "dequantize", "model": "other", "dtype": "float32"},
        {"op": "average", "models": ["other"]},
    )
    expected = ((weight.double() + codes.double()) / 2).float()
    assert_identical(made.tensors, {"q.weight": expected})
    first, second = made.lineage("q.weight")
    assert (first["op"], first["into"]) == ("dequantize", "other")
    assert first["from"] == ["other:q.weight", "other:q.weight_scale"]
    assert (second["op"], second["from"]) == ("average", ["other:q.weight"])


def test_shards_keep_a_quantised_weight_together(bench):
    """Codes of 64 bytes, scales of 4, in files of 150: vLLM reads one file after the other."""
    tensors = {f"l{n}.weight": normal(8, 8, seed=n).to(FP8) for n in range(4)}
    tensors |= {f"l{n}.weight_scale": torch.ones(1) for n in range(4)}
    bench.given(tensors)
    bench.operate(to=bench.folder / "out", output={"shard_size": "150 B"})
    index = json.loads((bench.folder / "out" / "model.safetensors.index.json").read_text())
    homes = index["weight_map"]
    assert [homes[f"l{n}.weight"] == homes[f"l{n}.weight_scale"] for n in range(4)] == [True] * 4
    assert len(set(homes.values())) == 2


WRONG = [
    ({"q.weight": normal(6, 8).to(FP8), "q.weight_scale": torch.ones(4)}, "none per tensor, row"),
    ({"q.weight": normal(7, 8).to(FP8), "q.weight_scale": torch.ones(2, 1)}, "how many share one"),
    ({"q.weight": torch.zeros(8, 1, dtype=torch.uint8), "q.weight.absmax": torch.ones(1)},
     "has no quant_state"),
    ({"q.weight": torch.zeros(8, 1, dtype=torch.int8), "q.weight_scale_inv": torch.ones(1)},
     "may be pairs of FP4"),
    ({"q.bias": torch.ones(3)}, "selects no quantised weight"),
]  # fmt: skip


@pytest.mark.parametrize(("tensors", "problem"), WRONG)
def test_what_is_not_settled_is_an_error(tensors, problem, bench):
    with pytest.raises(PlanError, match=problem):
        bench.given(tensors).plan({"op": "dequantize"})


def test_values_beyond_the_dtype_are_an_error(bench):
    tensors = {"q.weight": torch.ones(4, 8).to(FP8), "q.weight_scale": torch.tensor(1e6)}
    with pytest.raises(PlanError, match="beyond F16's largest"):
        dequantized(bench, tensors, "float16")
