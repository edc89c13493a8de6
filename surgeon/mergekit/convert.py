"""mergekit configurations as recipes.

Where a recipe computes something else than mergekit, its steps say so in their `about`. YAML needs
PyYAML, an optional extra.
"""

from __future__ import annotations

import json
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

from surgeon.base.errors import SurgeonError, UsageError, did_you_mean
from surgeon.formats.fetched import open_input
from surgeon.mergekit.importer import Imported, Importer
from surgeon.mergekit.methods import METHODS
from surgeon.mergekit.moe import imported_moe, is_moe
from surgeon.mergekit.schema import CONFIG
from surgeon.mergekit.shape import plain
from surgeon.recipe.validation import problems_of

Json = dict[str, Any]

# As much as any configuration that a person wrote, and more.
_LONGEST, _MOST_NODES = 1_000_000, 200_000


def imported(path: Path) -> Imported:
    """Return the recipe that does what a mergekit configuration asks for.

    Raises UsageError with a line for everything that cannot be imported.
    """
    read = _read(path)
    if len(read) == 1 and is_moe(read[0]):
        return imported_moe(read[0], path.name)
    documents = [_checked(path.name, document) for document in read]
    *before, (config, notes) = documents
    earlier: dict[str, Json] = {}
    for number, (document, said) in enumerate(before, 1):
        word = str(document.pop("name", ""))
        if not word or word in earlier:
            raise UsageError(f"{path.name}: document {number} needs a 'name' of its own")
        earlier[word] = document
        notes = [*said, *notes]
    config.pop("name", None)
    try:
        found = Importer(config, path.name, earlier).result()
    except SurgeonError as error:
        raise error.at(path.name) from None
    return replace(found, notes=(*found.notes, *dict.fromkeys(notes)))


def _checked(label: str, config: Any) -> tuple[Json, list[str]]:
    """Return a configuration in its plainest shape, with notes; raises UsageError."""
    if problems := list(problems_of(config, CONFIG, "")):
        raise UsageError(*(f"{label}: {problem}" for problem in problems))
    try:
        json.dumps(config, allow_nan=False)
    except (TypeError, ValueError) as error:  # dates, bytes, infinities
        raise UsageError(f"{label}: {error}") from None
    own = config.get("name")
    try:
        config, notes = plain(config)
    except SurgeonError as error:
        raise error.at(label) from None
    problems = []
    name = config.get("merge_method")
    if name not in METHODS and name != "passthrough":
        hint = did_you_mean(str(name), [*METHODS, "passthrough"])
        problems.append(f"merge_method {name!r} is not imported{hint}")
    if bool(config.get("models")) == bool(config.get("slices")):
        problems.append("give either 'models' or 'slices'")
    if problems:
        raise UsageError(*(f"{label}: {problem}" for problem in problems))
    return config | ({"name": own} if own else {}), notes


def _read(path: Path) -> list[Any]:
    """Return the documents of a file, one at least."""
    try:
        import yaml
    except ImportError:
        raise UsageError(
            "mergekit configurations are YAML: pip install 'surgeon-checkpoints[mergekit]'"
        ) from None
    file = open_input(path)
    try:
        if file.size_bytes > _LONGEST:
            raise UsageError(f"{path.name}: longer than {_LONGEST:,} bytes")
        return _loaded(yaml.SafeLoader(file.read(0, file.size_bytes).decode()))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"{path.name}: not YAML: {error}".replace("\n", " ")) from None
    finally:
        file.close()


def _loaded(loader: Any) -> list[Any]:
    """Return what a loader reads, where aliases neither multiply nor refer to themselves."""
    found: list[Any] = []
    try:
        while loader.check_node():
            node = loader.get_node()
            if _size(node, {}) > _MOST_NODES:
                raise ValueError(f"its aliases stand for more than {_MOST_NODES:,} values")
            found.append(loader.construct_document(node))
    finally:
        loader.dispose()
    return found or [None]


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
