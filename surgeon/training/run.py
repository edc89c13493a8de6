"""A manifest bound to a live model: starts its stages."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from surgeon.base.errors import SurgeonError, did_you_mean
from surgeon.base.regions import Region, whole
from surgeon.manifest.model import Group, Manifest, Stage
from surgeon.training import carry, resume, saved_state
from surgeon.training.align import align
from surgeon.training.construct import class_of, optimizer_of, scheduler_of
from surgeon.training.cover import ResolvedStage, blocks_of, resolved
from surgeon.training.distillation import Distillation, load_teacher, old_outputs
from surgeon.training.errors import ManifestError
from surgeon.training.evaluation import keep_in_evaluation, release
from surgeon.training.followed import followed
from surgeon.training.frozen import fingerprints, renorm_problems
from surgeon.training.gradients import Gradients, gradients_of
from surgeon.training.held import Held
from surgeon.training.history import History
from surgeon.training.live import (
    Live,
    checkpoint_problems,
    name_problems,
    refuse_adapters,
    seen,
    tie_problems,
)
from surgeon.training.replaced import Watch, refuse_replaced
from surgeon.training.report import Report, report_of
from surgeon.training.row_blocks import RowBlocks, connect, release_all
from surgeon.training.saved_state import OptimizerSettings
from surgeon.training.started import Started
from surgeon.training.state_document import run_state

_BY_ORDER = (
    "optimizer_state was matched by the order of the parameters alone; to make certain, apply the "
    "recipe to a state that has names, or give them with --optimizer-order FILE"
)
_NOT_OURS = "something else than the optimizer that start() returned writes to it"


class Run:
    """A training run of one model through the stages of its manifest."""

    def __init__(self, manifest: Manifest, live: Live, stages: Mapping[str, ResolvedStage]) -> None:
        self.manifest = manifest
        self._live = live
        self._stages = stages
        self._started: Started | None = None
        self._begun: set[str] = set()
        self._saved: saved_state.OpenState | None = None
        # What `record` kept, of all stages; no part of `state_dict`.
        self.history = History()

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
        stage before; `"optimizer_state": "carry"` carries the state alone, by name and shape:
        that of the stage before, and for what no stage has trained yet that of the earlier run,
        if it went through the surgery. The stage before is finished first; see `finish`.

        Raises ManifestError, and changes nothing, where the manifest names no optimizer, where a
        class does not take what the manifest says, where the model's parameters are others than
        at `bind`, or where it is wrapped for distributed training: ranks would diverge in silence.
        """
        with self._placed(name):
            stage, kind, args = self._ready(name, optimizer)
            if self._saved is None:  # known to be of use before anything is trained
                self._saved = saved_state.of_run(self.manifest, self._live, kind, args)
            parameters, before = self._live.parameters, self._before(name)
            groups = [
                (
                    group,
                    carry.held_of(
                        stage, blocks, OptimizerSettings(kind, args, group), parameters, before
                    ),
                )
                for group, blocks in stage.groups
            ]
            made = optimizer_of(kind, args, groups)
            described = stage.stage.scheduler
            scheduler = scheduler_of(described, made) if described else None
        self.finish()
        self._begin(stage, groups, made, scheduler)
        return made, scheduler

    def load_state_dict(
        self, state: Mapping[str, Any], *, optimizer: type[Optimizer] | None = None
    ) -> tuple[Optimizer, LRScheduler | None]:
        """Start the stage that a `state_dict` is of, where it was; return as `start` does.

        The model's own weights are no part of it: load those first. Training goes on bit by bit as
        if it had never stopped. `optimizer` is the class, where `start` was given one.

        Raises ManifestError, and changes nothing, where the state is of other blocks, shapes or
        settings than the manifest's, and wherever `start` does.
        """
        with _placed(f"{self.manifest.path.name}: state"):
            saved = run_state(state)
            if unknown := [name for name in saved.begun if name not in self._stages]:
                raise ManifestError(f"begun: there is no stage '{unknown[0]}'")
        with self._placed(saved.stage):
            stage, kind, args = self._ready(saved.stage, optimizer)
            described = stage.stage.scheduler
            own = [group for group, _ in stage.groups]
            resume.require_same_stage(saved, kind, own, args, described is not None)
            groups = resume.held_of(saved, stage.groups, self._live.parameters, kind)
            resume.require_whole(groups, kind, args)
            made = optimizer_of(kind, args, groups)
            scheduler = scheduler_of(described, made) if described else None
            resume.restore(saved, made, scheduler)
        self._begun = set(saved.begun)
        self._begin(stage, groups, made, scheduler, is_finished=saved.is_finished)
        return made, scheduler

    def state_dict(self) -> dict[str, Any]:
        """Return where the stage is: its name, optimizer and scheduler, by parameter and region.

        Besides the model's own state_dict it is all that `load_state_dict` needs. It holds plain
        containers and tensors, and torch.load reads it with weights_only=True. Save it between
        steps; the tensors are the optimizer's own, as in torch's state_dict.
        """
        return resume.state_of(self._running(), self._args, self._begun)

    def configure_optimizers(
        self, name: str, *, optimizer: type[Optimizer] | None = None
    ) -> dict[str, Any]:
        """Start a stage; return what LightningModule.configure_optimizers is to return.

        The scheduler is stepped every step where the stage's duration is in steps, otherwise every
        epoch.
        """
        made, scheduler = self.start(name, optimizer=optimizer)
        if scheduler is None:
            return {"optimizer": made}
        interval = "step" if "steps" in self._running().stage.stage.duration else "epoch"
        return {
            "optimizer": made,
            "lr_scheduler": {"scheduler": scheduler, "interval": interval},
        }

    def finish(self) -> None:
        """Do what the manifest has done after the stage; the next `start` does it by itself.

        `"after": [{"align_rows": ...}]` scales the new rows of a weight so that their mean norm is
        the old rows'. It happens once, and the optimizer's state stays as it is. After the last
        stage, call it yourself.
        """
        if self._started is None or self._started.is_finished:
            return
        with self._placed(self._started.name):
            live = _fitting(self.manifest, self._live.model)
            align(self._started.stage.aligned, live.parameters)
        self._started.is_finished = True

    def gradients(self) -> Gradients:
        """Measure the gradients after a backward pass: per group, layer and row block.

        The result prints as a table and has `as_json()`. Under AMP, unscale first; where parameters
        are sharded, all ranks have to call it. Raises ManifestError where there are none.
        """
        started = self._running()
        with self._placed(started.name):
            return gradients_of(started)

    def record(self) -> Gradients:
        """Measure the gradients as `gradients` does, and keep each group's norm in `history`.

        Call it every step, or every few: it waits until the backward pass is done.
        """
        found = self.gradients()
        self.history.add(found.stage, found.groups)
        return found

    def report(self) -> Report:
        """Say what is trained and with what, and what is frozen; a table, and `as_json()`."""
        return report_of(self._running(), self._args)

    def check(self) -> None:
        """Raise ManifestError with all that should have stayed as it was at the start and did not.

        Compared, bit by bit, are frozen parameters, frozen blocks of parameters, and the running
        statistics of modules in evaluation mode. Raises too where a trained parameter was replaced.
        """
        started = self._running()
        with self._placed(started.name):
            self._watch.require(started.optimizer)
            now = fingerprints(started.stage, _fitting(self.manifest, self._live.model))
            moved = [name for name, before in started.fingerprints.items() if now[name] != before]
            if moved:
                raise ManifestError(
                    *(f"'{name}' is frozen, and has moved; {_NOT_OURS}" for name in moved)
                )

    def distillation(self, teacher: nn.Module, *, file: str | Path | None = None) -> Distillation:
        """Return the loss that keeps the old outputs, as the manifest's `teacher` describes it.

        `teacher` is a module of the old architecture; its weights are loaded from the teacher's
        file, beside the manifest or where `file` says. Raises ManifestError where the manifest has
        no teacher, or the file is another one or does not fit the module.
        """
        described = self.manifest.teacher
        with _placed(f"{self.manifest.path.name}: teacher"):
            if described is None:
                raise ManifestError("there is none; add training.teacher to the recipe")
            own = {id(parameter) for parameter in self._live.parameters.values()}
            if any(id(parameter) in own for parameter in teacher.parameters()):
                raise ManifestError("shares parameters with the model; make a module of its own")
            outputs = old_outputs(
                blocks_of(described.outputs, "outputs", self.manifest, self._live)
            )
            load_teacher(teacher, described, file or self.manifest.path.parent / described.file)
            return Distillation(teacher, outputs, described.temperature, described.weight)

    def _placed(self, name: str) -> AbstractContextManager[None]:
        return _placed(f"{self.manifest.path.name}: stage '{name}'")

    def _running(self) -> Started:
        if self._started is None:
            raise ManifestError(f"{self.manifest.path.name}: no stage was started")
        return self._started

    @property
    def _args(self) -> Mapping[str, object]:
        return self.manifest.optimizer.args if self.manifest.optimizer else {}

    def _ready(
        self, name: str, optimizer: type[Optimizer] | None
    ) -> tuple[ResolvedStage, type[Optimizer], Mapping[str, object]]:
        stage = self._named(name)
        _require_unwrapped(self._live.model)
        # Seen anew: `fully_shard` and loading with assign=True put others in their place.
        self._live = _fitting(self.manifest, self._live.model)
        if problems := list(renorm_problems(stage.frozen, self._live)):
            raise ManifestError(*problems)
        return stage, self._optimizer(optimizer), self._args

    def _begin(
        self,
        stage: ResolvedStage,
        groups: Sequence[tuple[Group, Sequence[Held]]],
        optimizer: Optimizer,
        scheduler: LRScheduler | None,
        *,
        is_finished: bool = False,
    ) -> None:
        """Set the model up for a stage whose optimizer is made; nothing here can fail."""
        parameters = self._live.parameters
        members = tuple((group, tuple(held)) for group, held in groups)
        prints = fingerprints(stage, self._live)
        self._begun.add(stage.stage.name)
        self._started = Started(
            stage, parameters, optimizer, scheduler, members, prints, is_finished
        )
        held = self._started.held
        self._train(held)
        started, root = self._started, self._live.model
        self._watch = Watch(
            lambda: seen(root, self.manifest),
            {member.name: parameters[member.name] for member in held},
            stage.stage.eval_modules,
        )
        connect(optimizer, self._connected(stage, held))
        refuse_replaced(optimizer, self._watch, lambda: self._started is started)
        resume.refuse_other_shapes(optimizer, held, parameters)
        kept = {id(self._live.modules[name]) for name in stage.stage.eval_modules}
        for module in self._live.modules.values():
            if id(module) in kept:
                keep_in_evaluation(module)
            else:
                release(module, self._live.model.training)

    def _named(self, name: str) -> ResolvedStage:
        if name not in self._stages:
            hint = did_you_mean(name, self._stages) or f"; there are {', '.join(self._stages)}"
            raise ManifestError(f"there is no such stage{hint}")
        return self._stages[name]

    def _optimizer(self, instead: type[Optimizer] | None) -> type[Optimizer]:
        described = self.manifest.optimizer
        if instead is not None:
            return instead
        if described is None:
            raise ManifestError(
                "the manifest names no optimizer; add training.optimizer to the recipe, or start "
                "with optimizer=CLASS"
            )
        return class_of(described, Optimizer, "optimizer")

    def _before(self, name: str) -> carry.Before:
        return carry.Before(
            self._started,
            self._saved,
            saved_state.trained_before(name, self._stages, self._begun),
            is_first=name == self.stages[0].name,
        )

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
        refuse_adapters(model)
        manifest = followed(manifest, model)
        live = _fitting(manifest, model)
    except ManifestError as error:
        problems += error.at(label).problems
    if problems:
        raise ManifestError(*problems)
    if manifest.optimizer_state and manifest.optimizer_state.matched_by == "order":
        warnings.warn(f"{label}: {_BY_ORDER}", stacklevel=3)
    with _placed(label):
        return Run(manifest, live, resolved(manifest, live))


def _fitting(manifest: Manifest, model: nn.Module) -> Live:
    refuse_adapters(model)
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
