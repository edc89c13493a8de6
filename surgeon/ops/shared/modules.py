"""What a target means to ops that change layers as a whole: modules, or single tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from surgeon.base import patterns
from surgeon.base.errors import PlanError
from surgeon.draft import Draft
from surgeon.lazy import TensorSpec


@dataclass(frozen=True)
class Layer:
    """The tensors directly in a module that an op acts on; one tensor where it was named itself."""

    module: str
    names: tuple[str, ...]
    is_module: bool

    def leaf(self, name: str) -> str:
        """Return the last part of a tensor's name, such as `weight`."""
        return name.rpartition(".")[2]


def layers(draft: Draft, target: str | Sequence[str]) -> list[Layer]:
    """Return the layers that a target names; raises PlanError for a module without own tensors."""
    own: dict[str, list[str]] = {}
    deeper: dict[str, set[str]] = {}
    found: list[Layer] = []
    target = draft.as_stored(target)
    for name in draft.select(target):
        rest = patterns.under(target, name)
        module = name.rpartition(".")[0]
        if rest is None:
            found.append(Layer(module, (name,), is_module=False))
        elif "." in rest:
            outer = name.removesuffix(f".{rest}")
            deeper.setdefault(outer, set()).add(f"{outer}.{rest.partition('.')[0]}")
        else:
            own.setdefault(module, []).append(name)
    problems = [
        f"'{module}' has no tensors of its own; its parts are "
        + ", ".join(f"'{part}'" for part in sorted(parts))
        for module, parts in deeper.items()
        if module not in own
    ]
    if problems:
        raise PlanError(*problems)
    return found + [Layer(module, tuple(names), True) for module, names in own.items()]


def weight_of(draft: Draft, module: str) -> TensorSpec | None:
    """Return the spec of a module's weight: by its name, else its first tensor of rank >= 2."""
    name = f"{module}.weight" if module else "weight"
    if name in draft.tensors:
        return draft.spec(name)
    matrices = (spec for other in directly_in(draft, module) if len(
        (spec := draft.spec(other)).shape) >= 2)  # fmt: skip
    return next(matrices, None)


def directly_in(draft: Draft, module: str) -> list[str]:
    """Return the names of the tensors directly in a module."""
    return [name for name in draft.tensors if name.rpartition(".")[0] == module]
