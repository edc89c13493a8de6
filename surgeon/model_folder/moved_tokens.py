"""Token ids whose rows of the embedding lie elsewhere than they did."""

from __future__ import annotations

import json
from collections.abc import Iterator

from surgeon.draft import is_wholly_new
from surgeon.model_folder.case import Case, matching
from surgeon.model_folder.families import COMMON
from surgeon.model_folder.labels import old_rows

# Rows that are looked at besides those of the config's ids: a vocabulary can be large.
_SAMPLED = 64


def check_moved_tokens(case: Case) -> None:
    """Refuse ids of a config whose rows moved; say where others did, which a tokenizer numbers."""
    if type(case.old.get("vocab_size")) is not int:
        return
    for name in matching(COMMON.embedding, case.after):
        after, before = case.after[name], case.before.get(name)
        if before is None or after is before or is_wholly_new(after):
            continue
        count = min(after.spec.shape[0], before.spec.shape[0])
        ids = {key: found for key, found in _ids(case) if found[-1] < count}
        looked_at = sorted({*range(0, count, max(1, count // _SAMPLED)), count - 1,
                            *(i for found in ids.values() for i in found)})  # fmt: skip
        rows = old_rows(after, before, looked_at)
        if rows is None:
            continue
        is_at = dict(zip(looked_at, rows, strict=True))
        moved = [key for key, found in ids.items() if any(is_at[i] != i for i in found)]
        for key in moved:
            case.contradiction(
                f"{key} is {json.dumps(case.new[key])}, and other tokens' rows lie there in "
                f"'{name}' now; state {key} in output.config"
            )
        if not moved and any(is_at[i] != i for i in looked_at):
            case.notes.append(
                f"rows of '{name}' have moved: the ids of a tokenizer have to follow, whose files "
                "are as they were"
            )
        return


def _ids(case: Case) -> Iterator[tuple[str, list[int]]]:
    """Yield the ids of special tokens, sorted, by their keys; without what the recipe settles."""
    for key, value in case.new.items():
        ids = value if isinstance(value, list) else [value]
        is_settled = case.states(key) or value != case.old.get(key)
        if key.endswith("_token_id") and not is_settled and all(type(i) is int for i in ids):
            found = sorted(i for i in ids if i >= 0)
            yield from [(key, found)] if found else []
