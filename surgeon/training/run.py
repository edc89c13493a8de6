"""A manifest bound to a live model: starts its stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from surgeon.errors import SurgeonError, did_you_mean
from surgeon.regions import Region, whole
from surgeon.training.construct import class_of, optimizer_of, scheduler_of
from surgeon.training.cover import Block, ResolvedStage, resolved
from surgeon.training.errors import ManifestError
from surgeon.training.evaluation import keep_in_evaluation, release
from surgeon.training.held import Held, State, carried, hold
from surgeon.training.live import Live, checkpoint_problems, name_problems, seen, tie_problems
from surgeon.training.manifest import Manifest, Stage
from surgeon.training.row_blocks import RowBlocks, connect, release_all


@dataclass(frozen=True)
class Started:
    """The stage that is being trained."""

    optimizer: Optimizer
    held: tuple[Held, ...]


class Run:
    """A training run of one model through the stages of its manifest."""

    def __init__(self, manifest: Manifest, live: Live, stages: Mapping[str, ResolvedStage]) -> None:
        self.manifest = manifest
        self._live = live
        self._stages = stages
        self._started: Started | None = None

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages in order, each with its `name` and `duration`."""
        return self.manifest.stages

    def start(
        self, name: str, *, optimizer: type[Optimizer] | None = None
    ) -> tuple[Optimizer, LRScheduler | None]:
        """Set the model up for a stage; return its optimizer and scheduler.

        Frozen parameters no longer require gradients, modules with frozen normalisation stay in
        evaluation mode, and of a parameter that is trained in part the optimizer holds the blocks
        that are. `optimizer` is used instead of the manifest's class, with the manifest's
        arguments. Learning rates are the manifest's and a scheduler starts anew, whatever the
        stage before; `"optimizer_state": "carry"` carries the state alone, by name and shape.

        Raises ManifestError, and changes nothing, where the manifest names no optimizer, where a
        class does not take what the manifest says, where the model's parameters are others than
        at `bind`, or where it is wrapped for distributed training: ranks would diverge in silence.
        """
        with _placed(f"{self.manifest.path.name}: stage '{name}'"):
            stage = self._named(name)
            _require_unwrapped(self._live.model)
            # Seen anew: `fully_shard` and loading with assign=True put others in their place.
            self._live = _fitting(self.manifest, self._live.model)
            kind, args = self._optimizer(optimizer)
            groups = [(group, self._held(stage, blocks, kind)) for group, blocks in stage.groups]
            made = optimizer_of(kind, args, groups)
            described = stage.stage.scheduler
            scheduler = scheduler_of(described, made) if described else None
        held = tuple(chain.from_iterable(members for _, members in groups))
        self._train(held)
        connect(made, self._connected(stage, held))
        kept = {id(self._live.modules[name]) for name in stage.stage.eval_modules}
        for module in self._live.modules.values():
            if id(module) in kept:
                keep_in_evaluation(module)
            else:
                release(module, self._live.model.training)
        self._started = Started(made, held)
        return made, scheduler

    def _named(self, name: str) -> ResolvedStage:
        if name not in self._stages:
            hint = did_you_mean(name, self._stages) or f"; there are {', '.join(self._stages)}"
            raise ManifestError(f"there is no such stage{hint}")
        return self._stages[name]

    def _optimizer(
        self, instead: type[Optimizer] | None
    ) -> tuple[type[Optimizer], Mapping[str, object]]:
        described = self.manifest.optimizer
        if instead is not None:
            return instead, described.args if described else {}
        if described is None:
            raise ManifestError(
                "the manifest names no optimizer; add training.optimizer to the recipe, or start "
                "with optimizer=CLASS"
            )
        return class_of(described, Optimizer, "optimizer"), described.args

    def _held(
        self, stage: ResolvedStage, blocks: Sequence[Block], kind: type[Optimizer]
    ) -> list[Held]:
        parameters = self._live.parameters
        if stage.stage.optimizer_state == "reset":
            return [hold(block, parameters[block.name], {}) for block in blocks]
        earlier = self._earlier(kind)
        return [
            held
            for block in blocks
            for held in carried(block, parameters[block.name], earlier.get(block.name, ()))
        ]

    def _earlier(self, kind: type[Optimizer]) -> Mapping[str, list[tuple[Held, State]]]:
        """Return what the stage before held, and the state it has by now, by name."""
        if self._started is None:
            raise ManifestError(
                "optimizer_state: 'carry' needs the stage before, and this run started none"
            )
        before = type(self._started.optimizer)
        if before is not kind:
            raise ManifestError(
                f"optimizer_state: 'carry' cannot turn the state of {before.__name__} into that "
                f"of {kind.__name__}"
            )
        earlier: dict[str, list[tuple[Held, State]]] = {}
        for held in self._started.held:
            state = dict(self._started.optimizer.state.get(held.parameter, {}))
            earlier.setdefault(held.name, []).append((held, state))
        return earlier

    def _train(self, held: Sequence[Held]) -> None:
        """Let go of the stage before; require gradients of what is trained, of nothing else."""
        trained = {member.name for member in held}
        for name, parameter in self._owned().items():
            release_all(parameter)
            parameter.requires_grad_(name in trained)
            parameter.grad = None

    def _owned(self) -> Mapping[str, nn.Parameter]:
        ties = self.manifest.ties
        return {name: p for name, p in self._live.parameters.items() if name not in ties}

    def _connected(self, stage: ResolvedStage, held: Sequence[Held]) -> list[RowBlocks]:
        parts: dict[str, list[Held]] = {}
        for member in held:
            parameter = self._live.parameters[member.name]
            if member.region != whole(parameter.shape):
                parts.setdefault(member.name, []).append(member)
        frozen: dict[str, list[Region]] = {}
        for block in stage.frozen:
            frozen.setdefault(block.name, []).append(block.region)
        return [
            RowBlocks(
                self._live.parameters[name],
                members,
                frozen.get(name, []),
                self._live.holder(name),
            )
            for name, members in parts.items()
        ]


def bound(manifest: Manifest, model: nn.Module) -> Run:
    """Check a manifest against a model and the checkpoint; see `Manifest.bind`."""
    label = manifest.path.name
    problems = list(checkpoint_problems(manifest))
    try:
        live = _fitting(manifest, model)
    except ManifestError as error:
        problems += error.at(label).problems
    if problems:
        raise ManifestError(*problems)
    with _placed(label):
        return Run(manifest, live, resolved(manifest, live))


def _fitting(manifest: Manifest, model: nn.Module) -> Live:
    live = seen(model, manifest)
    if problems := [*name_problems(manifest, live), *tie_problems(manifest, live)]:
        raise ManifestError(*problems)
    return live


@contextmanager
def _placed(place: str) -> Iterator[None]:
    try:
        yield
    except SurgeonError as error:
        raise error.at(place) from error.__cause__


def _require_unwrapped(model: nn.Module) -> None:
    """Raise ManifestError for DistributedDataParallel and FSDP.

    They look at `requires_grad` once, when they wrap: ranks would diverge in silence afterwards.
    """
    for module in model.modules():
        for kind in type(module).__mro__:
            wraps = kind.__name__ in ("DistributedDataParallel", "FullyShardedDataParallel")
            if wraps and kind.__module__.startswith("torch."):
                raise ManifestError(
                    f"the model is wrapped in {kind.__name__}, which looks at requires_grad when "
                    "it wraps; bind and start the model itself, then wrap it again"
                )
