"""A chat template that a recipe states, as transformers reads it from a folder."""

from __future__ import annotations

import json
from pathlib import Path

from surgeon.base.errors import CheckpointError
from surgeon.base.files import link_out
from surgeon.base.strict_json import read_json

_TEMPLATE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"
_WORD = "chat_template"


def chat_template_files(
    folder: Path | None, template: str | None, changed: str | None = None
) -> dict[str, str]:
    """Return the files that hold a template; {} where none is stated.

    `changed` is what the tokenizer's config says by now, where steps changed that.
    A template in the tokenizer's own config goes, since there would be two. Raises CheckpointError
    for a config that cannot be read.
    """
    if template is None:
        return {}
    files = {_TEMPLATE: template}
    path = folder / TOKENIZER_CONFIG if folder else None
    if path is None or not path.is_file():
        return files
    if problem := link_out(path):
        raise CheckpointError(f"{path}: {problem}")
    try:
        config = json.loads(changed) if changed else read_json(path, allow_infinite=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    if isinstance(config, dict) and config.pop(_WORD, None) is not None:
        files[TOKENIZER_CONFIG] = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    return files
