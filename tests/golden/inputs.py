"""Make the checkpoints that the golden recipes read: small, of fixed bits, without surgeon."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, Any]
Tensors = dict[str, tuple[str, Array]]

# The storage type of each dtype; BF16 and F8 are kept as their bits.
STORED = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"), "F8_E4M3": np.dtype("u1"), "I64": np.dtype("<i8"),
    "BOOL": np.dtype("?"), "U8": np.dtype("u1"),
}  # fmt: skip
LAYER_DTYPES = ("F32", "BF16", "F16")


class Numbers:
    """Numbers made of PCG64's raw bits, whose stream no version of numpy changes."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def real(self, *shape: int) -> Array:
        """Make numbers in [-2, 2), mostly near zero, each a multiple of 2 ** -21."""
        raw = self._bits.random_raw(2 * int(np.prod(shape))).reshape(2, *shape)
        halves = (raw >> np.uint64(43)).astype(np.float64) / 2**20 - 1
        return np.asarray(halves.sum(0))

    def whole(self, *shape: int, below: int) -> Array:
        """Make whole numbers from -below + 1 to below - 1."""
        raw = self._bits.random_raw(int(np.prod(shape))).reshape(shape) >> np.uint64(20)
        return (raw % np.uint64(2 * below - 1)).astype(np.int64) - (below - 1)


