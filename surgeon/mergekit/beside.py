"""What a configuration says of tokenizers and chat templates, held to the models' own files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from surgeon.base.errors import UsageError
from surgeon.base.files import read_regular
from surgeon.base.strict_json import read_json
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
_ELSEWHERE = ("alpaca", "exaone", "llama3", "mistral")


def tokenizer_steps(
    config: Json, state: str, models: Mapping[str, str]
) -> tuple[list[Json], list[str]]:
    """Return what brings models to the tokenizer that is asked for, and notes; raises UsageError.

    `state` is the model whose files are carried, `models` are the names of the others.
    """
    wanted = _wanted(config)
    if wanted is None:
        return [], []
    base = path_of(config["base_model"]) if config.get("base_model") is not None else state
    source = base if wanted.source == "base" else wanted.source
    if source == "union" and base not in (state, *models):
        raise UsageError(
            f"tokenizer: a union that begins with {base}, which is none of the merged models, is "
            "not imported; give a path as its source"
        )
    everyone = list(dict.fromkeys([state, *models, *([] if source == "union" else [source])]))
    here = {path: _vocabulary(path) for path in everyone if Path(path).exists()}
    silent = [path for path, vocabulary in here.items() if not vocabulary]
    spoken = {path: vocabulary for path, vocabulary in here.items() if vocabulary}
    if len(here) == len(everyone) and spoken and not wanted.tokens:
        first = next(iter(spoken.values()))
        problem = next(filter(None, (_difference(first, v) for v in spoken.values())), "")
        if not problem and _are_of_size([state, *models], len(first), wanted.multiple):
            if silent:
                said = (
                    f"no vocabulary is found beside {', '.join(silent)}: all are taken to be equal"
                )
                return [], [f"tokenizer: {said}"]
            return [], ["tokenizer: one vocabulary, which nothing changes"]
        said = f"vocabularies differ ({problem})" if problem else "rows have no token, or lack one"
        notes = [f"tokenizer: {said}: the op vocabulary brings all models to one"]
    elif silent:
        notes = [f"tokenizer: no vocabulary is found beside {', '.join(silent)}"]
    else:
        notes = ["tokenizer: not all models are here; the op vocabulary brings them to one"]
    words = {"union": "union", **models, state: "input"}
    step: Json = {"op": "vocabulary", "from": words.get(source, source)}
    step["models"] = list(models.values())
    step["missing"] = {"otherwise": "zeros"}
    if wanted.tokens:
        names = {**models, state: "input"}
        step["missing"]["tokens"] = {
            token: _rule(token, given or {}, names) for token, given in wanted.tokens.items()
        }
    if wanted.multiple:
        step["pad_to_multiple_of"] = wanted.multiple
    return [step], notes


def _are_of_size(models: Sequence[str], tokens: int, multiple: int) -> bool:
    """Say whether models have as many rows as they are to have for this many tokens."""
    size = -(-tokens // multiple) * multiple if multiple else tokens
    return all(_rows(path, tokens) == size for path in models)


class _Wanted(NamedTuple):
    """Where the tokenizer is to come from, and what else is said of it."""

    source: str
    multiple: int
    tokens: Json


def _wanted(config: Json) -> _Wanted | None:
    """Return what a configuration says of the tokenizer; None for nothing."""
    given: Any = config.get("tokenizer")
    if given is not None and config.get("tokenizer_source") is not None:
        raise UsageError("give either 'tokenizer' or 'tokenizer_source'")
    if given is None:
        source = config.get("tokenizer_source")
        return None if source is None else _Wanted(path_of(source), 0, {})
    if not isinstance(given, dict):
        raise UsageError(f"tokenizer: {given!r} is no object")
    tokens = given.get("tokens") or {}
    if not isinstance(tokens, dict):
        raise UsageError(f"tokenizer.tokens: {tokens!r} is no object")
    multiple = given.get("pad_to_multiple_of") or 0
    if not isinstance(multiple, int) or multiple < 0:
        raise UsageError(f"tokenizer.pad_to_multiple_of is {multiple!r}, not a number of rows")
    return _Wanted(path_of(given.get("source", "union")), multiple, tokens)


def _rule(token: str, given: Json, names: Mapping[str, str]) -> Json:
    """Return what `vocabulary` says of a token's row."""
    source = given.get("source")
    rule: Json = {}
    if isinstance(source, dict) and source.get("kind") == "zero":
        rule["zeros"] = True
    elif isinstance(source, dict) and source.get("kind") == "model_token":
        path = path_of(source.get("model"))
        rule = {"model": _named(path, names), "token": source.get("token")}
        if rule["token"] is None:
            ids = {number: text for text, number in _vocabulary(path).items()}
            if (number := source.get("token_id")) not in ids:
                raise UsageError(f"tokenizer.tokens: {path} has no token {number!r}")
            rule["token"] = ids[number]
    elif source is not None:
        rule["model"] = _named(path_of(source), names)
    else:
        raise UsageError(f"tokenizer.tokens: {token!r} has no source: give one")
    return rule | ({"always": True} if given.get("force") else {})


def _named(path: str, names: Mapping[str, str]) -> str:
    if path not in names:
        raise UsageError(f"tokenizer.tokens: '{path}' is none of the merged models")
    return names[path]


def _rows(path: str, tokens: int) -> int:
    """Return the rows of a model's embedding; without one of a known name, its tokens."""
    checkpoint = open_checkpoint(path)
    try:
        return next((tensor.spec.shape[0] for name, tensor in checkpoint.tensors.items()
                     if "embed_tokens" in name or name.endswith("wte.weight")), tokens)  # fmt: skip
    finally:
        checkpoint.close()


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
        value = read_json(path, most_bytes=_MOST_BYTES, allow_infinite=True)
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
