"""Tokenizers with other tokens: some more, some fewer, those of several."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, NamedTuple

from surgeon.base.errors import PlanError, listed, short
from surgeon.tokens.tokenizer import (
    ADDED,
    CONFIG,
    SPECIAL,
    Json,
    Tokenizer,
    added_entry,
    content_of,
)

# transformers 5 calls these what the second is; earlier ones the first.
_LISTS = ("additional_special_tokens", "extra_special_tokens")


class NewToken(NamedTuple):
    """A token to be added."""

    content: str
    special: bool = False


def with_tokens(tokenizer: Tokenizer, new: Sequence[NewToken]) -> Tokenizer:
    """Return a tokenizer with more tokens, numbered behind all that there are."""
    document = deepcopy(tokenizer.document)
    first = tokenizer.size
    entries = [
        added_entry(token.content, first + place, special=token.special)
        for place, token in enumerate(new)
    ]
    document["added_tokens"] = [*tokenizer.added, *entries]
    specials = [token.content for token in new if token.special]
    return _checked(_followed(replace(tokenizer, document=document), specials=specials))


def with_roles(tokenizer: Tokenizer, roles: Mapping[str, str]) -> Tokenizer:
    """Return a tokenizer of whose tokens some have a role, such as `pad_token`.

    Raises PlanError for a token that is text, and where no file says roles.
    """
    special = {entry["content"] for entry in tokenizer.added if entry.get("special")}
    if text := [token for token in roles.values() if token not in special]:
        raise PlanError(f"{listed(text)} is text, and no special token, which a role needs")
    if CONFIG not in tokenizer.beside:
        raise PlanError(
            f"{tokenizer.label}: there is no {CONFIG}, which says what roles tokens have"
        )
    beside = {name: {**content, **roles} if name in (CONFIG, SPECIAL) else content
              for name, content in tokenizer.beside.items()}  # fmt: skip
    return replace(tokenizer, beside=beside, given={**tokenizer.given, **roles})


def with_entries(tokenizer: Tokenizer, entries: Iterable[Json]) -> Tokenizer:
    """Return a tokenizer with another's added tokens, numbered behind all that there are."""
    document, number = deepcopy(tokenizer.document), tokenizer.size
    added = list(tokenizer.added)
    for entry in entries:
        added.append({**entry, "id": number})
        number += 1
    document["added_tokens"] = added
    return _checked(_followed(replace(tokenizer, document=document)))


def union(tokenizers: Sequence[Tokenizer]) -> Tokenizer:
    """Return the first tokenizer with the tokens of the others, in their order, behind its own.

    Its merges stay as they are. Raises PlanError for kinds that have no union.
    """
    made, *others = tokenizers
    for other in others:
        if other.kind != made.kind:
            raise PlanError(
                f"{made.label} is {made.kind} and {other.label} {other.kind}, of which there is no "
                "union; say from which the tokens are"
            )
        added = [entry for entry in other.added if entry["content"] not in made.ids]
        apart = {entry["content"] for entry in added}
        more = [
            token
            for token, _ in sorted(other.model_ids.items(), key=lambda item: item[1])
            if token not in made.ids and token not in apart
        ]
        made = with_vocabulary(made, more)
        if added:
            made = with_entries(made, sorted(added, key=lambda entry: int(entry["id"])))
    return made


def with_vocabulary(tokenizer: Tokenizer, tokens: Sequence[str]) -> Tokenizer:
    """Return a tokenizer whose model has more tokens, before those that are added ones alone.

    Text is cut as before by BPE, for which nothing is merged into them.
    """
    if not tokens:
        return tokenizer
    document = deepcopy(tokenizer.document)
    own = document["model"]["vocab"]
    first = max(tokenizer.model_ids.values(), default=-1) + 1
    if isinstance(own, list):
        raise PlanError(
            f"{tokenizer.label}: pieces of a Unigram have scores, which those of two tokenizers "
            "do not share; say from which the tokens are"
        )
    own.update({token: first + place for place, token in enumerate(tokens)})
    for entry in document.get("added_tokens") or []:
        if entry["content"] not in own:
            entry["id"] += len(tokens) if entry["id"] >= first else 0
    made = replace(tokenizer, document=document)
    return _checked(_followed(_renumbered(made)))


