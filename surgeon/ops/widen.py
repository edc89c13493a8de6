"""widen: add rows or columns to a layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from surgeon.base.errors import PlanError
from surgeon.base.indices import runs
from surgeon.base.patterns import Target
from surgeon.base.places import SCHEMA, At, Places
from surgeon.base.places import places as places_of
from surgeon.draft import Draft
from surgeon.draft.registry import op
from surgeon.initialisers import BiasInit, InitSchema, arranged, for_sibling, grown, init_schema
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
    rows: Annotated[
        int | None,
        "rows to add (dimension 0, outputs); to each block, with `every`",
        {"minimum": 1},
    ] = None,
    columns: Annotated[int | None, "columns to add (dimension 1)", {"minimum": 1}] = None,
    to: Annotated[int | None, "rows to have in the end", {"minimum": 1}] = None,
    at: Annotated[
        At | None,
        "before which old row or column the new ones come: -1 is before the last; "
        '{"every": 7} is at the end of each block of 7, {"every": 7, "at": -1} before its last; '
        "default behind all",
        SCHEMA,
    ] = None,
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
    """Add rows or columns to a layer; what is trained keeps its bits.

    A module grows whole: its weight, its bias and every tensor directly in it that has one entry
    per row. A tensor named by itself grows alone. New values take the old ones' dtype; tied names
    grow together. Raises where `to` is not more than there is.

    New entries come behind the old ones, or where `at` says: `"rows": 1, "at": -1` puts a class
    before a background that is the last row; `"rows": 1, "at": {"every": 7}` adds a class to each
    anchor of a detector whose anchors have 7 rows each. Per-row inits count the new rows in their
    order. `@new`, groups of an optimizer, its state, and labels know where every row has gone; what
    reads rows by number (losses, label maps, token ids of a tokenizer) has to be told.

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
    placed = _placed(found, at, rows or columns, to, "columns" if columns else "rows")
    reading: list[Reader] = []
    copies: _Copies | None = None
    if consumers is not None and found:
        size = require_one_size(found)
        reading = readers(draft, consumers, size, 1)
        if init == _WIDER:
            _check_split(draft, reading)
            count = placed[0].total
            balanced = _is_balanced(draft, found, count)
            copies = _drawn(draft.stream(_WIDER), size, count, balanced=balanced)
    changes: dict[str, LazyTensor] = {}
    shared = draft.shared()
    for layer, places in zip(found, placed, strict=True):
        for name, own_dim in with_tied_layers(draft, layer, 1 if columns else dim, shared):
            changes[name] = (
                copies.added(draft[name], own_dim, places)
                if copies
                else _grown(draft, layer, name, own_dim, places, init, bias_init)
            )
    is_zero = init == "zeros" or (isinstance(init, dict) and init.get("name") == "zeros")
    require_whole(draft, changes, [reader.name for reader in reading], has_zeros=is_zero)
    if consumers is None and columns is None:
        draft.notes += _misfitting(draft, found, changes)
    draft.replace(changes)
    for reader in reading:
        _widen_consumer(draft, reader, placed[0], copies)


def _grown(
    draft: Draft,
    layer: Outputs,
    name: str,
    dim: int,
    places: Places,
    init: str | dict[str, Any],
    bias_init: str | dict[str, Any] | None,
) -> LazyTensor:
    module, _, leaf = name.rpartition(".")
    weight = weight_of(draft, module)
    if weight is not None and len(weight.shape) > dim and weight.shape[dim] == layer.size:
        weight = weight.resized(dim, layer.size + places.total)
    chosen = for_sibling(init, bias_init, name=leaf) if layer.layer.is_module else init
    return grown(
        draft[name], dim, places.total, chosen, draft.stream(name),
        name=leaf, weight=weight, places=places,
    )  # fmt: skip


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


def _widen_consumer(draft: Draft, reader: Reader, places: Places, copies: _Copies | None) -> None:
    tensor, name, places = draft[reader.name], reader.name, places.times(reader.block)
    if copies:
        wider = copies.shared_out(tensor, reader, places)
    else:
        init, leaf = reader.entry.get("init", "default"), name.rpartition(".")[2]
        wider = grown(
            tensor, reader.dim, places.total, init, draft.stream(name), name=leaf, places=places
        )
    draft.replace({name: wider})


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


def _placed(
    found: Sequence[Outputs], at: At | None, count: int | None, to: int | None, what: str
) -> list[Places]:
    """Return where the new entries of each layer come; raises PlanError where they cannot."""
    placed: list[Places] = []
    problems: list[str] = []
    for layer in found:
        try:
            placed.append(places_of(at, layer.size, count=count, to=to, what=what))
        except PlanError as error:
            problems += [f"'{layer.label}' {line}" for line in error.problems]
    if problems:
        raise PlanError(*problems)
    return placed


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

    def added(self, tensor: LazyTensor, dim: int, places: Places) -> LazyTensor:
        """Return a tensor with the copies in their places among its own entries."""
        copied = Copied(Selected(tensor, dim, runs(self.sources)))
        return arranged(Joined((tensor, copied), dim), dim, places)

    def shared_out(self, tensor: LazyTensor, reader: Reader, places: Places) -> LazyTensor:
        """Return a consumer's tensor with its columns shared out among rows and their copies."""
        dim, block = reader.dim, reader.block
        copied = Copied(Selected(tensor, dim, runs(self.sources, block)))
        parts = (
            Scaled(tensor, dim, np.repeat(self.old_shares, block)),
            Scaled(copied, dim, np.repeat(self.new_shares, block)),
        )
        return arranged(Joined(parts, dim), dim, places)


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
