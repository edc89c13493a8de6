"""The training section of a recipe, resolved: who is trained when, in which group, exactly once."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import Any

from surgeon.base import depth, patterns
from surgeon.base.documents import read
from surgeon.base.errors import Hints, PlanError, did_you_mean
from surgeon.base.lists import as_list
from surgeon.base.regions import (
    Region,
    intersection,
    parsed,
    remainder,
    spelled,
    split_block,
    whole,
    without,
)
from surgeon.draft import Tensors, ties, vectors
from surgeon.manifest.model import After, Group, Stage, TorchClass
from surgeon.numeric.dtypes import DTYPES

Json = dict[str, Any]
# What PyTorch's normalisation layers keep as buffers; offline, only the name tells.
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_NAMES_A_GROUP = ("name", "params", "lr", "lr_scale", "layer_decay")


def is_parameter(name: str, tensor_dtype: str) -> bool:
    """Say whether a tensor can be trained: floating-point, and not a layer's statistics."""
    if name.endswith(_STATISTICS) and name.rpartition(".")[2] in _STATISTICS:
        return False
    return DTYPES[tensor_dtype].kind in ("float", "complex")


@dataclass(frozen=True)
class Cover:
    """Some elements of some parameters: disjoint regions by name."""

    regions: Mapping[str, tuple[Region, ...]]

    def plus(self, other: Cover) -> Cover:
        """Return the union."""
        extra = other.minus(self)
        return Cover(
            {
                name: self.regions.get(name, ()) + extra.regions.get(name, ())
                for name in dict.fromkeys([*self.regions, *extra.regions])
            }
        )

    def minus(self, other: Cover) -> Cover:
        """Return what `other` does not hold."""
        if other is self:
            return Cover({})
        left: dict[str, tuple[Region, ...]] = {}
        for name, regions in self.regions.items():
            if other.regions.get(name) == regions:
                continue
            rest = list(regions)
            for taken in other.regions.get(name, ()):
                rest = [piece for region in rest for piece in without(region, taken)]
            if rest:
                left[name] = tuple(rest)
        return Cover(left)

    def within(self, names: Container[str]) -> Cover:
        """Return what is of these names."""
        return Cover({name: found for name, found in self.regions.items() if name in names})

    def shared(self, other: Cover) -> Cover:
        """Return what both hold."""
        both: dict[str, tuple[Region, ...]] = {}
        for name, regions in self.regions.items():
            found = [intersection(a, b) for a in regions for b in other.regions.get(name, ())]
            if common := tuple(region for region in found if region is not None):
                both[name] = common
        return Cover(both)


class Parameters:
    """The parameters of a plan, and what patterns and row blocks mean among them."""

    def __init__(self, tensors: Tensors, also: Collection[str] = ()) -> None:
        self._tensors = tensors
        self.owners = ties(tensors)
        chosen = {
            name: tensor
            for name, tensor in tensors.items()
            if name in also or is_parameter(name, tensor.spec.dtype)
        }
        self.names = list(chosen)
        self.shapes = {name: tensor.spec.shape for name, tensor in chosen.items()}
        self.statistics = {
            name.rpartition(".")[0] for name in tensors if name.endswith("running_mean")
        }
        wholes = {shape: (whole(shape),) for shape in set(self.shapes.values())}
        self.everything = Cover(
            {name: wholes[shape] for name, shape in self.shapes.items() if name not in self.owners}
        )
        self.new = Cover(
            {name: new for name in self.everything.regions if (new := chosen[name].new_regions())}
        )
        self._special: Mapping[str, Collection[str]] = {"@vectors": vectors(chosen)}

    @cached_property
    def order(self) -> dict[str, int]:
        """The number of each name."""
        return {name: number for number, name in enumerate(self.names)}

    @cached_property
    def _hint(self) -> Hints:
        return patterns.hints(self.names)

    @cached_property
    def with_statistics(self) -> Parameters:
        """These, and the running means of layers that have no parameters, as if they were some.

        Nothing else tells whether a stage is to leave the statistics of such a layer alone.
        """
        if not self.statistics:
            return self
        alone = self.statistics - {name.rpartition(".")[0] for name in self.names}
        means = {f"{module}.running_mean".lstrip(".") for module in alone}
        return Parameters(self._tensors, means) if means else self

    def cover(self, target: str | Sequence[str]) -> Cover:
        """Return what a target selects; raises PlanError where a pattern matches nothing."""
        chosen, removed = Cover({}), Cover({})
        problems: list[str] = []
        for pattern in as_list(target):
            plain = pattern.removeprefix("!")
            try:
                found = self._one(plain)
            except PlanError as error:
                problems += error.problems
                continue
            if plain == pattern:
                chosen = chosen.plus(found)
            else:
                removed = removed.plus(found)
        if problems:
            raise PlanError(*problems)
        return chosen.minus(removed)

    def _one(self, pattern: str) -> Cover:
        if pattern == "@new":
            if not self.new.regions:
                raise PlanError(*patterns.nothing_matches(["@new"], self.names))
            return self.new
        name_pattern, slices = split_block(pattern)
        names = patterns.select(name_pattern, self.names, special=self._special, hint=self._hint)
        regions: dict[str, tuple[Region, ...]] = {}
        for name in names:
            try:
                region = parsed(slices, self.shapes[name])
            except ValueError as error:
                raise PlanError(f"'{pattern}': {error}") from None
            regions[self.owners.get(name, name)] = (region,)
        return Cover(regions)

    def spelled(self, cover: Cover) -> list[str]:
        """Return a cover as the manifest lists it."""
        if cover is self.everything:
            return list(cover.regions)
        found: list[str] = []
        for name in sorted(cover.regions, key=self.order.__getitem__):
            regions = cover.regions[name]
            if regions is self.everything.regions[name]:
                found.append(name)
            else:
                merged = sorted(self._merged(name, regions))
                found += [spelled(name, region, self.shapes[name]) for region in merged]
        return found

    def _merged(self, name: str, regions: Sequence[Region]) -> Sequence[Region]:
        if len(regions) < 2:
            return regions
        # Complements of complements come in more pieces than they need to.
        taken = remainder(self.shapes[name], regions)
        fewer = remainder(self.shapes[name], taken)
        return fewer if len(fewer) < len(regions) else regions


