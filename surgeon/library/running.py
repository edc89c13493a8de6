"""Run a recipe, or look at what it would do: `surgeon.apply` and `surgeon.plan`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from surgeon import surgery
from surgeon.base.elsewhere import Elsewhere
from surgeon.base.errors import PlanError, UsageError
from surgeon.base.units import parse_size, spoken_size
from surgeon.library.answers import Applied, Planned
from surgeon.model_folder.carried import Carry
from surgeon.output import report
from surgeon.output.checksums import Algorithm
from surgeon.output.execute import Options
from surgeon.output.memory import scratch_bytes, workers_within
from surgeon.output.opened import Opened
from surgeon.output.plan import OutputPlan
from surgeon.output.workers import default_workers
from surgeon.output.write import Result, write
from surgeon.recipe import Recipe, RecipeLike
from surgeon.recipe.locations import bind_models
from surgeon.remote import reader, wire
from surgeon.remote.locations import require_distinct, taken
from surgeon.remote.paths import path_of

if TYPE_CHECKING:
    from surgeon.output.cluster.crowd import Cluster

Location = str | os.PathLike[str]
# By the names that the recipe has for them, or in the order in which it leaves them open.
Models = Mapping[str, Location] | Sequence[Location] | Location
_NOTHING: Mapping[str, Any] = MappingProxyType({})


def plan(
    recipe: RecipeLike,
    input: Location,
    output: Location | None = None,
    *,
    models: Models = (),
    vars: Mapping[str, Any] | None = None,
    optimizer: Location | None = None,
    optimizer_order: Location | None = None,
    allow_code: bool = False,
    carry: Carry = "small",
    force: bool = False,
    force_any: bool = False,
    link: bool = False,
) -> Planned:
    """Say what a recipe would make of an input; reads no tensor data.

    With `output`, whatever `apply` would refuse raises SurgeonError here. The options are those of
    `apply`.
    """
    job = Job(recipe, input, models, _NOTHING, vars or {}, optimizer, optimizer_order,
              allow_code=allow_code, carry=carry)  # fmt: skip
    with job.opened() as opened:
        made = output_plan(opened, output, force=force, force_any=force_any, link=link)
        return Planned(report.planned(made), **report.planned_as_json(made))


def apply(
    recipe: RecipeLike,
    input: Location,
    output: Location,
    *,
    models: Models = (),
    vars: Mapping[str, Any] | None = None,
    optimizer: Location | None = None,
    optimizer_order: Location | None = None,
    allow_code: bool = False,
    carry: Carry = "small",
    force: bool = False,
    force_any: bool = False,
    link: bool = False,
    workers: int | None = None,
    max_memory: int | str | None = None,
    checksums: Algorithm = "crc32",
    device: str = "",
    progress: Callable[[int], None] | None = None,
    cluster: Cluster | None = None,
    resume: bool = False,
) -> Applied:
    """Apply a recipe to a checkpoint; writes the output and its manifest, or nothing.

    `output` is a .safetensors file, or else a model folder. `optimizer` is where the state is that
    goes through the same surgery; "none" leaves one behind that the input holds. `force` replaces
    an output that surgeon wrote, `force_any` any that nothing reads; `carry` says which other files
    of the input a folder gets ("none", "small", "all"), `link` shares untouched shards with it, and
    `allow_code` lets `match` import a module. `optimizer_order` is "strict", or where a JSON list
    of names is for a state without them. `device`, such as "cuda", is where torch decomposes whole
    matrices, which makes the last bits its own. `progress` is told of bytes as they are written.
    `cluster` has workers of Dask write: a client, a scheduler's address, or "local:4" for processes
    here; `resume` goes on with what an earlier such run into this output left, and leaves it too.
    """
    job = Job(recipe, input, models, _NOTHING, vars or {}, optimizer, optimizer_order,
              allow_code=allow_code, carry=carry)  # fmt: skip
    with job.opened() as opened:
        return applied(
            opened, output, force=force, force_any=force_any, link=link, workers=workers,
            max_memory=max_memory, checksums=checksums, device=device, progress=progress,
            cluster=cluster, resume=resume,
        )  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A recipe, and everything that it is to be run on."""

    recipe: RecipeLike
    input: Location
    models: Models
    named: Mapping[str, Location]
    variables: Mapping[str, Any]
    optimizer: Location | None
    optimizer_order: Location | None
    allow_code: bool
    carry: Carry

    @contextmanager
    def opened(self) -> Iterator[Opened]:
        """Open all checkpoints and plan; reads headers only."""
        require_distinct(self._locations())
        loaded = Recipe.load(self.recipe, self.variables)
        state, order = (
            None if path is None else taken(os.fspath(path))
            for path in (self.optimizer, self.optimizer_order)
        )
        with (
            telling_of_depth(),
            surgery.opened(
                loaded, taken(os.fspath(self.input)), bound(loaded, self.models, self.named), state,
                optimizer_order=order, allow_code=self.allow_code, carry_files=self.carry,
            ) as opened,
        ):  # fmt: skip
            yield opened

    def _locations(self) -> list[str]:
        """Return where everything is, as it was given."""
        several = self.models
        several = [several] if isinstance(several, str | os.PathLike) else several
        models = several.values() if isinstance(several, Mapping) else several
        others = [] if self.optimizer is None else [self.optimizer]
        return [os.fspath(one) for one in (self.input, *models, *self.named.values(), *others)]


