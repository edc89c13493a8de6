"""Safetensors files: what the library writes is read back, and every lie in a header is found."""

import json
import struct
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file, save_model

from surgeon.base.errors import CheckpointError
from surgeon.base.strict_json import parse_object
from surgeon.formats import open_checkpoint
from surgeon.lazy import Scratch
from surgeon.numeric.dtypes import DTYPES

ENTRY = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}


def write(path, header, data=b"ab", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def error_of(path):
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(path)).close()
    assert all("\n" not in line and line.startswith(str(path)) for line in caught.value.problems)
    return str(caught.value)


@pytest.mark.parametrize("dtype", [row.torch for row in DTYPES.values() if row.bits >= 8])
def test_every_dtype_is_byte_exact(tmp_path, dtype):
    codes = torch.arange(64, dtype=torch.uint8) % (2 if dtype == "bool" else 255)
    state = {"x": codes.view(getattr(torch, dtype)).reshape(2, -1), "empty": torch.zeros(0, 3)}
    save_file(state, tmp_path / "a.safetensors", {"format": "pt"})
    checkpoint = open_checkpoint(str(tmp_path / "a.safetensors"))
    lazy = checkpoint.tensors["x"]
    assert DTYPES[lazy.spec.dtype].torch == dtype
    assert lazy.spec.shape == tuple(state["x"].shape)
    got = np.array(lazy.elements(0, lazy.spec.count, Scratch())).tobytes()
    assert got == codes.numpy().tobytes()
    assert checkpoint.metadata == {"format": "pt"}
    assert checkpoint.tensors["empty"].spec.count == 0


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F6_E3M2"])
def test_dtypes_of_less_than_a_byte_open(tmp_path, dtype):
    size = 8 * DTYPES[dtype].bits // 8
    entry = {"dtype": dtype, "shape": [8], "data_offsets": [0, size]}
    checkpoint = open_checkpoint(str(write(tmp_path / "a", {"x": entry}, b"x" * size)))
    assert checkpoint.tensors["x"].spec.size_bytes == size
    entry = {"dtype": dtype, "shape": [3], "data_offsets": [0, 2]}
    assert "found 2 bytes" in error_of(write(tmp_path / "b", {"x": entry}, b"xx"))


