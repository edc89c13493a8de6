"""A model folder's config.json, which follows what the steps did to the tensors."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from surgeon.base.errors import listed
from surgeon.draft import Tensors
from surgeon.model_folder.architectures import architecture_of
from surgeon.model_folder.becomes import becomes
from surgeon.model_folder.case import Case, Json
from surgeon.model_folder.general import (
    require_counts,
    require_enough_experts,
    require_names,
    require_vocabulary,
)
from surgeon.model_folder.labels import follow_labels
from surgeon.model_folder.layers import follow_layers
from surgeon.model_folder.quantisation import follow_quantisation, numbers_only
from surgeon.model_folder.said import meaning_of
from surgeon.model_folder.shared_heads import note_unknown_heads, require_same_pairs
from surgeon.model_folder.sizes import follow_sizes
from surgeon.model_folder.ties import follow_ties
from surgeon.model_folder.token_ids import (
    GENERATION,
    follow_token_ids,
    followed_generation,
    give_roles,
    outer_of,
)
from surgeon.model_folder.whole_layers import require_whole_layers
from surgeon.numeric.dtypes import DTYPES, dtype_named
from surgeon.tokens.moves import TokenMoves

__all__ = ["Followed", "changes_of", "combined", "follow"]


@dataclass(frozen=True)
class Followed:
    """A config as it will be, what changes in it, and where it contradicts the tensors.

    `generation` is generation_config.json where that changes too.
    """

    config: Json
    changes: tuple[Json, ...]
    notes: tuple[str, ...]
    problems: tuple[str, ...]
    generation: Json | None = None

    @property
    def text(self) -> str:
        """The file's text, as transformers writes it: labels in the order of their numbers."""
        config = dict(self.config)
        if isinstance(labels := config.get("id2label"), dict) and all(map(str.isdecimal, labels)):
            config["id2label"] = {int(number): label for number, label in labels.items()}
        return json.dumps(config, indent=2, sort_keys=True) + "\n"


def follow(
    config: Json,
    stated: Json,
    before: Tensors,
    after: Tensors,
    generation: Json | None = None,
    tokens: TokenMoves | None = None,
) -> Followed:
    """Return a config after the steps and what the recipe states, with every contradiction.

    `generation` is what generation_config.json says, `tokens` where tokens have gone. A key is
    followed where the input's tensors agree with it; everything else stays as it is.
    """
    known = architecture_of(config, before)
    case = Case(config, stated, combined(config, stated), before, after, known, tokens=tokens)
    made: Json | None = None
    if config:
        meaning = meaning_of(case)
        follow_sizes(case, meaning)
        require_same_pairs(case, meaning)
        note_unknown_heads(case, meaning)
        follow_labels(case, meaning)
        follow_ties(case)
        _follow_dtype(case)
        follow_quantisation(case)
        follow_layers(case)
        known = becomes(case)
        require_names(case, known, meaning)
        require_whole_layers(case, known)
        require_counts(case)
        require_enough_experts(case)
        require_vocabulary(case)
        rows = follow_token_ids(case, meaning)
        made = followed_generation(generation or {}, rows, case)
        give_roles(case, case.new, outer_of(case, meaning))
        if generation:
            given = deepcopy(made or generation)
            give_roles(case, given, label=f"{GENERATION}: ")
            made = given if given != generation else None
        _note_narrowed(case)
        _require_explained(case)
        _note_placeholders(case)
    problems = tuple(dict.fromkeys(f"config.json: {problem}" for problem in case.problems))
    notes = tuple(dict.fromkeys(f"config.json: {note}" for note in case.notes))
    return Followed(case.new, changes_of(config, case.new), notes, problems, made)


def combined(config: Json, stated: Mapping[str, Any]) -> Json:
    """Return a config with what is stated in its place; objects are merged in turn."""
    merged = deepcopy(config)
    for key, value in stated.items():
        inside = merged.get(key)
        if isinstance(inside, dict) and isinstance(value, dict):
            merged[key] = combined(inside, value)
        else:
            merged[key] = deepcopy(value)
    return merged


def changes_of(old: Json, new: Json) -> tuple[Json, ...]:
    """Return {key, before, after} of each key that changes; of one that goes, no `after`."""
    gone = [{"key": key, "before": old[key]} for key in old if key not in new]
    return (*gone, *_new_values(old, new))


