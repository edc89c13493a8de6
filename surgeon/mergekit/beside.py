"""What a configuration says of tokenizers and chat templates, held to the models' own files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from surgeon.base.errors import UsageError
from surgeon.base.files import read_regular
from surgeon.formats import open_checkpoint
from surgeon.mergekit.places import path_of

Json = dict[str, Any]
_MOST_BYTES = 100_000_000
# As every model has it that was trained on this layout; OpenAI's chat markup language.
_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_NAMED = {"chatml": _CHATML}
_WORDS = ("union", "base")
_ELSEWHERE = ("alpaca", "exaone", "llama3", "mistral")


def tokenizer_notes(config: Json, state: str, models: Sequence[str]) -> list[str]:
    """Say what is done about vocabularies; raises UsageError where one would change.

    `state` is the model whose files are carried, `models` are all of them.
    """
    wanted = _wanted(config)
    if wanted is None:
        return []
    source, multiple = wanted
    everyone = list(dict.fromkeys([state, *models, *([] if source in _WORDS else [source])]))
    here = {path: _vocabulary(path) for path in everyone if Path(path).exists()}
    known = {path: vocabulary for path, vocabulary in here.items() if vocabulary}
    unknown = [path for path in everyone if path not in known]
    first = next(iter(known), "")
    for path, vocabulary in known.items():
        if problem := _difference(known[first], vocabulary):
            raise UsageError(
                f"tokenizer: the vocabularies of {first} and {path} differ ({problem}): bring the "
                "models to one vocabulary first, or leave 'tokenizer' out where rows mean the same"
            )
    notes = []
    if unknown:
        notes.append(
            f"tokenizer: no vocabulary is found beside {', '.join(unknown)}: all are taken to be "
            "equal; import again where the models are, to be sure"
        )
    if state in known:
        notes += _about_rows(state, len(known[state]), multiple)
    elif multiple:
        raise UsageError(f"tokenizer.pad_to_multiple_of: {state} is not here to count its rows")
    return [*notes, f"tokenizer: one vocabulary, which nothing changes; {state}'s files go along"]


def _wanted(config: Json) -> tuple[str, int] | None:
    """Return where the tokenizer is to come from, and of what the rows are to be a multiple."""
    given: Any = config.get("tokenizer")
    if given is not None and config.get("tokenizer_source") is not None:
        raise UsageError("give either 'tokenizer' or 'tokenizer_source'")
    if given is None:
        source = config.get("tokenizer_source")
        return None if source is None else (path_of(source), 0)
    if not isinstance(given, dict):
        raise UsageError(f"tokenizer: {given!r} is no object")
    if given.get("tokens"):
        tokens = ", ".join(map(repr, given["tokens"]))
        raise UsageError(
            f"tokenizer.tokens is not imported: give {tokens} their rows in the models first"
        )
    multiple = given.get("pad_to_multiple_of") or 0
    if not isinstance(multiple, int) or multiple < 0:
        raise UsageError(f"tokenizer.pad_to_multiple_of is {multiple!r}, not a number of rows")
    return path_of(given.get("source", "union")), multiple


def _about_rows(state: str, tokens: int, multiple: int) -> list[str]:
    """Say what mergekit does to rows without a token; raises UsageError for rows to be added."""
    checkpoint = open_checkpoint(state)
    try:
        rows = next((tensor.spec.shape[0] for name, tensor in checkpoint.tensors.items()
                     if "embed_tokens" in name or name.endswith("wte.weight")), tokens)  # fmt: skip
    finally:
        checkpoint.close()
    if multiple and -(-tokens // multiple) * multiple != rows:
        raise UsageError(
            f"tokenizer.pad_to_multiple_of: {tokens} tokens and {rows} rows do not make a multiple "
            f"of {multiple}: widen the embeddings first"
        )
    if rows > tokens and not multiple:
        return [f"tokenizer: {rows - tokens} rows without a token are kept; mergekit drops them"]
    if rows < tokens:
        raise UsageError(f"tokenizer: {state} has {tokens} tokens, but {rows} rows for them")
    return []


def _vocabulary(path: str) -> dict[str, int]:
    """Return a model's tokens with their ids; {} where its files do not say them."""
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    tokens: dict[str, int] = {}
    if whole := _json(folder / "tokenizer.json"):
        found = whole.get("model", {}).get("vocab", {})
        if isinstance(found, list):  # Unigram: pieces with their scores
            found = {piece[0]: number for number, piece in enumerate(found)}
        tokens = {**found, **{t["content"]: t["id"] for t in whole.get("added_tokens", [])}}
    elif found := _json(folder / "vocab.json"):
        tokens = {**found, **_json(folder / "added_tokens.json")}
    return tokens


def _json(path: Path) -> Json:
    if not path.is_file():
        return {}
    try:
        value = json.loads(read_regular(path, _MOST_BYTES))
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{path}: is no JSON object")
    return value


def _difference(one: dict[str, int], other: dict[str, int]) -> str:
    """Say in what two vocabularies differ; nothing where they do not."""
    for token in [*one, *other]:
        if one.get(token) != other.get(token):
            ids = (str(v.get(token, "nothing")) for v in (one, other))
            return f"{token!r} is {' and '.join(ids)}"
    return ""


def chat_template(given: Any, models: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the template to write, None where none is, and notes; raises UsageError."""
    if not given:
        return None, []
    text = str(given)
    if text == "auto":
        return _most_common(models)
    if text in _NAMED:
        return _NAMED[text], []
    if text in _ELSEWHERE:
        raise UsageError(f"chat_template: '{text}' is a text of mergekit's own: give the template")
    if len(text) < 20 or "{" not in text:
        raise UsageError(f"chat_template: {text!r} is no template; known: auto, chatml")
    return text, []


def _most_common(models: Sequence[str]) -> tuple[str | None, list[str]]:
    absent = [path for path in models if not Path(path).exists()]
    if absent:
        note = f"chat_template: auto, and {', '.join(absent)} not here: the input's own is kept"
        return None, [note]
    found = Counter(text.strip() for path in models if (text := _template(path)))
    if not found:
        return None, ["chat_template: auto, and no model has one"]
    ((text, most), *rest) = found.most_common()
    if rest and rest[0][1] == most:
        raise UsageError("chat_template: auto, and the models' templates tie: give the template")
    return text, []


def _template(path: str) -> str:
    """Return the default chat template of a model's tokenizer; '' where it has none."""
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    file = folder / "chat_template.jinja"
    if file.is_file():
        return read_regular(file, _MOST_BYTES).decode()
    template = _json(folder / "tokenizer_config.json").get("chat_template") or ""
    if isinstance(template, list):
        named = {item.get("name"): item.get("template") for item in template}
        return str(named.get("default") or "")
    return str(template)