def test_ties_that_save_model_recorded_are_bound(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[1].weight = model[0].weight
    save_model(model, tmp_path / "a.safetensors", {"kind": "demo"})
    checkpoint = open_checkpoint(str(tmp_path / "a.safetensors"))
    assert set(checkpoint.tensors) == set(model.state_dict())
    assert checkpoint.tensors["0.weight"] is checkpoint.tensors["1.weight"]
    assert checkpoint.metadata == {"kind": "demo"}


def test_metadata_that_names_no_tensor_is_no_tie(tmp_path):
    header = {"__metadata__": {"format": "x", "a": "y", "x": "x"}, "x": ENTRY}
    checkpoint = open_checkpoint(str(write(tmp_path / "a", header)))
    assert list(checkpoint.tensors) == ["x"]
    assert checkpoint.metadata == header["__metadata__"]


def test_padding_and_order_of_the_header_do_not_matter(tmp_path):
    header = {"b": {**ENTRY, "data_offsets": [2, 4]}, "a": ENTRY}
    text = json.dumps(header).encode() + b" " * 9
    checkpoint = open_checkpoint(str(write(tmp_path / "a", text, b"abcd")))
    assert list(checkpoint.tensors) == ["b", "a"]
    assert checkpoint.tensors["b"].elements(0, 2, Scratch()).tobytes() == b"cd"


def entry(**changes):
    return {"x": {**ENTRY, **changes}}


def two(first, second):
    spans = {"x": first, "y": second}
    return {
        name: {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
        for name, (begin, end) in spans.items()
    }


TENSOR = [
    (entry(dtype="F33"), "found dtype 'F33', expected one of"),
    (entry(dtype=3), "found dtype 3"),
    (entry(shape=2), "shape 2"),
    (entry(shape=[-2]), "found -2 in its shape"),
    (entry(shape=[2.0]), "found 2.0 in its shape"),
    (entry(shape=[True, 2]), "found True in its shape"),
    (entry(shape=["2"]), "found '2' in its shape"),
    (entry(shape=[[2]]), "found list in its shape"),
    (entry(shape=[1 << 32, 1 << 32]), "fits in 64 bits"),
    (entry(shape=[1 << 63, 0]), "fits in 64 bits"),
    (entry(shape=[1] * 33), "33 dimensions"),
    (entry(shape=[3]), "found 2 bytes, expected 3 for U8 (3,)"),
    (entry(dtype="F32"), "found 2 bytes, expected 8"),
    (entry(data_offsets=[2, 0]), "found data_offsets [2, 0]"),
    (entry(data_offsets=[-2, 0]), "found data_offsets [-2, 0]"),
    (entry(data_offsets=[0, 2, 4]), "found data_offsets [0, 2, 4]"),
    (entry(data_offsets=[0.0, 2.0]), "found data_offsets [0.0, 2.0]"),
    (entry(data_offsets=[False, 2]), "found data_offsets [False, 2]"),
    (entry(extra=1), "found the keys"),
    ({"x": {"dtype": "U8", "shape": [2]}}, "found the keys"),
    ({"x": ["U8", [2], [0, 2]]}, "found list, expected"),
    ({"x": None}, "found NoneType, expected"),
    (entry(data_offsets=[1, 3]), "a hole before it: it begins at byte 1 of the data, expected 0"),
    (two((0, 1), (0, 1)), "an overlap"),
    (two((0, 2), (1, 2)), "an overlap"),
]


@pytest.mark.parametrize(("header", "words"), TENSOR, ids=lambda value: str(value)[:60])
def test_lies_about_a_tensor_are_found(tmp_path, header, words):
    message = error_of(write(tmp_path / "a.safetensors", header))
    assert "tensor '" in message
    assert words in message


@pytest.mark.parametrize("size", [True, 1.0])
def test_a_size_that_equals_an_earlier_one_is_no_size(tmp_path, size):
    header = two((0, 1), (1, 2))
    write(tmp_path / "a.safetensors", header)
    open_checkpoint(str(tmp_path / "a.safetensors")).close()
    header["y"]["shape"] = [size]
    assert f"'y': found {size} in its shape" in error_of(write(tmp_path / "b", header))


WORDS = st.text('ab":\\ ', max_size=3)
SPACE = st.sampled_from(["", " ", "\n\t"])
PAIRS = st.lists(st.tuples(WORDS, SPACE, WORDS | st.lists(st.tuples(WORDS, SPACE, WORDS))))


def as_text(pairs):
    """JSON of (key, space, string or pairs); dicts could not hold a key twice."""
    parts = [
        f"{json.dumps(key)}{space}:{space}"
        + (json.dumps(value) if isinstance(value, str) else as_text(value))
        for key, space, value in pairs
    ]
    return f"{{{','.join(parts)}}}"


@given(PAIRS)
def test_a_key_that_is_there_twice_is_found(pairs):
    objects = [pairs, *(value for _, _, value in pairs if isinstance(value, list))]
    text = as_text(pairs).encode()
    if all(len({key for key, *_ in each}) == len(each) for each in objects):
        assert parse_object(text) == json.loads(text)
    else:
        with pytest.raises(ValueError, match="is there twice"):
            parse_object(text)


GOOD = json.dumps(entry()).encode()
HEADER = [
    (b"", {}, "header length of 0"),
    (GOOD, {"length": 1 << 40}, "which is where the file ends"),
    (GOOD, {"length": len(GOOD) + 3}, "which is where the file ends"),
    (GOOD, {"data": b"abc"}, "found 3 bytes of data, expected 2; there are trailing bytes"),
    (GOOD, {"data": b"a"}, "found 1 bytes of data, expected 2; the file is cut off"),
    (b"{}", {}, "trailing bytes"),
    (b"[1]", {}, "the JSON object should start"),
    (b" " + GOOD, {}, "the JSON object should start"),
    (b"\xef\xbb\xbf" + GOOD, {}, "the JSON object should start"),
    (GOOD.decode().encode("utf-16"), {}, "the JSON object should start"),
    (b'{"\xff": 1}', {}, "not UTF-8 at byte 2"),
    (GOOD[:-1], {}, "Expecting"),
    (GOOD + b"{}", {}, "Extra data"),
    (b'{"x": NaN}', {}, "NaN is not JSON"),
    (b'{"x": -Infinity}', {}, "-Infinity is not JSON"),
    (GOOD[:-1] + b"," + GOOD[1:], {}, "'x' is there twice"),
    (GOOD.replace(b'"dtype"', b'"shape": [2], "dtype"'), {}, "'shape' is there twice"),
    (b'{"x":' * 100_000, {}, "nested too deeply"),
    (b'{"x":' + b"[" * 100_000, {}, "nested too deeply"),
    (b'{"__metadata__": {"a": 1}}', {"data": b""}, "not an object of strings"),
    (b'{"__metadata__": "a"}', {"data": b""}, "not an object of strings"),
    (b'{"__metadata__": ' + json.dumps(ENTRY).encode() + b"}", {}, "a tensor is called"),
    (GOOD.replace(b'"x"', b'"\\ud800"'), {}, "surrogate"),
    (b'{"x": ' + b"1" * 10_000 + b"}", {}, ""),
]  # fmt: skip


@pytest.mark.parametrize(("header", "how", "words"), HEADER, ids=lambda value: str(value)[:40])
def test_malformed_headers_are_refused(tmp_path, header, how, words):
    assert words in error_of(write(tmp_path / "a.safetensors", header, **how))


def test_headers_of_absurd_length_are_refused_unread(tmp_path):
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 90_000_000) + b"{")
        file.truncate(100_000_000)
    assert "found a header length of 90000000, expected at most 25000000" in error_of(path)


