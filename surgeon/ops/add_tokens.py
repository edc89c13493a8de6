"""add_tokens: new tokens, in the tokenizer and in every tensor that has a row for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

from surgeon.base.errors import PlanError, listed, short
from surgeon.base.schema import Schema
from surgeon.draft import Draft
from surgeon.draft.registry import op
from surgeon.initialisers import InitSchema, for_sibling, grown
from surgeon.lazy import Joined, LazyTensor, Selected
from surgeon.ops.shared.modules import weight_of
from surgeon.ops.shared.token_rows import Entries, means, require_numbers
from surgeon.ops.shared.vocabulary import (
    Multiple,
    TokenTensors,
    Vocabulary,
    padded,
    tokens_in,
    vocabulary_of,
)
from surgeon.tokens.edits import NewToken, with_roles, with_tokens
from surgeon.tokens.tokenizer import ROLES, Tokenizer

_SUBTOKENS = "subtokens"
# The tokenizers library takes minutes for longer ones.
_LONGEST_TOKEN, _LONGEST_TEXT = 1_000, 100_000
_TEXT: Schema = {"type": "string", "minLength": 1}
_TOKEN: Schema = {
    "type": ["string", "object"],
    "minLength": 1,
    "properties": {
        "token": _TEXT,
        "description": {**_TEXT, "description": "words that say what it means"},
        "special": {"type": "boolean", "description": "whether it is no text"},
        "role": {"enum": list(ROLES), "description": "what it is for; it is special, then"},
    },
    "required": ["token"],
    "additionalProperties": False,
}


class _Wanted(NamedTuple):
    """A token as a step gives it."""

    token: str
    text: str
    special: bool
    role: str | None = None


@op(
    group="size",
    example={"tokens": ["<a>", {"token": "<b>", "description": "t1 t2"}], "target": "embed.weight"},
    paper="rows_normal and mean: Hewitt 2021, https://nlp.stanford.edu/~johnhew/vocab-expansion.html",
    exactly_one=("tokens", "file"),
)
def add_tokens(
    draft: Draft,
    *,
    tokens: Annotated[
        list[Any] | None,
        {"items": _TOKEN, "minItems": 1},
        'the tokens: strings, or objects {"token", "description", "special", "role"}',
    ] = None,
    file: Annotated[
        str | None, {"minLength": 1}, "a file of tokens: JSON as `tokens`, else one a line"
    ] = None,
    special: Annotated[bool, "they are no text: decoding leaves them out"] = False,
    init: Annotated[
        str | dict[str, Any], InitSchema((_SUBTOKENS,)), "how their rows are made"
    ] = _SUBTOKENS,
    pad_to_multiple_of: Multiple = None,
    target: TokenTensors = None,
) -> None:
    """Add tokens to the tokenizer, with a row wherever tokens have one.

    The tokenizer's files, embeddings, output layers, their biases and the config's numbers grow
    together. Rows that have no token yet are used first. `"subtokens"` makes each row the mean of
    the rows of the pieces that the old tokenizer cuts the token into, or its `description`; other
    inits are those of `widen`, and look at the rows of old tokens. Rows without a token, which
    `pad_to_multiple_of` adds, are the mean of the old ones under `"subtokens"`. `@new` holds the
    new rows and no others. Tokens that are there already stay as they are, with a note. A `role`
    such as `pad_token` is written for transformers, with its id in the configs, also of a special
    token that is there. Needs a tokenizer.json beside the weights, and the `tokenizers` library.
    """
    before = vocabulary_of(draft, target)
    wanted = _wanted(draft, tokens, file, special)
    there = [one for one in wanted if one.token in before.tokenizer.ids]
    new = [one for one in wanted if one.token not in before.tokenizer.ids]
    if there:
        draft.notes.append(f"{listed([one.token for one in there])} is a token already")
    after = with_tokens(before.tokenizer, [NewToken(one.token, one.special) for one in new])
    if roles := {one.role: one.token for one in wanted if one.role is not None}:
        after = draft.tokenizers[None] = with_roles(after, roles)
    first = before.tokenizer.size
    rows = padded(max(before.rows, after.size), pad_to_multiple_of)
    if not new and rows == before.rows:
        return
    pieces = _pieces(draft, before.tokenizer, new) if init == _SUBTOKENS else []
    changes: dict[str, LazyTensor] = {}
    for name, dim in before.places.items():
        changes[name] = _grown(draft, name, dim, before, (len(new), rows), init, pieces)
    draft.replace(changes)
    if new:
        draft.tokenizers[None] = after
        reused = min(before.rows, after.size) - first
        used = f", {reused} of which had no token" if reused else ""
        names = listed([one.token for one in new])
        draft.notes.append(f"rows {first}:{after.size} are {names}{used}")


def _wanted(
    draft: Draft, tokens: Sequence[Any] | None, file: str | None, special: bool
) -> list[_Wanted]:
    """Return the tokens that a step gives; raises PlanError for what is none, or given twice."""
    given = tokens if tokens is not None else tokens_in(draft, str(file))
    found = []
    for item in given:
        item = {"token": item} if isinstance(item, str) else item
        if not isinstance(item, dict) or not isinstance(item.get("token"), str):
            raise PlanError(f"{file}: {short(item)} is no token")
        text, role = str(item.get("description", item["token"])), item.get("role")
        if role not in (None, *ROLES):
            raise PlanError(f"{file}: {short(role)} is none of the roles {', '.join(ROLES)}")
        for part, most in ((item["token"], _LONGEST_TOKEN), (text, _LONGEST_TEXT)):
            if len(part) > most:
                raise PlanError(f"{short(part)} is longer than {most:,} characters")
        is_special = bool(item.get("special", special or role is not None))
        found.append(_Wanted(item["token"], text, is_special, role))
    counts = Counter([one.token for one in found] + [one.role for one in found if one.role])
    if twice := [token for token, count in counts.items() if count > 1]:
        raise PlanError(f"{listed(twice)} is given twice")
    return found


def _pieces(draft: Draft, tokenizer: Tokenizer, new: Sequence[_Wanted]) -> list[list[int]]:
    """Return what the old tokenizer cuts each new token into; raises PlanError for nothing."""
    found = tokenizer.pieces_of_each([one.text for one in new])
    if empty := [one.token for one, pieces in zip(new, found, strict=True) if not pieces]:
        raise PlanError(
            f"the old tokenizer makes nothing of {listed(empty)}; give it a description, or "
            "another init"
        )
    unknown = tokenizer.unknown
    odd = [one.token for one, pieces in zip(new, found, strict=True) if set(pieces) == {unknown}]
    if odd:
        draft.notes.append(
            f"{listed(odd)} is unknown to the old tokenizer, and begins as its unknown token; a "
            "description says more"
        )
    return found


def _grown(
    draft: Draft,
    name: str,
    dim: int,
    before: Vocabulary,
    sizes: tuple[int, int],
    init: str | dict[str, Any],
    pieces: Sequence[Sequence[int]],
) -> LazyTensor:
    """Return a tensor with rows of new tokens, behind those of old ones, `sizes` in all."""
    old, first = draft[name], before.tokenizer.size
    count, rows = sizes
    padding = rows - max(before.rows, first + count)
    tokens = Selected(old, dim, ((0, first),))
    # Rows without a token that stay without one.
    rest = Selected(old, dim, ((min(first + count, before.rows), before.rows),))
    leaf, stream = name.rpartition(".")[2], draft.stream(name)
    if init == _SUBTOKENS:
        require_numbers(name, old)
        entries: list[Entries] = [[(old, number) for number in some] for some in pieces]
        made: LazyTensor = tokens
        if entries:
            made = Joined((tokens, means(old, dim, entries, stream, _SUBTOKENS)), dim)
        if padding:
            made = Joined((made, rest), dim) if rest.spec.count else made
            own = grown(tokens, dim, padding, "mean", stream, name=leaf)
            added = Selected(own, dim, ((first, first + padding),))
            return Joined((made, added), dim)
    else:
        chosen = for_sibling(init, None, name=leaf)
        weight = weight_of(draft, name.rpartition(".")[0])
        if weight is not None and weight.shape[:1] == (before.rows,):
            weight = weight.resized(0, rows)
        made = grown(tokens, dim, count + padding, chosen, stream, name=leaf, weight=weight)
    return Joined((made, rest), dim) if rest.spec.count else made
