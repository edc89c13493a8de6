"""What the layers of a model type are by their numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from tests.architectures import configs, expressions
from tests.architectures.build import (
    NoBuildError,
    config_of,
)  # fmt: skip
from tests.architectures.configs import Json, get
from tests.architectures.fit import (
    Fits,
    Laboratory,
)  # fmt: skip
from tests.architectures.layers import Rule, columns, find_rule, observed, partition, stacks
from tests.architectures.subject import STACK, Subject, optional_paths

_MOST_TOGETHER = 5
_MOST_VALUES = 6
_POSITION_WORDS = ("layer", "pattern", "step", "interval", "period", "every", "freq", "offset",
                   "replace", "start", "window", "shared", "skip", "stride")  # fmt: skip


def per_layer_lists(subject: Subject) -> Json:
    """Return the lists that have an entry per layer, and what they are by default."""
    return {
        path: {"count": count, **_list_default(subject, path, count)}
        for path, count in subject.links.items()
    }


def _list_default(subject: Subject, path: str, count: str) -> Json:
    """Return rules that give a list's entries where the config does not state it."""
    outer = path.rpartition(".")[0]
    prefix = f"{outer}." if outer else ""

    others = {other: c for other, c in subject.links.items() if other != path}

    def derived(changes: Json) -> tuple[Json, list[Any]] | None:
        values = configs.remove(configs.changed(subject.base, changes, others), path)
        try:
            config = config_of(subject.model_type, values).to_dict()
        except NoBuildError:
            return None
        entries = get(config, path)
        return (values, list(entries)) if isinstance(entries, list | tuple) else None

    plain = derived({count: 12})
    if plain is None or len(plain[1]) != 12:
        return {} if _has_no_default(subject, path, count) else {"default": "unknown"}
    near = {p: n for p, n in configs.numbers(subject.base).items() if p.rpartition(".")[0] == outer
            and p != count and n <= 64}  # fmt: skip
    # Numbers that no list says: config classes read further ones from old files.
    for name in ("sliding_window_pattern", "max_window_layers", "no_rope_layer_interval"):
        near.setdefault(f"{prefix}{name}", 0)
    toggles: list[Json] = [{}]
    toggles += [{p: not on} for p, on in configs.switches(subject.base).items()
                if p.rpartition(".")[0] == outer]  # fmt: skip
    windows: Json = {
        p: 4096 for p in optional_paths(subject.model_type, subject.base) if "window" in p
    }
    if windows:
        toggles += [{**windows, **toggle} for toggle in toggles]
    for other in others:  # what follows from another list has no rule of its own
        entries = get(subject.base, other)
        turned = [entries[-1 - number % len(entries)] for number in range(12)] if entries else []
        for toggle in toggles:
            as_is, moved = (
                derived({count: 12, **toggle}),
                derived({count: 12, **toggle, other: turned}),
            )
            if as_is is not None and (moved is None or moved[1] != as_is[1]):
                return {"default": "unknown", "keys": [other]}
    seen: list[tuple[Json, list[Any]]] = [plain]
    keys: set[str] = set()
    switches: set[str] = set()
    for toggle in toggles:
        base = derived({count: 12, **toggle})
        if base is None:
            continue
        if base[1] != plain[1]:
            switches |= set(toggle)
        for key in near:
            if toggle and not any(word in key for word in _POSITION_WORDS):
                continue
            builds = [derived({count: 12, **toggle, key: value}) for value in (2, 3, 4, 5)]
            if any(one is not None and one[1] != base[1] for one in builds):
                keys.add(key)
                if toggle and base[1] == plain[1]:
                    switches |= set(toggle)
                seen += [one for one in builds if one is not None]
        seen.append(base)
    for length in (3, 7, 10):
        if (one := derived({count: length})) is not None:
            seen.append(one)
    rules: list[Any] = []
    values = list(dict.fromkeys(map(repr, (entry for _, entries in seen for entry in entries))))
    originals = {repr(entry): entry for _, entries in seen for entry in entries}
    if len(values) > 4:
        return {"default": "unknown"}
    for written in values:
        observations = [observed(config, entries, originals[written]) for config, entries in seen]
        rule = _gated_rule(observations, sorted(keys), sorted(switches | keys), [])
        if rule is None:
            return {"default": "unknown", "keys": sorted(keys | switches)}
        if rule != ["not", ["all"]]:
            rules.append([originals[written], rule])
    return {"default": rules}


def _has_no_default(subject: Subject, path: str, count: str) -> bool:
    """Return whether the class does without a list that the config does not state."""
    values = configs.remove(subject.config({count: 12}), path)
    try:
        return get(config_of(subject.model_type, values).to_dict(), path) is None
    except NoBuildError:
        return False


