"""Take off the names what wrappers of modules put into them: data parallel, compiled, sharded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeVar

from surgeon.base.errors import listed
from surgeon.lazy import LazyTensor

# What DataParallel, torch.compile, FSDP and activation checkpointing call the module they wrap.
_SEGMENTS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# What torch.optim.swa_utils.AveragedModel counts beside the module that it wraps.
_AVERAGED = "n_averaged"
Value = TypeVar("Value")


def unwrapped(named: Mapping[str, Value]) -> dict[str, Value]:
    """Return a mapping with its names as `renaming` has them."""
    renamed, _ = renaming(named)
    return {renamed[name]: value for name, value in named.items()}


def renaming(names: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """Return what each name is without the segments of wrappers, and notes on what was done.

    A segment without which two names would be one stays in all of them.
    """
    renamed = {name: name for name in names}
    notes = []
    together = "\n".join(names)
    for segment in (segment for segment in _SEGMENTS if segment in together):
        shorter = {name: _without(segment, now) for name, now in renamed.items()}
        changed = [name for name in names if shorter[name] != renamed[name]]
        if not changed:
            continue
        if len(set(shorter.values())) < len(shorter):
            notes.append(f"kept '{segment}.' in {listed(changed, 3)}, since without it names would "
                         "meet")  # fmt: skip
            continue
        renamed = shorter
        share = "all names" if len(changed) == len(names) else f"{len(changed)} names"
        notes.append(f"removed the wrapper '{segment}.' from {share}")
    return renamed, notes


def _without(segment: str, name: str) -> str:
    """Return a name without a segment, wherever it stands but at the end."""
    *modules, leaf = name.split(".")
    return ".".join([*(word for word in modules if word != segment), leaf])


def without_count(tensors: Mapping[str, LazyTensor]) -> tuple[dict[str, LazyTensor], list[str]]:
    """Return the tensors of an averaged model without how many were averaged, and a note on it."""
    if _AVERAGED not in tensors:
        return dict(tensors), []
    rest = {name: tensor for name, tensor in tensors.items() if name != _AVERAGED}
    is_averaged = all(name.startswith("module.") for name in rest)
    if not rest or not is_averaged or tensors[_AVERAGED].spec.shape:
        return dict(tensors), []
    return rest, [f"left out {_AVERAGED!r}, which says how many models AveragedModel averaged"]
