"""Readers of checkpoints, one file per storage format; headers only, nothing ever executed.

Files are told apart by magic bytes, never by their suffix.
"""

from surgeon.formats.checkpoint import Checkpoint, Contents, Opaque, Record
from surgeon.formats.open import open_checkpoint, open_contents, open_optimizer
from surgeon.formats.optimizers import SavedState
from surgeon.formats.safetensors import header_of

__all__ = [
    "Checkpoint",
    "Contents",
    "Opaque",
    "Record",
    "SavedState",
    "header_of",
    "open_checkpoint",
    "open_contents",
    "open_optimizer",
]