def _gated_rule(
    observations: list[Any], keys: list[str], gates: list[str], lists: list[str]
) -> Rule | None:
    """Return a rule; one for each state of a switch where no single one will do."""
    positional = [key for key in keys if is_positional(key)]
    for some in (positional, keys) if positional != keys else (keys,):
        if (rule := find_rule(observations, some, lists)) is not None:
            return rule
    for gate in gates:
        on = [one for one in observations if get(one.config, gate)]
        off = [one for one in observations if not get(one.config, gate)]
        if on and off:
            left = [other for other in gates if other != gate]
            rules = [_gated_rule(some, keys, left, lists) for some in (on, off)]
            if None not in rules:
                return ["when", gate, *rules]
    return None


def stack_lengths(fits: Fits) -> dict[str, str]:
    """Return {list of modules in memory: the number of the config that is its length}."""
    found = {}
    for place, terms in fits.terms.items():
        if place[1] == -1 and place[0].startswith(STACK) and len(expressions.keys(terms)) == 1:
            found[place[0][1:]] = expressions.keys(terms).pop()
    return found


def kinds_of(
    subject: Subject, primary: str, lengths: Mapping[str, str], laboratory: Laboratory
) -> list[Json]:
    """Return rules for what the layers of a stack are by their number."""
    seen: list[tuple[Json, dict[str, Any]]] = []

    def look(changes: Json) -> dict[str, Any] | None:
        try:
            model = subject.build(primary, changes, on_disk=False).model
        except NoBuildError:
            return None
        found = {name: (len(stack), columns(stack)) for name, stack in stacks(model)
                 if name in lengths}  # fmt: skip
        seen.append((subject.config(changes), found))
        return found

    plain = look({})
    if plain is None:
        return []
    keys, switches = _what_moves_layers(subject, look, plain)
    made: dict[str, Json] = {}
    for stack, count in lengths.items():
        lists = [path for path in configs.lists(subject.base)
                 if path.rpartition(".")[0] == count.rpartition(".")[0]]  # fmt: skip
        indices = _index_lists(subject, look, stack, lists)
        wanted = dict.fromkeys(key for _, one in seen if stack in one for key in one[stack][1])
        known: set[tuple[Any, ...]] = set()
        for column in wanted:
            partitions = tuple(partition(one[stack][1].get(column, ())) for _, one in seen
                               if stack in one)  # fmt: skip
            if partitions in known:
                continue
            known.add(partitions)
            rules = _column_rules(subject, seen, stack, column, keys, switches, indices)
            name = ".".join(filter(None, column))
            entry = made.setdefault(count, {"count": count, "rules": [], "unknown": {}})
            if rules is None:
                causes = sorted(keys[stack] | switches[stack])
                is_plain = column not in plain[stack][1]
                # What these numbers are where all layers are alike; null where they never are.
                plainly = {path: get(subject.base, path) for path in causes} if is_plain else None
                entry["unknown"][name] = {"keys": causes, "plain": plainly}
            else:
                entry["rules"] += [rule for rule in rules if rule not in entry["rules"]]
        if indices:
            made.setdefault(count, {"count": count, "rules": [], "unknown": {}})
            made[count]["lists"] = sorted({*made[count].get("lists", ()), *indices})
    return [{key: one for key, one in entry.items() if one} for entry in made.values()
            if entry.get("rules") or entry["unknown"] or entry.get("lists")]  # fmt: skip


def is_positional(path: str) -> bool:
    """Return whether a number's name is of those that say which layers are special."""
    return any(word in path.rsplit(".", 1)[-1] for word in _POSITION_WORDS)


