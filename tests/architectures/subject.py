"""A model type while it is probed: the smallest config that builds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.architectures import configs
from tests.architectures.arguments import NEEDED
from tests.architectures.build import (
    Built,
    NoBuildError,
    Shapes,
    asked_of,
    build,
    config_of,
)  # fmt: skip
from tests.architectures.configs import Json, get
from tests.architectures.fit import (
    Laboratory,
    Sizes,
    sizes_of,
)  # fmt: skip
from tests.architectures.layers import stacks

# A length of a list of modules, by its name in memory.
STACK = "@"
# The number of labels of a new model, of the smaller ones that are no other number.
LABELS = 5
# What a class may ask for that its config need not have: the size of a head, most of all.
_UNSAID = re.compile(r"(.*\.)?[a-z]\w*(dim|size|heads|channels|width)")
# What the size of a head may follow from.
_SIZES = re.compile(r"heads?|hidden|dim|size|model|embd|width|channels")
# Other than most defaults.
UNUSUAL = 96


@dataclass
class Subject:
    """A model type while it is probed.

    `unsaid` are numbers of `base` that its config class does not have, and that sizes follow from.
    """

    model_type: str
    base: Json
    links: dict[str, str] = field(default_factory=dict)
    unsaid: set[str] = field(default_factory=set)

    def config(self, changes: Mapping[str, Any]) -> Json:
        """Return the base config with changes."""
        return configs.changed(self.base, changes, self.links)

    def build(self, class_name: str, changes: Mapping[str, Any], *, on_disk: bool = True) -> Built:
        """Build a class from the base config with changes."""
        return build(class_name, self.model_type, self.config(changes), on_disk=on_disk)

    def laboratory(self, class_name: str, fixed: Mapping[str, Any] | None = None) -> Laboratory:
        """Return builds of one class, with some settings other than the base's."""
        settings = dict(fixed or {})

        def sizes(changes: Mapping[str, int]) -> Sizes:
            built = self.build(class_name, settings | dict(changes))
            lengths = {(STACK + name, -1): len(stack) for name, stack in stacks(built.model)}
            return sizes_of(built.shapes) | lengths

        numbers = configs.numbers(self.base)
        numbers |= {path: one for path, one in settings.items() if type(one) is int}
        return Laboratory(sizes, {p: n for p, n in numbers.items() if p not in settings
                                  or type(settings[p]) is int})  # fmt: skip


def subject_of(model_type: str, class_names: list[str]) -> tuple[Subject, str]:
    """Return the smallest config that builds, and the class that has the most tensors with it."""
    plain = configs.without_runtime(config_of(model_type, NEEDED.get(model_type, {})).to_dict())
    plain |= {k: v for k, v in NEEDED.get(model_type, {}).items() if not isinstance(v, dict)}
    plain["num_labels"] = LABELS
    error = NoBuildError("no class of the auto-models has this type")
    for small in configs.shrunk(plain):
        found: dict[str, int] = {}
        for name in class_names:
            try:
                found[name] = len(build(name, model_type, small).shapes)
            except NoBuildError as caught:
                error = caught
        if found:
            base = configs.without_runtime(config_of(model_type, small).to_dict())
            base |= {"num_labels": LABELS}
            primary = max(found, key=lambda name: found[name])
            subject = Subject(model_type, base)
            try:
                subject.build(primary, {})
            except NoBuildError:
                subject.base = small
            subject.links = _links(subject, primary)
            _fill_optional(subject, primary)
            _add_unsaid(subject, primary)
            return subject, primary
    raise error


def _links(subject: Subject, primary: str) -> dict[str, str]:
    """Return {list with an entry per layer: the number of layers}."""
    counts = {p: n for p, n in configs.numbers(subject.base).items() if configs.is_count(p)}
    maybe: dict[str, str] = {}
    for path, entries in configs.lists(subject.base).items():
        outer = path.rpartition(".")[0]
        near = [p for p, n in counts.items() if n == len(entries) and p.rpartition(".")[0] == outer]
        rises = all(type(entry) is int for entry in entries) and entries == sorted({*entries})
        if near and not (rises and entries):  # numbers of layers, not entries for layers
            maybe[path] = near[0]
    found: dict[str, str] = {}
    for path, count in maybe.items():
        more = {count: counts[count] + 1}
        others = {other: c for other, c in maybe.items() if other != path}
        alone = configs.changed(subject.base, more, others)
        along = configs.changed(subject.base, more, maybe)
        if _is_longer(subject, primary, path, counts[count], alone, along):
            found[path] = count
    return found


