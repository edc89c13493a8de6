"""The model while the steps run, and the registry of ops.

What the author of an op needs: `Draft` here, `@op` in `surgeon.draft.registry`.
"""

from surgeon.draft.draft import (
    ADAPTER_WEIGHTS,
    MODEL_WEIGHTS,
    Check,
    Draft,
    ModuleTensor,
    Outside,
    Tensors,
    is_wholly_new,
    ties,
    vectors,
)

__all__ = [
    "ADAPTER_WEIGHTS",
    "MODEL_WEIGHTS",
    "Check",
    "Draft",
    "ModuleTensor",
    "Outside",
    "Tensors",
    "is_wholly_new",
    "ties",
    "vectors",
]
