"""Small checkpoints to try surgeon on: `python -m surgeon.samples [FOLDER]` writes them.

`in.safetensors` is a classifier of seven classes; `base`, `chat` and `code` are a small language
model and two that went on from it. The values are random: there is nothing that they can do.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

Tensors = dict[str, npt.NDArray[np.float32]]
Shapes = dict[str, tuple[int, ...]]

CLASSIFIER: Shapes = {
    "body.0.weight": (128, 64),
    "body.0.bias": (128,),
    "body.2.weight": (64, 128),
    "body.2.bias": (64,),
    "fc.weight": (7, 64),
    "fc.bias": (7,),
}
LANGUAGE_MODEL: Shapes = {
    "model.embed_tokens.weight": (100, 16),
    **{
        f"model.layers.{layer}.{part}.weight": shape
        for layer in range(4)
        for part, shape in {
            "self_attn.q_proj": (16, 16),
            "self_attn.o_proj": (16, 16),
            "mlp.up_proj": (32, 16),
            "mlp.down_proj": (16, 32),
            "norm": (16,),
        }.items()
    },
    "lm_head.weight": (100, 16),
}


def samples() -> dict[str, Tensors]:
    """Return the checkpoints by the names of their files; the same ones every time."""
    base = _normals(LANGUAGE_MODEL, seed=1)
    return {
        "in.safetensors": _normals(CLASSIFIER, seed=0),
        "base.safetensors": base,
        "chat.safetensors": _trained(base, seed=2),
        "code.safetensors": _trained(base, seed=3),
    }


def _normals(shapes: Shapes, *, seed: int) -> Tensors:
    random = np.random.default_rng(seed)
    return {
        name: random.standard_normal(shape, np.float32) * np.float32(0.1)
        for name, shape in shapes.items()
    }


def _trained(base: Tensors, *, seed: int) -> Tensors:
    """Return a model a little way from the base model, in every direction."""
    changes = _normals({name: tensor.shape for name, tensor in base.items()}, seed=seed)
    return {name: tensor + changes[name] * np.float32(0.1) for name, tensor in base.items()}


def main(folder: Path) -> None:
    """Write what is not there yet, and say what was written; exits where there is no folder."""
    if not folder.is_dir():
        sys.exit(f"{folder}: there is no such folder; python -m surgeon.samples [FOLDER]")
    for name, tensors in samples().items():
        if (folder / name).exists():
            print(f"{folder / name} is there already, and stays as it is", file=sys.stderr)
        else:
            save_file(tensors, folder / name)
            print(folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
