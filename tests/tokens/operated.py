"""Recipes applied to folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from surgeon import recipe, surgery
from surgeon.output.execute import Options


def apply(source: Path, to: Path, *steps: Any, models: dict[str, Path] | None = None,
          **rest: Any) -> list[str]:  # fmt: skip
    """Apply steps to a folder; returns what is said."""
    path = to.with_name(f"{to.name}.recipe.json")
    path.write_text(json.dumps({"surgeon": 1, "steps": list(steps), **rest}))
    loaded = recipe.load(str(path), {})
    places = {name: str(place) for name, place in (models or {}).items()}
    with surgery.opened(loaded, str(source), places) as opened:
        result = surgery.write(opened, to, Options(), force=True)
        return [*opened.notes, *opened.folder_files.notes, *result.written.notes]
