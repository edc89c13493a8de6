"""transplant_tokenizer: another model's tokenizer, with rows made for the tokens it brings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Annotated, Literal

import numpy as np

from surgeon.base.errors import PlanError, listed
from surgeon.base.indices import runs
from surgeon.draft import Draft, Tensors
from surgeon.draft.registry import op
from surgeon.initialisers import grown
from surgeon.initialisers.parts import Bound
from surgeon.lazy import Fresh, Joined, LazyTensor, Scratch, Selected, Stream
from surgeon.numeric.dtypes import Array
from surgeon.numeric.pursuit import matching_pursuit
from surgeon.ops.shared.token_rows import require_numbers
from surgeon.ops.shared.vocabulary import (
    Multiple,
    TokenTensors,
    Vocabulary,
    padded,
    vocabulary_of,
)
from surgeon.tokens.spelling import counterparts

# Elements that are held at a time: of the orthonormal vectors, and of the donor's rows.
_HELD = 1 << 23
_BLOCK = 1 << 21
# What maps hidden states to tokens goes by these names, and else it maps tokens to them.
_OUTPUT = re.compile(r"(.*\.)?(lm_head|embed_out|output|output_layer|proj_out|predictions)(\..*)?")


@op(
    group="size",
    example={"from": "other", "k": 2, "target": "embed.weight"},
    paper="Goddard and Fernandes Neto 2025, Training-Free Tokenizer Transplantation via Orthogonal "
    "Matching Pursuit, https://arxiv.org/abs/2506.06607",
)
def transplant_tokenizer(
    draft: Draft,
    *,
    from_: Annotated[str, {"minLength": 1}, "the model whose tokenizer it gets: the donor"],
    method: Annotated[
        Literal["omp", "mean", "copy_shared"],
        "how rows of tokens that it lacks are made: of shared tokens as in the donor, the mean of "
        "the old rows, or zeros",
    ] = "omp",
    k: Annotated[int, "with omp, the shared tokens that a row is made of", {"minimum": 1}] = 64,
    pad_to_multiple_of: Multiple = None,
    target: TokenTensors = None,
) -> None:
    """Give the model another one's tokenizer, and rows for its new tokens.

    Tokens that both have keep their rows: a token is shared that stands for the same bytes in both,
    or has the same role, however each tokenizer writes it. With `omp`, the donor's row of a token
    that the model lacks is matched by a sum of the donor's rows of `k` shared ones, and the same
    sum of the model's own rows becomes its row. Embeddings are matched in the donor's embeddings,
    output layers in its output layer, or in its embeddings where these are tied; entries of biases
    are means. Calculated in float64, some rows at a time, in memory that does not grow with the
    vocabulary. The tokenizer's files and the config's numbers and ids follow. Raises for a donor
    that shares fewer than `k` tokens.
    """
    own, donor = vocabulary_of(draft, target), vocabulary_of(draft, target, from_)
    shared = counterparts(own.tokenizer, donor.tokenizer)
    goal = donor.tokenizer
    lacking = [token for token in goal.ids if token not in shared]
    if method == "omp" and lacking and len(shared) < k:
        raise PlanError(f"the models share {len(shared)} tokens, of which a sum of {k} is wanted")
    draft.notes.append(
        f"{len(shared)} tokens are shared and keep their rows, {len(lacking)} get one by {method}"
        + (f" ({listed(lacking, 3)})" if lacking else "")
    )
    pairs = _Pairs(
        tuple(donor.tokenizer.ids[token] for token in shared),
        tuple(own.tokenizer.ids[token] for token in shared.values()),
        tuple(donor.tokenizer.ids[token] for token in lacking),
    )
    changes: dict[str, LazyTensor] = {}
    for name, dim in own.places.items():
        source = _donor_of(name, draft.model(from_), donor) if method == "omp" else None
        made = _lacking(draft, name, dim, own, pairs, method, k, source) if lacking else None
        first = own.tokenizer.size
        rows: LazyTensor = Selected(draft[name], dim, ((0, first),))
        rows = Joined((rows, made), dim) if made is not None else rows
        place = dict(zip(pairs.shared_there, pairs.shared_here, strict=True))
        place |= {number: first + row for row, number in enumerate(pairs.lacking)}
        if holes := [number for number in range(goal.size) if number not in place]:
            raise PlanError(f"the donor's tokenizer has no token of number {holes[0]}")
        rows = Selected(rows, dim, runs(place[number] for number in range(goal.size)))
        if padding := padded(goal.size, pad_to_multiple_of) - goal.size:
            leaf = name.rpartition(".")[2]
            rows = grown(rows, dim, padding, "mean", draft.stream(name), name=leaf)
        changes[name] = rows
    draft.replace(changes)
    draft.tokenizers[None] = goal


@dataclass(frozen=True)
class _Pairs:
    """Numbers of tokens: of the shared ones in donor and model, of the others in the donor."""

    shared_there: tuple[int, ...]
    shared_here: tuple[int, ...]
    lacking: tuple[int, ...]


def _donor_of(name: str, tensors: Tensors, donor: Vocabulary) -> LazyTensor | None:
    """Return the donor's tensor of the same kind; None where that is none, as of biases."""
    matrices = [n for n in donor.places if len(tensors[n].spec.shape) == 2
            and donor.places[n] == 0]  # fmt: skip
    if name in matrices:
        return tensors[name]
    outputs = [other for other in matrices if _OUTPUT.fullmatch(other)]
    inputs = [other for other in matrices if other not in outputs]
    found = (outputs if _OUTPUT.fullmatch(name) else inputs) or inputs
    if len({id(tensors[other]) for other in found}) != 1:
        raise PlanError(
            f"which of the donor's tensors is what '{name}' is here? They are {listed(matrices)}; "
            "name one like it ('rename'), or see 'target'"
        )
    return tensors[found[0]]