def _is_longer(
    subject: Subject, primary: str, path: str, count: int, alone: Json, along: Json
) -> bool:
    """Return whether a list must be as long as a number says."""
    try:
        without = configs.remove(alone, path)
        derived = get(config_of(subject.model_type, without).to_dict(), path)
        if isinstance(derived, list | tuple) and len(derived) == count + 1:
            return True
    except NoBuildError:
        pass

    def builds(values: Json) -> bool:
        try:
            build(primary, subject.model_type, values)
        except NoBuildError:
            return False
        return True

    if builds(along) and not builds(alone):
        return True
    return "layer" in path.split(".")[-1] and not all(
        type(entry) is int and entry < count for entry in get(subject.base, path)
    )


def _fill_optional(subject: Subject, primary: str) -> None:
    """Give numbers that are null by default a value, where sizes follow from it."""
    before = subject.build(primary, {}).shapes
    for path in optional_paths(subject.model_type, subject.base):
        if "hidden_size" in path or "dim" in path or "inner" in path or "size" in path:
            try:
                after = subject.build(primary, {path: UNUSUAL}).shapes
            except NoBuildError:
                continue
            if after != before and after.keys() == before.keys():
                configs.put(subject.base, path, UNUSUAL)


def _add_unsaid(subject: Subject, primary: str) -> None:
    """Give numbers that only the model's class asks for a value, where sizes follow from it."""
    before = subject.build(primary, {}).shapes
    for path in sorted(asked_of(primary, subject.model_type, subject.base)):
        if not _UNSAID.fullmatch(path):
            continue
        for number in (UNUSUAL, 2 * UNUSUAL):
            try:
                after = subject.build(primary, {path: number}).shapes
            except NoBuildError:
                continue
            if after == before or after.keys() != before.keys():
                continue
            # What nothing reads, as in DeBERTa, is bound to another number where the model runs.
            changed = {dim > 0 for name, shape in before.items() for dim, size in enumerate(shape)
                       if after[name][dim] != size}  # fmt: skip
            if len(changed) == 2 and _is_one_number(subject, primary, path, number):
                configs.put(subject.base, path, number)
                subject.unsaid.add(path)
                before = after
            break


def _is_one_number(subject: Subject, primary: str, path: str, number: int) -> bool:
    """Return whether some one value of a number that is not there gives what its absence does.

    An encoder and a decoder may each have a size of heads of their own where none is said.
    """
    outer = path.rpartition(".")[0]
    beside = [
        (other, n * 2)
        for other, n in configs.numbers(subject.base).items()
        if other.rpartition(".")[0] == outer and _SIZES.search(other.rpartition(".")[2])
    ]
    is_seen = False
    for changes in ({}, *({other: n} for other, n in beside)):
        without = _shapes(subject, primary, changes)
        given = _shapes(subject, primary, {**changes, path: number})
        if without is None or given is None:
            continue
        pairs = {(size, other) for name, shape in without.items()
                 for size, other in zip(shape, given[name], strict=True)}  # fmt: skip
        values = {number * size // other for size, other in pairs if size != other} or {number}
        made = [_shapes(subject, primary, {**changes, path: value}) for value in values]
        # A default may be what cannot be said: an odd size of heads that positions rotate.
        if without not in made and any(shapes is not None for shapes in made):
            return False
        is_seen |= without in made
    return is_seen


def _shapes(subject: Subject, primary: str, changes: Json) -> Shapes | None:
    try:
        return subject.build(primary, changes).shapes
    except NoBuildError:
        return None


def optional_paths(model_type: str, base: Json, prefix: str = "") -> Iterator[str]:
    for key, value in base.items():
        if value is None and not key.endswith(("_id", "_ids")):
            yield f"{prefix}{key}"
        elif isinstance(value, dict) and key not in ("rope_parameters", "rope_scaling"):
            yield from optional_paths(model_type, value, f"{prefix}{key}.")
