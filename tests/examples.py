"""The training scripts of examples, as modules."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch

from tests.docs import ROOT


@contextmanager
def training_of(example: str) -> Iterator[ModuleType]:
    """Give what an example trains with; torch has one thread meanwhile."""
    path = ROOT / "examples" / example / "train.py"
    spec = importlib.util.spec_from_file_location(example, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[example] = module  # dataclasses look there
    threads = torch.get_num_threads()
    try:
        spec.loader.exec_module(module)
        torch.set_num_threads(1)
        yield module
    finally:
        torch.set_num_threads(threads)
        del sys.modules[example]
