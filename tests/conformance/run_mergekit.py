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
from yaml import safe_load


def run(config, output, seed):
    """Merge once; returns why mergekit refused, or nothing."""
    # Copies: a layer that is repeated cannot be written twice otherwise.
    options = MergeOptions(
        clone_tensors=True,
        copy_tokenizer=False,
        lazy_unpickle=True,
        quiet=True,
        random_seed=seed,
        write_model_card=False,
    )
    try:
        with open(config) as text:  # noqa: PTH123 (as short as can be: this is not our environment)
            run_merge(MergeConfiguration.model_validate(safe_load(text)), output, options)
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return None


if __name__ == "__main__":
    said = {job["output"]: run(**job) for job in json.load(sys.stdin)}
    json.dump(said, sys.stdout)
