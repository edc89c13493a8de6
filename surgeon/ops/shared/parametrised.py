"""Weights that a checkpoint keeps in parts: weight norm, spectral norm, pruned by a mask."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from surgeon.base.errors import PlanError
from surgeon.draft import Draft
from surgeon.lazy import LazyTensor

# Norms and directions, as torch.nn.utils.weight_norm keeps them, and as its parametrization does.
_WEIGHT_NORMS = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)
_SPECTRAL_NORMS = ("weight_orig", "parametrizations.weight.original")
# torch.nn.utils.prune keeps a weight and the mask that it is multiplied with.
_PRUNED = (("weight_orig", "weight_mask"), ("bias_orig", "bias_mask"))
# The weight, and the vectors by which its norm is estimated.
_VECTORS = (
    ("weight_orig", "weight_u", "weight_v"),
    ("parametrizations.weight.original", "parametrizations.weight.0._u",
     "parametrizations.weight.0._v"),
)  # fmt: skip


def require_whole(
    draft: Draft, changed: Mapping[str, LazyTensor], read: Iterable[str], *, has_zeros: bool
) -> None:
    """Raise PlanError where new sizes would take a weight's parts apart, or make NaN.

    `changed` are tensors of other sizes, `read` those whose columns change. Rows of a weight that
    is kept as norms and directions go together; of columns, every norm would mean something else.
    """
    problems: list[str] = []
    columns = set(read)
    for module in dict.fromkeys(map(_module, (*changed, *columns))):
        problems += _problems(draft, module, changed, columns, has_zeros)
    if problems:
        raise PlanError(*problems)


def require_length(draft: Draft, name: str, init: Any) -> None:
    """Raise PlanError where the direction of a weight norm would be zeros, which have none."""
    word = init.get("name") if isinstance(init, dict) else init
    value = init.get("val") if isinstance(init, dict) else None
    if word != "zeros" and (word != "constant" or value != 0):
        return
    for norm, direction in _WEIGHT_NORMS:
        other = name.removesuffix(direction) + norm
        if name.endswith(direction) and other in draft.tensors:
            raise PlanError(
                f"'{name}' is the direction of a weight norm ('{other}'), and zeros have none: the "
                "weight would be NaN; take another init"
            )


def require_no_norms(draft: Draft, module: str) -> None:
    """Raise PlanError where fresh values of a whole module would pass its weight by, or its norms.

    A direction is fresh by itself; norms that went with it, or a mask, are no initialiser's.
    """
    prefix = f"{module}." if module else ""
    for norm, direction in _WEIGHT_NORMS:
        if f"{prefix}{norm}" in draft.tensors and f"{prefix}{direction}" in draft.tensors:
            raise PlanError(
                f"'{module}' has a weight norm: its norms ('{prefix}{norm}') would not be those of "
                f"fresh directions; name '{prefix}{direction}' to keep the norms, or remove it in "
                "torch (remove_weight_norm, remove_parametrizations) first"
            )
    for weight, mask in _PRUNED:
        if f"{prefix}{mask}" in draft.tensors:
            raise PlanError(
                f"'{module}' is pruned ('{prefix}{weight}' times '{prefix}{mask}'), and fresh "
                f"values are no mask; name '{prefix}{weight}' to keep the mask"
            )


def require_no_vectors(draft: Draft, name: str) -> None:
    """Raise PlanError for a part of a spectral norm: its vectors are those of its old weight."""
    for weight, *vectors in _VECTORS:
        for leaf in (weight, *vectors):
            before = name.removesuffix(leaf)
            parts = {f"{before}{part}" for part in (weight, vectors[0])}
            if before != name and before[-1:] in ("", ".") and parts <= draft.tensors.keys():
                raise PlanError(
                    f"'{name}' is of a spectral norm, whose vectors would not be the new weight's; "
                    "remove it in torch (remove_spectral_norm, remove_parametrizations) first"
                )


def _module(name: str) -> str:
    module, _, rest = name.partition(".parametrizations.")
    return module if rest else name.rpartition(".")[0]


def _problems(
    draft: Draft,
    module: str,
    changed: Mapping[str, LazyTensor],
    read: set[str],
    has_zeros: bool,
) -> Iterator[str]:
    prefix = f"{module}." if module else ""
    for weight, mask in _PRUNED:
        parts = f"{prefix}{weight}", f"{prefix}{mask}"
        if all(part in draft.tensors for part in parts):
            yield from _pruned(draft, module, parts, changed, read)
    for leaf in _SPECTRAL_NORMS:
        if f"{prefix}{leaf}" in draft.tensors and f"{prefix}weight_mask" not in draft.tensors:
            yield (
                f"'{module}' has a spectral norm ('{prefix}{leaf}'), whose vectors go with its "
                "size; remove it in torch (remove_spectral_norm, remove_parametrizations) first"
            )
            return
    for norm, direction in _WEIGHT_NORMS:
        g, v = f"{prefix}{norm}", f"{prefix}{direction}"
        if g not in draft.tensors or v not in draft.tensors:
            continue
        whole = f"'{module}' has a weight norm ('{g}', '{v}')"
        if v in read or g in read:
            yield (
                f"{whole}, and other columns would change what its norms mean; remove it in torch "
                "(remove_weight_norm, remove_parametrizations) first"
            )
        elif g not in changed or v not in changed:
            yield f"{whole}, whose rows change together; name {g!r} and {v!r} both"
        elif (
            changed[g].spec.shape[0] != changed[v].spec.shape[0]
            or changed[v].spec.shape[1:] != draft.spec(v).shape[1:]
            or changed[g].spec.shape[1:] != draft.spec(g).shape[1:]
        ):
            yield (
                f"{whole} that is not one per row, or other columns; remove it in torch "
                "(remove_weight_norm, remove_parametrizations) first"
            )
        elif has_zeros:
            yield (
                f"{whole}, and a direction of zeros has no length: the result would be NaN; "
                "take another init"
            )


def _pruned(
    draft: Draft,
    module: str,
    parts: tuple[str, str],
    changed: Mapping[str, LazyTensor],
    read: set[str],
) -> Iterator[str]:
    weight, mask = parts
    whole = f"'{module}' is pruned ('{weight}' times '{mask}')"
    if len(read & {*parts}) == 1 or len(changed.keys() & {*parts}) == 1:
        yield f"{whole}, whose parts change together; name both"
    elif weight in changed and changed[weight].spec.count > draft.spec(weight).count:
        yield f"{whole}, and no initialiser makes a mask; prune.remove it in torch first"