@pytest.mark.parametrize("size", [0, 1, 7])
def test_files_shorter_than_a_header_length_are_refused(tmp_path, size):
    (tmp_path / "a").write_bytes(b"x" * size)
    assert f"found {size} bytes" in error_of(tmp_path / "a")


def test_a_header_length_that_looks_like_gzip_opens(tmp_path):
    length = int.from_bytes(b"\x1f\x8b\x08", "little")
    text = json.dumps(entry()).encode().ljust(length)
    assert list(open_checkpoint(str(write(tmp_path / "a", text))).tensors) == ["x"]


def test_every_problem_is_listed_up_to_a_limit(tmp_path):
    header = {str(n): {**ENTRY, "dtype": "X"} for n in range(30)}
    lines = error_of(write(tmp_path / "a", header)).splitlines()
    assert len(lines) == 21
    assert lines[-1].endswith("and 10 more problems")


def test_an_error_leaves_no_file_open(tmp_path):
    from pathlib import Path

    before = len(list(Path("/proc/self/fd").iterdir()))
    error_of(write(tmp_path / "a", entry(dtype="X")))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.slow
def test_a_hundred_thousand_tensors_open_within_seconds(tmp_path):
    header = {
        f"model.layers.{n}.self_attn.q_proj.weight": {
            "dtype": "BF16", "shape": [1, 1], "data_offsets": [2 * n, 2 * n + 2]
        }
        for n in range(100_000)
    }  # fmt: skip
    path = write(tmp_path / "a", header, bytes(200_000))
    started = time.process_time()
    assert len(open_checkpoint(str(path)).tensors) == 100_000
    assert time.process_time() - started < 10  # about 0.7 s; machines are noisy
