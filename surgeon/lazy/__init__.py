"""Tensors that are not computed yet: a spec known now, values made when they are written."""

from surgeon.lazy.base import (
    BLOCK,
    ByteRange,
    ByteSource,
    Computed,
    LazyTensor,
    Piece,
    ScratchBytes,
    TensorSpec,
    bottom_up,
    detached,
    is_computed_at_once,
    transplanted,
    walk,
)
from surgeon.lazy.blockwise import (
    Blocks,
    Blockwise,
    CompiledForm,
    Kernel,
    Operands,
    StoredBlocks,
    rounded,
    step_of,
    stored_blocks,
    upcast_blocks,
)
from surgeon.lazy.evaluate import Form
from surgeon.lazy.joined import Joined, Selected
from surgeon.lazy.made import makers, regions_made_by
from surgeon.lazy.product import Product, is_product
from surgeon.lazy.rearranged import Rearranged
from surgeon.lazy.recoded import Recoded, is_recoded, moved_from
from surgeon.lazy.same import Copied, Sharded
from surgeon.lazy.scaled import Scaled
from surgeon.lazy.scratch import Scratch
from surgeon.lazy.stored import Fresh, Initialiser, Stored, Stream, Strided, is_stored
from surgeon.lazy.whole_tensor import WholeTensor

__all__ = [
    "BLOCK",
    "Blocks",
    "Blockwise",
    "ByteRange",
    "ByteSource",
    "CompiledForm",
    "Computed",
    "Copied",
    "Form",
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
    "ScratchBytes",
    "Selected",
    "Sharded",
    "Stored",
    "StoredBlocks",
    "Stream",
    "Strided",
    "TensorSpec",
    "WholeTensor",
    "bottom_up",
    "detached",
    "is_computed_at_once",
    "is_product",
    "is_recoded",
    "is_stored",
    "makers",
    "moved_from",
    "regions_made_by",
    "rounded",
    "step_of",
    "stored_blocks",
    "transplanted",
    "upcast_blocks",
    "walk",
]
