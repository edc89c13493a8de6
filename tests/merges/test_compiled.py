"""Compiled loops write the bytes that NumPy's write, for every dtype and the oddest of values."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from surgeon.lazy import Blockwise
from surgeon.numeric import compiled
from tests.merges.compare import FLOATS
from tests.numeric.test_kernels import needs_loops

pytestmark = needs_loops
torch = pytest.importorskip("torch")

MODELS = ["b", "c", "d"]
# The parameters of merges and ops that have a compiled form, each in several ways.
STEPS = [
    {"op": "average"},
    {"op": "average", "weights": [1, 2, 0.3, -1]},
    {"op": "average", "models": ["b"], "weights": [2, 0.5]},
    {"op": "average", "models": ["b", "c"]},
    {"op": "task_arithmetic", "weights": [1, 0.3, -0.4], "lambda": 0.7, "normalize": True},
    {"op": "slerp", "models": ["b"], "t": 0.3},
    {"op": "nuslerp", "models": ["b", "c"], "relative": True, "weights": [1, 2]},
    {"op": "nuslerp", "models": ["b"], "granularity": "row", "weights": [1, 2]},
    {"op": "multislerp"},
    {"op": "karcher"},
    {"op": "model_stock"},
    {"op": "nuslerp", "models": ["b"], "granularity": "column", "weights": [1, 2]},
    {"op": "nuslerp", "models": ["b", "c"], "relative": True, "granularity": "column"},
    {"op": "model_stock", "granularity": "row"},
    {"op": "fisher", "models": ["b"], "importances": ["square_c", "square_d"]},
    {"op": "fisher", "models": ["b"], "importances": ["square_c", "square_d"], "weights": [2, 0.3]},
    {"op": "ties", "density": 0.3},
    {"op": "ties", "density": [0.3, 1, 0.01], "weights": [1, 0.5, 2], "lambda": 1.1},
    {"op": "ties", "density": 0.3, "weights": [1, 2, 0.5], "normalize": False},
    {"op": "breadcrumbs", "density": 0.4, "gamma": 0.1, "weights": [1, -1, 2]},
    {"op": "breadcrumbs_ties", "density": 0.4, "gamma": 0.1},
    {"op": "dare", "density": 0.3},
    {"op": "dare_ties", "density": [0.3, 1, 0.5], "rescale": "l1"},
    {"op": "della", "density": 0.4},
    {"op": "della_ties", "density": 0.4, "rescale": "l1"},
    {"op": "della_ties", "density": 0.4, "rescale": "none"},
    {"op": "consensus"},
    {
        "op": "consensus",
        "mix": "ties",
        "density": 0.4,
        "weights": [1, 2, 0.5],
        "lambda": 0.4,
        "at_least": 1,
        "scale": 0.7,
    },
    {"op": "nearswap", "models": ["b"], "t": 0.1},
    {"op": "sce"},
    {"op": "sce", "select_topk": 0.3},
    {"op": "ram"},
    {"op": "ram", "epsilon": 0.4},
    {"op": "ram_plus", "epsilon": 0.2},
]
OPS = [
    {"op": "clamp", "min": -0.3, "max": 0.0},
    {"op": "clamp", "min": 0.0},
    {"op": "scale", "by": -0.3},
    {"op": "add", "target": "{name**}", "from": "{name}", "model": "b", "by": 0.7},
    *({"op": "cast", "dtype": str(dtype)[6:], "overflow": "inf"} for dtype in FLOATS),
]


def shown(step: dict) -> str:
    return " ".join(map(str, step.values()))


def family(seed: int, *, odd: bool) -> list[dict]:
    """The base and three models, in every dtype: alike, often equal; with `odd` values."""
    random = np.random.default_rng(seed)
    shape = (23, 97)
    base = random.standard_normal(shape).round(1)
    models = [base, *(base + random.choice([0, 0, 0.25, -0.25, 0.01], shape) *
                      random.standard_normal(shape).round(1) for _ in MODELS)]  # fmt: skip
    if odd:
        traps = [0.0, -0.0, 1e-40, -1e-45, 6e-8, np.inf, -np.inf, np.nan, 448.0, 6e4, 3e38]
        for model in models:
            model.flat[random.integers(0, model.size, 200)] = random.choice(traps, 200)
    tensors = [
        {f"{str(dtype)[6:]}.weight": torch.from_numpy(model).to(dtype) for dtype in FLOATS}
        for model in models
    ]
    for model, values in zip(tensors, models, strict=True):  # dtypes that are not alike
        ours = torch.bfloat16 if model is tensors[0] else torch.float32
        model["mixed.weight"] = torch.from_numpy(values).to(ours)
        model["vector.bias"] = torch.from_numpy(values[0].copy()).to(torch.bfloat16)
    return tensors


def written(bench, step: dict, monkeypatch, *, by_numpy: bool) -> bytes:
    if by_numpy:
        monkeypatch.setattr(compiled, "loops", lambda: None)
    content = bench.operate(step).path.read_bytes()
    monkeypatch.undo()
    return content


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("step", [*STEPS, *OPS], ids=shown)
def test_compiled_loops_write_what_numpy_writes(step, odd, bench, monkeypatch):
    bench.input = bench.folder / "in.safetensors"
    for name, tensors in zip(["in", *MODELS], family(7, odd=odd), strict=True):
        save_file(tensors, bench.folder / f"{name}.safetensors")
        bench.models[name] = str(bench.folder / f"{name}.safetensors")
    for name in ("c", "d"):  # a third of what counts is 0, and little is not a number
        squares = {
            key: (value.double().square().nan_to_num(0.5) * (torch.rand(value.shape) > 0.33)).to(
                value.dtype
            )
            for key, value in load_file(bench.models[name]).items()
        }
        bench.models[f"square_{name}"] = str(bench.folder / f"square_{name}.safetensors")
        save_file(squares, bench.models[f"square_{name}"])
    del bench.models["in"]
    asked = {"nonfinite": "allow"} if step["op"] != "cast" else {}
    if step in STEPS:
        asked |= {"models": MODELS}
    elif step["op"] != "add":
        asked |= {"target": "**"}
    step = asked | step
    fits = count_fits(monkeypatch)
    ours = written(bench, step, monkeypatch, by_numpy=False)
    assert fits
    assert ours == written(bench, step, monkeypatch, by_numpy=True)


def count_fits(monkeypatch) -> list[bool]:
    """Have every block note whether a compiled loop wrote it."""
    found: list[bool] = []
    own = Blockwise._write_compiled

    def noting(*arguments):
        fits = own(*arguments)
        found.extend([True] * fits)
        return fits

    monkeypatch.setattr(Blockwise, "_write_compiled", noting)
    return found
