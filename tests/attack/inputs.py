"""Bad files of every format, by name: what each holds is made by a few lines of its own."""

# ruff: noqa: E501  (a bad file is a line)

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save

Make = Callable[[Path], object]
TENSOR = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
DEEP = b"[" * 100_000 + b"]" * 100_000
CODE = b"cos\nsystem\n(S'true'\ntR."


def of_bytes(data: bytes) -> Make:
    return lambda path: path.write_bytes(data)


def header(text: bytes | str, data: bytes = b"\0" * 16, length: int | None = None) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(**changes: Any) -> bytes:
    return header(json.dumps({"w": {**TENSOR, **changes}}))


def safetensors_files() -> Iterator[tuple[str, Make]]:
    good = json.dumps({"w": TENSOR})
    raw = {
        "empty": b"", "short": b"\1\2", "length alone": struct.pack("<Q", 8),
        "length 0": header("", length=0), "length past the end": header(good, length=1 << 40),
        "length negative": header(good, length=(1 << 64) - 1), "not JSON": header("{w: 1}"),
        "a list": header("[]"), "a number": header("1"), "cut JSON": header(good[:-3]),
        "UTF-16": header(good.encode("utf-16")), "byte order mark": header("\ufeff" + good),
        "not UTF-8": header(b'{"\xff": 1}'), "surrogate": header('{"\\ud800": 1}'),
        "NaN": header('{"w": NaN}'), "deep": header(b'{"w":' + DEEP + b"}"),
        "twice": header(f'{{"w": {json.dumps(TENSOR)}, "w": {json.dumps(TENSOR)}}}'),
        "an array": header('{"w": ["F32", [2, 2], [0, 16]]}'), "null": header('{"w": null}'),
        "metadata a list": header('{"__metadata__": []}', b""),
        "metadata of numbers": header('{"__metadata__": {"a": 1}}', b""),
        "metadata a tensor": header(json.dumps({"__metadata__": TENSOR})),
        "metadata is large": header(json.dumps({"__metadata__": {"a": "b" * 1_000_000}}), b""),
        "trailing bytes": header(good, b"\0" * 17), "cut data": header(good, b"\0" * 15),
        "no data": header(good, b""), "huge number": header(good.replace("16", "1" + "0" * 400)),
        "float offsets": header(good.replace("16]", "1.6e1]")),
        "overlap": header(json.dumps({"a": TENSOR, "b": TENSOR})),
        "hole": header(json.dumps({"a": TENSOR, "b": {**TENSOR, "data_offsets": [20, 36]}}),
                       b"\0" * 36),
        "ties in a circle": header(json.dumps({"__metadata__": {"a": "b", "b": "a"}}), b""),
        "tie to itself": header(json.dumps({"__metadata__": {"w": "w"}, "w": TENSOR})),
    }  # fmt: skip
    changed: dict[str, dict[str, Any]] = {
        "dtype unknown": {"dtype": "F33"}, "dtype a list": {"dtype": []},
        "dtype null": {"dtype": None}, "shape negative": {"shape": [-2, -2]},
        "shape of floats": {"shape": [2.0, 2]}, "shape of strings": {"shape": ["2", 2]},
        "shape of booleans": {"shape": [True, 4]}, "shape a number": {"shape": 4},
        "shape of lists": {"shape": [[2], 2]}, "shape overflows": {"shape": [1 << 62, 4]},
        "shape overflows beside 0": {"shape": [1 << 62, 1 << 62, 0], "data_offsets": [0, 0]},
        "rank 40": {"shape": [1] * 39 + [4]}, "rank 10 000": {"shape": [1] * 10_000 + [4]},
        "offsets reversed": {"data_offsets": [16, 0]}, "offsets negative": {"data_offsets": [-16, 0]},
        "one offset": {"data_offsets": [16]}, "offsets null": {"data_offsets": None},
        "offsets outside": {"data_offsets": [1 << 50, (1 << 50) + 16]}, "extra key": {"x": 1},
        "bytes wrong": {"data_offsets": [0, 15]}, "half bytes": {"dtype": "F4", "shape": [3]},
    }  # fmt: skip
    names = {"a name of dots": "." * 1000, "an empty name": "", "a long name": "x" * 100_000,
             "a name of numbers": "0.0.0.0", "a name that steers": "\x1b]0;x\x07\n"}  # fmt: skip
    yield from ((what, of_bytes(data)) for what, data in raw.items())
    yield from ((what, of_bytes(entry(**changes))) for what, changes in changed.items())
    for what, name in names.items():
        yield what, of_bytes(header(json.dumps({name: TENSOR})))


