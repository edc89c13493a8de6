"""A model that is watched while it runs over data: hooks, modes, masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

Forward = Callable[[nn.Module, Any], object]
# Of a module's name, what it was given, and what it made of that.
Look = Callable[[str, Sequence[Any], Any], None]


def run_model(model: nn.Module, batch: Any, forward: Forward | None = None) -> object:
    """Run a model on a batch, by `forward` or as the batch's form says."""
    if forward is not None:
        return forward(model, batch)
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch[0] if isinstance(batch, tuple | list) else batch)


@contextmanager
def hooked(model: nn.Module, names: set[str], look: Look) -> Iterator[None]:
    """Have modules looked at, after each time that they ran."""

    def after(
        name: str, module: nn.Module, given: tuple[Any, ...], by_name: dict[str, Any], made: Any
    ) -> None:
        look(name, (*given, *by_name.values()), made)

    hooks = [module.register_forward_hook(partial(after, name), with_kwargs=True)
             for name, module in model.named_modules() if name in names]  # fmt: skip
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode for a while."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def seen_positions(batch: Any) -> Tensor | None:
    """Return which positions of a batch count, as a flat mask; None where all do."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return mask.reshape(-1).bool()
    return None


def rounded(values: Tensor, digits: int = 7) -> list[float]:
    """Return numbers with as many digits as float32 has, for people to read."""
    return [float(f"{value:.{digits}g}") for value in values.tolist()]
