"""A tokenizer as the files of a folder describe it: tokens by number, and what goes with them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from surgeon.base.errors import PlanError, UsageError, listed

Json = dict[str, Any]

DOCUMENT = "tokenizer.json"
CONFIG = "tokenizer_config.json"
SPECIAL = "special_tokens_map.json"
ADDED = "added_tokens.json"
TEMPLATE = "chat_template.jinja"
# Files of a tokenizer besides, which say what its document says in another form.
OTHER_FORMS = (
    "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model",
    "sentencepiece.bpe.model", "source.spm", "target.spm", "tekken.json",
)  # fmt: skip
KINDS = ("BPE", "WordPiece", "Unigram", "WordLevel")
# What AddedToken has, and transformers writes of it.
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_ROLE = "_token"
# Roles that a token can be given; that of the unknown token is its model's.
ROLES = ("bos_token", "eos_token", "pad_token", "sep_token", "cls_token", "mask_token")
# Those in use make a character one or three; a few that follow one another could make terabytes.
_MOST_GROWTH = 1000


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """The tokenizer of a model folder, as it is or as it will be.

    `document` is tokenizer.json, `beside` the other JSON files that name tokens, as far as they are
    there; `other_forms` are files that hold the vocabulary once more; `template` is the chat
    template, where that is a file; `given` are the roles that steps gave to tokens.
    """

    label: str
    document: Json
    beside: Mapping[str, Json] = field(default_factory=dict)
    other_forms: tuple[str, ...] = ()
    template: str | None = None
    given: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """What the model of the tokenizer is, such as BPE."""
        return str(self.document["model"]["type"])

    @cached_property
    def model_ids(self) -> Mapping[str, int]:
        """The tokens that text is cut into, with their numbers."""
        found = self.document["model"]["vocab"]
        if isinstance(found, dict):
            return found
        return {piece: number for number, (piece, _) in enumerate(found)}

    @property
    def added(self) -> Sequence[Json]:
        """The tokens that are looked for in a text before it is cut."""
        found: list[Json] = self.document.get("added_tokens") or []
        return found

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """All tokens, with their numbers."""
        return {**self.model_ids, **{token["content"]: token["id"] for token in self.added}}

    @cached_property
    def tokens(self) -> Mapping[int, str]:
        """All tokens by their numbers."""
        return {number: token for token, number in self.ids.items()}

    @cached_property
    def size(self) -> int:
        """The rows that the tokens need."""
        return max(self.ids.values(), default=-1) + 1

    @cached_property
    def specials(self) -> frozenset[str]:
        """The tokens that are no text: those added as such, and those that have a role."""
        flagged = {token["content"] for token in self.added if token.get("special")}
        roles = {*self.roles.values()}
        unknown = {self.tokens[self.unknown]} if self.unknown is not None else set()
        return frozenset((flagged | roles) & self.ids.keys() | unknown)

    @cached_property
    def unknown(self) -> int | None:
        """The number of the token that stands for what is in no vocabulary."""
        model = self.document["model"]
        if self.kind == "Unigram":
            found: int | None = model.get("unk_id")
            return found
        return self.model_ids.get(model.get("unk_token") or "")

    @cached_property
    def roles(self) -> Mapping[str, str]:
        """The tokens that have a role, such as `pad_token`."""
        found: dict[str, str] = {}
        for name in (CONFIG, SPECIAL):
            for word, value in self.beside.get(name, {}).items():
                if word.endswith(_ROLE) and (token := content_of(value)) is not None:
                    found.setdefault(word, token)
        return found

    @property
    def templates(self) -> Sequence[str]:
        """The chat templates, of a file and of the config, which may have several by name."""
        given = self.beside.get(CONFIG, {}).get("chat_template")
        named = given if isinstance(given, list) else [{"template": given}]
        found = [one.get("template") for one in named if isinstance(one, dict)]
        return [text for text in (self.template, *found) if isinstance(text, str)]

    @cached_property
    def library(self) -> Any:
        """The tokenizer of the `tokenizers` library; raises as `loaded`."""
        return loaded(self.document, self.label)

    def pieces(self, text: str) -> list[int]:
        """Return the numbers of the tokens that a text is cut into, without those put around it."""
        return self.pieces_of_each([text])[0]

    def pieces_of_each(self, texts: Sequence[str]) -> list[list[int]]:
        """Return what `pieces` does, of several texts at once."""
        return self._encoded(texts, add_special_tokens=False)

    def sequences(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the numbers of texts' tokens, with those that the tokenizer puts around each."""
        return self._encoded(texts, add_special_tokens=True)

    def _encoded(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
        library = self.library
        try:
            found = library.encode_batch(list(texts), add_special_tokens=add_special_tokens)
        except BaseException as error:
            # A pattern that takes too long for a text, say, is a panic, which is no Exception.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise PlanError(f"{self.label}: the tokenizer cannot cut a text: {error}") from None
        return [one.ids for one in found]

    def texts(self) -> dict[str, str]:
        """Return the files of the tokenizer, as transformers writes them."""
        files = {DOCUMENT: self.document, **self.beside}
        made = {
            name: json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            for name, content in files.items()
        }
        return made if self.template is None else {**made, TEMPLATE: self.template}

    def text_of(self, token: str) -> str:
        """Return what a token stands for in a text; U+FFFD where that is part of a character."""
        number = self.ids[token]
        if any(entry["content"] == token for entry in self.added):
            return token
        text: str = self.library.decode([number], skip_special_tokens=False)
        return text


def content_of(value: object) -> str | None:
    """Return the text of a token that a file writes as such, or as an object."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def loaded(document: Json, label: str) -> Any:
    """Return a document as the library reads it.

    Raises UsageError where the library is missing, PlanError for what it cannot read, and where it
    would give tokens other numbers.
    """
    try:
        from tokenizers import Tokenizer as Library
    except ImportError:
        raise UsageError(
            "tokens need the tokenizers library: pip install 'surgeon-checkpoints[tokenizers]'"
        ) from None
    try:
        made = Library.from_str(json.dumps(document, ensure_ascii=False))
    except Exception as error:  # the library raises plain Exceptions
        raise PlanError(f"{label}: {DOCUMENT}: {error}") from None
    made.no_padding()
    made.no_truncation()
    found, wanted = made.get_vocab(with_added_tokens=True), Tokenizer(label, document).ids
    if found != wanted:
        other = [token for token, number in wanted.items() if found.get(token) != number]
        raise PlanError(
            f"{label}: {DOCUMENT}: {listed(other)} would have another number once it is loaded, "
            f"such as {found.get(other[0])} for {wanted[other[0]]}"
            if other
            else f"{label}: {DOCUMENT}: holds tokens of which it says no number"
        )
    return made


def added_entry(content: str, number: int, *, special: bool) -> Json:
    """Return an entry of added_tokens, as transformers' `add_tokens` makes it."""
    flags = dict.fromkeys(FLAGS, False) | {"normalized": not special, "special": special}
    return {"id": number, "content": content, **flags}


def require_known(tokenizer: Tokenizer) -> None:
    """Raise PlanError for a kind of tokenizer whose parts nothing is known of."""
    kind = tokenizer.document.get("model", {}).get("type")
    if kind not in KINDS:
        raise PlanError(
            f"{tokenizer.label}: {DOCUMENT}: its model is {kind!r}, which is none of "
            f"{', '.join(KINDS)}"
        )
    for part in ("normalizer", "decoder"):
        if _growth(tokenizer.document.get(part)) > _MOST_GROWTH:
            raise PlanError(
                f"{tokenizer.label}: {DOCUMENT}: its {part} may make a character more than "
                f"{_MOST_GROWTH:,} long"
            )


def _growth(part: Any) -> int:
    """Return how many characters one may become by what replaces others, one after the other."""
    if not isinstance(part, dict):
        return 1
    content = part.get("content")
    grown = max(len(content), 1) if isinstance(content, str) else 1
    for inner in [*(part.get("normalizers") or ()), *(part.get("decoders") or ())]:
        grown *= _growth(inner)
    return grown
