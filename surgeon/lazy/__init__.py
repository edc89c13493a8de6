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
    Once,
    Piece,
    Scratch,
    Stored,
    Stream,
    Strided,
    TensorSpec,
    detached,
    forms,
)
from surgeon.lazy.elementwise import (
    Elementwise,
    Kernel,
    Operands,
    raised_blocks,
)
from surgeon.lazy.joined import (
    Joined,
    Selected,
)

__all__ = [
    "BLOCK",
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
    "Once",
    "Operands",
    "Piece",
    "Scratch",
    "Selected",
    "Stored",
    "Stream",
    "Strided",
    "TensorSpec",
    "detached",
    "forms",
    "raised_blocks",
]
