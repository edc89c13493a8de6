"""In what the other models of a recipe differ from the input, beside their tensors."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from surgeon.base.errors import several
from surgeon.base.files import read_regular
from surgeon.formats import Checkpoint
from surgeon.model_folder.token_ids import TOKEN_IDS

Json = dict[str, Any]

# What changes nothing of what a model computes, or is held to the tensors anyway.
_NO_MATTER = re.compile(
    r"_.*|transformers_version|(torch_)?dtype|use_cache|architectures|id2label|label2id|num_labels"
    r"|quantization_config|pretraining_tp|initializer_.*|.*dropout.*|.*pdrop|.*drop_prob|.*vocab_size"
    r"|.*num_.*layers|n_layers?|layer_types|auto_map|output_.*|return_dict|problem_type"
    r"|max_position_embeddings|model_max_length|finetuning_task|task_specific_params|gradient_.*"
)
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
               "vocab.json", "vocab.txt", "merges.txt")  # fmt: skip
_MOST_NAMED = 6
_MOST_BYTES = 100_000_000
_ABSENT = "nothing"


def differences(
    source: Checkpoint,
    config: Json,
    models: Mapping[str, tuple[Checkpoint, Json]],
    aligned: Collection[str] = (),
) -> list[str]:
    """Return a note for each model whose config or tokenizer says something else than the input's.

    Of those that are `aligned`, the tokens are the input's by now. The input's own are written:
    with `rope_theta` or another token's id, they may be wrong for what comes from the others.
    """
    notes = []
    for name, (model, other) in models.items():
        if not config or not other:
            continue
        found = [
            f"{path} is {a} here and {b} there"
            for path, a, b in _differing(config, other)
            if name not in aligned or not TOKEN_IDS.fullmatch(path.rpartition(".")[2])
        ]
        if found:
            notes.append(
                f"config.json: model '{name}' has another: {several(found, _MOST_NAMED)}; "
                "what the input says is written"
            )
        if name not in aligned and (
            files := [n for n in _TOKENIZERS if _differs(source.folder, model.folder, n)]
        ):
            notes.append(
                f"model '{name}' has another tokenizer ({', '.join(files)}): rows of its "
                "embeddings may be other tokens; the input's files are carried"
            )
    return notes


def _differing(one: Any, other: Any, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield (path, value, other value) of what differs in two configs."""
    for key in sorted({*one, *other}):
        if _NO_MATTER.fullmatch(key):
            continue
        a, b = one.get(key, _ABSENT), other.get(key, _ABSENT)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differing(a, b, f"{prefix}{key}.")
        elif a != b and {repr(a), repr(b)} != {repr(_ABSENT), "None"}:
            yield f"{prefix}{key}", _shown(a), _shown(b)


def _shown(value: Any) -> str:
    if value == _ABSENT:
        return _ABSENT
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _differs(folder: Path | None, other: Path | None, name: str) -> bool:
    """Return whether both folders have a file, and not the same."""
    if folder is None or other is None:
        return False
    one, two = folder / name, other / name
    if not one.is_file() or not two.is_file():
        return False
    if one.stat().st_size != two.stat().st_size:
        return True
    return read_regular(one, _MOST_BYTES) != read_regular(two, _MOST_BYTES)
