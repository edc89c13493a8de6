"""The header of every weight file differs where the data does."""

import hashlib
import json
import zlib

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from surgeon.inspection.verify import verify
from surgeon.output.execute import Options
from tests.network import assert_identical, write

ZEROS = "0" * 32


def fingerprint(path):
    with safe_open(path, "pt") as opened:
        return json.loads(opened.metadata()["surgeon"])["content"]


def expected(path):
    """Take the CRC-32 of every tensor in file order with zlib, and hash them."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    entries = json.loads(raw[8:start])
    entries.pop("__metadata__")
    places = sorted(tuple(entry["data_offsets"]) for entry in entries.values())
    crcs = "".join(f"{zlib.crc32(raw[start + begin : start + end]):08x}" for begin, end in places)
    return hashlib.sha256(crcs.encode()).hexdigest()[:32]


@pytest.mark.parametrize("checksums", ["crc32", "sha256"])
def test_fingerprint_is_a_hash_of_the_tensors_crcs(bench, checksums):
    bench.given({"b": torch.arange(5.0), "a": torch.ones(3, dtype=torch.int8)})
    made = bench.operate(options=Options(checksums=checksums))
    assert fingerprint(made.path) == expected(made.path)
    header = made.path.read_bytes()[8 : -made["a"].nbytes - made["b"].nbytes]
    stated = made.manifest["checkpoint"]["header_sha256"]
    assert stated == hashlib.sha256(header).hexdigest()


@pytest.mark.parametrize("to", ["out.safetensors", "model"])
def test_there_is_no_fingerprint_without_checksums(bench, to):
    tensors = {"a": torch.ones(3), "b": torch.zeros(5)}
    bench.given(tensors)
    made = bench.operate(to=bench.folder / to, options=Options(checksums="none"))
    path = made.path / "model.safetensors" if made.path.is_dir() else made.path
    with safe_open(path, "pt") as opened:
        ours = json.loads(opened.metadata()["surgeon"])
    assert ours.keys() == {"version", "recipe_sha256"}
    raw = path.read_bytes()
    header = raw[8 : -8 * 4]
    assert (len(header) % 8, int.from_bytes(raw[:8], "little")) == (0, len(header))
    assert_identical(load_file(path), tensors)
    assert verify(made.path, 1).verified


def test_each_shard_has_its_own(bench):
    bench.given({"a": torch.ones(3), "b": torch.zeros(3)})
    folder = bench.folder / "model"
    bench.operate(to=folder, output={"shard_size": 12})
    shards = sorted(folder.glob("*.safetensors"))
    assert [fingerprint(shard) for shard in shards] == [expected(shard) for shard in shards]
    assert len({fingerprint(shard) for shard in shards}) == 2


def test_header_differs_where_only_data_does(bench):
    hashes = set()
    for value in (1.0, 2.0):
        write(bench.input, {"a": torch.full((3,), value)})
        hashes.add(bench.operate().manifest["checkpoint"]["header_sha256"])
    assert len(hashes) == 2


def test_text_like_our_entry_is_not_taken_for_it(bench):
    bench.given({"a": torch.ones(3)})
    text = '"surgeon":"{\\"content\\": \\"' + ZEROS
    made = bench.operate(output={"metadata": {"a-note": text}})
    with safe_open(made.path, "pt") as opened:
        assert opened.metadata()["a-note"] == text
    assert fingerprint(made.path) == expected(made.path)
