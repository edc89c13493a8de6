"""Random recipes against a dict of tensors that does the same, step by step."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surgeon.output.execute import Options
from tests.network import Bench, assert_identical

START = {
    "a.weight": torch.arange(6.0).view(3, 2),
    "b.weight": torch.arange(6.0, 12.0).view(3, 2),
    "c.weight": torch.arange(12.0, 16.0).view(2, 2).bfloat16(),
}
MODEL = {name: tensor + 100 for name, tensor in START.items()}

KINDS = ["rename", "copy", "borrow", "delete", "tie", "untie", "rows", "columns", "cast",
         "transpose", "flat", "halves", "stack"]  # fmt: skip


class Simple:
    """The state as names of cells; names that share a cell are tied."""

    def __init__(self) -> None:
        self.cells = {name: [tensor] for name, tensor in START.items()}
        self.cells["t.weight"] = self.cells["a.weight"]

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: cell[0] for name, cell in self.cells.items()}

    def rename(self, source: str, to: str) -> None:
        self.cells[to] = self.cells.pop(source)

    def copy(self, source: str, to: str) -> None:
        self.cells[to] = [self.cells[source][0]]

    def copy_from_model(self, source: str, to: str) -> None:
        self.cells[to] = [MODEL[source]]

    def delete(self, name: str) -> None:
        del self.cells[name]

    def tie(self, name: str, to: str) -> None:
        self.cells[name] = self.cells[to]

    def untie(self, name: str) -> None:
        self.cells[name] = [self.cells[name][0]]

    def widen(self, name: str, value: float, dim: int) -> None:
        old = self.cells[name][0]
        shape = [1 if d == dim else size for d, size in enumerate(old.shape)]
        self.cells[name][0] = torch.cat([old, torch.full(shape, value, dtype=old.dtype)], dim)

    def change(self, name: str, tensor: torch.Tensor) -> None:
        self.cells[name][0] = tensor

    def halve(self, name: str, to: list[str]) -> None:
        tensor = self.cells.pop(name)[0]
        half = len(tensor) // 2
        self.cells |= {to[0]: [tensor[:half]], to[1]: [tensor[half:]]}

    def stack(self, names: list[str], to: str) -> None:
        self.cells[to] = [torch.stack([self.cells.pop(name)[0] for name in names], 1)]

    def cast(self, name: str, dtype: torch.dtype) -> None:
        self.cells[name][0] = self.cells[name][0].to(dtype)


def one_step(draw: st.DrawFn, state: Simple, number: int) -> dict[str, object] | None:
    """Draw a step, do it to the simple state, and return it as a recipe spells it."""
    name = draw(st.sampled_from(sorted(state.cells)))
    other = draw(st.sampled_from(sorted(state.cells)))
    new = f"n{number}.weight"
    kind = draw(st.sampled_from(KINDS))
    tied = sum(cell is state.cells[name] for cell in state.cells.values()) > 1
    alike = state.cells[name][0].shape == state.cells[other][0].shape
    match kind:
        case "rename":
            state.rename(name, new)
            return {"op": "rename", "from": name, "to": new}
        case "copy":
            state.copy(name, new)
            return {"op": "copy", "from": name, "to": new}
        case "borrow":
            source = draw(st.sampled_from(sorted(MODEL)))
            state.copy_from_model(source, new)
            return {"op": "copy", "from": source, "to": new, "model": "m"}
        case "delete" if len(state.cells) > 1:
            state.delete(name)
            return {"op": "delete", "target": name}
        case "tie" if alike and state.cells[name][0].dtype == state.cells[other][0].dtype:
            state.tie(name, other)
            return {"op": "tie", "target": name, "to": other, "when": "always"}
        case "untie" if tied:
            state.untie(name)
            return {"op": "untie", "target": name}
        case "transpose" if state.cells[name][0].ndim > 1:
            state.change(name, state.cells[name][0].transpose(-1, -2))
            return {"op": "transpose", "target": name}
        case "flat":
            count = state.cells[name][0].shape[0]
            state.change(name, state.cells[name][0].reshape(count, -1))
            return {"op": "reshape", "target": name, "shape": [count, -1]}
        case "halves" if len(state.cells[name][0]) > 1:
            into, rows = [new, f"m{number}.weight"], len(state.cells[name][0])
            state.halve(name, into)
            return {"op": "split", "target": name, "dim": 0, "into": into,
                    "sizes": [rows // 2, rows - rows // 2]}  # fmt: skip
        case "stack" if (
            name != other and alike and (state.cells[name][0].dtype == state.cells[other][0].dtype)
        ):
            state.stack([name, other], new)
            return {"op": "stack", "from": [name, other], "dim": 1, "into": new}
        case "rows" | "columns":
            state.widen(name, number, 0 if kind == "rows" else 1)
            init = {"name": "constant", "val": number}
            return {"op": "widen", "target": name, kind: 1, "init": init}
        case "cast":
            dtype = draw(st.sampled_from([torch.float32, torch.float64]))
            state.cast(name, dtype)
            return {"op": "cast", "target": name, "dtype": str(dtype)}
    return None


@st.composite
def recipes(draw: st.DrawFn) -> tuple[list[dict[str, object]], Simple]:
    state = Simple()
    steps = [one_step(draw, state, number) for number in range(draw(st.integers(0, 12)))]
    return [step for step in steps if step is not None], state


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(recipes(), st.integers(1, 3))
def test_recipe_does_what_its_steps_say(recipe, workers):
    steps, state = recipe
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder)).given(START, {"t.weight": "a.weight"}, m=MODEL)
        made = bench.operate(*steps, options=Options(workers=workers))
        assert_identical(made.tensors, state.tensors())
        stored = set(map(id, state.cells.values()))
        assert len(stored) == len(state.cells) - len(made.manifest["ties"])
