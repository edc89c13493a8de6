"""The tensors that have an entry for each token, and a tokenizer that goes with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from surgeon.base.errors import PlanError, listed
from surgeon.base.schema import Schema
from surgeon.base.strict_json import parse_json
from surgeon.draft import Draft, Tensors
from surgeon.tokens.tokenizer import Tokenizer

PATTERNS: Schema = {
    "type": ["string", "array"],
    "minLength": 1,
    "minItems": 1,
    "format": "name-pattern",
    "items": {"type": "string", "minLength": 1, "format": "name-pattern"},
}
TokenTensors = Annotated[
    str | list[str] | None,
    PATTERNS,
    "the tensors that have an entry for each token; default those that the config's architecture "
    "has (embeddings, output layers, their biases)",
]
Multiple = Annotated[
    int | None,
    "add rows without a token until their number is a multiple of this",
    {"minimum": 1},
]


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer, and the tensors with an entry for each of its tokens: {name: dimension}."""

    tokenizer: Tokenizer
    places: Mapping[str, int]
    rows: int


def vocabulary_of(
    draft: Draft, target: str | Sequence[str] | None, model: str | None = None
) -> Vocabulary:
    """Return the vocabulary of the state, or of a model.

    Raises PlanError where it is not known which tensors are meant, and where tokens have no row.
    """
    where = f" of model '{model}'" if model else ""
    tensors = draft.model(model) if model else draft.tensors
    tokenizer = draft.tokenizer(model)
    if target is not None:
        places = _named(draft, target, tensors, model)
    else:
        places = _known(draft, tensors, tokenizer, model, where)
    sizes: dict[int, list[str]] = {}
    for name, dim in places.items():
        sizes.setdefault(tensors[name].spec.shape[dim], []).append(name)
    if len(sizes) > 1:
        found = ", ".join(f"{listed(names)} {size}" for size, names in sizes.items())
        raise PlanError(f"tensors{where} have other numbers of tokens: {found}; see 'target'")
    (rows,) = sizes
    if rows < tokenizer.size:
        without = [token for number, token in tokenizer.tokens.items() if number >= rows]
        raise PlanError(
            f"{listed(sizes[rows])}{where} has {rows} rows, and the tokenizer {tokenizer.size} "
            f"tokens: {listed(without)} has none; give it one first (widen), or take it out"
        )
    return Vocabulary(tokenizer, places, rows)


def padded(rows: int, multiple: int | None) -> int:
    """Return the next number of rows that is a multiple."""
    return -(-rows // multiple) * multiple if multiple else rows


# No vocabulary is nearly as large.
_MOST_TOKENS = 1_000_000


def tokens_in(draft: Draft, file: str) -> list[Any]:
    """Return what a file lists: a JSON list, or its lines but for empty ones."""
    text = draft.outside.text_of(file)
    if not file.endswith(".json"):
        if text.count("\n") > _MOST_TOKENS:
            raise PlanError(f"{file}: has more than {_MOST_TOKENS:,} lines")
        return [line for line in text.splitlines() if line]
    try:
        found = parse_json(text.encode())
    except ValueError as error:
        raise PlanError(f"{file}: {error}") from None
    if not isinstance(found, list):
        raise PlanError(f"{file}: is no list of tokens")
    return found


def _named(
    draft: Draft, target: str | Sequence[str], tensors: Tensors, model: str | None
) -> dict[str, int]:
    """Return the tensors that a step names; a bias of one row counts its columns."""
    names = draft.select(target)
    if absent := [name for name in names if name not in tensors]:
        raise PlanError(f"model '{model}' has no {listed(absent)}")
    found = {}
    for name in names:
        shape = tensors[name].spec.shape
        if not shape:
            raise PlanError(f"'{name}' is {tensors[name].spec}, with no entries for tokens")
        found[name] = 1 if len(shape) > 1 and shape[0] == 1 else 0
    return found


def _known(
    draft: Draft, tensors: Tensors, tokenizer: Tokenizer, model: str | None, where: str
) -> dict[str, int]:
    """Return the tensors that the architecture says have an entry for each token."""
    found = draft.outside.vocabularies(model, tensors)
    fitting = {
        path: dict(places)
        for path, places in found.items()
        if any(tensors[name].spec.shape[dim] >= tokenizer.size for name, dim in places)
    }
    plain = {p: places for p, places in fitting.items() if p.rpartition(".")[2] == "vocab_size"}
    chosen = plain if len(plain) == 1 else fitting
    if len(chosen) == 1:
        return next(iter(chosen.values()))
    if not found:
        raise PlanError(
            f"nothing is known of the tensors{where} that have a row for each token; name them in "
            "'target'"
        )
    if not fitting:
        rows = {path: tensors[places[0][0]].spec.shape[places[0][1]]
                for path, places in found.items()}  # fmt: skip
        said = ", ".join(f"{path} {number}" for path, number in rows.items())
        raise PlanError(
            f"the tokenizer{where} has {tokenizer.size} tokens, but the model {said}: give each a "
            "row first (widen), or take some out"
        )
    raise PlanError(
        f"there are several vocabularies{where} ({', '.join(chosen)}); name the tensors of one in "
        "'target'"
    )