def rounded(values: Array, dtype: str) -> tuple[str, Array]:
    """Round float64 values to a dtype, to nearest even; those of BF16 by way of float32."""
    if dtype != "BF16":
        return dtype, np.asarray(values).astype(STORED[dtype])
    bits = np.asarray(values, np.float32).view(np.uint32).astype(np.uint64)
    nearest = (bits + np.uint64(0x7FFF) + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
    return dtype, nearest.astype(np.uint16)


def save(path: Path, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file by hand, which also holds BF16 and F8."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    data = b""
    for name, (dtype, array) in tensors.items():
        raw = np.ascontiguousarray(array, STORED[dtype]).tobytes()
        ends = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": ends}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def network(seed: int) -> Tensors:
    """Make a network of many dtypes and of ranks 0 to 4."""
    make = Numbers(seed)
    tensors = {
        "embed.weight": rounded(make.real(5, 8), "BF16"),
        "stem.weight": rounded(make.real(4, 2, 3, 3), "F16"),
        "stem.bias": rounded(make.real(4), "F16"),
    }
    for i in range(3):
        tensors[f"encoder.{i}.weight"] = rounded(make.real(8, 8), "F32")
        tensors[f"encoder.{i}.bias"] = rounded(make.real(8), "F32")
        tensors[f"encoder.{i}.norm.weight"] = rounded(make.real(8), "BF16")
        tensors[f"encoder.{i}.norm.bias"] = rounded(make.real(8), "BF16")
    return tensors | {
        "fused.weight": rounded(make.real(12, 8), "BF16"),
        "classifier.weight": rounded(make.real(7, 8), "F32"),
        "classifier.bias": rounded(make.real(7), "F32"),
        "position.weight": rounded(make.real(5, 6), "F32"),
        "position.ids": ("I64", np.arange(6).reshape(1, 6)),
        "mask": ("BOOL", np.array([True, False, True])),
        "codes": ("F8_E4M3", (make.whole(3, 4, below=50) + 50).astype(np.uint8)),
        "temperature": rounded(make.real(), "F64"),
    }


def relative(seed: int) -> Tensors:
    """Make a network near the others of this kind; seed 0 is the one they came from.

    Layer 1 has few different values, so that many changes are equally large.
    """
    origin, change = Numbers(100), Numbers(200 + seed)
    share = 0.125 if seed else 0.0
    tensors: Tensors = {}

    def near(name: str, dtype: str, *shape: int) -> None:
        old = origin.real(*shape)
        tensors[name] = rounded(old + share * change.real(*shape), dtype)

    near("embed.weight", "BF16", 5, 4)
    for i, dtype in enumerate(LAYER_DTYPES):
        near(f"layers.{i}.weight", dtype, 6, 5)
        near(f"layers.{i}.bias", dtype, 6)
    steps = change.whole(6, 5, below=4) if seed else 0
    tensors["layers.1.weight"] = rounded((origin.whole(6, 5, below=60) + steps) / 64, "BF16")
    near("convolution.weight", "F32", 3, 2, 3, 2)
    near("logit", "F16")
    tensors["ids"] = ("I64", np.array([3, 1, 4 + seed]))
    return tensors


def importances(seed: int) -> Tensors:
    """Make the diagonal Fisher values of a relative: of all but the biases and one matrix."""
    make = Numbers(300 + seed)
    floats = {n: a for n, (d, a) in relative(seed).items() if d in LAYER_DTYPES}
    return {
        name: rounded(make.real(*array.shape) ** 2 + 2**-7, "F64")
        for name, array in floats.items()
        if "bias" not in name and name != "embed.weight"
    }


def grams(seed: int) -> Tensors:
    """Make the Gram matrices of a relative's linear layers."""
    make = Numbers(400 + seed)
    found: Tensors = {}
    for i in range(2):
        inputs = make.whole(20, 5, below=9)
        found[f"layers.{i}.weight"] = ("F64", sum(np.multiply.outer(row, row) for row in inputs))
    return found


def perceptron(order: list[int] | None = None) -> Tensors:
    """Make a two-layer perceptron; with `order`, a neighbour with its units in that order."""
    make, change = Numbers(500), Numbers(501)
    shapes = {"0.weight": (7, 4), "0.bias": (7,), "2.weight": (3, 7), "2.bias": (3,)}
    values = {name: make.real(*shape) for name, shape in shapes.items()}
    if order is not None:
        values = {n: v + change.real(*v.shape) / 64 for n, v in values.items()}
        values |= {n: values[n][order] for n in ("0.weight", "0.bias")}
        values["2.weight"] = values["2.weight"][:, order]
    return {name: rounded(value, "F32") for name, value in values.items()}


def empty() -> Tensors:
    """Make tensors of zeros, to be given values: rank 2 of three dtypes, by number."""
    return {f"fresh.{i}": rounded(np.zeros((6, 5)), LAYER_DTYPES[i % 3]) for i in range(12)}


def adapter(folder: Path) -> None:
    """Write a LoRA adapter for the network, as PEFT lays it out."""
    make = Numbers(600)
    folder.mkdir()
    tensors = {
        "encoder.0.lora_A.weight": rounded(make.real(2, 8), "F32"),
        "encoder.0.lora_B.weight": rounded(make.real(8, 2), "F32"),
        "fused.lora_A.weight": rounded(make.real(2, 8), "BF16"),
        "fused.lora_B.weight": rounded(make.real(12, 2), "BF16"),
        "classifier.bias": rounded(make.real(7), "F32"),
    }
    named = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
    save(folder / "adapter_model.safetensors", named)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def model_folder(folder: Path) -> None:
    """Write a model folder: a configuration and two shards with their index."""
    folder.mkdir()
    tensors = network(1)
    names = list(tensors)
    shards = {
        "model-00001-of-00002.safetensors": names[:9],
        "model-00002-of-00002.safetensors": names[9:],
    }
    for shard, kept in shards.items():
        save(folder / shard, {name: tensors[name] for name in kept})
    weight_map = {name: shard for shard, kept in shards.items() for name in kept}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {"model_type": "custom", "num_labels": 7, "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def pickled(path: Path) -> None:
    """Write a .pt file with a model and the state of an Adam that trained it."""
    make = Numbers(700)
    shapes = {"body.weight": (6, 4), "body.bias": (6,), "fc.weight": (7, 6), "fc.bias": (7,)}
    model = {n: torch.tensor(make.real(*s), dtype=torch.float32) for n, s in shapes.items()}
    state = {
        i: {"step": torch.tensor(3.0), "exp_avg": tensor / 8, "exp_avg_sq": tensor**2 / 16}
        for i, tensor in enumerate(model.values())
    }
    group = {
        "lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "amsgrad": False,
        "params": list(range(4)), "param_names": list(model),
    }  # fmt: skip
    optimizer = {"state": state, "param_groups": [group]}
    torch.save({"model": {**model, "half": model["fc.bias"].bfloat16()}}, path)
    torch.save({"model": model, "optimizer": optimizer}, path.with_name("trained.pt"))


def write(folder: Path) -> None:
    """Write all inputs into a folder."""
    tied = {"head.weight": "embed.weight"}
    for number, name in enumerate(("other", "net")):
        save(folder / f"{name}.safetensors", network(number), tied)
    for number, name in enumerate(("base", "left", "right", "third")):
        save(folder / f"{name}.safetensors", relative(number), tied)
        save(folder / f"fisher_{name}.safetensors", importances(number))
        save(folder / f"gram_{name}.safetensors", grams(number))
    save(folder / "mlp.safetensors", perceptron())
    save(folder / "mlp_other.safetensors", perceptron([3, 0, 6, 1, 5, 2, 4]))
    save(folder / "empty.safetensors", empty())
    adapter(folder / "adapter")
    model_folder(folder / "folder")
    pickled(folder / "plain.pt")
