"""What holds of every model, whatever is known of its architecture."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from surgeon.base.errors import listed
from surgeon.model_folder.architectures import Architecture
from surgeon.model_folder.case import Case, Json, containers
from surgeon.model_folder.said import Meaning
from surgeon.model_folder.ties import tied_by_config
from surgeon.model_folder.whole_layers import class_names, normal

_COUNT = re.compile(r"(.*_)?(layers?|depth|blocks|num_hidden_layers|experts)")
_EXPERTS = re.compile(r"n_routed_experts|num_(local_|routed_)?experts|moe_num_experts")
_CHOSEN = re.compile(r"(num_)?experts_per_tok(en)?|moe_topk|moe_k|moe_top_k")
_GROUPS = ("n_group", "num_expert_group")
_NUMBERED = re.compile(r"\.\d+\.")
_VOCABULARY = re.compile(r".*vocab_size.*")


def require_counts(case: Case) -> None:
    """Refuse containers that are as long as a number of the config said, and no longer are."""
    numbers = {
        p: n for p, n in dict(_numbers(case.old)).items() if _COUNT.fullmatch(p.rpartition(".")[2])
    }
    if not numbers:
        return
    before, after = containers(case.before), containers(case.after)
    for container, members in before.items():
        now = len(after.get(container, ()))
        keys = [path for path, number in numbers.items() if number == len(members)]
        if now == len(members) or not keys or container not in after:
            continue
        if _is_explained(case, keys, now):
            continue
        case.contradiction(
            f"'{container}' had {len(members)} modules, as {' or '.join(keys)} says, and has {now} "
            f"now; state {' or '.join(keys)} in output.config"
        )


def require_enough_experts(case: Case) -> None:
    """Refuse routers that would choose more experts than there are, or groups that are not even."""
    for path, experts in list(_numbers(case.new)):
        outer, _, key = path.rpartition(".")
        if not _EXPERTS.fullmatch(key) or case.look_up(case.old, path) == experts:
            continue
        beside = {p.rpartition(".")[2]: n for p, n in _numbers(case.new)
                  if p.rpartition(".")[0] == outer}  # fmt: skip
        for name, number in beside.items():
            if _CHOSEN.fullmatch(name) and number > experts:
                case.contradiction(
                    f"{name} is {number}, but {path} is {experts}; state it in output.config"
                )
            if name in _GROUPS and number and experts % number:
                case.contradiction(
                    f"{path} is {experts}, which does not divide into {name} {number}; state it in "
                    "output.config"
                )


def require_vocabulary(case: Case) -> None:
    """Refuse dimensions that were the size of the vocabulary, and no longer are."""
    for path, number in _numbers(case.old):
        if not _VOCABULARY.fullmatch(path.rpartition(".")[2]):
            continue
        moved: dict[int, list[str]] = {}
        for name, tensor in case.before.items():
            if name not in case.after or number not in tensor.spec.shape:
                continue
            old, new = tensor.spec.shape, case.after[name].spec.shape
            if len(old) == len(new):
                for dim, (was, now) in enumerate(zip(old, new, strict=True)):
                    if was == number != now and (name, dim) not in case.explained:
                        moved.setdefault(now, []).append(name)
        for now, names in moved.items():
            if not _is_explained(case, [path], now):
                case.contradiction(
                    f"{path} is {number}, as {listed(names)} had, which is {now} now; state {path} "
                    "in output.config"
                )


def require_names(case: Case, architecture: Architecture | None, meaning: Meaning) -> None:
    """Refuse tensors that the class has no name for; say which it would miss."""
    if architecture is None:
        return
    kind = case.new.get("model_type")
    same_kind = kind == case.old.get("model_type")
    names = class_names(case.after)
    known = meaning.after if architecture is case.architecture else {}
    odd = sorted(n for n in names if n not in known and not any(architecture.rows_of(n)))
    was_odd = {normal(name) for name in case.before} if same_kind else set()
    # A class leaves alone what it has no name for: what the input had already is no new mistake.
    new = [name for name in odd if normal(name) not in was_odd]
    if new and not (same_kind and case.architecture is None):
        case.contradiction(
            f"no class of model_type '{kind}' has tensors named {listed(new)}; state the "
            "model_type that does in output.config, or give an OUTPUT that ends in .safetensors, "
            "which needs no config"
        )
    elif odd:
        case.notes.append(
            f"no class of model_type '{kind}' has tensors named {listed(odd)}, which the input "
            "had already"
        )
    if case.after.keys() >= case.before.keys():
        return
    kept = {id(tensor) for tensor in case.after.values()}
    gone = [
        name
        for name, tensor in case.before.items()
        if name not in case.after and not _NUMBERED.search(name) and id(tensor) not in kept
        and not tied_by_config(case, name)
        and any(not row.is_buffer for row in architecture.rows_of(name))
    ]  # fmt: skip
    if gone and "architectures" not in case.stated:
        case.notes.append(
            f"{listed(gone)} is gone: a class that has it gives it random values when it is loaded"
        )


def _is_explained(case: Case, keys: list[str], now: int) -> bool:
    """Return whether the config says the new number, or the recipe settles it."""
    return any(case.states(key) or case.look_up(case.new, key) == now for key in keys)


def _numbers(config: Json, prefix: str = "") -> Iterator[tuple[str, int]]:
    key: str
    value: Any
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{key}.")
        elif type(value) is int:
            yield f"{prefix}{key}", value
