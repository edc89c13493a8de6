"""Which tensor lies where in which output file: known before the first byte is written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from json.encoder import encode_basestring
from operator import itemgetter
from typing import NamedTuple

from surgeon.base.errors import PlanError
from surgeon.base.strict_json import MOST_BYTES
from surgeon.draft import MODEL_WEIGHTS, Tensors, ties
from surgeon.draft.quantised import by_name, groups
from surgeon.formats.files import InputFile
from surgeon.formats.safetensors import TIES, tied_names
from surgeon.lazy import LazyTensor
from surgeon.numeric.dtypes import LAYOUT_RANK
from surgeon.recipe.plan import NO_CONTENT

# How our own entry begins: what is always before the fingerprint, it, and what is always behind it.
_KEY = b'\\"content\\": \\"'
_CONTENT, _REST = b'"surgeon":"{' + _KEY, NO_CONTENT.encode() + b'\\", '


class Placed(NamedTuple):
    """A tensor and its place in the data section of a file."""

    name: str
    tensor: LazyTensor
    offset: int


@dataclass(frozen=True)
class OutputFile:
    """One safetensors file to be: its header's bytes and its tensors in file order.

    `source` is the input's file that it is, byte for byte, and that it is to be linked to.
    `is_hashed` asks for the SHA-256 of the whole file. `content_at` is where in the header its
    fingerprint goes; negative where it has none.
    """

    name: str
    header: bytes
    tensors: tuple[Placed, ...]
    size_bytes: int
    source: InputFile | None = None
    is_hashed: bool = False
    content_at: int = -1

    def header_with(self, crcs: Iterable[int]) -> bytes:
        """Return the header with the fingerprint, from its tensors' CRC-32 in file order.

        So it differs whenever the data does, and with it the hash that pins a file.
        """
        if self.content_at < 0:
            return self.header
        text = "".join(f"{crc:08x}" for crc in crcs).encode()
        content = sha256(text).hexdigest()[: len(NO_CONTENT)].encode()
        end = self.content_at + len(content)
        return self.header[: self.content_at] + content + self.header[end:]

    def without_content(self) -> OutputFile:
        """Return the file without its fingerprint, which there is nothing to make of."""
        if self.content_at < 0:
            return self
        start = self.content_at - len(_KEY)
        text = self.header[8:start] + self.header[self.content_at + len(_REST) :]
        header = _headed(text.rstrip(b" "))
        size_bytes = self.size_bytes - len(self.header) + len(header)
        return replace(self, header=header, size_bytes=size_bytes, content_at=-1)


def lay_out(tensors: Tensors, metadata: Mapping[str, str], name: str = MODEL_WEIGHTS) -> OutputFile:
    """Return the layout of all tensors in one file."""
    aliases = ties(tensors)
    owned = {n: t for n, t in tensors.items() if n not in aliases} if aliases else tensors
    return _file(name, owned, metadata, aliases)


def lay_out_shards(
    tensors: Tensors,
    metadata: Mapping[str, str],
    shard_size: int,
    name: str = MODEL_WEIGHTS,
    linked: Iterable[OutputFile] = (),
    homes: Mapping[str, str] | None = None,
) -> list[OutputFile]:
    """Return the layouts of a model folder's files, none larger than `shard_size` if it can be.

    `name` is that of the file where there is one; several have numbers in theirs.
    Tensors fill the files in the order of `tensors`, as transformers does; one that is larger than
    `shard_size` has a file of its own. Those of `linked` files stay in them, and no file has
    tensors of two `homes`, which are files of the input; a new one goes with the one before it.
    """
    aliases = ties(tensors)
    there = {placed.name: file for file in linked for placed in file.tensors}
    shards: list[Tensors | OutputFile] = []
    filling: dict[str, Tensors] = {}
    filled: dict[str, int] = {}
    home = ""
    for tensor_name, size in _units(tensors, aliases, homes).items():
        home = homes.get(tensor_name, home) if homes else home
        if file := there.get(tensor_name):
            if file.tensors[0].name == tensor_name:
                shards.append(file)
            continue
        if home not in filling or (size is not None and filled[home] + size > shard_size):
            filling[home], filled[home] = {}, 0
            shards.append(filling[home])
        filling[home][tensor_name] = tensors[tensor_name]
        filled[home] += size or 0

    def named(name: str, shard: Tensors | OutputFile) -> OutputFile:
        if isinstance(shard, OutputFile):
            return replace(shard, name=name)
        return _file(name, shard, metadata, aliases)

    if len(shards) == 1:
        return [named(name, shards[0])]
    stem = name.removesuffix(".safetensors")
    return [
        named(f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors", shard)
        for number, shard in enumerate(shards, 1)
    ]


def _units(
    tensors: Tensors, aliases: Mapping[str, str], homes: Mapping[str, str] | None
) -> dict[str, int | None]:
    """Return {name: bytes} in the order of the files, a quantised weight's parts one by one.

    The first of them has the bytes of all, the others None: they go where it goes.
    """
    parts = by_name(groups(tensors))
    units: dict[str, int | None] = {}
    for name in tensors:
        if name in units or name in aliases:
            continue
        if name not in parts:
            units[name] = tensors[name].spec.size_bytes
            continue
        units[name] = None
        beside = [other for other in parts[name].parts.values()
                  if other not in units and other not in aliases
                  and (not homes or homes.get(other) == homes.get(name))]  # fmt: skip
        for other in beside:
            units[other] = None
        units[name] = sum(tensors[one].spec.size_bytes for one in (name, *beside))
    return units


def _file(
    file_name: str,
    tensors: Tensors,
    metadata: Mapping[str, str],
    aliases: Mapping[str, str],
) -> OutputFile:
    # By dtype, then name: the order save_file uses, so that a no-op recipe is byte-identical.
    ordered = sorted(tensors.items(), key=itemgetter(0))
    ordered.sort(key=lambda item: LAYOUT_RANK[item[1].spec.dtype])
    entries = []
    if described := _described(tensors, metadata, aliases):
        entries.append(f'"__metadata__":{_compact(dict(sorted(described.items())))}')
    shapes: dict[tuple[int, ...], str] = {}
    placed = []
    offset = 0
    for name, tensor in ordered:
        spec = tensor.spec
        end = offset + spec.size_bytes
        if spec.shape not in shapes:
            shapes[spec.shape] = _compact(spec.shape)
        # Together, since json takes three times as long for a dict of dicts.
        entries.append(
            f'{encode_basestring(name)}:{{"dtype":"{spec.dtype}","shape":{shapes[spec.shape]},'
            f'"data_offsets":[{offset},{end}]}}'
        )
        placed.append(Placed(name, tensor, offset))
        offset = end
    head = _headed(f"{{{','.join(entries)}}}".encode())
    if len(head) - 8 > MOST_BYTES:
        raise PlanError(
            f"{file_name}: its header would have {len(head) - 8:,} bytes, more than the "
            f"{MOST_BYTES:,} that are read; less of output.metadata, or smaller files "
            "(output.shard_size), fit"
        )
    # No name and no value can hold this: their quotes are escaped.
    before, found, _ = head.partition(_CONTENT)
    content_at = len(before) + len(_CONTENT) if found else -1
    return OutputFile(file_name, head, tuple(placed), len(head) + offset, content_at=content_at)


def _headed(text: bytes) -> bytes:
    """Return a header as it is stored: padded, its length first."""
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _described(
    tensors: Tensors, metadata: Mapping[str, str], aliases: Mapping[str, str]
) -> dict[str, str]:
    """Return a file's metadata: tied names have an entry each, as save_model writes them.

    Where another entry would be read as one of these, our own entry says which are.
    """
    tied = {alias: owner for alias, owner in aliases.items() if owner in tensors}
    if twice := sorted(metadata.keys() & tied.keys()):
        raise PlanError(
            f"metadata has an entry {twice[0]!r}, and so has the tied tensor of this name; `untie` "
            "it, or name one of them otherwise"
        )
    if tied_names({**metadata, **tied}, tensors) != tied:
        ours = {**json.loads(metadata.get("surgeon", "{}")), TIES: sorted(tied)}
        metadata = {**metadata, "surgeon": json.dumps(ours, sort_keys=True)}
    return {**metadata, **tied}


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def index_of(files: Iterable[OutputFile]) -> str:
    """Return the text of `model.safetensors.index.json`, as transformers writes it."""
    shards = {placed.name: file.name for file in files for placed in file.tensors}
    total = sum(placed.tensor.spec.size_bytes for file in files for placed in file.tensors)
    index = {"metadata": {"total_size": total}, "weight_map": shards}
    return json.dumps(index, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
