"""What numbers of a config are where it does not state them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    Sizes,
    fit,
)  # fmt: skip
from tests.architectures.kinds import is_positional
from tests.architectures.subject import UNUSUAL, Subject


def defaults_of(subject: Subject, used: set[str]) -> Json:
    """Return {number: what it is where config.json does not state it}."""
    found: Json = {}
    for path in sorted(used):
        if path == "num_labels" or path.rsplit(".", 1)[-1][:1] in "{0123456789":
            continue
        missing = _default_of(subject, path, remove=True)
        null = _default_of(subject, path, remove=False)
        if missing is not None or null is not None:
            found[path] = [missing, null] if null != missing else [missing]
    return found


def _default_of(subject: Subject, path: str, *, remove: bool) -> str | None:
    outer = path.rpartition(".")[0]
    numbers = {p: n for p, n in configs.numbers(subject.base).items()
               if p.rpartition(".")[0] == outer and p != path}  # fmt: skip

    def value(changes: Mapping[str, int]) -> Sizes:
        values = configs.changed(subject.base, changes, subject.links)
        for entries, count in subject.links.items():
            if count == path:
                values = configs.remove(values, entries)
        if remove:
            values = configs.remove(values, path)
        else:
            configs.put(values, path, None)
        found = get(config_of(subject.model_type, values).to_dict(), path)
        if type(found) is not int:
            raise NoBuildError("no number")
        return {("", 0): found}

    try:
        fits = fit(Laboratory(value, numbers))
    except NoBuildError:
        return None
    terms = fits.terms.get(("", 0))
    return expressions.text(terms) if terms is not None else None


def null_defaults(subject: Subject, primary: str, used: set[str], fits: Fits) -> Json:
    """Return what numbers that may be null, or left out, stand for then, as sizes show it."""
    found: Json = {}
    for path in used:
        is_unsaid = path in subject.unsaid
        if not is_unsaid and get(subject.base, path) != UNUSUAL:
            continue
        places = [(place, terms[0]) for place, terms in fits.terms.items()
                  if len(terms) == 1 and (path, 1) in terms[0][0]]  # fmt: skip
        try:
            null = fit(subject.laboratory(primary, {path: configs.ABSENT if is_unsaid else None}))
        except NoBuildError:
            continue
        for place, (factors, coefficient) in places:
            default = null.terms.get(place)
            beside = {other: power for other, power in factors if other != path}
            if default is None or (beside and len(default) > 1):
                continue
            scaled = tuple((_over(f, beside), c / coefficient) for f, c in default)
            found[path] = [expressions.text(scaled), None] if is_unsaid else [
                expressions.text(scaled)
            ]  # fmt: skip
            break
    return found


def _over(
    factors: tuple[tuple[str, int], ...], below: Mapping[str, int]
) -> tuple[tuple[str, int], ...]:
    """Return factors divided by others."""
    powers = dict(factors)
    for path, power in below.items():
        powers[path] = powers.get(path, 0) - power
    return tuple(sorted((path, power) for path, power in powers.items() if power))


def heads_of(subject: Subject, primary: str, fits: Fits, used: set[str]) -> Json:
    """Return {number of heads that is no size: the number that it divides}."""

    def features(changes: Json) -> dict[tuple[str, str], int]:
        try:
            model = subject.build(primary, changes, on_disk=False).model
        except NoBuildError:
            return {}
        return {
            (name, key): value
            for name, module in model.named_modules()
            for key, value in vars(module).items()
            if type(value) is int and "head" in key and value > 1
        }

    numbers = configs.numbers(subject.base)
    simple = {next(iter(expressions.keys(terms))) for terms in fits.terms.values()
              if len(expressions.keys(terms)) == 1}  # fmt: skip
    found: Json = {}
    plain = features({})
    for path, number in numbers.items():
        if "head" not in path.rsplit(".", 1)[-1] or path in used or number < 1:
            continue
        more = features({path: number * 2})
        halved = {key for key, value in more.items() if value * 2 == plain.get(key)}
        for other in sorted(simple) if halved else ():
            if other.rpartition(".")[0] == path.rpartition(".")[0] and numbers.get(other):
                wide = features({other: numbers[other] * 2})
                if any(wide.get(key) == plain[key] * 2 for key in halved):
                    found[path] = other
                    break
    return found


def settings_of(subject: Subject, made: Json) -> Json:
    """Return what rules of positions go by, where config.json does not state it.

    What follows from another number, such as a list of every second layer, has no entry.
    """
    rules: list[Any] = [rule for one in made["kinds"] for rule in one.get("rules", ())]
    rules += [rule for one in made["lists"].values() if isinstance(one.get("default"), list)
              for _, rule in one["default"]]  # fmt: skip
    found: Json = {}
    for path in sorted({word for rule in rules for word in _words(rule)} - {*subject.links}):
        values = []
        for changes in ({}, *({path: n + 3} for path, n in configs.numbers(subject.base).items()
                              if configs.is_count(path) or is_positional(path))):  # fmt: skip
            if path in changes:
                continue
            config = configs.remove(configs.changed(subject.base, changes, subject.links), path)
            try:
                values.append(get(config_of(subject.model_type, config).to_dict(), path))
            except NoBuildError:
                continue
        if values and all(value == values[0] for value in values):
            found[path] = values[0]
    return found


def _words(rule: Any) -> Iterator[str]:
    """Yield the paths of a rule."""
    for word in rule[1:]:
        if isinstance(word, str):
            yield word
        elif isinstance(word, list):
            yield from _words(word) if word and isinstance(word[0], str) else ()
