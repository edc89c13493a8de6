"""Acceptance: a mixed-precision export in shards, and task vectors of the MLPs alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from surgeon import recipe, surgery
from surgeon.base.errors import CheckFailedError
from surgeon.output.execute import Options
from surgeon.recipe.locations import bind_models
from tests.network import assert_identical

pytestmark = pytest.mark.slow

MEBIBYTE = 1 << 20
Shapes = dict[str, tuple[int, ...]]
PROJECTIONS = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def gpt2_small() -> Shapes:
    """The geometry of GPT-2 small as it is on the hub: 148 parameters, 12 masks."""
    shapes: Shapes = {"wte.weight": (50257, 768), "wpe.weight": (1024, 768)}
    shapes |= {"ln_f.weight": (768,), "ln_f.bias": (768,)}
    for layer in range(12):
        block = {
            "ln_1.weight": (768,), "ln_1.bias": (768,), "ln_2.weight": (768,), "ln_2.bias": (768,),
            "attn.c_attn.weight": (768, 2304), "attn.c_attn.bias": (2304,),
            "attn.c_proj.weight": (768, 768), "attn.c_proj.bias": (768,),
            "mlp.c_fc.weight": (768, 3072), "mlp.c_fc.bias": (3072,),
            "mlp.c_proj.weight": (3072, 768), "mlp.c_proj.bias": (768,),
            "attn.bias": (1, 1, 1024, 1024),
        }  # fmt: skip
        shapes |= {f"h.{layer}.{name}": shape for name, shape in block.items()}
    return shapes


def random(shapes: Shapes, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_mixed_precision_export(tmp_path: Path) -> None:
    before, out = random(gpt2_small()), tmp_path / "out"
    assert len(before) == 160
    save_file(before, tmp_path / "in.safetensors", {"format": "pt"})
    plan = recipe.load("mixed-precision-export", {})
    with surgery.opened(plan, str(tmp_path / "in.safetensors"), {}) as opened:
        surgery.write(opened, out, Options(workers=2), force=False)
    shards = sorted(out.glob("*.safetensors"))
    assert len(shards) == 2
    assert max(shard.stat().st_size for shard in shards) <= 256 * MEBIBYTE
    after = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    assert json.loads((out / "model.safetensors.index.json").read_text())["weight_map"].keys() == (
        after.keys()
    )
    expected = {
        name: tensor.bfloat16() if name.endswith(PROJECTIONS) else tensor
        for name, tensor in before.items()
        if not name.endswith(".attn.bias")
    }
    assert_identical(after, expected)
    assert len(after) == 148
    assert sum(tensor.dtype == torch.bfloat16 for tensor in after.values()) == 48


SHAPES: Shapes = {
    "embed.weight": (50, 32),
    "layers.0.attn.weight": (32, 32),
    "layers.0.mlp.up.weight": (64, 32),
    "layers.0.mlp.down.weight": (32, 64),
    "norm.weight": (32,),
}


@pytest.fixture
def expecting(tmp_path: Path) -> Callable[..., Path]:
    """Merge three models that should differ in their MLPs alone, after a change to the third."""

    def expect(**changed: torch.Tensor) -> Path:
        tensors = random(SHAPES)
        tuned = [{n: t + (i if ".mlp." in n else 0) for n, t in tensors.items()} for i in (1, 2)]
        tuned[1] |= {name.replace("__", "."): tensor for name, tensor in changed.items()}
        for name, one in {"base": tensors, "a": tuned[0], "b": tuned[1]}.items():
            save_file(one, tmp_path / f"{name}.safetensors")
        steps = [
            {"op": "expect", "target": ["**", "!**.mlp"], "equal_to": ["a", "b"]},
            {"op": "task_arithmetic", "models": ["a", "b"], "target": "**.mlp", "lambda": 0.5},
        ]
        text = {"surgeon": 1, "models": {n: f"{n}.safetensors" for n in "ab"}, "steps": steps}
        (tmp_path / "recipe.json").write_text(json.dumps(text))
        plan = recipe.load(str(tmp_path / "recipe.json"), {})
        source, output = str(tmp_path / "base.safetensors"), tmp_path / "out.safetensors"
        with surgery.opened(plan, source, bind_models(plan, [], {})) as opened:
            surgery.write(opened, output, Options(), force=True)
        return output

    return expect


def test_task_vectors_of_the_mlps_alone_are_added(expecting: Callable[..., Path]) -> None:
    base = random(SHAPES)
    tuned = [{n: t + (i if ".mlp." in n else 0) for n, t in base.items()} for i in (1, 2)]
    expected = {
        name: (t.double() + 0.5 * sum(one[name].double() - t.double() for one in tuned)).float()
        for name, t in base.items()
    }
    assert_identical(load_file(expecting()), expected)


def test_one_weight_elsewhere_stops_the_run(expecting: Callable[..., Path], tmp_path: Path) -> None:
    attention = random(SHAPES)["layers.0.attn.weight"]
    attention[31, 31] = torch.nextafter(attention[31, 31], torch.tensor(9.0))
    with pytest.raises(CheckFailedError, match=r"'layers\.0\.attn\.weight'.* 'b'"):
        expecting(layers__0__attn__weight=attention)
    assert not (tmp_path / "out.safetensors").exists()