def resolve(training: Mapping[str, Any] | None, tensors: Tensors) -> list[Stage]:
    """Return the manifest's stages; raises PlanError with a line for every contradiction."""
    parameters = Parameters(tensors)
    section = training or {}
    wanted = list(_unfrozen(section)) + [dict(stage) for stage in section.get("stages", [])]
    if not wanted:
        wanted = [{"name": "training"}]
    optimizer_args = section.get("optimizer", {}).get("args", {})
    problems: list[str] = []
    stages: list[Stage] = []
    names: set[str] = set()
    for stage in wanted:
        place = f"stage '{stage['name']}'"
        if stage["name"] in names:
            problems.append(f"{place}: there are two stages of this name")
        names.add(stage["name"])
        try:
            stages.append(_stage(stage, parameters, optimizer_args))
        except PlanError as error:
            problems += error.at(place).problems
    if problems:
        raise PlanError(*problems)
    return stages


def _unfrozen(section: Mapping[str, Any]) -> Iterable[Json]:
    """Expand gradual unfreezing: stage k trains the first k entries, deeper ones more slowly."""
    sugar = section.get("unfreeze")
    if not sugar:
        return
    decay = sugar.get("lr_decay", 1.0)
    order = [as_list(entry) for entry in sugar["order"]]
    for last in range(len(order)):
        stage: Json = {
            "name": f"unfreeze {', '.join(order[last])}",
            "train": [pattern for entry in order[: last + 1] for pattern in entry],
            "groups": [
                {"name": ", ".join(entry), "params": entry}
                | ({"lr_scale": decay**below} if decay != 1.0 else {})
                for below, entry in enumerate(order[: last + 1])
            ],
        }
        yield stage | ({"duration": sugar["duration"]} if "duration" in sugar else {})


def _stage(stage: Mapping[str, Any], parameters: Parameters, optimizer_args: Json) -> Stage:
    can_move = parameters.with_statistics
    moving = can_move.everything
    if "train" in stage:
        moving = can_move.cover(stage["train"])
    elif frozen_ones := stage.get("freeze"):
        moving = moving.minus(can_move.cover(frozen_ones))
    still = can_move.everything.minus(moving)
    trained, frozen = moving, still
    if can_move is not parameters:
        trained, frozen = moving.within(parameters.order), still.within(parameters.order)
    if not trained.regions and parameters.everything.regions:
        raise PlanError("nothing is left to train")
    groups, problems = _groups(stage, parameters, trained, frozen)
    aligned = [_aligned(action, parameters, frozen, problems) for action in stage.get("after", [])]
    described: list[Group] = []
    for settings, cover in groups:
        try:
            described += _described(settings, cover, parameters, optimizer_args)
        except PlanError as error:
            problems += error.problems
    if problems:
        raise PlanError(*problems)
    return Stage(
        name=stage["name"],
        duration=stage.get("duration", {}),
        groups=tuple(described),
        frozen=tuple(parameters.spelled(frozen)),
        eval_modules=tuple(_eval_modules(can_move, still)),
        scheduler=read(TorchClass, stage["scheduler"]) if "scheduler" in stage else None,
        optimizer_state=stage.get("optimizer_state", "reset"),
        after=tuple(After(align_rows=tuple(rows)) for rows in aligned),
    )