def _new_values(old: Json, new: Json) -> tuple[Json, ...]:
    return tuple(
        {"key": key, **({"before": old[key]} if key in old else {}), "after": new[key]}
        for key in sorted(new)
        # NaN is not equal to itself.
        if key not in old or (old[key] is not new[key] and old[key] != new[key])
    )


def _follow_dtype(case: Case) -> None:
    """Follow the dtype that the model is loaded into: one in which nothing is lost."""
    keys = [key for key in ("dtype", "torch_dtype") if key in case.new]
    old = {dtype_named(str(case.old[key])) for key in keys if key in case.old}
    before, after = _floats(numbers_only(case.before)), _floats(numbers_only(case.after))
    if not old or not old <= before or not after:
        return
    found = " and ".join(DTYPES[name].torch for name in sorted(after))
    stated = [key for key in keys if key in case.stated]
    for key in stated:
        if dtype_named(str(case.stated[key])) not in after:
            value = json.dumps(case.stated[key])
            case.contradiction(f"output.config.{key} is {value}, but the tensors are {found}")
    if stated or (after <= before and old <= after):
        chosen = case.new[stated[0]] if stated else None
    else:
        widest = "F64" if "F64" in after else "F32" if len(after) > 1 else next(iter(after))
        chosen = DTYPES[widest].torch
    for key in keys if chosen is not None else []:
        case.follow(key, chosen)
    if len(after) > 1 and after != before and not stated:
        case.notes.append(
            f"{keys[0]} is {case.new[keys[0]]}, and the tensors are {found}; output.config can "
            "state another"
        )


def _floats(tensors: Tensors) -> set[str]:
    """Return the floating-point dtypes that a model can be loaded into."""
    dtypes = {tensor.spec.dtype for tensor in tensors.values()}
    return {name for name in dtypes if DTYPES[name].kind == "float" and DTYPES[name].bits > 8}


def _note_narrowed(case: Case) -> None:
    """Name the tensors that lose digits though the class computes with them in float32."""
    known = case.architecture
    parts = (
        {"BF16": known.float32, "F16": known.float32 + known.float32_of_float16} if known else {}
    )
    names = [
        name
        for name, tensor in case.after.items()
        if tensor.spec.dtype in parts
        and name in case.before
        and case.before[name].spec.dtype in ("F32", "F64")
        and any(re.search(part, name) for part in parts[tensor.spec.dtype])
    ]
    if names:
        case.notes.append(
            f"{listed(names)} lost digits: {case.new.get('model_type')} keeps them in float32; "
            "leave them out of the cast"
        )


def _note_placeholders(case: Case) -> None:
    """Name parameters that have no values, in a folder that no class loads therefore."""
    empty = [name for name, tensor in case.after.items()
             if tensor.spec.shape == (0,) and name.endswith(("weight", "bias"))]  # fmt: skip
    if empty:
        case.notes.append(
            f"{listed(empty)} is of shape (0,), as DeepSpeed's ZeRO-3 leaves a parameter that "
            "nothing gathered, and does not load; run zero_to_fp32.py"
        )


def _require_explained(case: Case) -> None:
    """Refuse new shapes that no rule knows the meaning of, or say which, where nothing is known."""

    def is_explained(name: str) -> bool:
        old, new = case.before[name].spec.shape, case.after[name].spec.shape
        changed = [dim for dim, (a, b) in enumerate(zip(old, new, strict=False)) if a != b]
        return len(old) == len(new) and all((name, dim) in case.explained for dim in changed)

    # The parts of a quantised weight are what its codes need, such as the text of its settings.
    numbers = numbers_only(case.after)
    names = [name for name, tensor in numbers.items() if name in case.before
             and tensor.spec.shape != case.before[name].spec.shape and not is_explained(name)
             and (0,) not in (case.before[name].spec.shape, case.after[name].spec.shape)
             ]  # fmt: skip
    if names and case.architecture and not case.stated:
        # A class is known, and would be built as it was.
        case.contradiction(
            f"no rule says what the new shape of {listed(names)} means; state the settings that it "
            "follows in output.config"
        )
    elif names:
        case.notes.append(
            f"no rule says what the new shape of {listed(names)} means; output.config can state it"
        )
