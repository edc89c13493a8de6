"""Tensors that are not computed yet: a spec known now, values made when they are written."""

from surgeon.lazy.base import (
    BLOCK,
    ByteRange,
    ByteSource,
    Computed,
    Copied,
    Fresh,
    Initialiser,
    LazyTensor,
    Piece,
    Scratch,
    Sharded,
    Stored,
    Stream,
    Strided,
    TensorSpec,
    detached,
    forms,
)
from surgeon.lazy.elementwise import (
    Blocks,
    Elementwise,
    Kernel,
    Operands,
    raised_blocks,
    step_of,
)
from surgeon.lazy.joined import (
    Joined,
    Selected,
)
from surgeon.lazy.product import Product
from surgeon.lazy.rearranged import Rearranged
from surgeon.lazy.scaled import Scaled
from surgeon.lazy.whole import Whole


def is_computed_at_once(tensor: LazyTensor) -> bool:
    """Say whether something has to be known of a tensor before its first element is."""
    return any(map(_is_known_at_once, forms(tensor)))


def _is_known_at_once(form: LazyTensor) -> bool:
    match form:
        case Elementwise(statistics=statistics):
            return statistics is not None
        case Fresh(initialiser=initialiser):
            return any(initialiser.at_once_bytes)
        case Rearranged():
            return form.is_known_at_once
    return isinstance(form, Whole)


__all__ = [
    "BLOCK",
    "Blocks",
    "ByteRange",
    "ByteSource",
    "Computed",
    "Copied",
    "Elementwise",
    "Fresh",
    "Initialiser",
    "Joined",
    "Kernel",
    "LazyTensor",
    "Operands",
    "Piece",
    "Product",
    "Rearranged",
    "Scaled",
    "Scratch",
    "Selected",
    "Sharded",
    "Stored",
    "Stream",
    "Strided",
    "TensorSpec",
    "Whole",
    "detached",
    "forms",
    "is_computed_at_once",
    "raised_blocks",
    "step_of",
]
