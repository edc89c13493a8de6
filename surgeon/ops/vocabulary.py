"""vocabulary: a model, or every model of a merge, brought to the tokens of one tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from surgeon.base.errors import PlanError, listed
from surgeon.base.indices import runs
from surgeon.base.schema import Schema
from surgeon.draft import Draft, Tensors
from surgeon.draft.heads import with_own_heads
from surgeon.draft.registry import op
from surgeon.initialisers import InitSchema, for_sibling, grown
from surgeon.lazy import Joined, LazyTensor, Selected
from surgeon.ops.shared.token_rows import Entries, means, require_numbers
from surgeon.ops.shared.vocabulary import (
    Multiple,
    TokenTensors,
    Vocabulary,
    padded,
    vocabulary_of,
)
from surgeon.tokens import edits
from surgeon.tokens.tokenizer import Tokenizer

_UNION, _INPUT = "union", "input"
_MODELS, _SUBTOKENS, _MEAN = "models", "subtokens", "mean"
_NAME: Schema = {"type": "string", "minLength": 1}
_RULE: Schema = {
    "type": "object",
    "properties": {
        "model": {**_NAME, "description": "the model whose row it gets, or 'input'"},
        "token": {**_NAME, "description": "which of its tokens' rows; default the same"},
        "zeros": {"type": "boolean", "description": "its row is zeros"},
        "always": {"type": "boolean", "description": "also where a model has the token"},
    },
    "oneOf": [{"required": ["model"]}, {"required": ["zeros"]}],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class _Missing:
    """The schema of what a model gets for tokens that it lacks."""

    @property
    def json_schema(self) -> Schema:
        init = InitSchema((_MODELS, _SUBTOKENS)).json_schema
        return {
            "type": "object",
            "properties": {
                "init": {**init, "description": "how their rows are made"},
                "otherwise": {
                    **InitSchema((_SUBTOKENS,)).json_schema,
                    "description": "the same, for tokens that no model has",
                },
                "tokens": {
                    "type": "object",
                    "additionalProperties": _RULE,
                    "description": "where the rows of single tokens come from",
                },
            },
            "additionalProperties": False,
        }


@op(
    group="size",
    example={"from": "union", "models": ["other"], "target": "embed.weight"},
)
def vocabulary(
    draft: Draft,
    *,
    from_: Annotated[
        str,
        {"minLength": 1},
        "whose tokens: 'input', the name of a model, 'union' of all of them, or the path of a "
        "folder or tokenizer.json",
    ],
    models: Annotated[
        list[str] | None,
        {"items": _NAME},
        "the models that are brought to it besides the input; default all of the recipe",
    ] = None,
    missing: Annotated[
        dict[str, Any] | None,
        _Missing(),
        'what a model gets for tokens that it lacks; default {"init": "models"}',
    ] = None,
    pad_to_multiple_of: Multiple = None,
    target: TokenTensors = None,
) -> None:
    """Bring the input, and the models to be merged, to one vocabulary.

    Rows are moved by the strings of their tokens, in every tensor that has one for each; the
    tokenizer's files and the numbers in configs follow. After it, merges find the same token in the
    same row. With `"init": "models"`, a token that a model lacks gets the input's row, or else the
    mean of the rows of those that have it; with `"subtokens"`, the mean of the pieces that the
    model's own tokenizer cuts it into, or of all rows where that is nothing; other inits are those
    of `widen`. The union has the input's tokens first, with its merges, then what the others have
    besides. Rows without a token go; those that `pad_to_multiple_of` adds are the mean of the
    others. Raises for tokens that no model has, unless `otherwise` says what they get.
    """
    rules = missing or {}
    names: list[str | None] = [None, *(draft.models if models is None else models)]
    if target is None:
        draft.tensors = with_own_heads(draft, None, [name for name in names if name]).tensors
    own = {name: vocabulary_of(draft, target, name) for name in names}
    goal = _goal(draft, from_, {name: one.tokenizer for name, one in own.items()})
    wanted = [token for token in rules.get("tokens", {}) if token not in goal.ids]
    if wanted:
        goal = edits.with_tokens(goal, [edits.NewToken(token) for token in wanted])
    change = _Change(draft, own, goal, rules, padded(goal.size, pad_to_multiple_of))
    results = {name: change.tensors_of(name) for name in names}
    for name, changes in results.items():
        _bind(draft, name, changes)
        draft.tokenizers[name] = goal
    draft.notes += change.notes


def _goal(draft: Draft, source: str, own: Mapping[str | None, Tokenizer]) -> Tokenizer:
    """Return the tokenizer that all are brought to."""
    words = [word for word in (_UNION, _INPUT) if word in draft.models and word == source]
    if words:
        raise PlanError(f"'{source}' is also the name of a model; give that another")
    if source == _UNION:
        made = edits.union(list(own.values()))
        first = own[None]
        more = [token for token in made.model_ids if token not in first.ids]
        if more and made.kind == "BPE":
            draft.notes.append(
                f"{listed(more)}: no merge of the input makes these, so that text is cut as before"
            )
        elif more and made.kind == "WordPiece":
            draft.notes.append(f"{listed(more)}: text that holds these is cut into them now")
        return made
    if source == _INPUT:
        return own[None]
    if source in draft.models:
        return draft.tokenizer(source)
    try:
        return draft.outside.open_tokenizer(source)
    except PlanError as error:
        known = listed([_INPUT, _UNION, *draft.models])
        raise PlanError(*error.problems, f"'{source}' is none of {known} either") from None


def _bind(draft: Draft, model: str | None, changes: Mapping[str, LazyTensor]) -> None:
    """Have the state or a model hold other tensors, also under names that are tied."""
    if model is None:
        draft.replace(changes)
    elif changes:
        tensors = draft.model(model)
        by_identity = {id(tensors[name]): tensor for name, tensor in changes.items()}
        draft.models[model] = {
            name: by_identity.get(id(tensor), tensor) for name, tensor in tensors.items()
        }


@dataclass
class _Change:
    """What becomes of the rows of each model."""

    draft: Draft
    own: Mapping[str | None, Vocabulary]
    goal: Tokenizer
    rules: Mapping[str, Any]
    rows: int
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def _tensors(self, model: str | None) -> Tensors:
        return self.draft.tensors if model is None else self.draft.model(model)

    def _called(self, model: str | None) -> str:
        return "the input" if model is None else f"model '{model}'"

    def tensors_of(self, model: str | None) -> dict[str, LazyTensor]:
        """Return the tensors of a model that change."""
        vocabulary = self.own[model]
        ids = vocabulary.tokenizer.ids
        always = [t for t, rule in self.rules.get("tokens", {}).items() if rule.get("always")]
        same = ids == self.goal.ids and self.rows == vocabulary.rows and not always
        if same:
            return {}
        lacking = [
            token for token in self.goal.ids if token not in ids or token in always
        ]  # fmt: skip
        self._tell(model, lacking)
        changes: dict[str, LazyTensor] = {}
        for name, dim in vocabulary.places.items():
            changes[name] = self._made(model, name, dim, lacking)
        return changes

    def _tell(self, model: str | None, lacking: Sequence[str]) -> None:
        vocabulary, called = self.own[model], self._called(model)
        shared = len(self.goal.ids.keys() & vocabulary.tokenizer.ids.keys())
        gone = vocabulary.tokenizer.ids.keys() - self.goal.ids.keys()
        parts = [f"{shared} tokens of {called} keep their rows"]
        parts += [f"{len(lacking)} get one ({listed(lacking, 3)})"] if lacking else []
        parts += [f"{len(gone)} go ({listed(sorted(gone), 3)})"] if gone else []
        if spare := vocabulary.rows - vocabulary.tokenizer.size:
            parts.append(f"{spare} rows without a token go")
        self.notes.append(", ".join(parts))
        if 2 * shared < len(vocabulary.tokenizer.ids):
            self.notes.append(f"{called} shares less than half of its tokens: is it the same kind?")

    def _made(self, model: str | None, name: str, dim: int, lacking: Sequence[str]) -> LazyTensor:
        """Return a tensor with the rows of the vocabulary that all get."""
        vocabulary, tensor = self.own[model], self._tensors(model)[name]
        ids, stream = vocabulary.tokenizer.ids, self.draft.stream(name)
        if model is not None:
            stream = stream._replace(name=f"{model}:{name}")
        leaf = name.rpartition(".")[2]
        own_rows = Selected(tensor, dim, ((0, vocabulary.tokenizer.size),))
        entries: dict[str, Entries] = {}
        drawn: dict[str, list[str]] = {"init": [], "otherwise": [], _MEAN: []}
        lacked = set(lacking)
        for token in lacking:
            self._source(model, name, token, entries, drawn)
        if self.problems:
            raise PlanError(*dict.fromkeys(self.problems))
        parts: list[LazyTensor] = [own_rows]
        place = {token: number for token, number in ids.items() if token not in lacked}
        end = vocabulary.tokenizer.size
        for word, tokens in drawn.items():
            if tokens:
                init = for_sibling(self.rules.get(word, _MEAN), None, name=leaf)
                made = grown(own_rows, dim, len(tokens), init, stream, name=leaf)
                size = own_rows.spec.shape[dim]
                parts.append(Selected(made, dim, ((size, size + len(tokens)),)))
                place |= {token: end + number for number, token in enumerate(tokens)}
                end += len(tokens)
        holes = [number for number in range(self.goal.size) if number not in self.goal.tokens]
        if entries or holes:
            require_numbers(name, tensor)
            some = [*entries.values(), *([[]] if holes else [])]
            parts.append(means(tensor, dim, some, stream, self._word(entries)))
            place |= {token: end + number for number, token in enumerate(entries)}
            end += len(some)
        order = [
            place[self.goal.tokens[number]] if number in self.goal.tokens else end - 1
            for number in range(self.goal.size)
        ]
        joined = Joined(tuple(parts), dim) if len(parts) > 1 else own_rows
        made_rows: LazyTensor = Selected(joined, dim, runs(order))
        padding = self.rows - self.goal.size
        if padding:
            made_rows = grown(made_rows, dim, padding, "mean", stream, name=leaf)
        return made_rows

    def _word(self, entries: Mapping[str, Entries]) -> str:
        init = self.rules.get("init", _MODELS)
        return str(init) if init in (_MODELS, _SUBTOKENS) and entries else _MODELS

    def _source(
        self,
        model: str | None,
        name: str,
        token: str,
        entries: dict[str, Entries],
        drawn: dict[str, list[str]],
    ) -> None:
        """Find what a row that a model lacks is made of."""
        if rule := self.rules.get("tokens", {}).get(token):
            entries[token] = self._ruled(name, token, rule)
            return
        init = self.rules.get("init", _MODELS)
        if init == _MODELS:
            entries[token] = self._of_models(name, token)
            if entries[token]:
                return
            del entries[token]
            init, word = self.rules.get("otherwise"), "otherwise"
            if init is None:
                self.problems.append(
                    f"no model has {token!r}; missing.otherwise says how its row is made"
                )
                return
        else:
            word = "init"
        if init == _SUBTOKENS:
            if found := self._of_pieces(model, name, token):
                entries[token] = found
            else:
                drawn[_MEAN].append(token)
        else:
            drawn[word].append(token)

    def _of_models(self, name: str, token: str) -> Entries:
        """Return the input's row of a token, or else those of the models that have it."""
        having = [
            (self._tensors(other)[name], vocabulary.tokenizer.ids[token])
            for other, vocabulary in self.own.items()
            if token in vocabulary.tokenizer.ids and name in self._tensors(other)
        ]
        first = token in self.own[None].tokenizer.ids and name in self.draft.tensors
        return having[:1] if first else having

    def _of_pieces(self, model: str | None, name: str, token: str) -> Entries:
        """Return the rows of a token's pieces; none where the model's tokenizer finds none."""
        tokenizer, tensor = self.own[model].tokenizer, self._tensors(model)[name]
        text = self.goal.text_of(token)
        # Of a part of a character there is no text.
        pieces = [] if "\ufffd" in text else tokenizer.pieces(text)
        return [(tensor, piece) for piece in pieces]

    def _ruled(self, name: str, token: str, rule: Mapping[str, Any]) -> Entries:
        """Return the row that a step gives a token."""
        if "model" not in rule:
            return []
        model = None if rule["model"] == _INPUT else rule["model"]
        if model not in self.own:
            self.problems.append(f"missing.tokens: '{model}' is none of the models")
            return []
        wanted = rule.get("token", token)
        number = self.own[model].tokenizer.ids.get(wanted)
        if number is None or name not in self._tensors(model):
            self.problems.append(f"missing.tokens: {self._called(model)} has no {wanted!r}")
            return []
        return [(self._tensors(model)[name], number)]