def _lacking(
    draft: Draft,
    name: str,
    dim: int,
    own: Vocabulary,
    pairs: _Pairs,
    method: str,
    k: int,
    source: LazyTensor | None,
) -> LazyTensor:
    """Return the rows of tokens that the model lacks."""
    tensor, stream, count = draft[name], draft.stream(name), len(pairs.lacking)
    require_numbers(name, tensor)
    is_matrix = len(tensor.spec.shape) == 2 and dim == 0 and tensor.spec.shape[0] > 1
    if method == "omp" and is_matrix and source is not None:
        require_numbers(name, source)
        made = _Matched(pairs, k, source, tensor)
        bound = Bound("omp", made.values, (source, tensor))
        return Fresh(tensor.spec.resized(0, count), bound, stream)
    first = own.tokenizer.size
    tokens = Selected(tensor, dim, ((0, first),))
    init = "zeros" if method == "copy_shared" else "mean"
    whole = grown(tokens, dim, count, init, stream, name=name.rpartition(".")[2])
    return Selected(whole, dim, ((first, first + count),))


@dataclass(frozen=True, eq=False)
class _Matched:
    """Rows as sums of shared ones, by what the donor's rows say; made some at a time."""

    pairs: _Pairs
    k: int
    donor: LazyTensor
    own: LazyTensor

    def values(self, start: int, stop: int, stream: Stream, scratch: Scratch) -> Array:
        """Return elements start to stop of the rows, flat."""
        size = prod(self.own.spec.shape[1:])
        rows = max(1, _HELD // (self.k * self.donor.spec.shape[1]))
        out = np.empty(stop - start)
        kept: dict[int, Array] = scratch.known(self, lambda _: {})
        for number in range(start // (rows * size), -(-stop // (rows * size))):
            if number not in kept:
                kept.clear()
                wanted = self.pairs.lacking[number * rows : (number + 1) * rows]
                kept[number] = self._rows(wanted, scratch).reshape(-1)
            begin = number * rows * size
            low, high = max(start, begin), min(stop, begin + rows * size)
            out[low - start : high - start] = kept[number][low - begin : high - begin]
        return out

    def _rows(self, wanted: Sequence[int], scratch: Scratch) -> Array:
        """Return the rows of some tokens; always of the same together, which decides about bits."""
        with scratch.scope():
            targets = _row_values(self.donor, wanted, scratch).copy()
        chosen, factors = matching_pursuit(targets, lambda: self._shared(scratch), self.k)
        used, places = np.unique(chosen, return_inverse=True)
        places = places.reshape(chosen.shape)
        made = np.zeros((len(wanted), prod(self.own.spec.shape[1:])))
        with scratch.scope():
            here = [self.pairs.shared_here[number] for number in used.tolist()]
            rows = _row_values(self.own, here, scratch)
            for place, factor in zip(places.T, factors.T, strict=True):
                made += factor[:, None] * rows[place]
        return made

    def _shared(self, scratch: Scratch) -> Iterator[tuple[int, Array]]:
        """Yield the donor's rows of shared tokens, some at a time."""
        shared = self.pairs.shared_there
        rows = max(1, _BLOCK // self.donor.spec.shape[1])
        for first in range(0, len(shared), rows):
            with scratch.scope():
                yield first, _row_values(self.donor, shared[first : first + rows], scratch)


def _row_values(tensor: LazyTensor, rows: Sequence[int], scratch: Scratch) -> Array:
    """Return rows of a tensor as float64 (rows, size)."""
    size = prod(tensor.spec.shape[1:])
    out: Array = scratch.take(np.float64, len(rows) * size)
    place = 0
    for start, stop in runs(rows):
        count = (stop - start) * size
        with scratch.scope():
            out[place : place + count] = tensor.values(start * size, stop * size, scratch)
        place += count
    return out.reshape(len(rows), size)
