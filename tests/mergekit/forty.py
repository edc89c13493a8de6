"""Forty configurations with what people write besides methods and weights.

`$name` is a model that the tests make; a list is a file of several documents.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


def entry(model: str, *layers: int, **parameters: Any) -> Json:
    found: Json = {"model": f"${model}"}
    if layers:
        found["layer_range"] = list(layers)
    return found | ({"parameters": parameters} if parameters else {})


def config(method: str, *models: Json, base: str | None = None, **rest: Any) -> Json:
    found: Json = {"merge_method": method, "dtype": "float64", **rest}
    found |= {"models": list(models)} if models else {}
    return found | ({"base_model": f"${base}"} if base else {})


def slices(*parts: list[Json] | Json) -> list[Json]:
    return [part if isinstance(part, dict) else {"sources": part} for part in parts]


TWO = (entry("first", weight=0.4), entry("second", weight=0.7))
HALVES = {"t": [0.2, 0.8]}
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
)

FORTY: dict[str, Json | list[Json]] = {
    # Tokenizers and chat templates
    "union of equal vocabularies": config("linear", *TWO, tokenizer_source="union"),
    "the base's tokenizer": config("ties", *TWO, base="base", tokenizer_source="base"),
    "a model's tokenizer": config("linear", *TWO, tokenizer_source="$second"),
    "tokenizer as an object": config("linear", *TWO, tokenizer={"source": "union"}),
    "a tokenizer without tokens": config(
        "linear", *TWO, tokenizer={"source": "$first", "tokens": {}}),
    "tokenizer, slerp": config(
        "slerp", entry("first"), base="base", parameters=HALVES, tokenizer_source="base"),
    "chatml": config("linear", *TWO, chat_template="chatml"),
    "a template's text": config("linear", *TWO, chat_template=TEMPLATE),
    "the template of most": config(
        "linear", *TWO, entry("third", weight=1), chat_template="auto"),
    "tokenizer and template": config(
        "dare_ties", *TWO, base="base", tokenizer_source="union", chat_template=TEMPLATE),
    # Words that mergekit reads over
    "a name": config("linear", *TWO, name="merged"),
    "words of model cards": config("linear", *TWO, license="mit", tags=["merge"]),
    "a model's revision": config(
        "linear", TWO[0] | {"revision": "main"}, TWO[1]),
    "a density in the wrong place": config(
        "ties", TWO[0] | {"density": 0.1}, TWO[1], base="base", parameters={"density": 0.5}),
    # Modules, numbers as booleans
    "the default module": config("linear", modules={"default": {"models": list(TWO)}}),
    "a module with parameters": config(
        "linear", modules={"default": {
            "models": [entry("first"), entry("second", weight=2)],
            "parameters": {"weight": [{"filter": "mlp", "value": 3}]}}},
        parameters={"weight": 0.5}),
    "a module of slices": config(
        "slerp", base="base", parameters=HALVES, modules={"default": {"slices": slices(
            [entry("base", 0, 2), entry("first", 0, 2)],
            [entry("base", 2, 4), entry("first", 2, 4)])}}),
    "normalize: 1.0": config("ties", *TWO, base="base", parameters={"normalize": 1.0}),
    "normalize: 0": config(
        "task_arithmetic", *TWO, base="base", parameters={"normalize": 0, "int8_mask": 1.0}),
    "int8_mask: 1.0": config(
        "ties", *TWO, base="base", parameters={"int8_mask": 1.0, "density": 0.3}),
    # Models
    "model+adapter": config("linear", entry("first+$lora", weight=1), TWO[1]),
    "an adapter in another place": config("linear", TWO[0], entry("second+$lora", weight=1)),
    "models as objects": config(
        "linear", TWO[0] | {"model": {"model": {"path": "$first"}}}, TWO[1]),
    "an architecture stated": config("linear", TWO[0] | {
        "model": {"model": "$first", "override_architecture": "LlamaForCausalLM"}}, TWO[1]),
    "old buffers": config("linear", entry("old", weight=0.3), TWO[1]),
    "old buffers elsewhere": config("linear", TWO[0], entry("old", weight=0.3)),
    # Slices
    "slices of different layers": config("linear", slices=slices(
        [entry("first", 0, 2, weight=1), entry("second", 2, 4, weight=2)],
        [entry("first", 2, 4, weight=1), entry("second", 0, 2, weight=1)])),
    "stacked, then merged": config("slerp", base="base", parameters={"t": 0.3}, slices=slices(
        [entry("base", 0, 3), entry("first", 0, 3)], [entry("base", 1, 4), entry("first", 1, 4)])),
    "a part of the layers": config("slerp", base="base", parameters=HALVES, slices=slices(
        [entry("base", 1, 3), entry("first", 1, 3)])),
    "slices of one source": config("linear", slices=slices(
        [entry("first", 0, 2, weight=1)],
        [entry("first", 2, 3, weight=1), entry("second", 2, 3, weight=[2, 3])],
        [entry("second", 3, 4, weight=0.5)])),
    "one source, all of it": config("linear", slices=slices([entry("first", 0, 4, weight=1)])),
    "a slice's base": config("slerp", base="base", parameters=HALVES, slices=slices(
        [entry("base", 0, 2), entry("first", 0, 2)],
        {"sources": [entry("first", 2, 4), entry("second", 2, 4)], "base_model": "$second"})),
    "other models in each slice": config("linear", parameters={"weight": 1}, slices=slices(
        [entry("first", 0, 2), entry("second", 1, 3)],
        [entry("base", 2, 4, weight=2), entry("third", 2, 4)])),
    "ties of moved slices": config("ties", base="base", parameters={"density": 0.5}, slices=slices(
        [entry("base", 0, 2), entry("first", 0, 2, weight=1), entry("second", 1, 3, weight=0.5)],
        [entry("base", 1, 4), entry("first", 1, 4, weight=1), entry("second", 0, 3, weight=1)])),
    # Values
    "a scale along the layers": config("passthrough", slices=slices(
        [entry("first", 0, 3, scale=[0.5, 1, 2])], [entry("first", 1, 4)])),
    "a scale along a whole model": config("passthrough", entry("first", scale=[
        {"filter": "mlp", "value": [0.2, 0.7]}, {"value": 1}])),
    "a density of 0": config(
        "ties", TWO[0], entry("second", weight=0.7, density=0), base="base",
        parameters={"density": 0.4}),
    "t beyond 1": config("slerp", entry("first"), base="base", parameters={"t": [-0.2, 1.3]}),
    # mergekit-multi
    "two documents": [
        config("ties", *TWO, base="base", name="both", parameters={"density": 0.5}),
        {"merge_method": "linear", "dtype": "float64", "models": [
            {"model": "both", "parameters": {"weight": 2}}, entry("third", weight=1)]},
    ],
    "three documents": [
        config("linear", *TWO, name="one"),
        config("slerp", entry("third"), base="base", name="two", parameters=HALVES),
        {"merge_method": "task_arithmetic", "dtype": "float64", "base_model": "$base", "models": [
            {"model": "one", "parameters": {"weight": 0.5}},
            {"model": "two", "parameters": {"weight": 0.3}}]},
    ],
}  # fmt: skip
