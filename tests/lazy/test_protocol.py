"""What every form answers, and that nobody asks which form a tensor is."""

from __future__ import annotations

import ast
from typing import Any

import numpy as np
import pytest
import torch

from surgeon import lazy
from surgeon.lazy import (
    Blockwise,
    Copied,
    Form,
    Fresh,
    Joined,
    LazyTensor,
    Product,
    Rearranged,
    Scaled,
    Scratch,
    Selected,
    Sharded,
    Strided,
    TensorSpec,
    WholeTensor,
    detached,
)
from tests.house import MODULES, room_of, tree_of
from tests.lazy.test_lazy import STREAM, Counting, add, stored
from tests.network import Bench, read, write

FORMS = {name for name, kind in vars(lazy).items()
         if isinstance(kind, type) and issubclass(kind, Form) and kind is not Form}  # fmt: skip
# Deeper than Python's own limit for calls, several times.
DEEP = 2000


def asks_for_forms(node: ast.AST) -> bool:
    """A call of isinstance, a match, or a union that isinstance could be given."""
    match node:
        case ast.Call(func=ast.Name("isinstance"), args=[_, kinds]):
            named: ast.AST = kinds
        case ast.MatchClass(cls=kind):
            named = kind
        case ast.Assign(value=ast.BinOp(op=ast.BitOr()) as kinds):
            named = kinds
        case _:
            return False
    return any(isinstance(part, ast.Name) and part.id in FORMS for part in ast.walk(named))


def test_nobody_asks_which_form_a_tensor_is() -> None:
    found = [f"{module}:{getattr(node, 'lineno', '')}" for module in MODULES
             if room_of(module) != "lazy" for node in ast.walk(tree_of(module))
             if asks_for_forms(node)]  # fmt: skip
    assert len(FORMS) >= 12
    assert not found


def every_form() -> list[LazyTensor]:
    arrays = [np.arange(first, first + 6, dtype=np.float32).reshape(2, 3) for first in (0, 9)]
    one, other = (stored(array, "F32") for array in arrays)
    return [
        one,
        Strided(stored(np.arange(6, dtype=np.float32), "F32"), (1, 2), (2, 3)),
        Fresh(TensorSpec("F32", (2, 3)), Counting(), STREAM),
        Copied(one),
        Sharded(one),
        Joined((one, other), 1),
        Selected(one, 1, ((2, 3), (0, 1))),
        Rearranged(one, (1, 0), (3, 2)),
        Blockwise(one.spec, add, (one, other)),
        Scaled(one, 1, np.array([1.0, 0.5, -1.0])),
        Product((2, 2), one, Rearranged(other, (1, 0), (3, 2))),
        WholeTensor(one.spec, lambda values: values[0] + values[1], (one, other)),
    ]


@pytest.mark.parametrize("form", every_form(), ids=lambda form: type(form).__name__)
def test_rebuilt_over_its_operands_a_form_is_the_same(form: LazyTensor) -> None:
    again = form.rebuilt(form.operands)
    assert again.spec == form.spec
    for tensor in (again, detached(form)):
        np.testing.assert_array_equal(
            tensor.elements(0, form.spec.count, Scratch()),
            form.elements(0, form.spec.count, Scratch()).copy(),
        )


@pytest.mark.parametrize("form", every_form()[:2], ids=["stored", "strided"])
def test_bytes_of_a_file_have_one_origin_after_untie(form: LazyTensor) -> None:
    assert detached(form).byte_origin == form.byte_origin
    assert Sharded(form).byte_origin == form.byte_origin
    assert Copied(form).byte_origin != form.byte_origin


def grown(name: str, tensor: LazyTensor) -> LazyTensor:
    match name:
        case "joined":
            return Joined((Selected(tensor, 0, ((1, 3),)), Selected(tensor, 0, ((0, 1),))), 0)
        case "turned":
            return Rearranged(tensor, (1, 0), (3, 3))
        case "copied":
            return Copied(tensor)
        case "scaled":
            return Scaled(tensor, 0, np.array([1.0, -1.0, 1.0]))
        case "whole":
            return WholeTensor(tensor.spec, lambda values: -values[0], (tensor,))
    return Blockwise(tensor.spec, less_largest, (tensor,), largest)


def largest(operands: Any) -> float:
    return max(float(blocks[0].max()) for blocks in operands.blocks())


def less_largest(blocks: Any, statistics: Any, out: np.ndarray) -> np.ndarray:
    return np.subtract(blocks[0], statistics, out=out)


EXPECTED = {
    "joined": lambda array: np.roll(array, -(DEEP % 3), 0),
    "scaled": lambda array: array,  # an even number of times
    "whole": lambda array: array,
    "statistics": lambda array: array - array.max(),
}


@pytest.mark.parametrize("name", ["joined", "turned", "copied", "scaled", "whole", "statistics"])
def test_chains_are_as_deep_as_they_like(name: str) -> None:
    array = np.arange(9, dtype=np.float32).reshape(3, 3)
    tensor: LazyTensor = stored(array, "F32")
    # What looks at all values before the first one looks at all that it is made of every time.
    for _ in range(150 if name == "statistics" else DEEP):
        tensor = grown(name, tensor)
    expected = EXPECTED.get(name, lambda array: array)(array)
    np.testing.assert_array_equal(tensor.elements(0, 9, Scratch()), expected.reshape(-1))
    assert len(list(tensor.pieces(0, 9))) >= 1
    assert len(tensor.new_regions()) <= 9


def test_thousands_of_steps_on_one_tensor_are_planned_and_applied(bench: Bench) -> None:
    weight = torch.arange(9.0).reshape(3, 3).bfloat16()
    write(bench.input, {"a.weight": weight})
    made = bench.operate(*[{"op": "scale", "by": -1.0, "target": "a.weight"}] * DEEP)
    torch.testing.assert_close(read(made.path)["a.weight"], weight, rtol=0, atol=0)
