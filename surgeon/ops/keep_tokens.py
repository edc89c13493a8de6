"""keep_tokens: a smaller vocabulary, in the tokenizer and in every tensor with a row for each."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from surgeon.base.errors import PlanError, did_you_mean, listed, short
from surgeon.base.indices import runs
from surgeon.draft import Draft
from surgeon.draft.registry import op
from surgeon.initialisers import grown
from surgeon.lazy import LazyTensor, Selected
from surgeon.ops.shared.vocabulary import (
    Multiple,
    TokenTensors,
    padded,
    tokens_in,
    vocabulary_of,
)
from surgeon.tokens import trimming
from surgeon.tokens.edits import reduced
from surgeon.tokens.tokenizer import Tokenizer


@op(
    group="size",
    example={"tokens": ["t3", "t1"], "target": "embed.weight"},
    exactly_one=("tokens", "file", "used_in"),
)
def keep_tokens(
    draft: Draft,
    *,
    tokens: Annotated[
        list[str] | None, {"items": {"type": "string"}, "minItems": 1}, "the tokens that stay"
    ] = None,
    file: Annotated[
        str | None, {"minLength": 1}, "a file of the tokens that stay: a JSON list, or one a line"
    ] = None,
    used_in: Annotated[
        str | None, {"minLength": 1}, "a text file: the tokens that it is cut into stay"
    ] = None,
    always: Annotated[
        Literal["specials", "added"],
        "what stays besides: special tokens, or all that were added to the tokenizer",
    ] = "specials",
    pad_to_multiple_of: Multiple = None,
    target: TokenTensors = None,
) -> None:
    """Keep some tokens of a model, with their rows and bits, and no others.

    Tokens are numbered anew in their old order; the tokenizer's files, the config's numbers and the
    ids of tokens in configs follow. What the kept ones are merged from stays too, as do special
    tokens, tokens that configs and chat templates name, and the bytes that characters fall back to.
    Merges go whose parts or whose result are gone. The text of `used_in` is cut into the same
    pieces before and after, line by line, or the step is refused. Characters that have no token any
    more become the unknown one, which is said; without one it is refused. Rows without a token go.
    """
    before = vocabulary_of(draft, target)
    tokenizer = before.tokenizer
    text = draft.outside.text_of(used_in) if used_in is not None else ""
    if used_in is not None:
        wanted = trimming.used_in(tokenizer, text)
    else:
        wanted = _named(tokenizer, tokens if tokens is not None else tokens_in(draft, str(file)))
    if always == "added":
        wanted |= {entry["content"] for entry in tokenizer.added}
    # Configs say the numbers that the input's tokenizer gives.
    given = draft.outside.read_tokenizer(None).tokens
    wanted |= {given[n] for n in draft.outside.named_ids() if given.get(n) in tokenizer.ids}
    wanted |= trimming.named_in_templates(tokenizer)
    kept = trimming.needed(tokenizer, wanted)
    _tell(draft, tokenizer, kept)
    after = reduced(tokenizer, kept)
    if used_in is not None:
        trimming.require_same_pieces(tokenizer, after, text)
    order = sorted(tokenizer.ids[token] for token in kept)
    padding = padded(after.size, pad_to_multiple_of) - after.size
    changes: dict[str, LazyTensor] = {}
    for name, dim in before.places.items():
        made: LazyTensor = Selected(draft[name], dim, runs(order))
        if padding:
            leaf, stream = name.rpartition(".")[2], draft.stream(name)
            made = grown(made, dim, padding, "mean", stream, name=leaf)
        changes[name] = made
    draft.replace(changes)
    draft.tokenizers[None] = after


def _named(tokenizer: Tokenizer, given: list[Any]) -> set[str]:
    """Return tokens that a step names; raises PlanError for those that are none."""
    if odd := [token for token in given if not isinstance(token, str)]:
        raise PlanError(f"{short(odd[0])} is no token")
    unknown = [token for token in given if token not in tokenizer.ids]
    if unknown:
        hint = did_you_mean(unknown[0], tokenizer.ids) if len(unknown) == 1 else ""
        raise PlanError(f"{listed(unknown)} is no token of {tokenizer.label}{hint}")
    return set(given)


def _tell(draft: Draft, tokenizer: Tokenizer, kept: set[str]) -> None:
    """Say what goes, and what of text it takes along; raises PlanError where that has no place."""
    draft.notes.append(f"{len(kept)} of {len(tokenizer.ids)} tokens are kept")
    if lost := trimming.lost_characters(tokenizer, kept):
        if tokenizer.unknown is None:
            raise PlanError(
                f"text with {listed(lost)} could not be encoded any more, since there is no "
                "unknown token; keep these"
            )
        unknown = tokenizer.tokens[tokenizer.unknown]
        draft.notes.append(f"{listed(lost)} becomes {unknown!r}, unless a longer token holds it")
    elif tokenizer.kind == "WordLevel" and tokenizer.unknown is not None:
        draft.notes.append(f"other words become {tokenizer.tokens[tokenizer.unknown]!r}")
    if odd := trimming.unreachable(tokenizer, kept):
        draft.notes.append(f"{listed(odd)} is made by no merges, and comes from no text")