def torch_bytes(value: Any, **options: Any) -> bytes:
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(value, data, **options)
    return data.getvalue()


def zipped(pickled: bytes, *, compression: int = 0, **members: bytes) -> bytes:
    data = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(data, "w", compression) as archive:
        warnings.simplefilter("ignore")
        archive.writestr("archive/data.pkl", pickled)
        for name, content in {"version": b"3\n", **members}.items():
            archive.writestr(f"archive/{name.replace('_', '/')}", content)
    return data.getvalue()


def rewritten(data: bytes, change: Callable[[str, bytes], tuple[str, bytes] | None]) -> bytes:
    """Return a torch archive with members changed, or left out."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            if found := change(name, old.read(name)):
                new.writestr(*found)
    return made.getvalue()


PICKLES = {
    "code": CODE, "code, protocol 2": b"\x80\x02" + CODE, "eval": b"\x80\x02c__builtin__\neval\n.",
    "no end": b"\x80\x02}", "nothing": b"", "no stack": b"\x80\x02.", "a mark alone": b"\x80\x02(.",
    "no such opcode": b"\x80\x02\xff.", "protocol 9": b"\x80\x09}.", "a memo of nothing": b"\x80\x02h\5.",
    "memo far away": b"\x80\x02}r\xff\xff\xff\x7f.", "a tuple of nothing": b"\x80\x02\x87.",
    "a string without end": b"\x80\x02X\xff\xff\xff\x7fa.", "bytes8 without end":
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", "long without end": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "long negative": b"\x80\x02\x8b\xff\xff\xff\xff.", "not UTF-8": b"\x80\x02X\2\0\0\0\xff\xff.",
    "int of letters": b"Iabc\n.", "long of letters": b"Labc\n.", "float of letters": b"Fabc\n.",
    "a list in itself": b"\x80\x02]q\0h\0a.", "a dict in itself": b"\x80\x02}q\0X\1\0\0\0ah\0s.",
    "a key that is a dict": b"\x80\x02}}K\1s.", "a key that is a list": b"\x80\x02}]K\1s.",
    "odd items": b"\x80\x02}(K\1K\2K\3u.", "append to a number": b"\x80\x02K\1K\2a.",
    "build of a number": b"\x80\x02K\1}b.", "reduce of a number": b"\x80\x02K\1)R.",
    "persistent number": b"\x80\x02K\1Q.", "persistent text": b"Pabc\n.", "next buffer": b"\x80\x05\x97.",
    "frame": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f}.", "extension": b"\x80\x02\x82\1.",
    "deep": b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".", "pop": b"\x80\x020000.",
    "rebuild of nothing": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
    "rebuild of numbers": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\1K\2K\3K\4K\5K\6tR.",
    "Parameter of nothing": b"\x80\x02ctorch._utils\n_rebuild_parameter\n)R.",
    "OrderedDict of numbers": b"\x80\x02ccollections\nOrderedDict\n(K\1K\2tR.",
    "obj": b"(cos\nsystem\no.", "inst": b"(ios\nsystem\n.", "stack global": b"\x80\x04\x8c\2os\x8c\6system\x93.",
}  # fmt: skip


def torch_files() -> Iterator[tuple[str, Make]]:
    weights = {"w": torch.ones(4, 4), "b": torch.ones(4)}
    good = torch_bytes(weights)
    for what, data in PICKLES.items():
        yield f"zip: {what}", of_bytes(zipped(data))
        yield (
            f"legacy: {what}",
            of_bytes(
                pickle.dumps(0x1950A86A20F9469CFC6C, 2)
                + pickle.dumps(1001, 2)
                + pickle.dumps({}, 2)
                + data
            ),
        )
    values: dict[str, Any] = {
        "nothing": {}, "a tensor": torch.ones(2), "a number": 1, "text": "x", "a list": [torch.ones(2)],
        "sparse": {"w": torch.eye(3).to_sparse()}, "complex": {"w": torch.ones(2) * 1j},
        "quantised": {"w": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)},
        "meta": {"w": torch.ones(2, device="meta")}, "arrays": {"w": np.ones(2)},
        "expanded": {"w": torch.ones(1).expand(1 << 40)}, "keys of numbers": {1: torch.ones(2)},
        "keys of tuples": {(1, 2): torch.ones(2)}, "a module": torch.nn.Linear(2, 2),
        "two of them": {"a": dict(weights), "b": {"w": torch.zeros(4, 4), "b": torch.ones(4)}},
        "strided": {"w": torch.ones(9, 9).t()[1:, ::2]}, "a NaN": {"w": torch.full((2,), torch.nan)},
        "an optimizer": torch.optim.Adam(torch.nn.Linear(2, 2).parameters()).state_dict(),
    }  # fmt: skip
    for what, value in values.items():
        yield f"saved: {what}", of_bytes(torch_bytes(value))
        if what in ("a module", "an optimizer", "strided", "sparse", "two of them"):
            old = torch_bytes(value, _use_new_zipfile_serialization=False)
            yield f"saved, legacy: {what}", of_bytes(old)

    def without(part: str) -> bytes:
        return rewritten(good, lambda name, data: None if name.endswith(part) else (name, data))

    def cut(name: str, data: bytes) -> tuple[str, bytes]:
        return name, data[:-1] if "/data/" in name else data

    def moved(name: str, data: bytes) -> tuple[str, bytes]:
        return f"../{name}", data

    yield "zip: no data.pkl", of_bytes(without("data.pkl"))
    yield "zip: no storage", of_bytes(without("data/0"))
    yield "zip: short storages", of_bytes(rewritten(good, cut))
    yield "zip: outside", of_bytes(rewritten(good, moved))
    yield (
        "zip: big endian",
        of_bytes(
            rewritten(good, lambda name, data: (name, b"big" if "byteorder" in name else data))
        ),
    )
    yield "zip: compressed", of_bytes(zipped(pickle.dumps({}, 2), compression=zipfile.ZIP_DEFLATED))
    yield "zip: twice", of_bytes(good + good)
    yield "zip: no members", of_bytes(b"PK\5\6" + b"\0" * 18)
    yield "zip: members without end", of_bytes(b"PK\5\6" + b"\0" * 4 + b"\xff" * 12 + b"\0\0")
    yield "zip: begins alone", of_bytes(b"PK\3\4")
    yield "plain pickle", of_bytes(pickle.dumps({"w": 1}))
    yield "TorchScript", of_bytes(zipped(pickle.dumps({}, 2), constants=b"x", code_a=b"y"))


def gguf(tensors: int = 0, keys: int = 0, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + rest


def gguf_files() -> Iterator[tuple[str, Make]]:
    def text(word: bytes) -> bytes:
        return struct.pack("<Q", len(word)) + word

    def tensor(dims: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
        sizes = struct.pack(f"<{len(dims)}Q", *dims)
        return text(b"w") + struct.pack("<I", len(dims)) + sizes + struct.pack("<IQ", kind, offset)

    key = text(b"a.b") + struct.pack("<I", 8) + text(b"value")
    files = {
        "magic alone": b"GGUF", "version 0": gguf(version=0), "version 99": gguf(version=99),
        "no tensor": gguf(), "tensors without end": gguf(tensors=1 << 63), "cut": gguf(1, 1, key),
        "keys without end": gguf(keys=1 << 63), "key without end":
            gguf(0, 1, struct.pack("<Q", 1 << 62)), "type unknown": gguf(0, 1, text(b"a") + b"\xff" * 4),
        "array without end": gguf(0, 1, text(b"a") + struct.pack("<IIQ", 9, 4, 1 << 62)),
        "arrays in arrays": gguf(0, 1, text(b"a") + struct.pack("<IIQ", 9, 9, 1) * 1000),
        "alignment 0": gguf(0, 1, text(b"general.alignment") + struct.pack("<II", 4, 0)),
        "alignment huge": gguf(0, 1, text(b"general.alignment") + struct.pack("<II", 4, 1 << 31)),
        "no data": gguf(1, 0, tensor()), "kind unknown": gguf(1, 0, tensor(kind=999)),
        "rank 99": gguf(1, 0, tensor((1,) * 99)), "rank without end":
            gguf(1, 0, text(b"w") + b"\xff" * 4), "overflow": gguf(1, 0, tensor((1 << 62, 1 << 62))),
        "offset outside": gguf(1, 0, tensor(offset=1 << 60) + b"\0" * 256),
        "offset odd": gguf(1, 0, tensor(offset=7) + b"\0" * 256),
        "twice": gguf(2, 0, tensor() * 2 + b"\0" * 512), "not blocks": gguf(1, 0, tensor((33,), 2)),
        "not UTF-8": gguf(1, 0, text(b"\xff") + b"\0" * 99), "key twice": gguf(0, 2, key * 2),
    }  # fmt: skip
    for what, data in files.items():
        yield f"GGUF: {what}", of_bytes(data)


def foreign_files() -> Iterator[tuple[str, Make]]:
    files = {
        "JSON": b'{"a": 1}', "a list": b"[1]", "text": b"hello\n", "zeros": b"\0" * 1000,
        "ones": b"\xff" * 1000, "HDF5": b"\x89HDF\r\n\x1a\n" + b"\0" * 99, "gzip": b"\x1f\x8b\x08" * 99,
        "ELF": b"\x7fELF" + b"\0" * 99, "numpy": b"\x93NUMPY\x01\0" + b"\0" * 99,
        "pointer of git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    }  # fmt: skip
    for what, data in files.items():
        yield f"other: {what}", of_bytes(data)
    yield "a FIFO", lambda path: os.mkfifo(path)
    yield "a link to nothing", lambda path: path.symlink_to("nothing")
    yield "a link to itself", lambda path: path.symlink_to(path.name)
    yield "a link to a device", lambda path: path.symlink_to("/dev/zero")


WEIGHTS = save({"w": np.ones((2, 2), np.float32)}, {"format": "pt"})


def in_folder(**files: bytes | str) -> Make:
    """Return what makes a folder of files; two underscores stand for a dot, three for a slash."""

    def make(path: Path) -> None:
        path.mkdir()
        for name, content in files.items():
            inside = path / name.replace("___", "/").replace("__", ".")
            inside.parent.mkdir(exist_ok=True)
            inside.write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def folders() -> Iterator[tuple[str, Make]]:
    index = "model__safetensors__index__json"

    def indexed(value: object, **more: bytes) -> Make:
        return in_folder(**{index: json.dumps(value), "a__safetensors": WEIGHTS, **more})

    def with_map(weight_map: object) -> Make:
        return indexed({"metadata": {}, "weight_map": weight_map})

    yield "folder: empty", in_folder()
    yield "folder: config alone", in_folder(config__json="{}")
    yield (
        "folder: two formats",
        in_folder(
            model__safetensors=WEIGHTS, pytorch_model__bin=torch_bytes({"w": torch.zeros(2, 2)})
        ),
    )
    for what, config in {
        "bad": "{", "a list": "[]", "a number": "1", "a mark": "\ufeff{}", "deep": DEEP.decode(),
        "odd values": '{"vocab_size": [], "hidden_size": "x", "num_hidden_layers": -1, '
                      '"architectures": 7, "model_type": {}, "id2label": 3, "torch_dtype": []}',
        "huge values": '{"vocab_size": 1e308, "hidden_size": 99999999999999999999, '
                       '"num_attention_heads": 0, "head_dim": 0, "quantization_config": []}',
        "odd quantisation": '{"quantization_config": {"quant_method": [], "bits": "x"}}',
    }.items():  # fmt: skip
        yield f"folder: config {what}", in_folder(model__safetensors=WEIGHTS, config__json=config)
    for what, made in {
        "a list": [], "no map": {}, "map a list": {"weight_map": []}, "map null": {"weight_map": None},
    }.items():  # fmt: skip
        yield f"index: {what}", indexed(made)
    for what, weight_map in {
        "a missing file": {"w": "b.safetensors"}, "outside": {"w": "../in.safetensors"},
        "absolute": {"w": "/etc/passwd"}, "a number": {"w": 1}, "another name": {"v": "a.safetensors"},
        "too many": {"w": "a.safetensors", "v": "a.safetensors"}, "nothing": {},
        "itself": {"w": "model.safetensors.index.json"}, "a folder": {"w": "."}, "empty": {"w": ""},
        "a null byte": {"w": "\0"}, "a long name": {"w": "x" * 5000},
    }.items():  # fmt: skip
        yield f"index: {what}", with_map(weight_map)
    yield "index: not JSON", in_folder(**{index: "{", "a__safetensors": WEIGHTS})
    yield "DCP: empty", in_folder(__metadata="")
    for what, data in PICKLES.items():
        name = "DCP: " + what
        yield name, lambda path, data=data: (path.mkdir(), (path / ".metadata").write_bytes(data))  # type: ignore[misc]
    yield "DeepSpeed: nothing", in_folder(latest="global_step1")
    yield "DeepSpeed: outside", in_folder(latest="../..")
    yield "DeepSpeed: bad parts", in_folder(
        latest="g", g___mp_rank_00_model_states__pt=zipped(pickle.dumps({}, 2)),
        g___zero_pp_rank_0_mp_rank_00_optim_states__pt=zipped(pickle.dumps({"a": 1}, 2)),
    )  # fmt: skip


def checkpoints() -> dict[str, Make]:
    """Return what is to be read as a checkpoint, by name."""
    return dict([*safetensors_files(), *torch_files(), *gguf_files(), *foreign_files(), *folders()])


# --- Recipes, manifests, configurations -----------------------------------------------------------


def recipes() -> dict[str, bytes]:
    """Return bad recipes for an input of one tensor `w` of shape (2, 2), and some that are fine."""
    texts: dict[str, Any] = {
        "empty": b"", "null": b"null", "a list": b"[]", "cut": b'{"surgeon": 1, "steps": [',
        "UTF-16": '{"surgeon": 1, "steps": []}'.encode("utf-16"), "NaN": b'{"seed": NaN}', "deep": DEEP,
        "mark": b'\xef\xbb\xbf{"surgeon": 1, "steps": []}', "twice": b'{"steps": [], "steps": []}',
        "huge": b'{"surgeon": 1, "seed": 1' + b"0" * 5000 + b', "steps": []}', "\\ud800": b'"\\ud800"',
        "floats": b'{"surgeon": 1, "seed": 1e400, "steps": []}', "version 2": {"surgeon": 2, "steps": []},
        "no steps": {"surgeon": 1}, "steps a dict": {"surgeon": 1, "steps": {}},
        "a step a number": {"surgeon": 1, "steps": [1]}, "ids twice": {"surgeon": 1, "steps": [
            {"id": "a", "op": "keep", "target": "w"}] * 2},
        "seed negative": {"surgeon": 1, "seed": -1, "steps": []},
        "seed huge": {"surgeon": 1, "seed": 1 << 200, "steps": []},
        "no variable": {"surgeon": 1, "steps": [{"op": "keep", "target": "${x}"}]},
        "variables in a circle": {"surgeon": 1, "vars": {"a": "${b}", "b": "${a}"}, "steps": [
            {"op": "keep", "target": "${a}"}]},
        "a model of nothing": {"surgeon": 1, "models": {"m": None}, "steps": []},
        "a model outside": {"surgeon": 1, "models": {"m": "/dev/zero"}, "steps": []},
        "odd output": {"surgeon": 1, "steps": [], "output": {"dtype": "F99", "shard_size": "x",
                                                            "metadata": {"a": 1}, "config": []}},
        "odd training": {"surgeon": 1, "steps": [], "training": {"stages": [{"name": 1}], "x": 1}},
        "no such class": {"surgeon": 1, "steps": [], "training": {
            "optimizer": {"class": "os.system", "args": {}}, "stages": [{"name": "a"}]}},
    }  # fmt: skip
    odd: list[Any] = [
        None, True, -1, 0, 1 << 70, 1.5, 1e308, "", "**", "re:(", "re:(a+)+b", "w", "w.x", "{i}", "\0",
        "@new", "!w", [], [[]], ["w", 1], {}, {"by_layer": [0, 1]}, {"by_layer": []}, [{"target": "w"}],
        [{"rows": "w", "columns": ["w"]}], "../in.safetensors", "/dev/zero", "x" * 10_000,
    ]  # fmt: skip
    found = {
        what: text if isinstance(text, bytes) else json.dumps(text).encode()
        for what, text in texts.items()
    }
    from surgeon.cli.catalogue import as_json, one_as_json

    for op in as_json():
        about = one_as_json(op["name"])
        for index, (word, _) in enumerate(sorted(about["parameters"]["properties"].items())):
            values = [odd[(index * 7 + shift * 5 + len(word)) % len(odd)] for shift in range(4)]
            steps = [{**about["example"], word: value} for value in values]
            for number, step in enumerate(steps):
                document = {"surgeon": 1, "models": {"other": "other.safetensors"}, "steps": [step]}
                found[f"{op['name']}.{word} {number}"] = json.dumps(document).encode()
    return found
