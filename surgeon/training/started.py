"""The stage that is being trained, and what there is to know of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from surgeon.base.regions import spelled
from surgeon.manifest.model import Group
from surgeon.training.cover import Block, ResolvedStage
from surgeon.training.held import Held


@dataclass
class Started:
    """A stage with its optimizer; `fingerprints` are of what was frozen when it started."""

    stage: ResolvedStage
    parameters: Mapping[str, nn.Parameter]
    optimizer: Optimizer
    scheduler: LRScheduler | None
    groups: tuple[tuple[Group, tuple[Held, ...]], ...]
    fingerprints: Mapping[str, str]
    is_finished: bool = False

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.stage.stage.name

    @property
    def held(self) -> tuple[Held, ...]:
        """What the optimizer holds, in its order."""
        return tuple(chain.from_iterable(members for _, members in self.groups))

    def spelled(self, part: Held | Block) -> str:
        """Return the manifest's name of some elements, such as `fc.weight[7:8]`."""
        return spelled(part.name, part.region, self.parameters[part.name].shape)
