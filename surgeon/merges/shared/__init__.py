"""What several merges need: `@merge`, operands, varying parameters, guards, task vectors."""

from surgeon.merges.shared.declare import (
    Arithmetic,
    AuxiliaryTensors,
    TensorContext,
    Varying,
    WholeArithmetic,
    merge,
    total_weight,
    within,
)

__all__ = [
    "Arithmetic",
    "AuxiliaryTensors",
    "TensorContext",
    "Varying",
    "WholeArithmetic",
    "merge",
    "total_weight",
    "within",
]
