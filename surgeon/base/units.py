"""Sizes as people write and read them."""

from __future__ import annotations

import re

from surgeon.base.errors import UsageError

# As in transformers' max_shard_size: KB is 1000 bytes, KiB 1024.
_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", 1)}
_UNITS |= {f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGT", 1)}


_MOST_SPOKEN = 10**300  # of shapes that nobody stores; float64 ends at 1.8e308


def parse_size(text: str | int) -> int:
    """Return the bytes of `512MB`, `5GB` or `256MiB`; raises UsageError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", str(text).strip())
    if not found or found[2].upper() not in _UNITS or not float(found[1]):
        raise UsageError(f"'{text}' is not a size like 512MB, 5GB or 256MiB")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def spoken_size(size_bytes: int) -> str:
    """Return a size with a unit, such as `2.1 GB`."""
    size = float(min(size_bytes, _MOST_SPOKEN))
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
