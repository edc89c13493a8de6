"""One model type, probed: what its tensors' sizes follow from, class by class."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import combinations
from typing import Any

from torch import nn
from transformers.core_model_loading import revert_weight_conversion
from transformers.trainer_pt_utils import get_parameter_names

from tests.architectures import configs, expressions
from tests.architectures.arguments import NEEDED, VARIANTS
from tests.architectures.build import (
    Built,
    NoBuildError,
    build,
    config_class,
    config_of,
    saved_in_memory,
)  # fmt: skip
from tests.architectures.collapse import collapse, container_lengths, pattern_of
from tests.architectures.configs import Json, get
from tests.architectures.expressions import Terms
from tests.architectures.fit import (
    Fits,
    Laboratory,
    Place,
    Sizes,
    agrees,
    checking_builds,
    fit,
    sizes_of,
)  # fmt: skip
from tests.architectures.layers import Rule, columns, find_rule, observed, partition, stacks

# What transformers' Trainer keeps from weight decay.
_NO_DECAY = (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")
# A length of a list of modules, by its name in memory.
_STACK = "@"
# The number of labels of a new model, of the smaller ones that are no other number.
_LABELS = 5
_MOST_TOGETHER = 5
_MOST_VALUES = 6
_POSITION_WORDS = ("layer", "pattern", "step", "interval", "period", "every", "freq", "offset",
                   "replace", "start", "window", "shared", "skip", "stride")  # fmt: skip


@dataclass
class Subject:
    """A model type while it is probed."""

    model_type: str
    base: Json
    links: dict[str, str] = field(default_factory=dict)

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
            lengths = {(_STACK + name, -1): len(stack) for name, stack in stacks(built.model)}
            return sizes_of(built.shapes) | lengths

        numbers = configs.numbers(self.base)
        numbers |= {path: one for path, one in settings.items() if type(one) is int}
        return Laboratory(sizes, {p: n for p, n in numbers.items() if p not in settings
                                  or type(settings[p]) is int})  # fmt: skip


def probe(model_type: str, class_names: list[str]) -> Json:
    """Return what is known of a model type; raise NoBuildError where nothing can be built."""
    subject, primary = _subject(model_type, class_names)
    laboratory = subject.laboratory(primary)
    fits = fit(laboratory)
    pool = dict(fits.terms)
    pool[("num_labels", 0)] = (((("num_labels", 1),), Fraction(1)),)
    tried = fits.tried
    records = {primary: _Class(subject.build(primary, {}), fits)}
    unbuilt: Json = {}
    for name in class_names:
        if name == primary:
            continue
        try:
            records[name] = _Class(subject.build(name, {}), _by_pool(subject, name, pool, tried))
        except NoBuildError as error:
            unbuilt[name] = str(error)
    extra = _further(subject, primary, records[primary].built, pool, tried)
    lengths = _stack_lengths(fits)
    made: Json = {
        "classes": {},
        "counts": {},
        "lists": _per_layer_lists(subject),
        "kinds": _kinds(subject, primary, lengths, laboratory),
    }
    _write_classes(made, records, extra, subject.links)
    used = _used_paths(made)
    made["defaults"] = _defaults(subject, used) | _null_defaults(subject, primary, used, fits)
    made["heads"] = _heads(subject, primary, fits, used)
    made["aliases"] = {
        new: old for new, old in (config_class(model_type).attribute_map or {}).items()
        if old in {path.split(".")[0] for path in used}
    }  # fmt: skip
    made["untried"] = [path for path in fits.untried if path.split(".")[-1] not in ("num_labels",)]
    if unbuilt:
        made["unbuilt"] = unbuilt
    return {key: value for key, value in made.items() if value}


@dataclass
class _Class:
    built: Built
    fits: Fits


# --- The base config ------------------------------------------------------------------------------


def _subject(model_type: str, class_names: list[str]) -> tuple[Subject, str]:
    """Return the smallest config that builds, and the class that has the most tensors with it."""
    plain = configs.without_runtime(config_of(model_type, NEEDED.get(model_type, {})).to_dict())
    plain |= NEEDED.get(model_type, {})
    plain["num_labels"] = _LABELS
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
            base |= {"num_labels": _LABELS}
            primary = max(found, key=lambda name: found[name])
            subject = Subject(model_type, base)
            try:
                subject.build(primary, {})
            except NoBuildError:
                subject.base = small
            subject.links = _links(subject, primary)
            _fill_optional(subject, primary)
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
    for path in _optional(subject.model_type, subject.base):
        if "hidden_size" in path or "dim" in path or "inner" in path or "size" in path:
            try:
                after = subject.build(primary, {path: 96}).shapes
            except NoBuildError:
                continue
            if after != before and after.keys() == before.keys():
                configs.put(subject.base, path, 96)


def _optional(model_type: str, base: Json, prefix: str = "") -> Iterator[str]:
    for key, value in base.items():
        if value is None and not key.endswith(("_id", "_ids")):
            yield f"{prefix}{key}"
        elif isinstance(value, dict) and key not in ("rope_parameters", "rope_scaling"):
            yield from _optional(model_type, value, f"{prefix}{key}.")


# --- Classes --------------------------------------------------------------------------------------


def _by_pool(
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
    labels = {"num_labels": _LABELS * 2}
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
    mark = _STACK if name.startswith(_STACK) else ""
    inside = name.removeprefix(mark)
    yield place
    yield (f"{mark}{prefix}.{inside}", dim)
    for other in (prefix, "model", "transformer"):
        yield (mark + inside.removeprefix(f"{other}."), dim)
        # Under another name of the base model.
        yield (f"{mark}{other}.{inside.partition('.')[2]}", dim)


def _further(
    subject: Subject, primary: str, known: Built, pool: dict[Place, Terms],
    tried: Mapping[str, int],
) -> list[_Class]:  # fmt: skip
    """Explain tensors that are there under other settings alone, such as biases."""
    found: list[_Class] = []
    names = set(known.shapes)
    settings: list[Json] = [{path: not on} for path, on in configs.switches(subject.base).items()]
    settings += VARIANTS.get(subject.model_type, ())
    settings += [{path: 64} for path in _optional(subject.model_type, subject.base)
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
            fits = _by_pool(subject, primary, pool, tried, setting)
        except NoBuildError:
            continue
        names |= built.shapes.keys()
        found.append(_Class(built, fits))
    return found


def _write_classes(
    made: Json, records: Mapping[str, _Class], extra: list[_Class], lists: Collection[str]
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
                   if place[1] == -1 and not place[0].startswith(_STACK)
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
                   if place[1] == -1 and not place[0].startswith(_STACK)
                   and expressions.keys(terms)}  # fmt: skip
        made["counts"] = container_lengths(lengths) | made["counts"]
    made["rows"] = rows
    made["further"] = further


def _said(one: _Class, lists: Collection[str]) -> dict[str, tuple[tuple[str, ...], str]]:
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


def _class_record(one: _Class, indices: list[int]) -> Json:
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


# --- Defaults -------------------------------------------------------------------------------------


def _used_paths(made: Json) -> set[str]:
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


def _defaults(subject: Subject, used: set[str]) -> Json:
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


def _null_defaults(subject: Subject, primary: str, used: set[str], fits: Fits) -> Json:
    """Return what numbers that may be null stand for then, as the model's sizes show it."""
    found: Json = {}
    for path in used:
        if path not in configs.numbers(subject.base) or get(subject.base, path) != 96:
            continue
        places = [(place, terms) for place, terms in fits.terms.items()
                  if len(terms) == 1 and terms[0][0] == ((path, 1),)]  # fmt: skip
        try:
            null = fit(subject.laboratory(primary, {path: None}))
        except NoBuildError:
            continue
        for place, terms in places:
            if (default := null.terms.get(place)) is not None:
                scaled = tuple((factors, c / terms[0][1]) for factors, c in default)
                found[path] = [expressions.text(scaled)]
                break
    return found


