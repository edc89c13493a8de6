"""What a model becomes of whose layers something else was made."""

from __future__ import annotations

import re
from dataclasses import replace

from surgeon.model_folder.architectures import Architecture, architecture_of
from surgeon.model_folder.case import Case
from surgeon.model_folder.said import meaning_of
from surgeon.model_folder.sizes import follow_sizes

# Dense models whose feed-forward layers may become Mixtral's experts: all else is the same.
_DENSE = ("llama", "mistral")
_EXPERT = re.compile(r"\.block_sparse_moe\.experts\.(\d+)\.")
# As many as Mixtral's own config has.
_PER_TOKEN = 2


def becomes(case: Case) -> Architecture | None:
    """Return what is known of the model as it will be; write its type where that follows."""
    was = case.old.get("model_type")
    if was in _DENSE and not any(_EXPERT.search(name) for name in case.before):
        numbers = {int(found[1]) for name in case.after if (found := _EXPERT.search(name))}
        if numbers:
            _write_mixtral(case, len(numbers))
    now = case.new.get("model_type")
    if now == was:
        return case.architecture
    case.notes.append(
        f"model_type {was} becomes {now}: what config.json does not state may have another default"
    )
    known = architecture_of(case.new, case.after)
    if known is not None:
        _follow_tensors(case, known)
    return known


def _follow_tensors(case: Case, known: Architecture) -> None:
    """Write the numbers that new tensors say, as the class names them that the model is now."""
    new = {name: tensor for name, tensor in case.after.items() if name not in case.before}
    now = replace(case, old=case.new, before={}, after=new, architecture=known)
    follow_sizes(now, meaning_of(now))


def _write_mixtral(case: Case, experts: int) -> None:
    case.follow("model_type", "mixtral")
    if isinstance(names := case.old.get("architectures"), list):
        case.follow("architectures", [re.sub("Llama|Mistral", "Mixtral", str(n)) for n in names])
    case.follow("num_local_experts", experts)
    case.follow("num_experts_per_tok", min(_PER_TOKEN, experts))
    case.notes.append(
        f"num_experts_per_tok is {case.new['num_experts_per_tok']}; output.config can state another"
    )
    if case.new["num_local_experts"] != experts:
        case.contradiction(
            f"output.config.num_local_experts is {case.new['num_local_experts']}, but there are "
            f"{experts} experts"
        )
