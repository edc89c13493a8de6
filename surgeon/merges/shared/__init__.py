"""What several merges need: `@merge`, operands, varying parameters, guards, task vectors."""

from surgeon.merges.shared.declare import (
    Arithmetic,
    At,
    Companions,
    Entire,
    Varying,
    merge,
    total_weight,
    within,
)

__all__ = ["Arithmetic", "At", "Companions", "Entire", "Varying", "merge", "total_weight", "within"]
