"""Find the rules of transformers' architectures by building them and changing one number.

`python -m tests.architectures` writes them into the package, where planning reads them.
"""

import contextlib

import torch

# torchvision's operators are compiled for one build of torch; where it is for another, they are
# declared, and need not run here.
try:
    import torchvision  # noqa: F401
except (ImportError, OSError, RuntimeError):
    for _operator in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):
            torch.library.define(
                f"torchvision::{_operator}",
                "(Tensor boxes, Tensor scores, float threshold) -> Tensor",
            )
