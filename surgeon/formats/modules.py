"""Read a pickled torch.nn.Module as its state_dict() would: by the plain dicts it is made of.

Nothing of its class is looked up. https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html
names the attributes: `_parameters`, `_buffers` and `_modules`.
"""

from __future__ import annotations

from surgeon.formats.checkpoint import Opaque

_DEEPEST = 100
_MOST_NAMES = 1_000_000


def is_module_state(state: object) -> bool:
    """Tell the attributes of a module from those of other objects."""
    return isinstance(state, dict) and all(
        isinstance(state.get(key), dict) for key in ("_parameters", "_buffers", "_modules")
    )


def is_module(value: object) -> bool:
    """Say whether something is a pickled module."""
    return isinstance(value, Opaque) and value.state is not None


def state_dict(module: Opaque) -> dict[object, object]:
    """Return what `state_dict()` of a pickled module would, in its order.

    Raises ValueError where modules hold themselves, or more than could be meant.
    """
    found: dict[object, object] = {}
    pending = [("", module, 0)]
    while pending:
        prefix, within, depth = pending.pop()
        if depth > _DEEPEST or len(found) > _MOST_NAMES:
            raise ValueError(f"found modules nested more than {_DEEPEST} deep, or endlessly many")
        parts = within.state or {}
        fleeting = parts.get("_non_persistent_buffers_set")
        parameters, buffers, modules = (
            parts.get(key) for key in ("_parameters", "_buffers", "_modules")
        )
        assert isinstance(parameters, dict)  # see is_module_state
        assert isinstance(buffers, dict)
        assert isinstance(modules, dict)
        for name, value in parameters.items():
            if value is not None:
                found[f"{prefix}{name}"] = value
        for name, value in buffers.items():
            if value is not None and not (isinstance(fleeting, set) and name in fleeting):
                found[f"{prefix}{name}"] = value
        inner = [(f"{prefix}{name}.", value, depth + 1) for name, value in modules.items()
                 if isinstance(value, Opaque) and value.state is not None]  # fmt: skip
        pending += reversed(inner)
    return found


def has_hooks(module: Opaque) -> bool:
    """Say whether some part of a module changes, by code of its own, what state_dict() returns."""
    pending, seen = [module], set()
    while pending:
        within = pending.pop()
        if within.state is None or id(within) in seen:
            continue
        seen.add(id(within))
        if within.state.get("_state_dict_hooks"):
            return True
        modules = within.state.get("_modules")
        assert isinstance(modules, dict)
        pending += [value for value in modules.values() if isinstance(value, Opaque)]
    return False
