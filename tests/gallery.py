"""The files that pages of docs/ show: pictures, reports, and what is printed on a terminal.

`make docs` writes them; `before` files are what earlier versions made, and stay.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors.numpy import save_file

import surgeon
from surgeon.base.screen import Screen, on
from surgeon.cli import recipe_pages

ROOT = Path(__file__).parents[1]
PICTURES, TERMINAL = ROOT / "docs" / "pictures", ROOT / "docs" / "terminal"
COLUMNS = 100
Tensors = dict[str, np.ndarray]
PARTS = {
    "self_attn.q_proj": (8, 8), "self_attn.k_proj": (4, 8), "self_attn.v_proj": (4, 8),
    "self_attn.o_proj": (8, 8), "mlp.gate_proj": (12, 8), "mlp.up_proj": (12, 8),
    "mlp.down_proj": (8, 12), "input_layernorm": (8,), "post_attention_layernorm": (8,),
}  # fmt: skip
SHRINK: dict[str, Any] = {
    "surgeon": 1,
    "about": "Drop two layers of eight, add eight tokens' rows, and train those first.",
    "steps": [
        {"op": "layers", "container": "model.layers", "take": ["0:5", "7"]},
        {"id": "grow", "op": "widen", "target": ["model.embed_tokens", "lm_head"], "rows": 8,
         "init": "mean"},
        {"op": "expect", "target": "lm_head.weight", "shape": [48, 8]},
        {"op": "expect", "target": "**", "finite": True},
    ],
    "training": {
        "optimizer": {"class": "torch.optim.AdamW", "args": {"lr": 0.0002}},
        "stages": [
            {"name": "warm-up", "duration": {"epochs": 3}, "train": ["@new"],
             "groups": [{"name": "new", "params": ["@new"], "lr": 0.002}],
             "scheduler": {"class": "torch.optim.lr_scheduler.LinearLR",
                           "args": {"start_factor": 0.2, "total_iters": 3}}},
            {"name": "head", "duration": {"epochs": 4}, "train": ["lm_head", "model.norm"],
             "groups": [{"name": "head", "params": ["lm_head"], "lr_scale": 5}]},
            {"name": "joint", "duration": {"epochs": 20},
             "groups": [{"name": "head", "params": ["lm_head"], "lr_scale": 2},
                        {"name": "vectors", "params": ["@vectors"], "weight_decay": 0}],
             "scheduler": {"class": "torch.optim.lr_scheduler.CosineAnnealingLR",
                           "args": {"T_max": 20}}},
        ],
    },
}  # fmt: skip
MERGE: dict[str, Any] = {
    "surgeon": 1,
    "about": "Two models averaged, then merged into the base with a third; heads interpolated.",
    "models": {"chat": None, "math": None, "code": None},
    "steps": [
        {"op": "average", "models": ["chat", "math"], "weights": [0, 1, 1], "into": "talk"},
        {"op": "ties", "models": ["talk", "code"], "target": "model", "density": 0.3},
        {"op": "slerp", "models": ["chat"], "target": "lm_head", "t": 0.5},
        {"op": "cast", "target": "**", "dtype": "bfloat16"},
    ],
}


def language_model(layers: int, vocabulary: int = 40, seed: int = 0) -> Tensors:
    """Return random weights of a small model, with norms around one."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, 8)}
    for layer in range(layers):
        shapes |= {f"model.layers.{layer}.{part}.weight": shape for part, shape in PARTS.items()}
    shapes |= {"model.norm.weight": (8,), "lm_head.weight": (vocabulary, 8)}
    random = np.random.default_rng(seed)
    return {
        name: (random.standard_normal(shape) * 0.04 + (len(shape) == 1)).astype(np.float32)
        for name, shape in shapes.items()
    }


def moved(base: Tensors, seed: int, by: float, stays: tuple[str, ...]) -> Tensors:
    """Return a model that went on from another: the later the layer, the further."""
    random = np.random.default_rng(seed)
    made = {}
    for name, tensor in base.items():
        layer = int(name.split(".")[2]) if ".layers." in name else 0
        change = random.standard_normal(tensor.shape) * tensor.std() * by * (1 + layer / 3)
        kept = any(part in name for part in stays)
        made[name] = tensor if kept else (tensor + change).astype(np.float32)
    return made


def models(folder: Path) -> None:
    """Write a base model, three that went on from it, and two of 32 layers."""
    base = language_model(8)
    code = moved(base, 3, 0.08, ("norm",))
    code["lm_head.weight"] = np.concatenate([code["lm_head.weight"], code["lm_head.weight"][:4]])
    several = {
        "base": base,
        "chat": moved(base, 1, 0.03, ("norm", "embed", "lm_head")),
        "math": moved(base, 2, 0.05, ("norm", "mlp", "lm_head")),
        "code": code,
        "deep": language_model(32, vocabulary=10),
    }
    several["like"] = {**several["chat"], "lm_head.weight": code["lm_head.weight"][:40]}
    for name, tensors in several.items():
        save_file(tensors, folder / f"{name}.safetensors")
    for name, recipe in {"shrink": SHRINK, "merge": MERGE}.items():
        (folder / f"{name}.json").write_text(json.dumps(recipe))


