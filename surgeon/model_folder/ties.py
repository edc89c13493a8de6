"""Whether the output embedding is the tensor of the input embedding, as a config says."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator

from surgeon.base.errors import listed
from surgeon.draft import Tensors
from surgeon.model_folder.architectures import Architecture, architecture_of
from surgeon.model_folder.case import Case, Json, get, matching, put
from surgeon.model_folder.families import COMMON

_KEY = "tie_word_embeddings"
# Parts of the names of input embeddings that are tied to one another: of encoder and decoder.
_INPUTS = ("embed_tokens", "embed_in", "word_embeddings", "wte")
# Configs of a model's parts that say it too.
_PLACES = (_KEY, f"text_config.{_KEY}")


def follow_ties(case: Case) -> None:
    """Follow whether the output embedding is the tensor of the input embedding."""
    was, is_tied = _is_tied(case, case.before), _is_tied(case, case.after)
    if is_tied is None:
        _require_head(case, was)
        return
    if is_tied is not was:
        case.follow(_KEY, is_tied)
        _require_untied(case)
    elif not is_tied and _KEY not in case.stated and _says_tied(case):
        # Loaders differ in what they make of two tensors that a config ties.
        for place in _PLACES:
            if place == _KEY or get(case.new, place) is True:
                put(case.new, place, False)
        case.notes.append(
            f"{_KEY} becomes false: input and output embedding are two tensors; "
            '{"op": "tie", "when": "equal"} makes them one'
        )
    if _KEY in case.stated and case.stated[_KEY] is not is_tied:
        case.contradiction(
            f"output.config.{_KEY} is {json.dumps(case.stated[_KEY])}, but input and output "
            f"embedding are {'one tensor' if is_tied else 'two tensors'}"
        )


def _require_untied(case: Case) -> None:
    """Refuse what is not stored where the config no longer ties it to what is."""
    known = case.architecture
    if known is None or _ties(known, case.new) or not _ties(known, case.old):
        return
    stored = {known.inside(name) for name in case.after}
    missing = {name: source for name, source in known.ties.items()
               if name not in stored and source in stored}  # fmt: skip
    if missing:
        name, source = next(iter(missing.items()))
        case.contradiction(
            f"{listed(list(missing))} is not stored, and {_KEY}, which becomes false, ties it no "
            f"longer: a class would fill it with random values; copy '{source}' to '{name}' too, "
            "or use untie"
        )


def tied_names(config: Json, tensors: Collection[str]) -> dict[str, str]:
    """Return {name that a config ties: the name that the folder stores in its place}."""
    known = architecture_of(config, tensors)
    if known is None or not _ties(known, config):
        return {}
    inside = {known.inside(name): name for name in tensors}
    return {
        target: inside[source]
        for target, source in _pairs(known, inside)
        if target not in inside and source in inside
    }


def tied_by_config(case: Case, name: str) -> bool:
    """Return whether a class makes a tensor that is not there of one that is, as configured."""
    known = case.architecture
    if known is None or not _ties(known, case.new):
        return False
    inside = {known.inside(other) for other in case.after}
    return any(
        target == known.inside(name) and source in inside
        for target, source in _pairs(known, inside)
    )


def _pairs(known: Architecture, inside: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield output embeddings and what they may be tied to, by the class's names."""
    yield from known.ties.items()
    for head in () if known.ties else matching(COMMON.output, _own_names(known)):
        for source in matching(COMMON.embedding, inside):
            yield head, source


def _require_head(case: Case, was: bool | None) -> None:
    """Refuse a model without an output embedding, of a class that has one of its own."""
    known = case.architecture
    if known is None or "architectures" in case.stated:
        return
    heads = list(matching(COMMON.output, _own_names(known)))
    if not heads or _has_any(known, heads, case.after):
        return
    if was is False and get(case.new, _KEY) is not True:
        case.contradiction(
            f"'{heads[0]}' is gone, which the class has for itself; state {_KEY} true, or "
            "architectures without it, in output.config"
        )
    elif was is None and get(case.new, _KEY) is False:
        if _KEY in case.stated:
            case.contradiction(f"output.config.{_KEY} is false, but there is no '{heads[0]}'")
        else:
            case.notes.append(
                f"{_KEY} is false, and the input has no '{heads[0]}': loaders give it random values"
            )


def _own_names(known: Architecture) -> list[str]:
    """Return the names, without numbers in them, that the class of the folder has."""
    return [name for name in known.own if "{" not in name]


def _has_any(known: Architecture, names: Iterable[str], tensors: Tensors) -> bool:
    there = {known.inside(name) for name in tensors}
    return any(name in there for name in names)


def _says_tied(case: Case) -> bool:
    known = case.architecture
    return get(case.new, _KEY) is True if known is None else _ties(known, case.new)


def _ties(known: Architecture, config: Json) -> bool:
    """Return whether a config ties the embeddings; by default where the class does so."""
    said = get(config, _KEY)
    return said if isinstance(said, bool) else any(_is_head(name) for name in known.ties)


def _is_tied(case: Case, tensors: Tensors) -> bool | None:
    """Return whether input and output embedding are one; None where there are not both."""
    if case.architecture is not None and any(map(_is_head, case.architecture.ties)):
        return _is_tied_as_known(case.architecture, tensors)
    embeddings = {id(tensors[name]) for name in matching(COMMON.embedding, tensors)}
    outputs = {id(tensors[name]) for name in matching(COMMON.output, tensors)}
    return bool(embeddings & outputs) if embeddings and outputs else None


def _is_tied_as_known(known: Architecture, tensors: Tensors) -> bool | None:
    """Return whether a head that the class may tie to the input embedding is that tensor."""
    names = {known.inside(name): name for name in tensors}
    found = [
        tensors[names[target]] is tensors[names[source]]
        for target, source in known.ties.items()
        if target in names and source in names and _is_head(target)
    ]
    return any(found) if found else None


def _is_head(name: str) -> bool:
    """Return whether a tied tensor is an output embedding, rather than another input one."""
    return name.endswith(".weight") and not any(part in name for part in _INPUTS)
