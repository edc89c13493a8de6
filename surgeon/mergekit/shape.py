"""A configuration in its plainest shape: without words that mergekit reads over, one module."""

from __future__ import annotations

from typing import Any

from surgeon.base.errors import UsageError, did_you_mean

Json = dict[str, Any]

KNOWN = (
    "merge_method", "base_model", "models", "slices", "modules", "parameters", "dtype", "out_dtype",
    "tokenizer_source", "tokenizer", "chat_template",
)  # fmt: skip
_ENTRY = ("model", "parameters")
_SLICE = ("sources", "parameters", "base_model")
_MODULE = ("models", "slices", "parameters")


def plain(config: Json) -> tuple[Json, list[str]]:
    """Return a configuration of models or slices, and a note for each word that means nothing.

    Raises UsageError where there are several modules.
    """
    notes: list[str] = []
    kept = _only(config, KNOWN, "the configuration", notes)
    if modules := kept.pop("modules", None):
        kept = _one_module(kept, modules, notes)
    for number, entry in enumerate(kept.get("models") or []):
        _only(entry, _ENTRY, f"models[{number}]", notes)
    for number, part in enumerate(kept.get("slices") or []):
        _only(part, _SLICE, f"slices[{number}]", notes)
        for index, entry in enumerate(part["sources"]):
            _only(entry, (*_ENTRY, "layer_range"), f"slices[{number}].sources[{index}]", notes)
    return kept, notes


def _only(given: Json, known: tuple[str, ...], where: str, notes: list[str]) -> Json:
    """Return what is known of an object; a note says what else there is."""
    for word in given.keys() - set(known):
        hint = did_you_mean(str(word), known)
        if where == "the configuration" and word == "name":
            continue  # a merge's own name, which says nothing about it
        notes.append(f"'{word}' in {where} means nothing to mergekit, and is left out{hint}")
    notes.sort()
    return {word: value for word, value in given.items() if word in known}


def _one_module(config: Json, modules: Json, notes: list[str]) -> Json:
    """Return a configuration without modules; the only module's parameters go before the common."""
    if len(modules) > 1:
        raise UsageError(
            f"'modules' has {len(modules)} of them: models of several modules are not imported; "
            "merge them one by one"
        )
    if config.get("models") or config.get("slices"):
        raise UsageError("give one of 'models', 'slices' and 'modules'")
    ((name, module),) = modules.items()
    module = _only(module, _MODULE, f"modules.{name}", notes)
    own, common = module.pop("parameters", None) or {}, config.get("parameters") or {}
    joined = {word: _first(own.get(word, []), common.get(word, [])) for word in {**common, **own}}
    return {**config, **module, "parameters": joined}


def _first(inner: Any, outer: Any) -> Any:
    """Return a setting that says what `inner` says, and of the rest what `outer` says."""
    if inner == [] or outer == []:
        return outer if inner == [] else inner
    rules = [*_as_list(inner), *_as_list(outer)]
    return rules if len(rules) > 1 and "filter" in _as_list(inner)[-1] else inner


def _as_list(setting: Any) -> list[Json]:
    if isinstance(setting, dict):
        return [setting]
    if isinstance(setting, list) and any(isinstance(item, dict) for item in setting):
        return setting
    return [{"value": setting}]
