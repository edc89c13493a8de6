"""Layers, and other numbered modules, that have all of the tensors that their kind has."""

from __future__ import annotations

from collections.abc import Iterable

from surgeon.base.errors import listed
from surgeon.draft import Tensors
from surgeon.draft.quantised import groups
from surgeon.model_folder.architectures import Architecture
from surgeon.model_folder.case import Case, containers
from surgeon.model_folder.said import count_of

# What a numbered module holds: names inside it, with `{}` for every number.
_Parts = frozenset[str]


def require_whole_layers(case: Case, known: Architecture | None) -> None:
    """Refuse numbered modules that lack tensors which every one of their kind had in the input.

    A class that has a tensor makes it anew, with random values, where a folder lacks it.
    """
    if known is None:
        return
    before = _modules(known, class_names(case.before))
    after = _modules(known, class_names(case.after))
    for stack, made in after.items():
        kinds = set(before.get(stack, {}).values())
        if not kinds and len(made) > 1:  # of modules that are new, the fullest is what they are
            kinds = {max(made.values(), key=len)}
        lacking = {
            module: min(
                (kind - parts for kind in kinds), key=lambda gone: (len(gone), sorted(gone))
            )
            for module, parts in made.items()
            if kinds and not any(parts >= kind for kind in kinds)
        }
        _refuse(case, made, lacking)


def class_names(tensors: Tensors) -> set[str]:
    """Return tensors by the names that a class knows them by: a quantised weight by its own."""
    names = set(tensors)
    for group in groups(tensors):
        names -= set(group.parts.values())
        names.add(group.weight)
    return names


def _refuse(case: Case, made: dict[str, _Parts], lacking: dict[str, _Parts]) -> None:
    gone = [f"{module}.{part}" for module, parts in lacking.items() for part in sorted(parts)]
    if not gone:
        return
    is_uniform = len(lacking) == len(made) and len(set(lacking.values())) == 1
    if is_uniform and case.stated:
        case.notes.append(
            f"{listed(gone)} is gone: a class that has it gives it random values when it is loaded"
        )
        return
    case.contradiction(
        f"{listed(gone)} is missing, which a class of model_type '{case.new.get('model_type')}' "
        "would fill with random values; "
        + (
            "state the setting that goes without it in output.config"
            if is_uniform
            else "drop whole layers (layers), or keep what is the same in all of them"
        )
    )


def _modules(known: Architecture, names: Iterable[str]) -> dict[str, dict[str, _Parts]]:
    """Return {stack, with `{}` for numbers: {module: what it holds that the class has}}."""
    stacks = {c: normal(c) for c in containers(names) if count_of(known, c) is not None}
    found: dict[str, dict[str, set[str]]] = {}
    alike: dict[str, bool] = {}
    for name in names:
        parts = name.split(".")
        for place, part in enumerate(parts[1:-1], 1):
            container = ".".join(parts[:place])
            if not part.isdigit() or container not in stacks:
                continue
            alike_as = normal(name)
            if alike_as not in alike:
                alike[alike_as] = any(not row.is_buffer for row in known.rows_of(name))
            if alike[alike_as]:
                module, inside = f"{container}.{part}", normal(".".join(parts[place + 1 :]))
                some = found.setdefault(stacks[container], {}).setdefault(module, set())
                some |= _apart(known, name, inside)
    return {
        stack: {module: frozenset(some) for module, some in modules.items()}
        for stack, modules in found.items()
    }


def _apart(known: Architecture, name: str, inside: str) -> set[str]:
    """Return what a numbered module holds by a tensor: of one that holds all experts, those."""
    stands_for = known.stands_for.get(known.pattern(name))
    if stands_for is None:
        return {inside}
    outer = known.pattern(name).removesuffix(inside)
    return {other.removeprefix(outer) for other in stands_for}


def normal(name: str) -> str:
    """Return a name with `{}` for every number in it."""
    return ".".join("{}" if part.isdigit() else part for part in name.split("."))
