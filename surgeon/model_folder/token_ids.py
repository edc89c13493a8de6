"""Ids of special tokens in configs, which stay with the rows of the vocabulary they belong to."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

from surgeon.base.errors import listed
from surgeon.lazy import LazyTensor
from surgeon.model_folder.case import Case, Json, get, put
from surgeon.model_folder.rows import COPY, UNKNOWN, Run, numbers_in, row_runs
from surgeon.model_folder.said import Meaning

SIZE = re.compile(r"(.*\.)?(\w+_)?vocab_size")
TOKEN_IDS = re.compile(r".*_token_ids?|.*_token_index")
# Tokens that generation leaves out, or begins with: in generation_config.json, and old configs.
_SUPPRESSED = ("suppress_tokens", "begin_suppress_tokens")
_FORCED = ("forced_decoder_ids", "bad_words_ids", "force_words_ids", "sequence_bias",
           "lang_to_id", "task_to_id", "lang_code_to_id")  # fmt: skip
# Pairs, of which one is a token, or several: (where in the output, token), (tokens, bias).
_PAIRS = {"forced_decoder_ids": 1, "sequence_bias": 0}
_PAIR = 2
# Roles that every config can say.
_ALWAYS = ("bos_token", "eos_token", "pad_token")
# Beside the config, with ids of its own.
GENERATION = "generation_config.json"


@dataclass(frozen=True)
class Rows:
    """The rows of a vocabulary before, and after as runs of them."""

    size_before: int
    size_after: int
    runs: Sequence[Run]

    @cached_property
    def source_of(self) -> Callable[[int], int]:
        """What tells which old row a row is."""
        return numbers_in(self.runs)

    def number_of(self, old: int) -> int | None:
        """Return the number that an old row has now; None where it is gone."""
        # What was calculated stands where it stood.
        if old < self.size_after and self.source_of(old) in (old, UNKNOWN, COPY):
            return old
        return self._numbers.get(old)

    @property
    def have_moved(self) -> bool:
        """Say whether some old row has another number now."""
        kept = min(self.size_before, self.size_after)
        begins = accumulate((length for _, length in self.runs), initial=0)
        return any(
            first >= 0 and first != begin < kept
            for begin, (first, _) in zip(begins, self.runs, strict=False)
        )

    @cached_property
    def _numbers(self) -> Mapping[int, int]:
        found: dict[int, int] = {}
        for number in range(self.size_after):
            found.setdefault(self.source_of(number), number)
        return found


def follow_token_ids(case: Case, meaning: Meaning) -> dict[str, Rows]:
    """Follow ids in the config; return {number of rows in the config: the rows that changed}."""
    found: dict[str, Rows] = {}
    for path, names in _vocabularies(case, meaning).items():
        if all(case.before[name].byte_origin == case.after[name].byte_origin for name in names):
            continue
        name = next(n for n in names if case.before[n].byte_origin != case.after[n].byte_origin)
        found[path] = _rows(case.before[name], case.after[name])
        _require_same_rows(case, path, names)
    for place, rows in found.items():
        outer = place.rpartition(".")[0]
        owned = {path: value for path, value in ids_of(case.old)
                 if len(found) == 1 or path.rpartition(".")[0] == outer}  # fmt: skip
        _require_stated_rows(case, owned, rows)
        moved = _followed(case, {p: v for p, v in owned.items() if not case.states(p)}, rows)
        for path, value in moved.items():
            put(case.new, path, value)
        if not moved and rows.have_moved and not case.tokens:
            case.notes.append(f"rows of {place} have moved; the tokenizer's files do not follow")
    return found


def followed_generation(config: Json, rows: Mapping[str, Rows], case: Case) -> Json | None:
    """Return generation_config.json after the steps; None where nothing changes in it.

    Where several vocabularies changed, a row that is gone is all that can be told.
    """
    made = deepcopy(config)
    for one in rows.values():
        for path, value in _followed(case, dict(ids_of(config)), one, f"{GENERATION}: ").items():
            put(made, path, value)
    return made if made != config else None


def outer_of(case: Case, meaning: Meaning) -> str:
    """Return where the config says the vocabulary that a model has: `text_config.`, or nothing."""
    found = [path.rpartition("vocab_size")[0] for path in _vocabularies(case, meaning)
             if path.rpartition(".")[2] == "vocab_size"]  # fmt: skip
    return found[0] if len(found) == 1 else ""


def give_roles(case: Case, config: Json, outer: str = "", label: str = "") -> None:
    """Write the ids of tokens that steps gave a role into a config.

    Where no key of it is there, it comes into the config at `outer`, which has the vocabulary.
    """
    if case.tokens is None:
        return
    before, after = case.tokens.before, case.tokens.after
    for role, token in after.given.items():
        key, number = f"{role}_id", after.ids[token]
        own = after.ids.get(before.roles.get(role, ""))
        paths = list(_paths_of(key, config)) or ([f"{outer}{key}"] if role in _ALWAYS else [])
        for path in paths:
            said = get(config, path)
            made = [number if one == own else one for one in said] if type(said) is list else number
            if type(made) is list and number not in made:
                made.append(number)
            if made != said and not case.states(path):
                put(config, path, made)
                case.notes.append(f"{label}{path} is {json.dumps(made)}, as {token!r} is {role}")


def _paths_of(key: str, config: Json, prefix: str = "") -> Iterator[str]:
    for word, value in config.items():
        if word == key:
            yield f"{prefix}{word}"
        elif isinstance(value, dict):
            yield from _paths_of(key, value, f"{prefix}{word}.")


def _vocabularies(case: Case, meaning: Meaning) -> dict[str, list[str]]:
    """Return {number of rows in the config: the tensors with a row for each token}."""
    found: dict[str, list[str]] = {}
    for name, dims in meaning.before.items():
        old, new = case.before[name], case.after.get(name)
        if new is None or not dims or not SIZE.fullmatch(dims[0]):
            continue
        if len(old.spec.shape) == len(new.spec.shape) == 2:
            found.setdefault(dims[0], []).append(name)
    return found


def _require_same_rows(case: Case, path: str, names: Sequence[str]) -> None:
    """Refuse tensors of one vocabulary whose rows are no longer those of the same tokens."""
    first, *others = names
    sizes = {t[first].spec.shape[0] for t in (case.before, case.after)}
    for other in others:
        if {t[other].spec.shape[0] for t in (case.before, case.after)} != sizes:
            continue  # refused elsewhere, or of another size from the start
        for number, one, two in _pairs(*(row_runs(case.after[n], case.before[n])
                                         for n in (first, other))):  # fmt: skip
            if one != two and min(one, two) >= 0:
                case.contradiction(
                    f"{path}: row {number} of '{first}' was row {one}, and row {number} of "
                    f"'{other}' was row {two}, of another token; change them alike"
                )
                return


def _pairs(one: Sequence[Run], other: Sequence[Run]) -> Iterator[tuple[int, int, int]]:
    """Yield (number, what it is in one, what it is in the other) of rows where runs begin."""
    starts = [dict(zip(accumulate((n for _, n in runs), initial=0), runs, strict=False))
              for runs in (one, other)]  # fmt: skip
    began = [0, 0]
    for number in sorted({*starts[0], *starts[1]}):
        began = [number if number in some else at for some, at in zip(starts, began, strict=True)]
        firsts = [some[at][0] for some, at in zip(starts, began, strict=True)]
        a, b = (first if first < 0 else first + number - at
                for first, at in zip(firsts, began, strict=True))  # fmt: skip
        yield number, a, b


def _rows(old: LazyTensor, new: LazyTensor) -> Rows:
    before, after = old.spec.shape[0], new.spec.shape[0]
    runs = row_runs(new, old)
    if all(first < 0 for first, _ in runs):  # made anew: by position
        runs = [(UNKNOWN, after)]
    return Rows(before, after, runs)


def ids_of(config: Json, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, value) of everything that is ids of tokens, in nested configs too."""
    for key, value in config.items():
        if value is not None and (TOKEN_IDS.fullmatch(key) or key in (*_SUPPRESSED, *_FORCED)):
            yield f"{prefix}{key}", value
        elif isinstance(value, dict):
            yield from ids_of(value, f"{prefix}{key}.")


