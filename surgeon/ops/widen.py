"""widen: append rows or columns to a layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from surgeon.base.errors import PlanError
from surgeon.base.indices import runs
from surgeon.base.patterns import Target
from surgeon.draft import Draft
from surgeon.draft.registry import op
from surgeon.initialisers import BiasInit, InitSchema, for_sibling, grown, init_schema
from surgeon.lazy import Copied, Joined, LazyTensor, Scaled, Selected, Stream
from surgeon.numeric.dtypes import DTYPES, Array
from surgeon.ops.shared.consumers import (
    Consumer,
    ConsumersSchema,
    OutputDim,
    Outputs,
    Reader,
    outputs,
    readers,
    require_one_size,
    with_tied_layers,
)
from surgeon.ops.shared.modules import weight_of
from surgeon.ops.shared.parametrised import require_whole

_WIDER = "net2wider"
# Modules side by side among which a consumer is looked for.
_MOST_SIBLINGS = 200
_INIT = init_schema() | {"description": "how its new columns are made (default: default)"}


@op(
    group="size",
    example={"target": "classifier", "rows": 1},
    paper="net2wider: Chen et al. 2016, Net2Net, https://arxiv.org/abs/1511.05641",
    exactly_one=("rows", "columns", "to"),
)
def widen(
    draft: Draft,
    *,
    target: Target,
    rows: Annotated[int | None, "rows to append (dimension 0, outputs)", {"minimum": 1}] = None,
    columns: Annotated[int | None, "columns to append (dimension 1)", {"minimum": 1}] = None,
    to: Annotated[int | None, "rows to have in the end", {"minimum": 1}] = None,
    init: Annotated[str | dict[str, Any], InitSchema((_WIDER,)), "how new values are made"] = (
        "default"
    ),
    bias_init: BiasInit = None,
    dim: OutputDim = 0,
    consumers: Annotated[
        str | list[Consumer] | None,
        ConsumersSchema("columns for each row (default 1)", {"init": _INIT}),
    ] = None,
) -> None:
    """Append rows or columns to a layer; what is trained keeps its bits.

    A module grows whole: its weight, its bias and every tensor directly in it that has one entry
    per row. A tensor named by itself grows alone. New values take the old ones' dtype; tied names
    grow together. Raises where `to` is not more than there is.

    `consumers` read what grows, and get a column for each new row, or `block` of them where they
    read a flattened convolution (positions per channel).

    With `"init": "net2wider"` the network computes what it did: new rows are copies of random old
    ones, the same in all layers of the step, and the consumers' columns of a row are shared out
    among it and its copies. The shares are unequal, other than in the paper, since copies with
    equal shares would stay equal in training. What stands between must grow along, so `target`
    lists it too: BatchNorm with its statistics, depthwise convolutions. Vectors without running
    statistics count as LayerNorm or RMSNorm, which keeps the function only where the new size is a
    whole multiple of the old: each row then has as many copies. GroupNorm and dropout keep nothing.
    """
    found = outputs(draft, target, 1 if columns else dim, vectors=columns is None)
    _check_words(columns, init, bias_init, dim, consumers)
    _check_sizes(found, to)
    reading: list[Reader] = []
    copies: _Copies | None = None
    if consumers is not None and found:
        size = require_one_size(found)
        reading = readers(draft, consumers, size, 1)
        if init == _WIDER:
            _check_split(draft, reading)
            count = rows or (to or 0) - size
            balanced = _is_balanced(draft, found, count)
            copies = _drawn(draft.stream(_WIDER), size, count, balanced=balanced)
    changes: dict[str, LazyTensor] = {}
    shared = draft.shared()
    for layer in found:
        count = rows or columns or (to or 0) - layer.size
        for name, own_dim in with_tied_layers(draft, layer, 1 if columns else dim, shared):
            changes[name] = (
                copies.appended(draft[name], own_dim)
                if copies
                else _grown(draft, layer, name, own_dim, count, init, bias_init)
            )
    is_zero = init == "zeros" or (isinstance(init, dict) and init.get("name") == "zeros")
    require_whole(draft, changes, [reader.name for reader in reading], has_zeros=is_zero)
    if consumers is None and columns is None:
        draft.notes += _misfitting(draft, found, changes)
    draft.replace(changes)
    _widen_consumers(draft, reading, rows or (to or 0) - found[0].size if found else 0, copies)


def _grown(
    draft: Draft,
    layer: Outputs,
    name: str,
    dim: int,
    count: int,
    init: str | dict[str, Any],
    bias_init: str | dict[str, Any] | None,
) -> LazyTensor:
    module, _, leaf = name.rpartition(".")
    weight = weight_of(draft, module)
    if weight is not None and len(weight.shape) > dim and weight.shape[dim] == layer.size:
        weight = weight.resized(dim, layer.size + count)
    chosen = for_sibling(init, bias_init, name=leaf) if layer.layer.is_module else init
    return grown(draft[name], dim, count, chosen, draft.stream(name), name=leaf, weight=weight)


def _misfitting(
    draft: Draft, found: Sequence[Outputs], changes: Mapping[str, LazyTensor]
) -> Iterator[str]:
    """Say which neighbours had the size that grows, and do not grow."""
    siblings: dict[str, list[str]] = {}
    for name in draft.tensors:
        siblings.setdefault(name.rpartition(".")[0].rpartition(".")[0], []).append(name)
    for layer in found:
        container, _, own = layer.layer.module.rpartition(".")
        beside = siblings.get(container, [])
        if len(beside) > _MOST_SIBLINGS or not layer.layer.is_module or layer.size < 2:
            continue
        for name in beside:
            module, _, leaf = name.rpartition(".")
            other = module.rpartition(".")[2]
            if name in changes or leaf == "bias" or other == own:
                continue
            if own.isdecimal() and other.isdecimal() and int(other) < int(own):
                continue
            shape = draft.spec(name).shape
            if len(shape) > 1 and shape[1] == layer.size and shape[0] != layer.size:
                yield (
                    f"'{name}' has {layer.size} columns, as '{layer.label}' had rows: a consumer? "
                    "'consumers' makes it grow along"
                )
                break
            if shape == (layer.size,) and own.isdecimal() and other.isdecimal():
                yield (
                    f"'{name}' has {layer.size} entries, as '{layer.label}' had rows: a norm? "
                    "name it in the target, too"
                )
                break


def _widen_consumers(
    draft: Draft, reading: Sequence[Reader], count: int, copies: _Copies | None
) -> None:
    changes: dict[str, LazyTensor] = {}
    for reader in reading:
        tensor, name = draft[reader.name], reader.name
        changes[name] = (
            copies.shared_out(tensor, reader)
            if copies
            else grown(
                tensor,
                reader.dim,
                count * reader.block,
                reader.entry.get("init", "default"),
                draft.stream(name),
                name=name.rpartition(".")[2],
            )
        )
    draft.replace(changes)


# --- Mistakes -------------------------------------------------------------------------------------


def _check_words(
    columns: int | None, init: object, bias_init: object, dim: int, consumers: object
) -> None:
    """Raise PlanError for parameters that exclude each other."""
    problems = []
    if columns and dim:
        problems.append("'columns' are dimension 1 already; leave 'dim' out")
    if columns and consumers is not None:
        problems.append("'columns' are inputs, which have no consumers; widen 'rows'")
    if init == _WIDER or init == {"name": _WIDER}:
        if consumers is None:
            problems.append(f"'{_WIDER}' shares out the columns of consumers; name them")
        if bias_init is not None:
            problems.append(f"'{_WIDER}' copies biases with their rows; leave 'bias_init' out")
        entries = consumers if isinstance(consumers, list) else []
        if any(isinstance(entry, dict) and "init" in entry for entry in entries):
            problems.append(f"'{_WIDER}' makes the consumers' columns; leave their 'init' out")
    if problems:
        raise PlanError(*problems)


def _check_sizes(found: Sequence[Outputs], to: int | None) -> None:
    """Raise PlanError for layers that are not smaller than they are to be."""
    problems = [
        f"'{layer.label}' has {layer.size} rows already, not under {to}"
        for layer in found
        if to is not None and to <= layer.size
    ]
    if problems:
        raise PlanError(*problems)


def _check_split(draft: Draft, reading: Sequence[Reader]) -> None:
    """Raise PlanError for columns that cannot be shared out."""
    problems = [
        f"'{reader.name}' is {draft.spec(reader.name)}, whose columns cannot be shared out"
        for reader in reading
        if DTYPES[draft.spec(reader.name).dtype].kind != "float"
    ]
    if problems:
        raise PlanError(*problems)


def _is_balanced(draft: Draft, found: Sequence[Outputs], count: int) -> bool:
    """Say whether every row needs as many copies, for a norm; raises PlanError where none can."""
    norms = [layer for layer in found if _normalises(draft, layer)]
    problems = [
        f"'{layer.label}' normalises over its {layer.size} entries, since it has no running "
        f"statistics: only a whole multiple of {layer.size} keeps the function, not "
        f"{layer.size + count}; name its tensors if it acts on each entry alone"
        for layer in norms
        if count % layer.size
    ]
    if problems:
        raise PlanError(*problems)
    return bool(norms)


def _normalises(draft: Draft, layer: Outputs) -> bool:
    leaves = {name.rpartition(".")[2] for name in layer.layer.names}
    only_vectors = all(len(draft.spec(name).shape) <= 1 for name in layer.layer.names)
    return layer.layer.is_module and only_vectors and not leaves & {"running_mean", "running_var"}


# --- Net2Wider ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Copies:
    """Which old row each new one copies, and every row's share of its consumers' columns."""

    sources: list[int]
    old_shares: Array
    new_shares: Array

    def appended(self, tensor: LazyTensor, dim: int) -> LazyTensor:
        """Return a tensor with the copies after its own entries."""
        return Joined((tensor, Copied(Selected(tensor, dim, runs(self.sources)))), dim)

    def shared_out(self, tensor: LazyTensor, reader: Reader) -> LazyTensor:
        """Return a consumer's tensor with its columns shared out among rows and their copies."""
        dim, block = reader.dim, reader.block
        copied = Copied(Selected(tensor, dim, runs(self.sources, block)))
        parts = (
            Scaled(tensor, dim, np.repeat(self.old_shares, block)),
            Scaled(copied, dim, np.repeat(self.new_shares, block)),
        )
        return Joined(parts, dim)


def _drawn(stream: Stream, size: int, count: int, *, balanced: bool) -> _Copies:
    """Choose sources at random, `balanced`: each as often; and shares, which sum to 1 per source.

    Within a source's n rows, the k-th in a random order gets a share proportional to
    1 + (k + u) / n with u uniform from 1/4 to 3/4: shares differ visibly in any dtype, and by less
    than a factor of 2.
    """
    generator = stream.generator(0)
    if balanced:
        sources = np.concatenate([generator.permutation(size) for _ in range(count // size)])
    else:
        sources = generator.integers(size, size=count)
    row_of = np.concatenate([np.arange(size), sources])
    order = np.lexsort((generator.random(len(row_of)), row_of))
    begins = np.flatnonzero(np.diff(row_of[order], prepend=-1))
    sizes = np.diff(begins, append=len(order))
    rank = np.arange(len(order)) - np.repeat(begins, sizes)
    parts = 1 + (rank + generator.uniform(0.25, 0.75, len(order))) / np.repeat(sizes, sizes)
    shares = np.empty(len(order))
    shares[order] = parts / np.repeat(np.add.reduceat(parts, begins), sizes)
    return _Copies(sources.tolist(), shares[:size], shares[size:])
