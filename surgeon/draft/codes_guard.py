"""What no step may do to a quantised weight: take it apart, or calculate with its codes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from surgeon.base.errors import PlanError
from surgeon.draft import quantised
from surgeon.draft.quantised import QuantisedGroup, Tensors
from surgeon.lazy import LazyTensor, is_recoded, moved_from

_MOST_SHOWN = 5


class CodesGuard:
    """Looks at the tensors after a step; knows the quantised weights that were there before."""

    def __init__(self, tensors: Tensors, models: Mapping[str, Tensors], config: Any) -> None:
        self._config = config if isinstance(config, Mapping) else None
        # Of each part, the weights that it belongs to: tied ones may share it.
        self._known: dict[object, list[QuantisedGroup]] = {}
        self._seen: dict[str, Tensors] = {}
        self._learn(tensors, self._config)
        for name, others in models.items():
            self._seen[name] = others
            self._learn(others, None)

    def _learn(self, tensors: Tensors, config: Mapping[str, Any] | None) -> None:
        for group in quantised.groups(tensors, config):
            for name in group.parts.values():
                known = self._known.setdefault(moved_from(tensors[name]), [])
                if group not in known:
                    known.insert(0, group)

    def after(self, before: Tensors, tensors: Tensors, models: Mapping[str, Tensors]) -> None:
        """Raise PlanError where a step calculated with codes, or moved a part of a weight."""
        if self._check(before, tensors):
            self._learn(tensors, self._config)
        for name, made in models.items():
            if self._seen.get(name) is not made:
                if self._check(self._seen.get(name, {}), made):
                    self._learn(made, None)
                self._seen[name] = made

    def _check(self, before: Tensors, after: Tensors) -> bool:
        """Return whether quantised weights may have changed; raises PlanError for what is wrong."""
        if not self._known and not any(
            before.get(name) is not t for name, t in after.items() if is_recoded(t)
        ):
            return False
        changed = {name: t for name, t in after.items() if before.get(name) is not t}
        if not changed and all(name in after for name in before):
            return False
        problems = [line for name, t in changed.items() for line in self._calculated(name, t)]
        problems = problems or list(dict.fromkeys(self._apart(after)))
        if problems:
            more = len(problems) - _MOST_SHOWN
            shown = problems[:_MOST_SHOWN] + ([f"and {more} more such tensors"] if more > 0 else [])
            raise PlanError(*shown)
        return True

    def _calculated(self, name: str, tensor: LazyTensor) -> Iterator[str]:
        """Say which codes, or companions of codes, a tensor was calculated from."""
        pending, seen = [tensor], set()
        while pending:
            form = pending.pop()
            if id(form) in seen:
                continue
            seen.add(id(form))
            if known := self._known.get(moved_from(form)):
                if moved_from(form) != moved_from(tensor):
                    what = f"'{name}' would be calculated from a part of {known[0]}"
                    yield f"{what}; {way_out(known[0])}"
                    return
            elif not is_recoded(form):
                pending.extend(form.operands)

    def _apart(self, after: Tensors) -> Iterator[str]:
        """Say which weights are no longer whole, or have parts that are not their own."""
        whole: set[str] = set()
        for group in quantised.groups(after, self._config):
            tensors = [after[name] for name in group.parts.values()]
            own = [self._known.get(moved_from(tensor), []) for tensor in tensors]
            common = [g for g in own[0] if all(g in others for others in own)]
            is_same = any(len(g.parts) == len(group.parts) for g in common)
            is_made = not any(own) and all(map(is_recoded, tensors))
            if is_same or is_made:
                whole.update(group.parts.values())
            elif not common and not any(map(is_recoded, tensors)):
                yield f"parts of {group} would come from elsewhere; {way_out(group)}"
                whole.update(group.parts.values())
        for name, tensor in after.items():
            known = self._known.get(moved_from(tensor))
            if known and name not in whole:
                yield _in_part(known[0])


def require_numbers(tensors: Tensors, names: Sequence[str], config: Any = None) -> None:
    """Raise PlanError where names are parts of quantised weights; says the way out."""
    found = quantised.by_name(quantised.groups(tensors, config))
    parts = {found[name].codes: found[name] for name in names if name in found}
    if parts:
        group = next(iter(parts.values()))
        others = f" and {len(parts) - 1} more" if len(parts) > 1 else ""
        raise PlanError(f"{group}{others}: codes are no numbers; {way_out(group)}")


def way_out(group: QuantisedGroup) -> str:
    """Return what a user can do instead."""
    module = group.weight.removesuffix(".weight")
    if group.format == "unknown":
        return f"load it with {group.method}'s own code and save it dequantised"
    return f'{{"op": "dequantize", "target": "{module}"}} first, or leave it out of the target'


def _in_part(group: QuantisedGroup) -> str:
    module = group.weight.removesuffix(".weight")
    return f"{group} is one weight, and a part of it would be left; select it whole: '{module}'"
