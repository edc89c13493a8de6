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
    walk,
)
from surgeon.lazy.blockwise import (
    Blocks,
    Blockwise,
    Kernel,
    Operands,
    step_of,
    upcast_blocks,
)
from surgeon.lazy.joined import (
    Joined,
    Selected,
)
from surgeon.lazy.product import Product
from surgeon.lazy.rearranged import Rearranged
from surgeon.lazy.recoded import Recoded, is_recoded, moved_from
from surgeon.lazy.scaled import Scaled
from surgeon.lazy.whole_tensor import WholeTensor


def is_computed_at_once(tensor: LazyTensor) -> bool:
    """Say whether something has to be known of a tensor before its first element is."""
    return any(map(_is_known_at_once, walk(tensor)))


def _is_known_at_once(form: LazyTensor) -> bool:
    match form:
        case Blockwise(statistics=statistics):
            return statistics is not None
        case Fresh(initialiser=initialiser):
            return any(initialiser.at_once_bytes)
        case Rearranged():
            return form.is_known_at_once
    return isinstance(form, WholeTensor)


__all__ = [
    "BLOCK",
    "Blocks",
    "Blockwise",
    "ByteRange",
    "ByteSource",
    "Computed",
    "Copied",
    "Fresh",
    "Initialiser",
    "Joined",
    "Kernel",
    "LazyTensor",
    "Operands",
    "Piece",
    "Product",
    "Rearranged",
    "Recoded",
    "Scaled",
    "Scratch",
    "Selected",
    "Sharded",
    "Stored",
    "Stream",
    "Strided",
    "TensorSpec",
    "WholeTensor",
    "detached",
    "is_computed_at_once",
    "is_recoded",
    "moved_from",
    "step_of",
    "upcast_blocks",
    "walk",
]
