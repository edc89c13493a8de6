"""Run mergekit on many configurations; runs in mergekit's own environment.

Reads from standard input a JSON list of {"config": path, "output": path, "seed": number}, and
prints {output: why it was refused, or null}.
"""

from __future__ import annotations

import json
import sys
import traceback

from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
from yaml import safe_load_all


def run(config, output, seed, whole=False):
    """Merge once; returns why mergekit refused, or nothing. With `whole`, the tokenizer too.

    Documents with a name are merged before, as mergekit-multi does, and the others find them.
    """
    # Copies: a layer that is repeated cannot be written twice otherwise.
    options = MergeOptions(
        clone_tensors=True,
        copy_tokenizer=whole,
        lora_merge_cache=f"{output}.adapted",
        lazy_unpickle=True,
        quiet=True,
        random_seed=seed,
        write_model_card=False,
    )
    try:
        with open(config) as text:  # noqa: PTH123 (as short as can be: this is not our environment)
            documents = list(safe_load_all(text))
        made = {}
        for document in documents:
            name = document.pop("name", None) if len(documents) > 1 else None
            path = made[name] = f"{output}.{name}" if name else output
            document = named(document, made)
            run_merge(MergeConfiguration.model_validate(document), path, options)
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return None


def named(value, made):
    """Return a document with paths for the names of what was made before."""
    if isinstance(value, dict):
        return {key: named(item, made) for key, item in value.items()}
    if isinstance(value, list):
        return [named(item, made) for item in value]
    return made.get(value, value) if isinstance(value, str) else value


if __name__ == "__main__":
    said = {job["output"]: run(**job) for job in json.load(sys.stdin)}
    json.dump(said, sys.stdout)