def terminal() -> Iterator[tuple[str, str]]:
    """Yield what is printed on a terminal of so many columns."""
    deep = "deep.safetensors"
    with on(Screen(COLUMNS)):
        yield "plan-after.txt", surgeon.plan("ties", deep, models=[deep, deep]).text
        yield "recipes-after.txt", recipe_pages.table_of_recipes()
        yield "plan-tree.txt", _tree(deep)


def _tree(deep: str) -> str:
    from surgeon.library.running import Job, output_plan
    from surgeon.output.report import planned

    job = Job("drop-layers", deep, (), {}, {"keep": ["0:2", "5:32"]}, None, None,
              allow_code=False, carry="small")  # fmt: skip
    with job.opened() as opened:
        made = output_plan(opened, None, force=False, force_any=False, link=False)
        return planned(made, as_tree=True)


def pages() -> Iterator[tuple[str, str]]:
    """Yield reports: of a plan, and of a merge."""
    from surgeon.inspection.reporting import page_of_plan

    shrink = surgeon.plan("shrink.json", "base.safetensors")
    yield "report-plan.html", page_of_plan(shrink.as_json(), "shrink.json")
    others = {name: f"{name}.safetensors" for name in ("chat", "math")}
    merge = surgeon.plan("merge.json", "base.safetensors",
                         models={**others, "code": "like.safetensors"})  # fmt: skip
    yield "report-merge.html", page_of_plan(merge.as_json(), "merge.json")


def figures() -> Iterator[tuple[str, Callable[[Path], Any]]]:
    """Yield what draws each figure into a file."""
    from surgeon.formats import open_checkpoint
    from surgeon.inspection.inspect import inspected
    from surgeon.inspection.spread import plot

    base, *others = (f"{name}.safetensors" for name in ("base", "math", "code"))
    opened = open_checkpoint(base)
    entries = inspected(opened.tensors, (), stats=False)
    yield "inspect.svg", lambda path: plot(base, entries, path)
    opened.close()
    yield "diff.svg", surgeon.diff(base, others[0]).plot
    yield "compare.svg", surgeon.compare(base, *others, workers=1).plot
    run, last = trained()
    yield "history.svg", run.history.plot
    yield "gradients.svg", last.plot


def trained() -> tuple[Any, Any]:
    """Train a small network through two stages; return its run and the last gradients."""
    import torch

    from surgeon import samples

    save_file(samples.samples()["in.safetensors"], "in.safetensors")
    stages = [
        {"name": "warm-up", "duration": {"steps": 60}, "train": ["@new"],
         "groups": [{"name": "new", "params": ["@new"]}]},
        {"name": "joint", "duration": {"steps": 200},
         "groups": [{"name": "head", "params": ["fc"]},
                    {"name": "biases", "params": ["body.*.bias"], "weight_decay": 0}]},
    ]  # fmt: skip
    training = {"optimizer": {"class": "torch.optim.SGD", "args": {"lr": 0.05}}, "stages": stages}
    recipe = {"surgeon": 1, "training": training,
              "steps": [{"op": "widen", "target": "fc", "rows": 3}]}  # fmt: skip
    made = surgeon.apply(recipe, "in.safetensors", "grown.safetensors", force=True)
    linear = torch.nn.Linear
    body = torch.nn.Sequential(linear(64, 128), torch.nn.ReLU(), linear(128, 64), torch.nn.ReLU())
    model = torch.nn.ModuleDict({"body": body, "fc": linear(64, 10)})
    with surgeon.open(made.output) as opened:
        model.load_state_dict({name: tensor.torch() for name, tensor in opened.items()})
    # In float64, so that what threads and processors round differently is not seen.
    run = surgeon.Manifest.load(made.manifest).bind(model.double())
    random = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 64, generator=random, dtype=torch.float64)
    last = None
    for stage in run.stages:
        optimizer, _ = run.start(stage.name)
        for _ in range(stage.duration["steps"]):
            labels = torch.randint(0, 10, (32,), generator=random)
            noise = torch.randn(32, 64, generator=random, dtype=torch.float64)
            inputs = centres[labels] + 0.5 * noise
            optimizer.zero_grad()
            outputs = model["fc"](model["body"](inputs))
            torch.nn.functional.cross_entropy(outputs, labels).backward()
            last = run.record()
            optimizer.step()
    return run, last


@contextmanager
def world() -> Iterator[Path]:
    """Work in a folder with the models, whose names are without folders then."""
    before = Path.cwd()
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            models(Path())
            yield Path()
        finally:
            os.chdir(before)


def texts() -> dict[Path, str]:
    """Return the files that are text, the same with every version of matplotlib."""
    with world():
        found = {TERMINAL / name: f"{text.rstrip()}\n" for name, text in terminal()}
        return found | {PICTURES / name: text for name, text in pages()}


def write() -> None:
    """Write everything anew."""
    PICTURES.mkdir(exist_ok=True)
    for path, text in texts().items():
        path.write_text(text, "utf-8")
    with world():
        for name, draw in figures():
            draw(PICTURES / name)


if __name__ == "__main__":
    write()
