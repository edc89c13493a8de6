"""The data file of the package: one record per model type, each read by itself."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surgeon.model_folder.architectures import DATA

# Formats that are read later know by it what they read.
_VERSION = 1


def stored(path: Path = DATA) -> dict[str, Any]:
    """Return every record that is there."""
    with path.open("rb") as file:
        places = json.loads(file.readline())["types"]
        body = file.read()
    return {name: json.loads(zlib.decompress(body[start : start + length]))
            for name, (start, length) in places.items()}  # fmt: skip


def write(found: Mapping[str, Any], path: Path = DATA) -> None:
    """Write records: one line of JSON that says where each is, then the records, compressed."""
    body = b""
    index: dict[str, list[int]] = {}
    for name in sorted(found):
        text = json.dumps(found[name], separators=(",", ":"), sort_keys=True)
        packed = zlib.compress(text.encode(), 9)
        index[name] = [len(body), len(packed)]
        body += packed
    import transformers

    head = {"surgeon": _VERSION, "transformers": transformers.__version__, "types": index}
    path.write_bytes(json.dumps(head, separators=(",", ":")).encode() + b"\n" + body)