def _require_stated_rows(case: Case, ids: Mapping[str, Any], rows: Rows) -> None:
    for path in ids:
        stated = get(case.new, path)
        if case.states(path) and any(i >= rows.size_after for i in numbers_of(path, stated)):
            case.contradiction(
                f"output.config.{path} is {json.dumps(stated)}, but the vocabulary has "
                f"{rows.size_after} rows"
            )


def _followed(case: Case, ids: Mapping[str, Any], rows: Rows, label: str = "") -> dict[str, Any]:
    """Return ids with the numbers that their rows have now; report those whose rows are gone."""
    moved: dict[str, Any] = {}
    beyond = []
    for path, value in ids.items():
        numbers = {number for number in numbers_of(path, value) if number >= 0}
        if any(number >= rows.size_before for number in numbers):
            beyond.append(path)
        key, tokens = path.rpartition(".")[2], case.tokens
        now = {
            n: tokens.number_of(n, key) if tokens and tokens.knows(n) else rows.number_of(n)
            for n in numbers
            if n < rows.size_before
        }
        gone = sorted(number for number, to in now.items() if to is None)
        if gone and key in _SUPPRESSED:
            value = [number for number in value if number not in gone]
        elif gone and label and case.states(path):
            moved[path] = get(case.new, path)
            continue
        elif gone:
            case.contradiction(
                f"{label}{path} is {json.dumps(value)}, but row {gone[0]} of the vocabulary is "
                "gone; state it in output.config"
            )
            continue
        made = _renumbered(key, value, {n: to for n, to in now.items() if to is not None})
        if made != ids[path]:
            moved[path] = made
    if beyond:
        case.notes.append(f"{label}{listed(beyond)} is beyond the input's vocabulary already")
    if moved:
        hint = "" if case.tokens else "; the tokenizer's files do not"
        case.notes.append(f"{label}{listed(list(moved))} changes with the rows{hint}")
    return moved


def numbers_of(path: str, value: Any) -> Iterator[int]:
    """Yield the numbers of tokens that a config's value holds."""
    at = _PAIRS.get(path.rpartition(".")[2])
    for one in _items(value):
        if at is not None:
            one = one[at] if isinstance(one, list | tuple) and len(one) == _PAIR else None
        if type(one) is int:
            yield one
        elif isinstance(one, list | tuple | dict):
            yield from numbers_of("", one)


def _items(value: Any) -> Sequence[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list | tuple) else [value]


def _renumbered(key: str, value: Any, now: Mapping[int, int]) -> Any:
    at = _PAIRS.get(key)
    if at is not None:
        return [
            [_renumbered("", part, now) if place == at else part for place, part in enumerate(one)]
            if isinstance(one, list | tuple) and len(one) == _PAIR
            else one
            for one in value
        ] if isinstance(value, list | tuple) else value  # fmt: skip
    if type(value) is int:
        return now.get(value, value)
    if isinstance(value, list | tuple):
        return [_renumbered("", one, now) for one in value]
    if isinstance(value, dict):
        return {name: _renumbered("", one, now) for name, one in value.items()}
    return value
