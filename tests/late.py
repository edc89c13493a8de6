"""Modules that take long to import, imported where a test asks for something of them.

Tests are collected by every worker, whether it runs them or not.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest


class Late:
    """Stands for a module; the test that asks for it is skipped where an optional one is not."""

    def __init__(self, name: str, *, is_optional: bool = False) -> None:
        self._name = name
        self._import = pytest.importorskip if is_optional else importlib.import_module

    def __getattr__(self, attribute: str) -> Any:
        # pytest asks everything that a file of tests holds whether it is a test.
        if attribute.startswith("__") or attribute == "_mock_name":
            raise AttributeError(attribute)
        return getattr(self._import(self._name), attribute)
