"""What was replaced after a stage had started: the optimizer trains the old, nobody the new."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from surgeon.training.errors import ManifestError
from surgeon.training.evaluation import StaysInEvaluation
from surgeon.training.live import Live
from surgeon.training.sharded import is_sharded

Links = list[tuple[Mapping[str, Any], str, Any]]


def is_replaced(name: str) -> str:
    """Return the line that says so of one parameter."""
    return (
        f"'{name}' is another parameter than when the stage was started (load_state_dict with "
        "assign=True replaces parameters, and so does another module in its place); load or "
        "replace, then start"
    )


class Watch:
    """Whether a model still holds what a stage set up, by the names of the manifest.

    `trained` are the parameters by name, `kept` the modules in evaluation mode, `look` sees the
    model anew. Where no module and no parameter was replaced, a few look-ups say so.
    """

    def __init__(
        self,
        look: Callable[[], Live],
        trained: Mapping[str, nn.Parameter],
        kept: Collection[str],
    ) -> None:
        self._look = look
        # FSDP2 looks after its own.
        self._trained = {n: p for n, p in trained.items() if not is_sharded(p)}
        self._kept = kept
        self._links: Links = []

    def require(self, optimizer: Optimizer) -> None:
        """Raise ManifestError for each parameter and module that was replaced.

        A parameter that the model does not hold under its name any more, as where a parametrization
        was registered for it, is nobody's mistake.
        """
        if self._links and all(inside.get(key) is item for inside, key, item in self._links):
            return
        live = self._look()
        groups = optimizer.param_groups
        held = {id(parameter) for entry in groups for parameter in entry["params"]}
        problems = [
            is_replaced(name)
            for name, parameter in self._trained.items()
            if (now := live.parameters.get(name)) is not None
            and now is not parameter
            and id(now) not in held
            and not is_sharded(now)
        ]
        problems += [
            f"'{name}' is another module than when the stage was started, and its statistics are "
            "no longer frozen; replace or convert modules, then start"
            for name in self._kept
            if name in live.modules and not isinstance(live.modules[name], StaysInEvaluation)
        ]
        if problems:
            raise ManifestError(*problems)
        self._links = [*_links(live.model)]


def _links(model: nn.Module) -> Iterator[tuple[Mapping[str, Any], str, Any]]:
    """Yield what a model's modules hold: each dict, key and parameter or module."""
    for module in model.modules():
        for held in (module._modules, module._parameters):
            yield from ((held, key, item) for key, item in held.items())


def refuse_replaced(optimizer: Optimizer, watch: Watch, is_current: Callable[[], bool]) -> None:
    """Have a step raise where something was replaced, or the stage has ended."""

    def check(stepped: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            return
        if not is_current():
            raise ManifestError(
                "this optimizer is that of a stage that has ended; step the one of the last start"
            )
        watch.require(stepped)

    optimizer.register_step_pre_hook(check)
