"""Whether an optimizer or a scheduler is one that torch has, and takes what it is given."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from surgeon.base.errors import did_you_mean
from surgeon.recipe.torch_table import OPTIMIZERS, SCHEDULERS, TORCH

_OPTIMIZERS, _SCHEDULERS = "torch.optim", "torch.optim.lr_scheduler"
# Settings of a recipe's group that are none of the optimizer's.
_OWN = {"name", "params", "lr_scale", "layer_decay"}


def problems(training: Mapping[str, Any]) -> Iterator[str]:
    """Say which classes torch does not have, and which arguments they do not take."""
    optimizer = training.get("optimizer", {})
    if optimizer:
        yield from _problems(optimizer, "training.optimizer", _OPTIMIZERS, OPTIMIZERS)
    known = _arguments(optimizer, _OPTIMIZERS, OPTIMIZERS)
    for number, stage in enumerate(training.get("stages", ())):
        place = f"training.stages[{number}]"
        if scheduler := stage.get("scheduler"):
            yield from _problems(scheduler, f"{place}.scheduler", _SCHEDULERS, SCHEDULERS)
        if known is None:
            continue
        for index, group in enumerate(stage.get("groups", ())):
            for word in group.keys() - _OWN - set(known):
                line = _unknown(word, optimizer["class"], known)
                yield f"{place}.groups[{index}].{word}: {line}"


def notes(training: Mapping[str, Any]) -> list[str]:
    """Return a line for each class that only the training run can check."""
    schedulers = [
        stage["scheduler"] for stage in training.get("stages", ()) if "scheduler" in stage
    ]
    wanted = [(training["optimizer"], _OPTIMIZERS)] if training.get("optimizer") else []
    wanted += [(scheduler, _SCHEDULERS) for scheduler in schedulers]
    paths = [described["class"] for described, module in wanted
             if _name(described["class"], module) is None]  # fmt: skip
    return [
        f"{path} is none of {_OPTIMIZERS}'s classes: whether it exists and takes its arguments "
        "is for the training run to see"
        for path in dict.fromkeys(paths)
    ]


def _name(path: str, module: str) -> str | None:
    """Return a class's own name, where its path says that it is directly in a module of torch."""
    owner, _, name = path.rpartition(".")
    return name if owner == module else None


def _arguments(
    described: Mapping[str, Any], module: str, table: Mapping[str, str]
) -> Collection[str] | None:
    name = _name(described.get("class", ""), module)
    return [word.rstrip("*") for word in table[name].split()] if name and name in table else None


def _problems(
    described: Mapping[str, Any], place: str, module: str, table: Mapping[str, str]
) -> Iterator[str]:
    path = described["class"]
    name = _name(path, module)
    if name is None:
        return
    if name not in table:
        hint = did_you_mean(name, table) or f"; it has {', '.join(table)}"
        yield f"{place}.class: {module} has no class '{name}' (torch {TORCH}){hint}"
        return
    words = table[name].split()
    known = [word.rstrip("*") for word in words]
    given = described.get("args", {})
    for word in given:
        if word not in known:
            yield f"{place}.args.{word}: {_unknown(word, path, known)}"
    for word in words:
        if word.endswith("*") and word[:-1] not in given:
            yield f"{place}.args: {path} needs '{word[:-1]}'"


def _unknown(word: str, path: str, known: Collection[str]) -> str:
    hint = did_you_mean(word, known) or f"; it takes {', '.join(known)}"
    return f"{path} takes no '{word}'{hint}"
