"""Output layers of models of which some tie them to their embedding, and others do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from surgeon.draft import Draft, Tensors
from surgeon.lazy import detached


def with_own_heads(draft: Draft, base: str | None, others: Sequence[str]) -> Draft:
    """Return a draft in which each model has the output layer that one of them has for itself.

    Of a model whose config ties it, that is a copy of the embedding, as its class has it. `base` is
    the model whose tensors the draft holds. Where all tie it, nothing changes.
    """
    models: dict[str | None, Tensors] = {name: draft.model(name) for name in others}
    models[base] = draft.tensors
    if all(tensors.keys() == draft.tensors.keys() for tensors in models.values()):
        return draft
    own = {name: tensors.keys() for name, tensors in models.items()}
    for name in [base, *others]:
        for head, embedding in draft.outside.tied_names(name).items():
            is_apart = any(head in names for names in own.values())
            if is_apart and head not in own[name] and embedding in own[name]:
                models[name] = {**models[name], head: detached(models[name][embedding])}
                called = f"model '{name}'" if name else "the input"
                draft.notes.append(
                    f"'{head}' of {called} is its '{embedding}', as its config ties them"
                )
    draft.models |= {name: models[name] for name in others if name in draft.models}
    return replace(draft, tensors=models[base])
