"""Which tensors have one entry for each token, by the number of the config that says how many."""

from __future__ import annotations

from collections.abc import Mapping

from surgeon.draft import Tensors
from surgeon.model_folder.architectures import architecture_of
from surgeon.model_folder.case import Case, Json
from surgeon.model_folder.said import meaning_of
from surgeon.model_folder.token_ids import SIZE, ids_of, numbers_of

# (a tensor, its dimension of tokens)
Places = tuple[tuple[str, int], ...]


def vocabularies(config: Json, tensors: Tensors) -> Mapping[str, Places]:
    """Return {number of tokens in the config: the tensors with an entry for each token}."""
    known = architecture_of(config, tensors)
    meaning = meaning_of(Case(config, {}, config, tensors, {}, known))
    found: dict[str, list[tuple[str, int]]] = {}
    for name, dims in meaning.before.items():
        for dim, text in enumerate(dims):
            if SIZE.fullmatch(text):
                found.setdefault(text, []).append((name, dim))
    return {path: tuple(places) for path, places in found.items()}


def named_ids(*configs: Json) -> frozenset[int]:
    """Return the numbers of all tokens that configs name."""
    return frozenset(
        number
        for config in configs
        for path, value in ids_of(config)
        for number in numbers_of(path, value)
        if number >= 0
    )
