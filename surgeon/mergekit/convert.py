"""mergekit configurations as recipes.

Where a recipe computes something else than mergekit, its steps say so in their `about`. YAML needs
PyYAML, an optional extra.
"""

from __future__ import annotations

import json
from math import inf
from pathlib import Path
from typing import Any

from surgeon.base.errors import SurgeonError, UsageError, did_you_mean
from surgeon.formats.files import InputFile
from surgeon.mergekit.importer import Imported, Importer
from surgeon.mergekit.methods import METHODS
from surgeon.mergekit.schema import CONFIG
from surgeon.recipe.validation import problems_of

Json = dict[str, Any]

# As much as any configuration that a person wrote, and more.
_LONGEST, _MOST_NODES = 1_000_000, 200_000
_VOCABULARY = "surgeon leaves vocabularies alone: make the models' tokenizers equal first"
_REFUSED = {
    "tokenizer_source": _VOCABULARY,
    "tokenizer": _VOCABULARY,
    "chat_template": "it belongs to the tokenizer: put it into the output folder afterwards",
    "modules": "models of several modules are not imported: merge them one by one",
}
_KNOWN = ("merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype")


def imported(path: Path) -> Imported:
    """Return the recipe that does what a mergekit configuration asks for.

    Raises UsageError with a line for everything that cannot be imported.
    """
    config = _read(path)
    if problems := list(problems_of(config, CONFIG, "")):
        raise UsageError(*(f"{path.name}: {problem}" for problem in problems))
    problems = [f"'{word}' is not imported: {why}" for word, why in _REFUSED.items()
                if config.get(word) is not None]  # fmt: skip
    for word in config.keys() - {*_KNOWN, *_REFUSED}:
        problems.append(f"'{word}' is unknown{did_you_mean(str(word), _KNOWN)}")
    name = config.get("merge_method")
    if name not in METHODS and name != "passthrough":
        hint = did_you_mean(str(name), [*METHODS, "passthrough"])
        problems.append(f"merge_method {name!r} is not imported{hint}")
    if bool(config.get("models")) == bool(config.get("slices")) and not config.get("modules"):
        problems.append("give either 'models' or 'slices'")
    if problems:
        raise UsageError(*(f"{path.name}: {problem}" for problem in problems))
    try:
        json.dumps(config, allow_nan=False)
    except (TypeError, ValueError) as error:  # dates, bytes, infinities
        raise UsageError(f"{path.name}: {error}") from None
    try:
        return Importer(config, path.name).result()
    except SurgeonError as error:
        raise error.at(path.name) from None


def _read(path: Path) -> Any:
    try:
        import yaml
    except ImportError:
        raise UsageError(
            "mergekit configurations are YAML: pip install 'surgeon-checkpoints[mergekit]'"
        ) from None
    file = InputFile(path)
    try:
        if file.size_bytes > _LONGEST:
            raise UsageError(f"{path.name}: longer than {_LONGEST:,} bytes")
        return _loaded(yaml.SafeLoader(file.read(0, file.size_bytes).decode()))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"{path.name}: not YAML: {error}".replace("\n", " ")) from None
    finally:
        file.close()


def _loaded(loader: Any) -> Any:
    """Return what a loader reads, where aliases neither multiply nor refer to themselves."""
    try:
        node = loader.get_single_node()
        if _size(node, {}) > _MOST_NODES:
            raise ValueError(f"its aliases stand for more than {_MOST_NODES:,} values")
        config = loader.construct_document(node) if node else None
    finally:
        loader.dispose()
    return config


def _size(node: Any, known: dict[int, float]) -> float:
    """Return how many values a node of YAML stands for, each alias in full; circles are endless."""
    if node is None or isinstance(node.value, str):
        return 1
    if id(node) not in known:
        known[id(node)] = inf
        parts = [part for item in node.value
                 for part in (item if isinstance(item, tuple) else (item,))]  # fmt: skip
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]
