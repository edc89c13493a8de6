"""How many architectures are known, and why the others are not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from surgeon.base.tables import table
from tests.architectures.build import classes_of_types, tables_of

_KINDS = {
    "causal": ("CAUSAL_LM",),
    "sequence to sequence": ("SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ"),
    "image and text": ("IMAGE_TEXT_TO_TEXT",),
    "masked": ("MASKED_LM",),
    "sequence classification": ("SEQUENCE_CLASSIFICATION",),
    "token classification": ("TOKEN_CLASSIFICATION",),
    "image classification": ("IMAGE_CLASSIFICATION",),
    "audio": ("AUDIO_CLASSIFICATION", "CTC"),
    "encoders": ("TEXT_ENCODING",),
}


def in_order(types: Iterable[str]) -> list[str]:
    """Return model types with those first that are saved most often."""
    first = dict.fromkeys(t for names in _KINDS.values() for name in names for t in tables_of(name))
    return [t for t in dict.fromkeys([*first, *types]) if t in types]


def coverage(found: Mapping[str, Any]) -> str:
    """Return a table of what was probed, and a line for each type that was not."""
    rows = []
    for kind, names in _KINDS.items():
        types = [t for t in dict.fromkeys(t for name in names for t in tables_of(name))
                 if t in found]  # fmt: skip
        known = [t for t in types if isinstance(found[t], dict)]
        rows.append([kind, len(types), len(known), _percent(len(known), len(types))])
    probed = [t for t, one in found.items() if isinstance(one, dict)]
    rows.append(["all with a class", len(found), len(probed), _percent(len(probed), len(found))])
    sizes = [dim for t in probed for row in found[t]["rows"] for kind in row[2:] for dim in kind]
    explained = [dim for dim in sizes if not dim.startswith("?")]
    lines = [table(["kind", "types", "probed", "%"], [list(map(str, row)) for row in rows])]
    lines.append(f"{len(explained)} of {len(sizes)} dimensions explained")
    lines += [f"{t}: {one}" for t, one in found.items() if not isinstance(one, dict)]
    nested = [t for t, names in classes_of_types().items() if not names]
    lines.append(f"{len(nested)} further types are parts of others, without a class of their own")
    return "\n".join(lines)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else "-"
