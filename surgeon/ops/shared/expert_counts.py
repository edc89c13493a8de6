"""What a config says of a mixture's router that its tensors do not: groups, how many it chooses."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from surgeon.base.errors import PlanError
from surgeon.draft import Draft

Json = Mapping[str, Any]

_CHOSEN = re.compile(r"(num_)?experts_per_tok(en)?|moe_topk|moe_k|moe_top_k")
_GROUPS = ("n_group", "num_expert_group")
# DeepSeek-V3 tells groups by the sum of the best two experts of each.
_LEAST_OF_GROUP = 2


def groups_of(draft: Draft) -> int:
    """Return in how many groups, one after the other, the router takes the experts."""
    found = [value for path, value in _numbers(_config(draft)) if path[-1] in _GROUPS and value]
    return max(found, default=1)


def require_whole_groups(
    kept: Sequence[int], count: int, groups: int, block: str, what: str = "kept"
) -> None:
    """Raise PlanError where the router's groups would not be the ones that they were."""
    if groups <= 1:
        return
    size = count // groups
    each = len(kept) // groups
    wanted = [group for group in range(groups) for _ in range(each)]
    if count % groups or [index // size for index in kept] != wanted or each < _LEAST_OF_GROUP:
        counts = ", ".join(str(sum(i // size == g for i in kept)) for g in range(groups))
        raise PlanError(
            f"'{block}': the router takes {count} experts in {groups} groups (n_group), of which "
            f"{counts} would be {what}; as many of each, {_LEAST_OF_GROUP} or more, in the order "
            "of the groups, are needed"
        )


def state_choice(draft: Draft, least: int) -> None:
    """Have the config choose no more experts than there are."""
    for path, value in list(_numbers(_config(draft))):
        if _CHOSEN.fullmatch(path[-1]) and value > least:
            inside = draft.config
            for part in path[:-1]:
                inside = inside.setdefault(part, {})
            inside[path[-1]] = least
            draft.notes.append(f"{'.'.join(path)} was {value} and is {least}: all that are left")


def _config(draft: Draft) -> dict[str, Any]:
    return _merged(draft.outside.read_config(None), draft.config)


def _merged(config: Json, said: Json) -> dict[str, Any]:
    merged = dict(config)
    for key, value in said.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = _merged(old, value) if both else value  # type: ignore[arg-type]
    return merged


def _numbers(config: Json, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _numbers(value, (*above, key))
        elif type(value) is int:
            yield (*above, key), value
