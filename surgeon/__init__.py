"""Change trained networks between training stages, by recipe.

The library: each name is imported when it is used, and torch only where tensors of torch are.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

if not hasattr(os, "preadv"):
    raise ImportError("surgeon needs a POSIX system: Linux, or macOS 11; on Windows, run it in WSL")

__version__ = "0.2.0"

if TYPE_CHECKING:
    from surgeon.base.errors import SurgeonError
    from surgeon.library.looking import compare, diff, inspect, verify
    from surgeon.library.memory import apply_to
    from surgeon.library.opening import open
    from surgeon.library.running import apply, plan
    from surgeon.numeric.compiled import kernels
    from surgeon.recipe import Recipe
    from surgeon.training import Manifest
    from surgeon.trials.search import search

__all__ = [
    "Manifest",
    "Recipe",
    "SurgeonError",
    "apply",
    "apply_to",
    "compare",
    "diff",
    "inspect",
    "kernels",
    "open",
    "plan",
    "search",
    "verify",
]

_HOMES = {
    "Manifest": "training",
    "Recipe": "recipe",
    "SurgeonError": "base.errors",
    "apply": "library.running",
    "apply_to": "library.memory",
    "compare": "library.looking",
    "diff": "library.looking",
    "inspect": "library.looking",
    "kernels": "numeric.compiled",
    "open": "library.opening",
    "plan": "library.running",
    "search": "trials.search",
    "verify": "library.looking",
}

if not TYPE_CHECKING:  # or else every name would have a type

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module 'surgeon' has no attribute '{name}'")
        found = globals()[name] = getattr(import_module(f"surgeon.{_HOMES[name]}"), name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