def reduced(tokenizer: Tokenizer, kept: Collection[str]) -> Tokenizer:
    """Return a tokenizer of some of the tokens, numbered anew in their old order.

    Merges go whose parts or whose result are gone.
    """
    order = sorted((tokenizer.ids[token], token) for token in kept)
    numbers = {token: number for number, (_, token) in enumerate(order)}
    document = deepcopy(tokenizer.document)
    model = document["model"]
    own = model["vocab"]
    if isinstance(own, list):
        if any(piece in numbers and numbers[piece] >= len(own) for piece, _ in own):
            raise PlanError("pieces come behind added tokens, which no Unigram can have")
        unknown = own[model["unk_id"]][0] if model.get("unk_id") is not None else None
        model["vocab"] = [entry for entry in own if entry[0] in numbers]
        if unknown is not None:
            model["unk_id"] = numbers[unknown]
    else:
        model["vocab"] = {token: numbers[token] for token in own if token in numbers}
    if tokenizer.kind == "BPE":
        model["merges"] = [
            merge for merge in model["merges"]
            if all(part in numbers for part in (*parts_of(merge), result_of(merge, model)))
        ]  # fmt: skip
    document["added_tokens"] = [
        {**entry, "id": numbers[entry["content"]]}
        for entry in document.get("added_tokens") or []
        if entry["content"] in numbers
    ]
    made = replace(tokenizer, document=document)
    return _checked(_followed(_renumbered(made), gone=tokenizer.ids.keys() - numbers.keys()))


def parts_of(merge: Any) -> tuple[str, str]:
    """Return the two parts of a merge, which older files write with a space in between."""
    first, second = merge.split(" ", 1) if isinstance(merge, str) else merge
    return first, second


def require_merge(merge: Any) -> None:
    """Raise TypeError or ValueError for what is no merge of two parts."""
    if not all(isinstance(part, str) for part in parts_of(merge)):
        raise TypeError(f"{short(merge)} is no merge")


def result_of(merge: Any, model: Mapping[str, Any]) -> str:
    """Return what a merge makes; a prefix of what goes on a word is written once."""
    first, second = parts_of(merge)
    prefix = model.get("continuing_subword_prefix") or ""
    return first + second.removeprefix(prefix)


# --- What says numbers of tokens besides ----------------------------------------------------------


def _checked(tokenizer: Tokenizer) -> Tokenizer:
    """Raise PlanError where the library would number the tokens otherwise."""
    _ = tokenizer.library
    return tokenizer


def _renumbered(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer whose post-processor and padding say the numbers that tokens have now."""
    document = dict(tokenizer.document)
    if document.get("post_processor"):
        document["post_processor"] = _processor(document["post_processor"], tokenizer.ids.get)
    if document.get("padding"):
        token = document["padding"].get("pad_token")
        number = tokenizer.ids.get(token, 0)
        document["padding"] = {**document["padding"], "pad_id": number}
    return replace(tokenizer, document=document)


def _processor(given: Json, number_of: Callable[[str], int | None]) -> Json:
    made = deepcopy(given)
    for inner, processor in enumerate(made.get("processors") or []):
        made["processors"][inner] = _processor(processor, number_of)
    for entry in (made.get("special_tokens") or {}).values():
        entry["ids"] = [_number(token, number_of) for token in entry["tokens"]]
    for word in ("sep", "cls"):
        if isinstance(made.get(word), list):
            token = made[word][0]
            made[word] = [token, _number(token, number_of)]
    return made


def _number(token: str, number_of: Callable[[str], int | None]) -> int:
    number = number_of(token)
    if number is None:
        raise PlanError(f"the tokenizer puts {token!r} around texts, and it is gone; keep it")
    return number


def _followed(
    tokenizer: Tokenizer, specials: Sequence[str] = (), gone: Collection[str] = ()
) -> Tokenizer:
    """Return a tokenizer whose files beside the document say what that says."""
    beside = {name: deepcopy(content) for name, content in tokenizer.beside.items()}
    config = beside.get(CONFIG, {})
    if "added_tokens_decoder" in config:
        config["added_tokens_decoder"] = {
            str(entry["id"]): {word: value for word, value in entry.items() if word != "id"}
            for entry in sorted(tokenizer.added, key=lambda entry: int(entry["id"]))
        }
    for name in (CONFIG, SPECIAL):
        for word in _LISTS:
            if isinstance(listed := beside.get(name, {}).get(word), list):
                kept = [value for value in listed if content_of(value) not in gone]
                beside[name][word] = [*kept, *specials]
    if ADDED in beside:
        beside[ADDED] = {
            entry["content"]: entry["id"]
            for entry in tokenizer.added
            if entry["content"] not in tokenizer.model_ids
        }
    return replace(tokenizer, beside=beside)
