"""Optimizers and schedulers made from what a manifest says of them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pkgutil import resolve_name
from typing import Any, TypeVar

from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from surgeon.base.errors import did_you_mean
from surgeon.manifest.model import Group, Json, TorchClass
from surgeon.training.errors import ManifestError
from surgeon.training.held import Held

Built = TypeVar("Built")


def class_of(described: TorchClass, kind: type[Built], what: str) -> type[Built]:
    """Import a class by its path; raises ManifestError where it is not there or of another kind."""
    try:
        found = resolve_name(described.path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ManifestError(
            f"{what}.class: '{described.path}' cannot be imported: {error}"
        ) from None
    if not isinstance(found, type) or not issubclass(found, kind):
        raise ManifestError(
            f"{what}.class: '{described.path}' is not a subclass of {kind.__module__}."
            f"{kind.__qualname__}"
        )
    return found


def optimizer_of(
    kind: type[Optimizer], args: Json, groups: Sequence[tuple[Group, Sequence[Held]]]
) -> Optimizer:
    """Return an optimizer with the manifest's groups, each with its `name` and own settings."""
    described: list[dict[str, Any]] = [
        {
            **deepcopy(dict(group.settings)),
            "name": group.name,
            "params": [held.parameter for held in part],
        }
        for group, members in groups
        for part in _parts(kind, {**args, **group.settings}, members)
        if part
    ]
    make: Any = kind
    optimizer: Optimizer = _made(make, "optimizer", described, **deepcopy(dict(args)))
    problems = [
        f"group '{group.name}': {kind.__name__} has no setting '{key}'"
        + (did_you_mean(key, optimizer.defaults) or f"; it has {', '.join(optimizer.defaults)}")
        for group, _ in groups
        for key in group.settings
        if key not in optimizer.defaults
    ]
    if problems:
        raise ManifestError(*problems)
    for _, members in groups:
        for held in members:
            if held.state:
                optimizer.state[held.parameter] = held.state
    return optimizer


def _parts(
    kind: type[Optimizer], settings: Json, members: Sequence[Held]
) -> Sequence[Sequence[Held]]:
    # torch's fused SGD fails on a group in which only some parameters have momentum (2.13).
    if issubclass(kind, SGD) and settings.get("fused"):
        carried = [held for held in members if held.state]
        return carried, [held for held in members if not held.state]
    return (members,)


def scheduler_of(described: TorchClass, optimizer: Optimizer) -> LRScheduler:
    """Return a new scheduler; it counts from the optimizer's present learning rates."""
    make: Any = class_of(described, LRScheduler, "scheduler")
    scheduler: LRScheduler = _made(make, "scheduler", optimizer, **deepcopy(dict(described.args)))
    return scheduler


def _made(kind: Any, what: str, *positional: Any, **args: Any) -> Any:
    try:
        return kind(*positional, **args)
    except Exception as error:  # whatever a class of any library says of its arguments
        raise ManifestError(f"{what}: {kind.__name__}: {error}") from error
