"""What a user's own torch module wants to be loaded with; the only place that runs their code."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from surgeon.base.errors import PlanError, UsageError
from surgeon.draft import ModuleTensor


def refuse(location: str, kwargs: Mapping[str, Any]) -> NoReturn:
    """Stop instead of running code that the command line does not allow."""
    raise UsageError(f"'{location}' would be imported and run; --allow-code allows that")


def build(location: str, kwargs: Mapping[str, Any]) -> dict[str, ModuleTensor]:
    """Return the parameters and persistent buffers of what `package.module:factory` returns.

    The module is looked for in the current directory first, as `python -m` does. It is built on the
    meta device, so that its weights take no memory. Raises PlanError, in a line, for whatever the
    code raises.
    """
    try:
        # What the code prints is not the answer that stdout carries.
        with _importable_from_here(), redirect_stdout(sys.stderr):
            return _built(location, kwargs)
    except PlanError:
        raise
    except (Exception, SystemExit) as error:
        said = " ".join(str(error).split())
        raise PlanError(f"'{location}' raised {type(error).__name__}: {said}") from None


@contextmanager
def _importable_from_here() -> Iterator[None]:
    before = list(sys.path)
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path[:] = before


def _built(location: str, kwargs: Mapping[str, Any]) -> dict[str, ModuleTensor]:
    import torch

    package, _, path = location.partition(":")
    factory: Any = import_module(package)
    for name in path.split("."):
        factory = getattr(factory, name)
    with torch.device("meta"):
        made = factory(**kwargs)
    if not isinstance(made, torch.nn.Module):
        raise PlanError(f"'{location}' returned {type(made).__name__}, expected a torch.nn.Module")
    owners: dict[int, str] = {}
    found: dict[str, ModuleTensor] = {}
    # With `keep_vars`, names of one parameter share one object.
    for name, tensor in made.state_dict(keep_vars=True).items():
        if not isinstance(tensor, torch.Tensor):
            raise PlanError(f"'{location}' keeps '{name}', which is no tensor, in its state_dict")
        owner = owners.setdefault(id(tensor), name)
        found[name] = ModuleTensor(tuple(tensor.shape), owner)
    return found
