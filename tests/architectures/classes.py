"""What is known of each class of a model type, written as rows."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.core_model_loading import revert_weight_conversion
from transformers.trainer_pt_utils import get_parameter_names

from tests.architectures import configs, expressions
from tests.architectures.arguments import VARIANTS
from tests.architectures.build import (
    Built,
    NoBuildError,
    saved_in_memory,
)  # fmt: skip
from tests.architectures.collapse import collapse, container_lengths, pattern_of
from tests.architectures.configs import Json
from tests.architectures.expressions import Terms
from tests.architectures.fit import (
    Fits,
    Place,
    agrees,
    checking_builds,
    fit,
)  # fmt: skip
from tests.architectures.subject import LABELS, STACK, Subject, optional_paths

# What transformers' Trainer keeps from weight decay.
_NO_DECAY = (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")


@dataclass
class Class:
    built: Built
    fits: Fits


def by_pool(
    subject: Subject, class_name: str, pool: dict[Place, Terms], tried: Mapping[str, int],
    fixed: Json | None = None,
) -> Fits:  # fmt: skip
    """Explain a class's sizes by expressions that are known, where all builds agree with one."""
    laboratory = subject.laboratory(class_name, fixed)
    base = laboratory.sizes({})
    if base is None:
        raise NoBuildError("the class cannot be built from the base config")
    # What the primary class was given, with the number of labels, which it may not have.
    others = {path: other for path, other in tried.items() if path in laboratory.numbers}
    builds = [(laboratory.numbers, base), *checking_builds(laboratory, others, 1, wanted=3)]
    labels = {"num_labels": LABELS * 2}
    if (sizes := laboratory.sizes(labels)) is not None:
        builds.append((laboratory.numbers | labels, sizes))
    by_value = list(dict.fromkeys(pool.values()))
    prefix = subject.build(class_name, fixed or {}, on_disk=False).model.base_model_prefix
    fits = Fits()
    known: dict[tuple[object, ...], Terms | None] = {}
    for place in base:
        seen = tuple(sizes.get(place) for _, sizes in builds)
        # The same tensor in the primary class comes first, whatever else has this size.
        same = next((pool[p] for p in _same_place(place, prefix) if p in pool), None)
        if same is not None and agrees(same, place, builds):
            fits.terms[place] = same
            continue
        if seen not in known:
            tries = [terms for terms in by_value if agrees(terms, place, builds)]
            known[seen] = tries[0] if len(tries) == 1 else None
        if (terms := known[seen]) is not None:
            fits.terms[place] = terms
    missing = {place: size for place, size in base.items() if place not in fits.terms}
    if missing:
        own = fit(laboratory)
        for place in missing:
            if place in own.terms:
                fits.terms[place] = own.terms[place]
            else:
                fits.unexplained[place] = own.unexplained.get(place, ("?",))
    return fits


def _same_place(place: Place, prefix: str) -> Iterator[Place]:
    """Yield where a tensor may be in another class of the same type."""
    name, dim = place
    mark = STACK if name.startswith(STACK) else ""
    inside = name.removeprefix(mark)
    yield place
    yield (f"{mark}{prefix}.{inside}", dim)
    for other in (prefix, "model", "transformer"):
        yield (mark + inside.removeprefix(f"{other}."), dim)
        # Under another name of the base model.
        yield (f"{mark}{other}.{inside.partition('.')[2]}", dim)


def further_of(
    subject: Subject, primary: str, known: Built, pool: dict[Place, Terms],
    tried: Mapping[str, int],
) -> list[Class]:  # fmt: skip
    """Explain tensors that are there under other settings alone, such as biases."""
    found: list[Class] = []
    names = set(known.shapes)
    settings: list[Json] = [{path: not on} for path, on in configs.switches(subject.base).items()]
    settings += VARIANTS.get(subject.model_type, ())
    settings += [{path: 64} for path in optional_paths(subject.model_type, subject.base)
                 if path.endswith(("_rank", "_dim", "_size", "experts"))]  # fmt: skip
    settings += [{path: None} for path, number in configs.numbers(subject.base).items()
                 if path.endswith("_rank")]  # fmt: skip
    for setting in settings:
        try:
            built = subject.build(primary, setting)
        except NoBuildError:
            continue
        if built.shapes.keys() <= names:
            continue
        try:
            fits = by_pool(subject, primary, pool, tried, setting)
        except NoBuildError:
            continue
        names |= built.shapes.keys()
        found.append(Class(built, fits))
    return found