def _aligned(
    action: Mapping[str, Any], parameters: Parameters, frozen: Cover, problems: list[str]
) -> list[str]:
    """Return the new rows of weights that a target selects, or the rows that it names."""
    place = f"after: align_rows: {action['align_rows']!r}"
    try:
        chosen = parameters.cover(action["align_rows"])
    except PlanError as error:
        problems += error.at("after: align_rows").problems
        return []
    rows: dict[str, tuple[Region, ...]] = {}
    for name, regions in chosen.regions.items():
        full = whole(parameters.shapes[name])
        named = parameters.new.regions.get(name, ()) if regions == (full,) else regions
        found = tuple(r for r in named if len(full) > 1 and r[1:] == full[1:])
        if found and remainder(parameters.shapes[name], found):
            rows[name] = found
    if not rows:
        problems.append(f"{place} has no new rows beside old ones; name rows: 'fc.weight[7:8]'")
    problems += [
        f"{place}: '{name}' is frozen in this stage"
        for name in parameters.spelled(Cover(rows).shared(frozen))
    ]
    return parameters.spelled(Cover(rows))


def _groups(
    stage: Mapping[str, Any], parameters: Parameters, trained: Cover, frozen: Cover
) -> tuple[list[tuple[Json, Cover]], list[str]]:
    """Return each group's settings and elements, the rest under `default`; and what is wrong."""
    problems: list[str] = []
    groups: list[tuple[Json, Cover]] = []
    for group in stage.get("groups", []):
        place = f"group '{group['name']}'"
        if any(settings["name"] == group["name"] for settings, _ in groups):
            problems.append(f"{place}: there are two groups of this name")
        try:
            cover = parameters.cover(group["params"])
        except PlanError as error:
            problems += error.at(place).problems
            continue
        if not cover.regions:
            problems.append(f"{place}: is empty")
        for name in parameters.spelled(cover.shared(frozen)):
            problems.append(f"{place}: '{name}' is frozen in this stage")
        for settings, earlier in groups:
            problems += [
                f"{place}: '{name}'{_tied(name, parameters)} is in group '{settings['name']}' too"
                for name in parameters.spelled(cover.shared(earlier))
            ]
        groups.append((group, cover))
    rest = trained
    for _, cover in groups:
        rest = rest.minus(cover)
    if rest.regions:
        if any(settings["name"] == "default" for settings, _ in groups):
            problems.append("group 'default': is the name of the group of everything else")
        groups.append(({"name": "default", "params": []}, rest))
    decay = {"layer_decay": stage["layer_decay"]} if "layer_decay" in stage else {}
    return [({**decay, **settings}, cover) for settings, cover in groups], problems


def _tied(spelling: str, parameters: Parameters) -> str:
    name, _ = split_block(spelling)
    aliases = [alias for alias, owner in parameters.owners.items() if owner == name]
    return f" (tied to {', '.join(repr(alias) for alias in aliases)})" if aliases else ""


def _described(
    settings: Json, cover: Cover, parameters: Parameters, optimizer_args: Json
) -> list[Group]:
    """Return a group as the manifest lists it; several where rates differ by layer."""
    place = f"group '{settings['name']}'"
    base = optimizer_args.get("lr")
    if "lr_scale" in settings:
        if base is None:
            raise PlanError(f"{place}: lr_scale needs an lr in optimizer.args")
        rate = base * settings["lr_scale"]
    else:
        rate = settings.get("lr", base)
    if rate == 0:
        raise PlanError(f"{place}: a learning rate of 0 still moves statistics; freeze it instead")
    if rate is not None and not isfinite(rate):
        raise PlanError(f"{place}: a learning rate beyond the largest number")
    own = {key: value for key, value in settings.items() if key not in _NAMES_A_GROUP}
    if "layer_decay" not in settings:
        lr = {} if rate is None else {"lr": rate}
        params = tuple(parameters.spelled(cover))
        return [Group(name=settings["name"], params=params, settings={**lr, **own})]
    if rate is None:
        raise PlanError(f"{place}: layer_decay needs an lr, its own or in optimizer.args")
    factor, container = settings["layer_decay"]["factor"], settings["layer_decay"]["container"]
    layers = depth.positions(depth.layer_in(container, name) for name in parameters.names)
    if not layers:
        there = depth.all_positions(parameters.names)
        listed = ", ".join(map(depth.called, there)) or "none"
        raise PlanError(
            f"{place}: layer_decay: {depth.called(container)} has no numbered layers"
            + (did_you_mean(container, there) or f"; those that have: {listed}")
        )
    by_distance: dict[int, dict[str, tuple[Region, ...]]] = {}
    for name, regions in cover.regions.items():
        by_distance.setdefault(depth.distance(name, container, layers), {})[name] = regions
    return [
        Group(
            name=f"{settings['name']} x {factor}^{away}",
            params=tuple(parameters.spelled(Cover(regions))),
            settings={"lr": rate * factor**away, **own},
        )
        for away, regions in sorted(by_distance.items())
    ]


def _eval_modules(parameters: Parameters, frozen: Cover) -> list[str]:
    """Return the modules with running statistics of which a stage trains nothing."""
    if not parameters.statistics:
        return []
    still = set(parameters.spelled(frozen))
    own: dict[str, list[str]] = {}
    for name in parameters.names:
        own.setdefault(name.rpartition(".")[0], []).append(parameters.owners.get(name, name))
    return [
        module
        for module in sorted(parameters.statistics & own.keys())
        if all(name in still for name in own[module])
    ]
