"""What is not written is not rounded: chains of arithmetic against a float64 of the same sums."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from surgeon.base.errors import PlanError
from tests.network import Bench, read

Reference = Callable[[list[np.ndarray]], np.ndarray]
# Digits, the smallest exponent and the dtype in torch.
FORMATS = {"F16": (11, -14, torch.float16), "BF16": (8, -126, torch.bfloat16),
           "F32": (24, -126, torch.float32)}  # fmt: skip

# Each changes the first of three float64 arrays; the others are the models.
CHAINED: dict[str, tuple[dict[str, Any], Reference]] = {
    "average": (
        {"op": "average", "models": ["m", "n"]},
        lambda x: (x[0] + x[1] + x[2]) / 3,
    ),
    "weights": (
        {"op": "average", "models": ["m"], "weights": [0.3, 0.9]},
        lambda x: (x[0] * 0.3 + x[1] * 0.9) / 1.2,
    ),
    "half": ({"op": "average", "models": ["n"]}, lambda x: (x[0] + x[2]) / 2),
    "task vectors": (
        {"op": "task_arithmetic", "models": ["m"], "lambda": 0.3},
        lambda x: x[0] + 0.3 * (x[1] - x[0]),
    ),
    "scale": ({"op": "scale", "target": "**", "by": 1.1}, lambda x: x[0] * 1.1),
    "add": (
        {"op": "add", "target": "{n**}", "from": "{n}", "model": "m", "by": 0.7},
        lambda x: x[0] + 0.7 * x[1],
    ),
    "clamp": ({"op": "clamp", "target": "**", "max": 0.7}, lambda x: np.minimum(x[0], 0.7)),
    "turned": ({"op": "transpose", "target": "**"}, lambda x: x[0].T),
}


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """The nearest numbers of so many digits, of two as near the even one, as float64."""
    digits, smallest, _ = FORMATS[dtype]
    exponent = np.maximum(np.frexp(values)[1], smallest + 1) - digits
    return np.ldexp(np.rint(np.ldexp(values, -exponent)), exponent)


def models_of(dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(60, 60, generator=generator).to(dtype) for _ in range(3)]


@pytest.mark.parametrize(("first", "second"), [*itertools.permutations(CHAINED, 2)])
def test_chains_of_two_are_rounded_once(first: str, second: str, bench: Bench) -> None:
    a, m, n = models_of(torch.bfloat16)
    bench.given({"a": a}, m={"a": m}, n={"a": n})
    values = [tensor.double().numpy() for tensor in (a, m, n)]
    values[0] = CHAINED[first][1](values)
    for dtype in FORMATS:
        expected = rounded(CHAINED[second][1](values), dtype)
        made = bench.operate(CHAINED[first][0], CHAINED[second][0], output={"dtype": dtype})
        found = read(made.path)["a"]
        assert found.dtype == FORMATS[dtype][2]
        np.testing.assert_array_equal(found.double().numpy(), expected)


def test_models_that_are_merged_again_are_rounded_once(bench: Bench) -> None:
    a, m, n = models_of(torch.bfloat16)
    bench.given({"a": a}, m={"a": m}, n={"a": n})
    mean = {"op": "average", "models": ["m"], "into": "mean"}
    last = {"op": "average", "models": ["mean", "n"]}
    made = bench.operate(mean, last, output={"dtype": "F32"})
    x, y, z = (tensor.double().numpy() for tensor in (a, m, n))
    expected = rounded((x + (x + y) / 2 + z) / 3, "F32")
    np.testing.assert_array_equal(read(made.path)["a"].double().numpy(), expected)


def test_bfloat16_averages_written_as_float16_are_exact(bench: Bench) -> None:
    values = torch.tensor([1.0, 1.0078125]).bfloat16()
    bench.given({"a": values}, m={"a": values.flip(0)})
    made = bench.operate({"op": "average", "models": ["m"]}, output={"dtype": "F16"})
    assert read(made.path)["a"].tolist() == [1.00390625] * 2


def test_what_is_beyond_a_dtype_on_the_way_is_an_error_only_where_it_is_written(
    bench: Bench,
) -> None:
    values = torch.tensor([60000.0]).half()
    bench.given({"a": values}, m={"a": values})
    total = {"op": "average", "models": ["m"], "normalize": False}
    assert read(bench.operate(total, output={"dtype": "BF16"}).path)["a"].item() == 119808
    half = {"op": "scale", "target": "a", "by": 0.5}
    assert read(bench.operate(total, half).path)["a"].item() == 60000
    with pytest.raises(PlanError, match="beyond F16's largest value 65504"):
        bench.operate(total)


def test_a_cast_rounds_for_whatever_comes_after_it(bench: Bench) -> None:
    bench.given({"a": torch.tensor([1.0 + 2**-10])})
    steps = [{"op": "cast", "target": "a", "dtype": dtype} for dtype in ("BF16", "F32")]
    assert read(bench.operate(*steps).path)["a"].item() == 1


def test_adapters_merged_one_after_the_other_are_rounded_once(bench: Bench) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(6, 8, generator=generator).bfloat16()
    bench.given({"fc.weight": weight})
    expected, steps = weight.double().numpy(), []
    for number in range(2):
        folder = bench.folder / f"adapter{number}"
        folder.mkdir()
        a, b = (torch.randn(*shape, generator=generator) for shape in ((2, 8), (6, 2)))
        pair = {"lora_A.weight": a, "lora_B.weight": b}
        save_file({f"base_model.model.fc.{key}": value for key, value in pair.items()},
                  folder / "adapter_model.safetensors")  # fmt: skip
        (folder / "adapter_config.json").write_text(
            '{"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["fc"]}'
        )
        expected = expected + b.double().numpy() @ a.double().numpy()
        steps.append({"op": "lora_merge", "adapter": str(folder)})
    made = bench.operate(*steps, output={"dtype": "F32"})
    found = read(made.path)["fc.weight"].double().numpy()
    np.testing.assert_array_equal(found, rounded(expected, "F32"))