def write_classes(
    made: Json, records: Mapping[str, Class], extra: list[Class], lists: Collection[str]
) -> None:
    """Write rows once for all classes, and which of them each class has."""
    table: dict[str, int] = {}
    rows: list[list[Any]] = []
    for name, one in records.items():
        said = _said(one, lists)
        growing = {place[0] for place, terms in one.fits.terms.items()
                   if place[1] == -1 and expressions.keys(terms)}  # fmt: skip
        written = collapse(said, growing)
        indices = []
        for row in written:
            key = repr(row)
            if key not in table:
                table[key] = len(rows)
                rows.append(row)
            indices.append(table[key])
        made["classes"][name] = _class_record(one, indices)
        lengths = {place[0]: expressions.text(terms) for place, terms in one.fits.terms.items()
                   if place[1] == -1 and not place[0].startswith(STACK)
                   and expressions.keys(terms)}  # fmt: skip
        made["counts"] |= container_lengths(lengths)
    patterns = {str(row[0]) for row in rows}
    further: list[int] = []
    for one in extra:
        growing = {place[0] for place, terms in one.fits.terms.items()
                   if place[1] == -1 and expressions.keys(terms)}  # fmt: skip
        for row in collapse(_said(one, lists), growing):
            if str(row[0]) not in patterns:
                patterns.add(str(row[0]))
                further.append(len(rows))
                rows.append(row)
        lengths = {place[0]: expressions.text(terms) for place, terms in one.fits.terms.items()
                   if place[1] == -1 and not place[0].startswith(STACK)
                   and expressions.keys(terms)}  # fmt: skip
        made["counts"] = container_lengths(lengths) | made["counts"]
    made["rows"] = rows
    made["further"] = further


def _said(one: Class, lists: Collection[str]) -> dict[str, tuple[tuple[str, ...], str]]:
    flags = _flags(one.built)

    def written(name: str, dim: int) -> str:
        terms = one.fits.terms.get((name, dim))
        if terms is None:
            return "?" + ",".join(one.fits.unexplained.get((name, dim), ()))
        number = next((part for part in name.split(".") if part.isdigit()), None)
        found = expressions.text(terms)
        for path in lists if number is not None else ():
            # The entry of the layer itself.
            found = re.sub(
                rf"(?<![\w.]){re.escape(path)}\.{number}(?![\w.])", f"{path}.{{i}}", found
            )
        return found

    return {
        name: (
            tuple(written(name, dim) for dim in range(len(shape))),
            flags.get(name, ""),
        )
        for name, shape in one.built.shapes.items()
    }


def _flags(built: Built) -> dict[str, str]:
    """Return {name on disk: `b` for a buffer, `n` for what Trainer does not decay}."""
    model = built.model
    buffers = {name for name, _ in model.named_buffers()}
    decayed = set(get_parameter_names(model, [nn.LayerNorm], list(_NO_DECAY)))
    flags = {}
    for name, on_disk in _names_on_disk(built).items():
        for other in on_disk:
            flags[other] = "b" if name in buffers else "" if name in decayed else "n"
    return flags


def _names_on_disk(built: Built) -> dict[str, list[str]]:
    """Return {name in memory: names on disk}, in the order of the model's parameters."""
    state = saved_in_memory(built.model)
    if built.as_in_memory or set(state) == set(built.shapes):
        return {name: [name] for name in state}
    unique = {name: tensor.new_empty(tensor.shape) for name, tensor in state.items()}
    converted = revert_weight_conversion(built.model, dict(unique))
    renamed = {id(tensor): name for name, tensor in converted.items()}
    found: dict[str, list[str]] = {}
    for name, tensor in unique.items():
        if id(tensor) in renamed:
            found[name] = [renamed[id(tensor)]]
            continue
        try:
            apart = revert_weight_conversion(built.model, {name: tensor})
        except Exception:  # a conversion that needs several tensors at once
            apart = {}
        found[name] = [other for other in apart if other in built.shapes]
    return found


def _class_record(one: Class, indices: list[int]) -> Json:
    model = one.built.model
    on_disk = _names_on_disk(one.built)
    ties = {}
    for target, source in (model.all_tied_weights_keys or {}).items():
        for new, old in zip(on_disk.get(target, []), on_disk.get(source, []), strict=False):
            ties[pattern_of(new)] = pattern_of(old)
    record: Json = {"rows": _ranges(indices), "base": model.base_model_prefix}
    order = _order(model, on_disk)
    if ties:
        record["ties"] = ties
    if strict := sorted(model._keep_in_fp32_modules_strict or ()):
        record["float32"] = strict
    if kept := sorted(model._keep_in_fp32_modules or ()):
        record["float32_of_float16"] = kept
    if order:
        record["order"] = order
    if one.built.as_in_memory:
        record["names"] = "memory"
    return record


def _order(model: nn.Module, on_disk: Mapping[str, list[str]]) -> list[Any]:
    """Return parameters in the model's order: [name in memory, its names on disk], as patterns."""
    found: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        disk = [pattern_of(other) for other in on_disk.get(name, [])]
        found.setdefault(pattern_of(name), list(dict.fromkeys(disk)))
    return [[name, *disk] if disk != [name] else name for name, disk in found.items()]


def _ranges(indices: list[int]) -> list[list[int]]:
    """Return consecutive indices as [first, last + 1]."""
    made: list[list[int]] = []
    for index in indices:
        if made and made[-1][1] == index:
            made[-1][1] = index + 1
        else:
            made.append([index, index + 1])
    return made


def used_paths(made: Json) -> set[str]:
    """Return the numbers that expressions speak of."""
    texts = [dim for row in made["rows"] for kind in row[2:] for dim in kind]
    texts += list(made["counts"].values())
    paths: set[str] = set()
    for written in dict.fromkeys(texts):
        for word in written.lstrip("?-").replace("+", "*").replace("-", "*").replace(
            "/", "*"
        ).replace(",", "*").split("*"):  # fmt: skip
            if word and not word.isdigit() and word != "?":
                paths.add(word)
    paths |= {one["count"] for one in made["lists"].values()}
    return paths
