"""Named initialisations: what they mean in torch.nn.init, element by element.

New values alone are made here.
"""

from surgeon.initialisers.parts import INITIALISERS
from surgeon.initialisers.registry import (
    BiasInit,
    Chosen,
    Init,
    InitSchema,
    arranged,
    for_sibling,
    fresh,
    grown,
    init_schema,
    parse,
)

__all__ = [
    "INITIALISERS",
    "BiasInit",
    "Chosen",
    "Init",
    "InitSchema",
    "arranged",
    "for_sibling",
    "fresh",
    "grown",
    "init_schema",
    "parse",
]
