"""Run mergekit-moe on many configurations; runs in mergekit's own environment.

Reads from standard input a JSON list of {"config": path, "output": path}.
"""

from __future__ import annotations

import json
import sys

from mergekit.merge import MergeOptions
from mergekit.moe.config import MoEMergeConfig
from mergekit.scripts.moe import build
from yaml import safe_load

if __name__ == "__main__":
    for job in json.load(sys.stdin):
        with open(job["config"]) as text:  # noqa: PTH123 (this is not our environment)
            config = MoEMergeConfig.model_validate(safe_load(text))
        options = MergeOptions(copy_tokenizer=False, lazy_unpickle=True, clone_tensors=True)
        build(config, job["output"], options, device="cpu", allow_all_same=True)
