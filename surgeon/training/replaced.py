"""Parameters that were replaced after a stage had started: the optimizer trains the old ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from surgeon.training.errors import ManifestError

# The module that holds a parameter, and the attribute it is held under.
Holder = tuple[nn.Module, str]


def is_replaced(name: str) -> str:
    """Return the line that says so of one parameter."""
    return (
        f"'{name}' is another parameter than when the stage was started (load_state_dict with "
        "assign=True replaces parameters); load, then start"
    )


def refuse_replaced(optimizer: Optimizer, holders: Mapping[str, Holder]) -> None:
    """Have a step raise where the model holds a parameter that the optimizer does not."""

    def check(stepped: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.compiler.is_compiling():
            require_held(stepped, holders)

    optimizer.register_step_pre_hook(check)


def require_held(optimizer: Optimizer, holders: Mapping[str, Holder]) -> None:
    """Raise ManifestError for each parameter of the model that was trained and no longer is.

    One that the model does not hold under its name any more, as where a parametrization was
    registered for it, is nobody's mistake.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    replaced = [name for name, now in _now(holders) if now is not None and id(now) not in held]
    if replaced:
        raise ManifestError(*map(is_replaced, replaced))


def _now(holders: Mapping[str, Holder]) -> Iterable[tuple[str, nn.Parameter | None]]:
    for name, (module, attribute) in holders.items():
        yield name, module._parameters.get(attribute)