def _what_moves_layers(
    subject: Subject, look: Any, plain: Mapping[str, Any]
) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Return, per stack, the numbers and the switches that change what its layers are."""
    keys: dict[str, set[str]] = {stack: set() for stack in plain}
    switches: dict[str, set[str]] = {stack: set() for stack in plain}

    def differs(found: Mapping[str, Any] | None, base: Mapping[str, Any]) -> Iterator[str]:
        for stack in plain:
            if found is not None and stack in found and stack in base:
                # In what way the layers differ, whatever of them it is that differs.
                shapes = [{partition(v) for v in one[stack][1].values()} for one in (found, base)]
                if found[stack][0] == base[stack][0] and shapes[0] != shapes[1]:
                    yield stack

    near = {p: n for p, n in configs.numbers(subject.base).items() if n <= 64
            and not p.rsplit(".", 1)[-1].isdigit()}  # fmt: skip
    optional = [p for p in optional_paths(subject.model_type, subject.base)
                if any(word in p for word in _POSITION_WORDS)]  # fmt: skip
    toggles: list[Json] = [{}]
    toggles += [{path: not on} for path, on in configs.switches(subject.base).items()]
    positional = [path for path in [*near, *optional] if is_positional(path)]
    for toggle in toggles:
        base = look(toggle) if toggle else plain
        if base is None:
            continue
        moved = set(differs(base, plain))
        for stack in moved:
            switches[stack] |= set(toggle)
        beside = {path.rpartition(".")[0] for path in toggle}
        for path in positional if toggle else [*near, *positional]:
            if configs.is_count(path) or (toggle and path.rpartition(".")[0] not in beside):
                continue
            # One other value shows whether a number matters; more of them, how.
            first = 3 if get(subject.base, path) != 3 else 2
            moves = set(differs(look({**toggle, path: first}), base))
            for value in (1, 2, 4) if moves else ():
                moves |= set(differs(look({**toggle, path: value}), base))
            for stack in moves:
                if toggle and path not in keys[stack] and stack not in moved:
                    switches[stack] |= set(toggle)
                keys[stack].add(path)
    # Some go together only: a period and its offset.
    numbers = [path for path in positional if path in near and not configs.is_count(path)]
    for one, other in combinations(numbers[:_MOST_TOGETHER], 2):
        if one.rpartition(".")[0] != other.rpartition(".")[0]:
            continue
        for first, second in ((2, 1), (1, 2), (3, 1), (1, 3), (3, 2), (2, 3)):
            for stack in differs(look({one: first, other: second}), plain):
                keys[stack] |= {one, other}
    for path in optional:
        if any(path in some for some in keys.values()):
            for stack in keys:
                if path in keys[stack]:
                    switches[stack].add(path)
    return keys, switches


def _index_lists(subject: Subject, look: Any, stack: str, lists: list[str]) -> list[str]:
    """Return the lists of numbers of layers: another number in one changes that layer."""
    found = []
    for path in lists:
        entries = get(subject.base, path)
        if path in subject.links or any(type(entry) is not int for entry in entries):
            continue
        looks = [look({path: [number]}) for number in (1, 2)]
        parts = [{partition(v) for v in one[stack][1].values()} if one and stack in one else None
                 for one in looks]  # fmt: skip
        if None not in parts and parts[0] != parts[1]:
            found.append(path)
    return found


def _column_rules(
    subject: Subject, seen: list[tuple[Json, dict[str, Any]]], stack: str,
    column: tuple[str, str], keys: Mapping[str, set[str]], switches: Mapping[str, set[str]],
    indices: list[str],
) -> list[Rule] | None:  # fmt: skip
    """Return rules that say which layers are alike in one column; None where none is known."""
    cases = []
    for config, one in seen:
        if stack not in one:
            continue
        length, found = one[stack]
        cases.append((config, found.get(column, ("alike",) * length)))
    for path in subject.links:
        if all(_follows(get(config, path), values) for config, values in cases):
            return []
    rules: list[Rule] = []
    values = {repr(v): v for _, some in cases for v in some if repr(v) != "'alike'"}
    if len(values) > _MOST_VALUES:
        if any(len(set(some)) > 2 for _, some in cases):
            return None
        halves = [observed(config, some, some[0]) for config, some in cases if some[0] != "alike"]
        rule = find_rule(halves, sorted(keys[stack]), indices, either=True)
        return None if rule is None else [rule]
    # A column that is the same for all layers says nothing: which value it has may depend on
    # numbers that have nothing to do with positions.
    for value in values.values():
        observations = [observed(config, some, value) for config, some in cases
                        if some[0] != "alike"]  # fmt: skip
        even = [observed(config, ["none"] * len(some), value) for config, some in cases
                if some[0] == "alike"]  # fmt: skip
        causes, gates = sorted(keys[stack]), sorted(switches[stack] | keys[stack])
        rule = _gated_rule([*observations, *even], causes, gates, indices)
        if rule is None:
            rule = _gated_rule(
                observations, sorted(keys[stack]), sorted(switches[stack] | keys[stack]), indices
            )
        if rule is None:
            return None
        if rule not in (["all"], ["not", ["all"]]):
            rules.append(rule)
    return rules


def _follows(entries: Any, values: tuple[Any, ...]) -> bool:
    """Return whether layers with the same entry are the same."""
    if not isinstance(entries, list) or len(entries) != len(values):
        return False
    known: dict[str, str] = {}
    return all(known.setdefault(repr(e), repr(v)) == repr(v)
               for e, v in zip(entries, values, strict=True))  # fmt: skip
