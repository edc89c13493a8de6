"""reinit: fresh values in the same shapes."""

from __future__ import annotations

from surgeon.base.patterns import Target
from surgeon.draft import Draft
from surgeon.draft.registry import op
from surgeon.initialisers import BiasInit, Init, for_sibling, fresh
from surgeon.lazy import LazyTensor
from surgeon.ops.shared.modules import layers, weight_of
from surgeon.ops.shared.parametrised import require_length, require_no_norms, require_no_vectors


@op(group="values", example={"target": "classifier", "init": "xavier_uniform"})
def reinit(
    draft: Draft, *, target: Target, init: Init = "default", bias_init: BiasInit = None
) -> None:
    """Give tensors fresh values; shapes and dtypes stay.

    Of a module, the weight gets `init`, the bias `init` or `bias_init`, and the rest what torch's
    own constructor gives it; a tensor named by itself gets `init`. Tied names stay tied.
    """
    changes: dict[str, LazyTensor] = {}
    for layer in layers(draft, target):
        if layer.is_module:
            require_no_norms(draft, layer.module)
        weight = weight_of(draft, layer.module)
        for name in layer.names:
            leaf = layer.leaf(name)
            chosen = for_sibling(init, bias_init, name=leaf) if layer.is_module else init
            require_length(draft, name, chosen)
            require_no_vectors(draft, name)
            changes[name] = fresh(
                draft.spec(name), chosen, draft.stream(name), name=leaf, weight=weight
            )
    draft.replace(changes)