def _heads(subject: Subject, primary: str, fits: Fits, used: set[str]) -> Json:
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


# --- Layers ---------------------------------------------------------------------------------------


def _per_layer_lists(subject: Subject) -> Json:
    """Return the lists that have an entry per layer, and what they are by default."""
    return {
        path: {"count": count, **_list_default(subject, path, count)}
        for path, count in subject.links.items()
    }


def _list_default(subject: Subject, path: str, count: str) -> Json:
    """Return rules that give a list's entries where the config does not state it."""
    outer = path.rpartition(".")[0]
    prefix = f"{outer}." if outer else ""

    def derived(changes: Json) -> tuple[Json, list[Any]] | None:
        values = configs.remove(configs.changed(subject.base, changes, {}), path)
        try:
            config = config_of(subject.model_type, values).to_dict()
        except NoBuildError:
            return None
        entries = get(config, path)
        return (values, list(entries)) if isinstance(entries, list | tuple) else None

    plain = derived({count: 12})
    if plain is None or len(plain[1]) != 12:
        return {}
    near = {p: n for p, n in configs.numbers(subject.base).items() if p.rpartition(".")[0] == outer
            and p != count and n <= 64}  # fmt: skip
    # Numbers that no list says: config classes read further ones from old files.
    for name in ("sliding_window_pattern", "max_window_layers", "no_rope_layer_interval"):
        near.setdefault(f"{prefix}{name}", 0)
    toggles: list[Json] = [{}]
    toggles += [{p: not on} for p, on in configs.switches(subject.base).items()
                if p.rpartition(".")[0] == outer]  # fmt: skip
    windows: Json = {p: 4096 for p in _optional(subject.model_type, subject.base) if "window" in p}
    if windows:
        toggles += [{**windows, **toggle} for toggle in toggles]
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


def _stack_lengths(fits: Fits) -> dict[str, str]:
    """Return {list of modules in memory: the number of the config that is its length}."""
    found = {}
    for place, terms in fits.terms.items():
        if place[1] == -1 and place[0].startswith(_STACK) and len(expressions.keys(terms)) == 1:
            found[place[0][1:]] = expressions.keys(terms).pop()
    return found


def _kinds(
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
    optional = [p for p in _optional(subject.model_type, subject.base)
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
