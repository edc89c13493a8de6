"""Recipes applied to folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from surgeon import recipe, surgery
from surgeon.output.execute import Options


def apply(source: Path, output: Path, *steps: Any, models: dict[str, Path] | None = None,
          **rest: Any) -> list[str]:  # fmt: skip
    """Apply steps to a folder; returns what is said."""
    path = output.with_name(f"{output.name}.recipe.json")
    path.write_text(json.dumps({"surgeon": 1, "steps": list(steps), **rest}))
    loaded = recipe.load(str(path), {})
    places = {name: str(place) for name, place in (models or {}).items()}
    with surgery.opened(loaded, str(source), places) as opened:
        result = surgery.write(opened, output, Options(), force=True)
        return [*opened.notes, *opened.folder_files.notes, *result.written.notes]
