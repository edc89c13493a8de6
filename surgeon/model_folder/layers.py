"""The layers of a model: lists with an entry for each, and what their numbers make of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from surgeon.lazy import walk
from surgeon.model_folder.case import Case, Json, containers, get, has
from surgeon.model_folder.positions import UnknownRuleError, holds
from surgeon.model_folder.said import count_of

# Which layer of the input each layer was; None where it was several or none.
Sources = list[int | None]


def follow_layers(case: Case) -> None:
    """Have everything in the config that goes by the numbers of layers follow the layers."""
    stacks = {count: numbered for count, numbered in _stacks(case).items()
              if numbered != list(range(_count(case, case.old, count)))}  # fmt: skip
    counts = {*stacks, *_restated(case)}
    for count in counts:
        sources = stacks.get(count) or list(range(_count(case, case.old, count)))
        _follow_lists(case, count, sources)
        _follow_numbers_of_layers(case, count, sources)
        _require_same_kinds(case, count, sources)


def _count(case: Case, config: Json, path: str) -> int:
    found = case.value(config, path)
    return int(found) if found is not None else 0


def _stacks(case: Case) -> dict[str, Sources]:
    """Return {number of layers: which layer of the input each of them was}."""
    known = case.architecture
    if known is None:
        return {}
    found: dict[str, dict[str, Sources]] = {}
    inside: dict[str, str] = {}
    for container in containers(case.after):
        text = count_of(known, container)
        if text is not None and "{" not in text and not any(c in text for c in "+-*/"):
            inside[container] = text
    # A stack within a layer (its experts) is not one of the model's.
    outermost = [c for c in inside if not any(c.startswith(f"{other}.") for other in inside)]
    for container, sources in _sources(case, outermost).items():
        found.setdefault(inside[container], {})[container] = sources
    return {count: _agreed(list(some.values())) for count, some in found.items()}


def _agreed(several: Sequence[Sources]) -> Sources:
    """Return where layers of several stacks come from; None where the stacks differ."""
    length = max(map(len, several))
    made: Sources = []
    for index in range(length):
        origins = {some[index] for some in several if index < len(some)}
        made.append(origins.pop() if len(origins) == 1 else None)
    return made


def _sources(case: Case, stacks: Iterable[str]) -> dict[str, Sources]:
    """Return which layer of the input each layer of each stack was."""
    prefixes = [f"{stack}." for stack in stacks]

    def layer_of(name: str) -> tuple[str, int] | None:
        for prefix in prefixes:
            if name.startswith(prefix):
                number = name[len(prefix) :].partition(".")[0]
                return (prefix[:-1], int(number)) if number.isdigit() else None
        return None

    known: dict[object, tuple[str, int]] = {}
    for name, tensor in case.before.items():
        if (layer := layer_of(name)) is not None:
            known[tensor.byte_origin] = layer
    found: dict[str, dict[int, set[int]]] = {}
    for name, tensor in case.after.items():
        if (layer := layer_of(name)) is None:
            continue
        origins = found.setdefault(layer[0], {}).setdefault(layer[1], set())
        for form in [tensor] if tensor.byte_origin in known else walk(tensor):
            if (origin := known.get(form.byte_origin)) is not None:
                origins.add(origin[1])
    return {
        stack: [next(iter(some)) if len(some := layers[n]) == 1 else None for n in sorted(layers)]
        for stack, layers in found.items()
    }


def _restated(case: Case) -> set[str]:
    """Return the numbers of layers whose lists the recipe states."""
    known = case.architecture
    lists = known.lists if known else {}
    return {one["count"] for path, one in lists.items() if case.states(path)}


# --- Lists with an entry per layer ----------------------------------------------------------------


def _follow_lists(case: Case, count: str, sources: Sources) -> None:
    for path in _lists_of(case, count):
        entries, is_stated = get(case.old, path), case.states(path)
        if entries is None and not is_stated:
            _follow_default(case, path, count, sources)
        elif not is_stated and _is_long(entries, _count(case, case.old, count)):
            _follow_entries(case, path, entries, sources)
        made = get(case.new, path)
        if isinstance(made, list) and len(made) != len(sources):
            case.contradiction(
                f"{path} has {len(made)} entries for {len(sources)} layers; state it in "
                "output.config"
            )


def _lists_of(case: Case, count: str) -> list[str]:
    """Return the lists with an entry per layer: those that are known, and what looks like one."""
    known = case.architecture
    paths = [path for path, one in known.lists.items() if one["count"] == count] if known else []
    outer = count.rpartition(".")[0]
    beside = get(case.old, outer) if outer else case.old
    length = _count(case, case.old, count)
    for key, value in beside.items() if isinstance(beside, dict) else ():
        path = f"{outer}.{key}" if outer else key
        is_entries = isinstance(value, list) and len(value) == length and length > 1
        if is_entries and "layer" in key and path not in paths and not _is_rising(value):
            paths.append(path)
    return paths


def _is_long(entries: Any, length: int) -> bool:
    return isinstance(entries, list) and len(entries) == length


def _is_rising(entries: Sequence[Any]) -> bool:
    """Return whether these are numbers of layers, rather than something of each layer."""
    numbers = [entry for entry in entries if type(entry) is int]
    return len(numbers) == len(entries) > 0 and all(a < b for a, b in pairwise(numbers))


def _follow_entries(case: Case, path: str, entries: list[Any], sources: Sources) -> None:
    if all(entry == entries[0] for entry in entries):
        case.follow(path, entries[:1] * len(sources))
    elif None not in sources:
        case.follow(path, [entries[source] for source in sources if source is not None])
    else:
        case.contradiction(
            f"{path}: which layer of the input some layers were is not known; state it in "
            "output.config"
        )


def _follow_default(case: Case, path: str, count: str, sources: Sources) -> None:
    """Write a list that the config leaves to its class, where that would now give another."""
    known = case.architecture
    default = known.lists.get(path, {}).get("default") if known else None
    if default is None:
        return  # the class has no rule that gives it from the config
    if default == "unknown":
        if sources != list(range(len(sources))):
            case.contradiction(f"{path}: what it is by default is not known; state it")
        return
    try:
        old = _by_default(case, case.old, default, _count(case, case.old, count))
        new = _by_default(case, case.new, default, len(sources))
    except UnknownRuleError as error:
        case.contradiction(f"{path}: {error}; state it in output.config")
        return
    if len(set(map(repr, [*old, *new]))) <= 1:
        return
    if None in sources:
        case.contradiction(
            f"{path}: which layer of the input some layers were is not known; state it in "
            "output.config"
        )
    elif (wanted := [old[source] for source in sources if source is not None]) != new:
        case.follow(path, wanted)


def _by_default(case: Case, config: Json, default: list[Any], layers: int) -> list[Any]:
    def entry(number: int) -> Any:
        for value, rule in default:
            if holds(rule, number, layers, lambda path: _setting(case, config, path)):
                return value
        raise UnknownRuleError(f"layer {number} is of no known kind")

    return [entry(number) for number in range(layers)]


def _setting(case: Case, config: Json, path: str) -> Any:
    """Return a setting of a config, as its class reads it."""
    if has(config, path):
        return get(config, path)
    number = case.value(config, path)
    if number is not None:
        return int(number)
    known = case.architecture
    return known.settings.get(path) if known else None


# --- What goes by the numbers of layers -----------------------------------------------------------


def kinds_by_number(case: Case, count: str) -> tuple[list[Any], list[Any]] | None:
    """Return what the config makes of each layer by its number, before and now.

    None where it cannot be told; layers that move are then refused.
    """

    def kinds(config: Json) -> list[Any]:
        layers = _count(case, config, count)
        lists = [some for path in _lists_of(case, count)
                 if _is_long(some := get(config, path), layers)]  # fmt: skip
        rules = [rule for one in _kinds_of(case, count) for rule in one.get("rules", ())]
        return [
            [[some[number] for some in lists],
             [_holds(case, config, rule, number, layers) for rule in rules]]
            for number in range(layers)
        ]  # fmt: skip

    stated = (key for one in _kinds_of(case, count) for unknown in one.get("unknown", {}).values()
              for key in unknown["keys"])  # fmt: skip
    try:
        return None if any(map(case.states, stated)) else (kinds(case.old), kinds(case.new))
    except UnknownRuleError:
        return None


def _follow_numbers_of_layers(case: Case, count: str, sources: Sources) -> None:
    """Renumber lists of layers' numbers, and objects by layers' numbers."""
    outer = count.rpartition(".")[0]
    beside = get(case.old, outer) if outer else case.old
    known = {path for one in _kinds_of(case, count) for path in one.get("lists", ())}
    new = {source: number for number, source in enumerate(sources)}
    for key, value in list(beside.items()) if isinstance(beside, dict) else ():
        path = f"{outer}.{key}" if outer else key
        if case.states(path):
            continue
        if isinstance(value, dict) and value and all(str(k).isdigit() for k in value):
            if key not in ("id2label",) and None not in sources:
                width = max(len(str(k)) for k in value)
                case.follow(path, {str(number).zfill(width): value[k] for k in value
                                   for number, source in enumerate(sources)
                                   if source == int(k)})  # fmt: skip
        elif path in known and isinstance(value, list) and value:
            if None in sources:
                case.contradiction(f"{path} says numbers of layers; state it in output.config")
            else:
                case.follow(path, [n for n, source in enumerate(sources) if source in value])
        elif _may_be_numbers(key, value, _count(case, case.old, count)) and any(
            new.get(number) != number for number in value
        ):
            case.contradiction(
                f"{path} {json.dumps(value)} may be numbers of layers, which have others now; "
                "state it in output.config"
            )


def _may_be_numbers(key: str, value: Any, layers: int) -> bool:
    words = ("layer", "idx", "index", "indices", "block")
    return (
        isinstance(value, list)
        and _is_rising(value)
        and all(0 <= number < layers for number in value)
        and any(word in key for word in words)
    )


def _kinds_of(case: Case, count: str) -> Iterator[Json]:
    for one in case.architecture.kinds if case.architecture else ():
        if one["count"] == count:
            yield one


def _require_same_kinds(case: Case, count: str, sources: Sources) -> None:
    """Refuse layers that would be of another kind, now that their numbers are others."""
    old_count = _count(case, case.old, count)
    for one in _kinds_of(case, count):
        for rule in one.get("rules", ()):
            keys = sorted(_words(rule))
            try:
                old = [_holds(case, case.old, rule, n, old_count) for n in range(old_count)]
                new = [_holds(case, case.new, rule, n, len(sources)) for n in range(len(sources))]
            except UnknownRuleError as error:
                if sources != list(range(old_count)):
                    case.contradiction(
                        f"{error}, and what a layer is by its number goes by it; state "
                        f"{_settles(keys)}"
                    )
                continue
            if len({*old, *new}) <= 1:
                continue
            for number, source in enumerate(sources):
                if source is None or old[source] is not new[number]:
                    was = "several" if source is None else f"layer {source}"
                    case.contradiction(
                        f"{' and '.join(keys) or count}: layer {number} was {was} of the input, "
                        "which is of another kind by its number; keep layers of each kind in "
                        f"their places, or state {_settles(keys)}"
                    )
                    break
        if sources != list(range(old_count)):
            for name, unknown in one.get("unknown", {}).items():
                _require_plain(case, name, unknown)


def _settles(keys: Sequence[str]) -> str:
    return (" and ".join(keys) if keys else "what settles it") + " in output.config"


def _require_plain(case: Case, name: str, unknown: Mapping[str, Any]) -> None:
    """Refuse where a setting makes layers depend on their numbers in a way that is not known."""
    keys, plain = unknown["keys"], unknown["plain"]
    if any(case.states(key) for key in keys) or plain == {}:
        return
    if plain is not None and all(
        _setting(case, case.new, key) in (value, None) for key, value in plain.items()
    ):
        return
    case.contradiction(
        f"'{name}' of a layer depends on the layer's number"
        + (f" by {' and '.join(keys)}; state {_settles(keys)}" if keys else "")
    )


def _holds(case: Case, config: Json, rule: list[Any], number: int, layers: int) -> bool:
    return holds(rule, number, layers, lambda path: _setting(case, config, path))


def _words(rule: Sequence[Any]) -> Iterator[str]:
    """Yield the paths of a rule."""
    for word in rule[1:]:
        if isinstance(word, str):
            yield word
        elif isinstance(word, list) and word and isinstance(word[0], str):
            yield from _words(word)
