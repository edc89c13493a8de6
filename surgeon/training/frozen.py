"""Fingerprints of what a stage freezes: whether it is still, bit by bit, what it was."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from surgeon.base.regions import spelled
from surgeon.training.cover import Block, ResolvedStage
from surgeon.training.live import Live
from surgeon.training.sharded import index, local, owned

# Elements that go to the processor at a time.
_CHUNK = 1 << 22


def fingerprints(stage: ResolvedStage, live: Live) -> Mapping[str, str]:
    """Return a SHA-256 of each frozen block, and of each buffer of modules in evaluation mode.

    About a second per gigabyte and processor. Of a sharded parameter, this process's part counts.
    """
    # Hashing lets other threads run.
    with ThreadPoolExecutor() as pool:
        named = dict(_frozen(stage, live))
        return dict(zip(named, pool.map(_fingerprint, named.values()), strict=True))


def _frozen(stage: ResolvedStage, live: Live) -> Iterator[tuple[str, Tensor]]:
    for block in stage.frozen:
        parameter = live.parameters[block.name]
        place = index(block.region, owned(block.name, parameter))
        yield spelled(block.name, block.region, parameter.shape), local(parameter)[place]
    kept = set(stage.stage.eval_modules)
    for name, buffer in live.buffers.items():
        if name.rpartition(".")[0] in kept:
            yield name, local(buffer)


def _fingerprint(tensor: Tensor) -> str:
    digest = hashlib.sha256()
    for chunk in torch.split(tensor.reshape(-1), _CHUNK):
        digest.update(chunk.contiguous().cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def renorm_problems(frozen: Iterable[Block], live: Live) -> Iterator[str]:
    """Say which frozen rows a forward pass would change: `max_norm` scales those that it reads."""
    names = {block.name for block in frozen}
    rescaled = {
        id(module.weight): name
        for name, module in live.modules.items()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None
    }
    for name in sorted(names):
        if module := rescaled.get(id(live.parameters[name])):
            yield (
                f"'{name}' is frozen, or some of its rows are, and max_norm of '{module}' changes "
                "the rows that a forward pass reads; set its max_norm to None"
            )
