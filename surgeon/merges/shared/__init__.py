"""What several merges need: `@merge`, operands, varying parameters, guards, task vectors."""

from surgeon.merges.shared.declare import merge
from surgeon.merges.shared.operands import Arithmetic, WholeArithmetic, total_weight, within
from surgeon.merges.shared.settings import AuxiliaryTensors, TensorContext
from surgeon.merges.shared.varying import Varying

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
