"""The example network that every op's example runs on, and short ways to operate on checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from surgeon import recipe, surgery
from surgeon.formats import open_checkpoint
from surgeon.output.execute import Options
from surgeon.recipe.plan import Plan

Tensors = Mapping[str, torch.Tensor]
Json = dict[str, Any]

TIES = {"head.weight": "embed.weight"}


def example_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """The example network without its tied name: small, of many dtypes, of ranks 0 to 4."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    return {
        "embed.weight": normal(5, 8, dtype=torch.bfloat16),
        "stem.weight": normal(4, 2, 3, 3, dtype=torch.float16),
        "encoder.0.weight": normal(8, 8),
        "encoder.0.bias": normal(8),
        "encoder.0.norm.weight": normal(8),
        "encoder.0.norm.bias": normal(8),
        "encoder.1.weight": normal(8, 8),
        "encoder.1.bias": normal(8),
        "encoder.1.norm.weight": normal(8),
        "encoder.1.norm.bias": normal(8),
        "encoder.1.norm.running_mean": normal(8),
        "encoder.1.norm.running_var": normal(8).abs() + 0.5,
        "encoder.1.norm.num_batches_tracked": torch.tensor(100 + seed),
        "classifier.weight": normal(7, 8),
        "classifier.bias": normal(7),
        "position.ids": torch.arange(6).view(1, 6),
        "position.mask": torch.tensor([True, False, True]),
        "quantised.weight": normal(3, 4, dtype=torch.float8_e4m3fn),
        "temperature": torch.tensor(0.07 + seed, dtype=torch.float64),
        "unused.weight": normal(0, 8),
    }


def example_codes() -> dict[str, torch.Tensor]:
    """A quantised weight: FP8 codes with a scale per row."""
    generator = torch.Generator().manual_seed(9)
    codes = torch.randn(6, 8, generator=generator).to(torch.float8_e4m3fn)
    return {"packed.weight": codes, "packed.weight_scale": torch.rand(6, 1, generator=generator)}


def example_mixture() -> dict[str, torch.Tensor]:
    """A layer of three experts with a router, and one that holds its experts in one tensor."""
    generator = torch.Generator().manual_seed(10)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(torch.bfloat16)

    apart = {f"layers.0.moe.experts.{n}.{w}.weight": normal(6, 8) for n in range(3) for w in "ab"}
    return apart | {
        "layers.0.moe.gate.weight": normal(3, 8),
        "layers.1.moe.experts.up": normal(3, 8, 6),
        "layers.1.moe.router.weight": normal(3, 8),
        "layers.1.moe.router.bias": normal(3),
    }


def example_dense(seed: int) -> dict[str, torch.Tensor]:
    """A layer of a dense model that experts can be made of."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"gate_proj": (6, 8), "up_proj": (6, 8), "down_proj": (8, 6)}
    return {f"model.layers.0.mlp.{name}.weight": torch.randn(shape, generator=generator)
            for name, shape in shapes.items()}  # fmt: skip


SPECIAL: Mapping[str, Callable[[], dict[str, torch.Tensor]]] = {
    "dequantize": example_codes,
    "keep_experts": example_mixture,
    "merge_experts": example_mixture,
    "experts": lambda: example_dense(11),
}


def example_importances(seed: int) -> dict[str, torch.Tensor]:
    """What a Fisher checkpoint of the example network may be: positive, a buffer left out."""
    floats = {n: t for n, t in example_tensors(seed).items() if t.is_floating_point()}
    return {n: t.float() ** 2 + 0.01 for n, t in floats.items() if "running" not in n}


def example_grams(seed: int) -> dict[str, torch.Tensor]:
    """Inner products of the example network's inputs, for all of its matrices but one."""
    generator = torch.Generator().manual_seed(seed)
    matrices = {
        n: t for n, t in example_tensors().items() if t.is_floating_point() and t.dim() == 2
    }
    grams = {}
    for name, matrix in matrices.items():
        inputs = torch.randn(20, matrix.shape[1], generator=generator, dtype=torch.float64)
        if name != "unused.weight":
            grams[name] = inputs.T @ inputs
    return grams


def write(path: Path, tensors: Tensors, ties: Mapping[str, str] | None = None) -> Path:
    """Write a checkpoint as save_model does: ties are metadata entries."""
    save_file(dict(tensors), path, {"format": "pt", **(ties or {})})
    return path


def write_tokenizer(folder: Path, *tokens: str) -> Path:
    """Write a tokenizer that knows whole words, numbered in this order; the first is unknown's."""
    model = {
        "type": "WordLevel",
        "vocab": {token: number for number, token in enumerate(tokens)},
        "unk_token": tokens[0],
    }
    document = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}}
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**document, "model": model}))
    return path


def write_recipe(folder: Path, *steps: Json, **rest: Any) -> Path:
    """Write a recipe beside the checkpoints."""
    path = folder / "recipe.json"
    path.write_text(json.dumps({"surgeon": 1, "steps": list(steps), **rest}))
    return path