def output_plan(
    opened: Opened, output: Location | None, *, force: bool, force_any: bool, link: bool
) -> OutputPlan:
    """Return what a job would write."""
    target = None if output is None else path_of(output)
    return surgery.output_plan(opened, target, force=force, force_any=force_any, link=link)


def applied(
    opened: Opened,
    output: Location,
    *,
    force: bool,
    force_any: bool,
    link: bool,
    workers: int | None,
    max_memory: int | str | None,
    checksums: Algorithm,
    device: str,
    progress: Callable[[int], None] | None,
    cluster: Cluster | None = None,
    resume: bool = False,
) -> Applied:
    """Write the output of a job."""
    if workers is not None and workers < 1:
        raise UsageError(f"workers: {workers} is not 1 or more")
    if checksums not in ("crc32", "sha256", "none"):
        raise UsageError(f"checksums: '{checksums}' is none of crc32, sha256, none")
    began = time.monotonic()
    count = workers or default_workers()
    if cluster is None and resume:
        raise UsageError("--resume goes on with a run on a cluster; --cluster says which writes")
    if cluster is not None and device:
        raise UsageError("--device is of this machine, and --cluster has others")
    if cluster is not None and workers is not None:
        raise UsageError("--workers is for this machine, and --cluster has workers of its own")
    if max_memory is not None:
        most = parse_size(max_memory) if isinstance(max_memory, str) else max_memory
        is_uploaded = isinstance(path_of(output), Elsewhere)
        count = workers_within(most, opened.written_tensors, count, is_uploaded=is_uploaded)
    else:
        reader.hold(reader.HELD)
    before = wire.fetched()
    options = Options(count, checksums, progress, device)
    made = output_plan(opened, output, force=force, force_any=force_any, link=link)
    result = _written(made, options, cluster, resume)
    said = [*_of_wire(before), *report.applied(result, time.monotonic() - began)]
    places = {"output": result.output, "manifest": result.manifest}
    return Applied("\n".join(said), **{**report.applied_as_json(result), **places})


def _written(made: OutputPlan, options: Options, cluster: Cluster | None, resume: bool) -> Result:
    if cluster is None:
        return write(made, options)
    if isinstance(made.path, Elsewhere):
        raise UsageError(f"--cluster writes files that all its machines see, and no {made.path}")
    from surgeon.output.cluster.crew import crew_of  # with Dask, which takes a while to import

    need = scratch_bytes(made.opened.written_tensors).worker_bytes
    with crew_of(cluster, made, options, resumes=resume, worker_bytes=need) as crew:
        return write(made, options, crew)


def _of_wire(before: tuple[int, int]) -> list[str]:
    """Say how much was fetched since then, where anything was."""
    requests, size_bytes = (now - then for now, then in zip(wire.fetched(), before, strict=True))
    if not requests:
        return []
    return [f"note: fetched {spoken_size(size_bytes)} in {requests:,} requests"]


def bound(
    recipe: Recipe, models: Models, named: Mapping[str, Location] = _NOTHING
) -> dict[str, str]:
    """Return where each model of a recipe is; raises UsageError where one is missing."""
    by_name = {name: taken(os.fspath(path)) for name, path in named.items()}
    if isinstance(models, Mapping):
        by_name |= {name: taken(os.fspath(path)) for name, path in models.items()}
        return bind_models(recipe, (), by_name)
    several = [models] if isinstance(models, str | os.PathLike) else models
    return bind_models(recipe, [taken(os.fspath(path)) for path in several], by_name)


@contextmanager
def telling_of_depth() -> Iterator[None]:
    """Raise PlanError where a tensor passes through more steps than Python can follow."""
    try:
        yield
    except RecursionError:
        raise PlanError("some tensor passes through too many steps; apply them in parts") from None
