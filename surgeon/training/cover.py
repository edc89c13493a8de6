"""Which elements of which parameters a stage trains and freezes: each exactly once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from surgeon.base.errors import Hints
from surgeon.base.regions import (
    Region,
    intersection,
    parsed,
    remainder,
    spelled,
    split_block,
    whole,
)
from surgeon.manifest.model import Group, Manifest, Stage
from surgeon.training.errors import ManifestError
from surgeon.training.live import Live, module_problems, owner

_AFTER = "after: align_rows"


@dataclass(frozen=True)
class Block:
    """Some elements of the parameter of this name."""

    name: str
    region: Region


@dataclass(frozen=True)
class ResolvedStage:
    """A stage in terms of live parameters; `frozen` and the groups partition their elements."""

    stage: Stage
    groups: tuple[tuple[Group, tuple[Block, ...]], ...]
    frozen: tuple[Block, ...]
    aligned: tuple[tuple[Block, ...], ...]


def resolved(manifest: Manifest, live: Live) -> Mapping[str, ResolvedStage]:
    """Return every stage's elements; raises ManifestError with all gaps and overlaps."""
    problems: list[str] = []
    stages: dict[str, ResolvedStage] = {}
    for stage in manifest.stages:
        found: list[str] = []
        groups = tuple(
            (group, tuple(_blocks(group.params, f"group '{group.name}'", manifest, live, found)))
            for group in stage.groups
        )
        frozen = tuple(_blocks(stage.frozen, "frozen", manifest, live, found))
        aligned = tuple(
            tuple(_blocks(action.align_rows, _AFTER, manifest, live, found))
            for action in stage.after
        )
        found += module_problems(stage.eval_modules, live)
        stages[stage.name] = ResolvedStage(stage, groups, frozen, aligned)
        found += _not_alignable(stages[stage.name], live)
        # What could not be read leaves gaps that are no news.
        found += [] if found else _not_exact(stages[stage.name], manifest, live)
        problems += [f"stage '{stage.name}': {problem}" for problem in found]
    if problems:
        raise ManifestError(*problems)
    return stages


def _not_alignable(stage: ResolvedStage, live: Live) -> Iterator[str]:
    """Say which blocks are not rows of a weight that has others too, or are not trained."""
    for block in (block for blocks in stage.aligned for block in blocks):
        shape = live.parameters[block.name].shape
        name = spelled(block.name, block.region, shape)
        rows = [other.region for b in stage.aligned for other in b if other.name == block.name]
        is_rows = block.region[1:] == whole(shape)[1:]
        if len(shape) < 2 or not is_rows or not remainder(shape, rows):
            yield f"{_AFTER}: '{name}' is not some of the rows of a weight"
        for other in stage.frozen:
            if other.name == block.name and intersection(other.region, block.region):
                yield f"{_AFTER}: '{name}' is frozen in this stage"


def blocks_of(
    listed: tuple[str, ...], place: str, manifest: Manifest, live: Live
) -> Sequence[Block]:
    """Return the elements that the manifest lists somewhere; raises ManifestError for others."""
    problems: list[str] = []
    found = list(_blocks(listed, place, manifest, live, problems))
    if problems:
        raise ManifestError(*problems)
    return found


def _blocks(
    listed: tuple[str, ...], place: str, manifest: Manifest, live: Live, problems: list[str]
) -> Iterator[Block]:
    hint = Hints(live.parameters)
    for text in listed:
        # A name with brackets of its own is a name first.
        known = text in live.parameters or text in live.buffers
        name, slices = (text, None) if known else split_block(text)
        if name in live.parameters:
            try:
                region = parsed(slices, live.parameters[name].shape)
            except ValueError as error:
                problems.append(f"{place}: '{text}': {error}")
            else:
                yield Block(owner(manifest, name), region)
        # Offline a floating-point buffer looks like a parameter; nothing here ever trains it.
        elif name not in live.buffers:
            problems.append(f"{place}: there is no parameter '{name}'{hint(name)}")


def _not_exact(stage: ResolvedStage, manifest: Manifest, live: Live) -> Iterator[str]:
    held: dict[str, list[tuple[str, Region]]] = {}
    places = [(f"group '{group.name}'", blocks) for group, blocks in stage.groups]
    for place, blocks in [*places, ("frozen", stage.frozen)]:
        for block in blocks:
            earlier = held.setdefault(block.name, [])
            shape = live.parameters[block.name].shape
            for other, region in earlier:
                if (shared := intersection(region, block.region)) is not None:
                    twice = spelled(block.name, shared, shape)
                    tied = [alias for alias, name in manifest.ties.items() if name == block.name]
                    also = f" (tied to {', '.join(map(repr, tied))})" if tied else ""
                    yield f"'{twice}'{also} is in {other} and again in {place}; leave it in one"
            earlier.append((place, block.region))
    for name, parameter in live.parameters.items():
        if owner(manifest, name) != name:
            continue
        # An integer parameter has no gradient: no stage could train or freeze it.
        if parameter.is_floating_point() or parameter.is_complex():
            taken = [region for _, region in held.get(name, ())]
            for region in remainder(parameter.shape, taken):
                missing = spelled(name, region, parameter.shape)
                yield f"'{missing}' is in no group and not frozen; name it in one of the two"