def write_adapter(folder: Path, tensors: Tensors, **config: Any) -> Path:
    """Write an adapter as PEFT saves it; `config` are settings besides the usual ones."""
    folder.mkdir(exist_ok=True)
    named = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors", {"format": "pt"})
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def example_adapter() -> dict[str, torch.Tensor]:
    """An adapter for the example network."""
    generator = torch.Generator().manual_seed(2)
    return {
        "encoder.0.lora_A.weight": torch.randn(2, 8, generator=generator),
        "encoder.0.lora_B.weight": torch.randn(8, 2, generator=generator),
        "classifier.bias": torch.randn(7, generator=generator),
    }


def read(path: Path) -> dict[str, torch.Tensor]:
    """Read a checkpoint with the safetensors library; tied names share one tensor."""
    tensors = load_file(path)
    with safe_open(path, "pt") as opened:
        metadata = opened.metadata() or {}
    return tensors | {a: tensors[o] for a, o in metadata.items() if o in tensors}


def raw_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def correctly_rounded(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Round float64 values to a dtype in one step."""
    if dtype in (torch.float64, torch.float32):
        return values.to(dtype)
    nearest = values.to(torch.float32)
    # Round to odd, so that torch's second rounding cannot be a double one.
    bits = nearest.view(torch.int32).clone()
    too_far = nearest.double().abs() > values.abs()
    bits[too_far] -= 1
    inexact = torch.isfinite(values) & (bits.view(torch.float32).double() != values)
    bits[inexact] |= 1
    return bits.view(torch.float32).to(dtype)


def assert_identical(found: Tensors, expected: Tensors) -> None:
    """Same names, dtypes, shapes and bits."""
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert raw_bytes(found[name]) == raw_bytes(tensor), name


@dataclass
class Operated:
    """What a recipe made of a checkpoint."""

    path: Path
    manifest: Json
    notes: list[str]

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        return read(self.path)

    def lineage(self, name: str) -> list[Json]:
        return self.manifest["tensors"][name].get("lineage", [])

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]


class Bench:
    """A folder with an input, models and a recipe, and what can be done with them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.input = folder / "in.safetensors"
        self.output = folder / "out.safetensors"
        self.models: dict[str, str] = {}

    def given(self, tensors: Tensors, ties: Mapping[str, str] | None = None, **models: Tensors):
        """Write the input and the models; returns the bench."""
        write(self.input, tensors, ties)
        for name, others in models.items():
            self.models[name] = str(write(self.folder / f"{name}.safetensors", others))
        return self

    def recipe(self, *steps: Json, **rest: Any) -> recipe.Recipe:
        return recipe.load(str(write_recipe(self.folder, *steps, **rest)), {})

    def plan(self, *steps: Json, **rest: Any) -> Plan:
        """Plan a recipe; the plan's tensors can no longer be read."""
        with surgery.opened(self.recipe(*steps, **rest), str(self.input), self.models) as opened:
            return opened.plan

    def operate(
        self,
        *steps: Json,
        options: Options | None = None,
        force: bool = True,
        force_any: bool = False,
        link: bool = False,
        to: Path | None = None,
        **rest: Any,
    ) -> Operated:
        """Apply a recipe of these steps; `rest` are the recipe's other sections."""
        target = to or self.output
        with surgery.opened(self.recipe(*steps, **rest), str(self.input), self.models) as opened:
            result = surgery.write(
                opened,
                target,
                options or Options(),
                force=force,
                force_any=force_any,
                link=link,
            )
            notes = [*opened.notes, *result.written.notes]
        return Operated(target, json.loads(result.manifest.read_text()), notes)


def example_bench(folder: Path, op: str = "") -> Bench:
    """A folder with the example network, an adapter, models like it, and their statistics.

    A few ops need another input than the network.
    """
    made = Bench(folder)
    special = SPECIAL.get(op, dict)()
    made.given({**example_tensors(), **special}, TIES)
    models = {
        "other": example_tensors(1),
        "third": example_tensors(2),
        "fisher": example_importances(3),
        "other_fisher": example_importances(4),
        "gram": example_grams(5),
        "other_gram": example_grams(6),
    }
    for name, tensors in models.items():
        made.models[name] = str(write(folder / f"{name}.safetensors", tensors, TIES))
    if op == "experts":
        dense = {**example_tensors(1), **example_dense(12)}
        write(folder / "other.safetensors", dense, TIES)
    write_adapter(folder / "adapter", example_adapter())
    write_tokenizer(folder, *(f"t{number}" for number in range(5)))
    if op in ("vocabulary", "transplant_tokenizer"):  # another tokenizer beside another model
        (folder / "another").mkdir()
        write_tokenizer(folder / "another", "t0", "t3", "t1", "u", "v")
        place = folder / "another" / "other.safetensors"
        made.models["other"] = str(write(place, example_tensors(1), TIES))
    if op == "lora_combine":
        factors = {name: one for name, one in example_adapter().items() if "lora" in name}
        write_adapter(folder / "second", factors, r=2, lora_alpha=3)
        made.input = write_adapter(folder / "first", factors) / "adapter_model.safetensors"
    return made


def evaluated(tensor: Any, window: int, scratch: Any) -> bytes:
    """The storage of a lazy tensor, asked for in windows of this many elements."""
    count = tensor.spec.count
    blocks = []
    for start in range(0, count, window):
        with scratch.scope():
            block = tensor.elements(start, min(start + window, count), scratch)
            blocks.append(np.ascontiguousarray(block).view(np.uint8).tobytes())
    return b"".join(blocks)


def opened_tensors(path: Path) -> Any:
    return open_checkpoint(str(path))
