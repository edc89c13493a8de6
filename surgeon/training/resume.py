"""A stage in the middle: saved by parameter name and region, and taken up again.

Nothing is kept by index, so that the order in which modules were registered does not matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from surgeon.base.regions import Region, count, spelled, without
from surgeon.manifest.model import Group, Json
from surgeon.training.cover import Block
from surgeon.training.errors import ManifestError
from surgeon.training.held import Held, State, hold
from surgeon.training.saved_state import OptimizerSettings, made_state
from surgeon.training.sharded import is_sharded, local
from surgeon.training.started import Started
from surgeon.training.state_document import VERSION, RunState, unlike

_OTHER = "take the state that was saved with this checkpoint, or start the stage anew"
# What torch's optimizers keep that has not the parameter's shape.
_SCALARS = ("step", "eta", "mu", "mu_product")
_JSON = (bool, int, float, str, dict)
_FACTORED = {"row_var": -1, "col_var": -2}


def state_of(started: Started, args: Json, begun: Iterable[str]) -> dict[str, Any]:
    """Return plain containers and tensors, which torch.load reads with weights_only=True.

    `begun` are the stages that this run has started. As with torch's own state, the tensors are
    the optimizer's, not copies.
    """
    return {
        "surgeon_run": VERSION,
        "stage": started.name,
        "begun": sorted(begun),
        "is_finished": started.is_finished,
        "optimizer": _path_of(type(started.optimizer)),
        "groups": [
            {
                "name": group.name,
                "given": _given(group, args),
                "settings": _settings(group.name, started.optimizer),
            }
            for group, _ in started.groups
        ],
        "state": [
            {
                "name": held.name,
                "region": [list(bounds) for bounds in held.region],
                "state": dict(started.optimizer.state.get(held.parameter, {})),
            }
            for held in started.held
        ],
        "scheduler": started.scheduler.state_dict() if started.scheduler else None,
    }


def _path_of(kind: type[Optimizer]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _given(group: Group, args: Json) -> dict[str, Any]:
    return {**args, **group.settings}


def _settings(name: str, optimizer: Optimizer) -> dict[str, Any]:
    for entry in optimizer.param_groups:
        if entry["name"] == name:
            return {key: value for key, value in entry.items() if key not in ("name", "params")}
    return {}  # a group of no parameters


def require_same_stage(
    saved: RunState, kind: type[Optimizer], groups: Sequence[Group], args: Json, has_scheduler: bool
) -> None:
    """Raise ManifestError where the manifest says something else than when the state was saved."""
    problems = []
    if saved.optimizer != _path_of(kind):
        problems.append(f"the state is of {saved.optimizer}, the optimizer is {_path_of(kind)}")
    here = {group.name: _given(group, args) for group in groups}
    given = {group.name: group.given for group in saved.groups}
    if here.keys() != given.keys():
        problems.append(f"the state has groups {', '.join(given)}, not {', '.join(here)}")
    for name in here.keys() & given.keys():
        # Lists and tuples are one in JSON, whichever way the state was stored.
        then, now = _plain(given[name]), _plain(here[name])
        problems += [
            f"group '{name}': {key} was {then.get(key)} and is {now.get(key)}"
            for key in sorted(then.keys() | now.keys(), key=str)
            if not _is_same(then.get(key), now.get(key))
        ]
    if (saved.scheduler is not None) != has_scheduler:
        problems.append(f"the state has {'a' if not has_scheduler else 'no'} scheduler")
    if problems:
        raise ManifestError(*(f"{problem}; start the stage anew" for problem in problems))


def _is_same(then: object, now: object) -> bool:
    if isinstance(then, list | tuple) and isinstance(now, list | tuple):
        return len(then) == len(now) and all(map(_is_same, then, now))
    # A tensor that is compared is a tensor of answers; the manifest has none.
    return then is now or (isinstance(then, _JSON) and bool(then == now))


def _plain(settings: Json) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}


def held_of(
    saved: RunState,
    groups: Sequence[tuple[Group, Sequence[Block]]],
    parameters: Mapping[str, nn.Parameter],
    kind: type[Optimizer],
) -> list[tuple[Group, list[Held]]]:
    """Hold each group's elements in the pieces that the state has, each with its own state.

    Raises ManifestError where those do not make up the blocks, or a state has another shape.
    """
    problems: list[str] = []
    states: dict[str, list[tuple[Region, State]]] = {}
    for part in saved.state:
        region = tuple((start, stop) for start, stop in part.region)
        states.setdefault(part.name, []).append((region, dict(part.state)))
    found = [
        (group, list(_pieces(states, blocks, parameters, problems))) for group, blocks in groups
    ]
    held = [member for _, members in found for member in members]
    for member in held:
        problems += shape_problems(member, parameters[member.name], kind)
    in_place = {(member.name, member.region) for member in held}
    problems += [
        f"the state has '{name}' in parts that this stage does not train"
        for name, parts in states.items()
        if not problems and any((name, part) not in in_place for part, _ in parts)
    ]
    if problems:
        raise ManifestError(*problems)
    return found


def _pieces(
    states: Mapping[str, Sequence[tuple[Region, State]]],
    blocks: Sequence[Block],
    parameters: Mapping[str, nn.Parameter],
    problems: list[str],
) -> Iterator[Held]:
    for block in blocks:
        parameter = parameters[block.name]
        mine = [
            (part, state)
            for part, state in states.get(block.name, ())
            if len(part) == len(block.region) and all(map(_is_inside, part, block.region))
        ]
        rest = [block.region]
        for part, _ in mine:
            rest = [piece for region in rest for piece in without(region, part)]
        if any(map(count, rest)) or sum(count(part) for part, _ in mine) != count(block.region):
            what = spelled(block.name, block.region, parameter.shape)
            problems.append(f"'{what}' is not in the state as this stage trains it")
            continue
        for part, state in mine:
            yield hold(Block(block.name, part), parameter, dict(state))


def _is_inside(inner: tuple[int, int], outer: tuple[int, int]) -> bool:
    return outer[0] <= inner[0] <= inner[1] <= outer[1]


def _keeps_what_is_known(kind: type[Optimizer]) -> bool:
    return kind.__module__.startswith("torch.optim.") and kind is not LBFGS


def shape_problems(
    held: Held, parameter: nn.Parameter, kind: type[Optimizer], state: State | None = None
) -> Iterator[str]:
    """Say which tensors of a state have another shape than torch's optimizers expect.

    A fused kernel would write where they end. What LBFGS and optimizers of other libraries keep is
    of shapes of their own.
    """
    if not _keeps_what_is_known(kind):
        return
    shape = [stop - start for start, stop in held.region]
    for key, value in (held.state if state is None else state).items():
        if not isinstance(value, Tensor):
            continue
        expected = [] if key in _SCALARS else list(shape)
        if key in _FACTORED and shape:
            expected[_FACTORED[key]] = 1
        fits = list(value.shape) == expected
        if fits and expected == shape and shape:
            fits = is_sharded(value) == is_sharded(held.parameter)
            fits = fits and local(value).shape == local(held.parameter).shape
        if not fits:
            yield (
                f"'{spelled(held.name, held.region, parameter.shape)}': '{key}' of the state is "
                f"{tuple(value.shape)}, expected {tuple(expected)}; {_OTHER}"
            )


def restore(saved: RunState, optimizer: Optimizer, scheduler: LRScheduler | None) -> None:
    """Give an optimizer the settings of that moment, and put its state where its parameters lie.

    Raises ManifestError where settings or the scheduler are not as torch has just made them.
    """
    problems: list[str] = []
    settings = {group.name: group.settings for group in saved.groups}
    for entry in optimizer.param_groups:
        made = {key: value for key, value in entry.items() if key not in ("name", "params")}
        place = f"groups: '{entry['name']}': settings"
        problems += unlike(settings[entry["name"]], made, place, exactly=True)
    if scheduler is not None:
        problems += unlike(saved.scheduler, scheduler.state_dict(), "scheduler")
    if problems:
        raise ManifestError(*(f"{problem}; {_OTHER}" for problem in problems))
    for entry in optimizer.param_groups:
        for key, value in settings[entry["name"]].items():
            entry[key] = value.clone() if isinstance(value, Tensor) else value
        # As torch does when it loads state: other step counts stay on the CPU.
        moves_counts = entry.get("fused") or entry.get("capturable")
        for parameter in entry["params"]:
            for key, value in (state := optimizer.state.get(parameter, {})).items():
                if isinstance(value, Tensor):
                    there = parameter.device if value.ndim or moves_counts else value.device
                    state[key] = value.detach().to(there, copy=True)
                else:
                    state[key] = deepcopy(value)
    if scheduler is not None and saved.scheduler is not None:
        scheduler.load_state_dict(deepcopy(dict(saved.scheduler)))


def require_whole(
    groups: Sequence[tuple[Group, Sequence[Held]]], kind: type[Optimizer], args: Json
) -> None:
    """Raise ManifestError where a state lacks what the optimizer keeps, or has something else.

    Optimizers of other libraries, and LBFGS, keep what they like.
    """
    if not _keeps_what_is_known(kind):
        return
    problems: list[str] = []
    for group, members in groups:
        made: dict[int, State] = {}
        for held in members:
            kept = {key: value for key, value in held.state.items() if value is not None}
            if not kept:
                continue
            shape = held.parameter.shape
            if len(shape) not in made:
                made[len(shape)] = made_state(held, OptimizerSettings(kind, args, group))
            own = made[len(shape)]
            place = f"'{spelled(held.name, held.region, shape)}'"
            problems += [f"{place}: '{key}' of the state is missing" for key in own.keys() - kept]
            problems += [f"{place}: '{key}' is unknown" for key in kept.keys() - own]
            problems += [
                f"{place}: '{key}' of the state is a {type(kept[key]).__name__}"
                for key in own.keys() & kept.keys()
                if not _is_alike(kept[key], own[key])
            ]
    if problems:
        raise ManifestError(*(f"{problem}; {_OTHER}" for problem in problems))


def _is_alike(kept: object, made: object) -> bool:
    if isinstance(made, Tensor) and isinstance(kept, Tensor):
        return kept.is_floating_point() == made.is_floating_point()
    numbers = isinstance(made, int | float) and isinstance(kept, int | float)
    return type(kept) is type(made) or numbers


def refuse_other_shapes(
    optimizer: Optimizer, held: Sequence[Held], parameters: Mapping[str, nn.Parameter]
) -> None:
    """Have torch's own load_state_dict check shapes, which it does not do."""
    by_parameter = {id(member.parameter): member for member in held}

    def check(_: Optimizer, loaded: dict[str, Any]) -> None:
        problems: list[str] = []
        groups = zip(optimizer.param_groups, loaded["param_groups"], strict=False)
        for own, other in groups:
            for parameter, number in zip(own["params"], other["params"], strict=False):
                member = by_parameter[id(parameter)]
                state = loaded["state"].get(number, {})
                whole = parameters[member.name]
                problems += shape_problems(member, whole, type(optimizer), state)
        if problems:
            raise ManifestError(*problems)

    optimizer.register_load_state_dict_pre_hook(check)
