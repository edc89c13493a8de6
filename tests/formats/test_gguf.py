"""GGUF files: bit by bit what the library that defines them reads, or refused by type."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file

from surgeon import recipe, surgery
from surgeon.base.errors import SurgeonError
from surgeon.formats import open_checkpoint
from surgeon.numeric.ggml import BLOCK_TYPES
from surgeon.output.execute import Options
from tests.formats.test_torch import error_of, values

gguf = pytest.importorskip("gguf")


@pytest.fixture
def written(tmp_path):
    def write(tensors, **metadata):
        writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
        writer.add_name("a model")
        writer.add_array("tokenizer.ggml.tokens", [f"word {n}" for n in range(100)])
        writer.add_array("nested", [[1, 2], [3]])
        writer.add_float32("llama.rope", 1e4)
        for key, value in metadata.items():
            writer.add_string(key, value)
        for name, (data, kind) in tensors.items():
            shape = gguf.quant_shape_to_byte_shape(data.shape, kind) if kind else None
            writer.add_tensor(name, data, raw_shape=shape, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / "a.gguf"

    return write


BF16 = np.arange(24, dtype="<u2").reshape(4, 6).view(np.uint8)
PLAIN = {
    "F32": (np.arange(24, dtype="f4").reshape(2, 3, 4), None),
    "F16": (np.arange(5, dtype="f2"), None),
    "F64": (np.arange(6, dtype="f8").reshape(1, 6), None),
    "I32": (np.arange(6, dtype="i4").reshape(3, 2), None),
}


def test_plain_types_are_read_byte_for_byte(written):
    path = written(PLAIN)
    checkpoint = open_checkpoint(str(path))
    oracle = gguf.GGUFReader(path)
    assert list(checkpoint.tensors) == [tensor.name for tensor in oracle.tensors]
    for tensor in oracle.tensors:
        lazy = checkpoint.tensors[tensor.name]
        assert lazy.spec.dtype == tensor.tensor_type.name
        assert lazy.spec.shape == tuple(int(n) for n in reversed(tensor.shape))
        assert values(lazy) == np.array(tensor.data).tobytes()
        assert values(lazy) == PLAIN[tensor.name][0].tobytes()
    assert "GGUF: llama, a model" in checkpoint.notes
    checkpoint.close()


def test_bfloat16_is_read_byte_for_byte(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("w", BF16, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    lazy = open_checkpoint(str(tmp_path / "a.gguf")).tensors["w"]
    assert (lazy.spec.dtype, lazy.spec.shape) == ("BF16", (4, 6))
    assert values(lazy) == BF16.tobytes()


def quantised(path, kind):
    """Write blocks of any bytes, as two rows, beside a plain tensor; return their values."""
    _, size_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(0).integers(0, 64, (2, 3, size_bytes), dtype=np.uint8)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("plain", np.ones(3, "f4"))
    writer.add_tensor("w", blocks.reshape(2, -1), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if kind.name in BLOCK_TYPES:
        return gguf.quants.dequantize(blocks.reshape(2, -1), kind)
    return None


def written_by(tmp_path, steps):
    (tmp_path / "r.json").write_text(json.dumps({"surgeon": 1, "steps": steps}))
    with surgery.opened(
        recipe.load(str(tmp_path / "r.json"), {}), str(tmp_path / "a.gguf"), {}
    ) as opened:
        surgery.write(opened, tmp_path / "out.safetensors", Options(workers=1), force=False)
    return load_file(tmp_path / "out.safetensors")


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_quantised_types_are_dequantised_bit_by_bit(tmp_path, name):
    expected = quantised(tmp_path / "a.gguf", gguf.GGMLQuantizationType[name])
    found = written_by(tmp_path, [{"op": "dequantize", "dtype": "float32"}])
    assert found.keys() == {"plain", "w"}
    assert found["w"].shape == expected.shape
    assert found["w"].tobytes() == expected.astype("<f4").tobytes()


def test_codes_are_no_numbers_for_any_other_step(tmp_path):
    quantised(tmp_path / "a.gguf", gguf.GGMLQuantizationType.Q4_K)
    assert "quantised tensors (1 of Q4_K)" in " ".join(
        open_checkpoint(str(tmp_path / "a.gguf")).notes
    )
    with pytest.raises(SurgeonError, match=r'"op": "dequantize", "target": "w"'):
        written_by(tmp_path, [{"op": "narrow", "target": "w.Q4_K", "keep": "0:1"}])


@pytest.mark.parametrize("name", ["IQ4_NL", "Q8_K"])
def test_other_quantised_types_are_listed_with_the_way_out(tmp_path, name):
    quantised(tmp_path / "a.gguf", gguf.GGMLQuantizationType[name])
    message = error_of(tmp_path / "a.gguf")
    assert f"types that are not read: 1 of {name}; surgery is done on the checkpoint" in message


def test_a_header_longer_than_the_first_read(written):
    path = written(PLAIN, **{f"key{n}": "x" * 60_000 for n in range(40)})
    assert len(open_checkpoint(str(path)).tensors) == len(PLAIN)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d[:100], "cut off or damaged"),
        (lambda d: d[:-200], "where the file of"),
        (lambda d: d[:4] + struct.pack("<I", 1) + d[8:], "found GGUF version 1"),
        (lambda d: d[:8] + struct.pack("<Q", 1 << 60) + d[16:], "expected at most 100000 of each"),
        (lambda d: d.replace(b"F64", b"F16"), "found it twice"),
        (lambda d: d[:8] + struct.pack("<QQ", 10**5, 10**5) + bytes(1 << 24), "an empty name at"),
    ],
    ids=["header", "data", "version", "count", "twice", "zeros"],
)
def test_damaged_files_are_refused(written, change, words):
    path = written(PLAIN)
    path.write_bytes(change(path.read_bytes()))
    assert words in error_of(path)
