"""Layers, and other numbered modules, that have all of the tensors that their kind has."""

from __future__ import annotations

from collections.abc import Iterable

from surgeon.base.errors import listed
from surgeon.draft import Tensors
from surgeon.draft.quantised import groups
from surgeon.model_folder.architectures import Architecture
from surgeon.model_folder.case import Case, containers
from surgeon.model_folder.layers import kinds_by_number
from surgeon.model_folder.said import count_of

# What a numbered module holds: names inside it, with `{}` for every number.
_Parts = frozenset[str]
_ANY = "{}"


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
        if known is case.architecture and (count := count_of(known, stack)) is not None:
            _require_own_parts(case, count, before.get(stack, {}), made)


def _require_own_parts(
    case: Case, count: str, before: dict[str, _Parts], after: dict[str, _Parts]
) -> None:
    """Refuse layers that lack, or have, what the class has in layers of other numbers alone.

    The first layer of T5 has position biases that all layers use, and no setting says so.
    """
    if len(set(before.values())) < 2 or (kinds := kinds_by_number(case, count)) is None:
        return
    old_kinds, new_kinds = kinds
    held = {_number(module): parts for module, parts in before.items()}
    everywhere = frozenset.intersection(*held.values())
    gone: list[str] = []
    misplaced: list[str] = []
    for module, parts in after.items():
        number = _number(module)
        if not held.keys() >= set(range(len(old_kinds))) or number >= len(new_kinds):
            continue
        if number >= len(old_kinds):  # as the last one was that its class makes the same of
            alike = [n for n, kind in enumerate(old_kinds) if kind == new_kinds[number]]
            number = alike[-1] if alike else number
        elif old_kinds[number] != new_kinds[number]:
            continue
        if number not in held:
            continue
        own = held[number] - everywhere
        gone += [_named(case, module, part) for part in sorted(own - parts)]
        misplaced += [_named(case, module, part) for part in sorted(parts - everywhere - own)]
    if gone:
        case.contradiction(
            f"{listed(gone)} is missing, which a class has in layers of this number and would fill "
            "with random values; rename it out of the layers before they move, and back afterwards"
        )
    if misplaced:
        case.contradiction(
            f"{listed(misplaced)} is in a layer that has none by its number, so that a class "
            "leaves it out; delete it, or rename it to where it belongs"
        )


def _number(module: str) -> int:
    return int(module.rpartition(".")[2])


def _named(case: Case, module: str, part: str) -> str:
    """Return the name of a part of a module, with numbers that there are in such a part."""
    stack = normal(module.rpartition(".")[0])
    depth = stack.count(".") + 2
    for name in (*case.before, *case.after) if _ANY in part else ():
        parts = name.split(".")
        outer, inside = ".".join(parts[: depth - 1]), ".".join(parts[depth:])
        if normal(outer) == stack and normal(inside) == part:
            return f"{module}.{inside}"
    return f"{module}.{part}"


def class_names(tensors: Tensors) -> list[str]:
    """Return tensors by the names that a class knows them by: a quantised weight by its own."""
    names = dict.fromkeys(tensors)
    for group in groups(tensors):
        for part in group.parts.values():
            names.pop(part, None)
        names[group.weight] = None
    return list(names)


def _refuse(case: Case, made: dict[str, _Parts], lacking: dict[str, _Parts]) -> None:
    gone = [
        _named(case, module, part) for module, parts in lacking.items() for part in sorted(parts)
    ]
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
