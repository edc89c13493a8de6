"""How much heads, neurons, channels and layers have to say: what pruning goes by.

`narrow` and `layers` read what `collect_importance` writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.base import patterns
from surgeon.training.errors import ManifestError
from surgeon.training.watching import (
    Forward,
    hooked,
    in_eval_mode,
    rounded,
    run_model,
    seen_positions,
)

# What reads the heads, and the neurons, as most classes of transformers call it.
HEADS = "re:.*(attention|attn|attention\\.output)\\.(o_proj|out_proj|c_proj|dense|wo|out_lin)"
NEURONS = (
    "re:.*((mlp|ffn|feed_forward)\\.(down_proj|c_proj|fc2|w2|dense_4h_to_h|lin2)"
    "|(?<!attention\\.)output\\.dense|\\d+\\.fc2)"
)
# Norms of a head's own queries and keys look at no channels of the model.
_NORMS_OF_HEADS = (
    "q_norm", "k_norm", "q_layernorm", "k_layernorm", "q_a_layernorm", "kv_a_layernorm",
)  # fmt: skip


def collect_importance(
    model: nn.Module,
    batches: Iterable[Any],
    path: str | Path,
    *,
    heads: str = HEADS,
    neurons: str = NEURONS,
    head_size: int | None = None,
    forward: Forward | None = None,
) -> None:
    """Write how important heads, neurons, channels and layers are, by what a model does with data.

    `heads` and `neurons` are patterns of the layers that read them: an attention's and a
    feed-forward layer's last projection. A neuron counts by the size of what is read of it, a head
    by the length of its part, a channel of the embeddings by its size after every norm, added up:
    the mean over positions, of which the root mean square over examples (Muralidharan et al. 2024,
    Compact Language Models via Pruning and Knowledge Distillation, equation 1,
    https://arxiv.org/abs/2407.14679). A layer counts by 1 - the mean cosine of what goes in and
    what comes out (Men et al. 2024, ShortGPT, equation 1, https://arxiv.org/abs/2403.03853).
    `head_size` is by default what model.config says. `forward(model, batch)` runs the model, as in
    `collect_routing`; of a mapping with an `attention_mask`, masked positions do not count. The
    model is in eval mode meanwhile. JSON. Raises ManifestError where nothing is found.
    """
    names = dict(model.named_modules())
    readers = {name for name in names if patterns.match(neurons, name) is not None}
    attentions = {name for name in names if patterns.match(heads, name) is not None} - readers
    stacks = _stacks(model)
    layers = {f"{stack}.{number}" for stack, count in stacks.items() for number in range(count)}
    norms = {name for name, module in names.items()
             if "norm" in type(module).__name__.lower()
             and name.rpartition(".")[2] not in _NORMS_OF_HEADS}  # fmt: skip
    size = (head_size or _head_size(model)) if attentions else 1
    seen = {name: _Sizes(size if name in attentions else 1)
            for name in (*readers, *attentions, *norms)}  # fmt: skip
    influence = {name: _Cosine() for name in layers}
    mask: list[Tensor | None] = [None]

    def look(name: str, given: Sequence[Any], result: Any) -> None:
        made = result[0] if isinstance(result, tuple) else result
        states = next((value for value in given if isinstance(value, Tensor)), None)
        if name in influence:
            influence[name].add(states, made, mask[0])
        elif name in norms:
            seen[name].add(made, mask[0])
        elif states is not None:
            seen[name].add(states, mask[0])

    with in_eval_mode(model), torch.no_grad(), hooked(model, {*seen, *layers}, look):
        for batch in batches:
            mask[0] = seen_positions(batch)
            run_model(model, batch, forward)
    written = {
        "surgeon": "importance",
        "heads": {name: seen[name].as_json() for name in sorted(attentions) if seen[name].examples},
        "neurons": {name: seen[name].as_json() for name in sorted(readers) if seen[name].examples},
        "layers": {
            stack: rounded(torch.stack([influence[f"{stack}.{n}"].value for n in range(count)]))
            for stack, count in stacks.items()
            if all(influence[f"{stack}.{n}"].tokens for n in range(count))
        },
    }
    widths = {influence[name].width for name in layers if influence[name].tokens}
    counted = [seen[name].value for name in norms if seen[name].examples]
    counted = [value for value in counted if widths == {len(value)}]
    if counted:
        written["channels"] = rounded(torch.stack(counted).sum(0))
    if not any(written[word] for word in ("heads", "neurons", "layers")):
        raise ManifestError(
            "nothing was found whose importance could be collected: say with 'heads' and 'neurons' "
            "which layers read them, and give batches"
        )
    Path(path).write_text(json.dumps(written))


def _stacks(model: nn.Module) -> dict[str, int]:
    """Return {list of layers: how many} of the outermost lists."""
    found: dict[str, int] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and len(module) > 1 and not inside:
            found[name] = len(module)
    return found


def _head_size(model: nn.Module) -> int:
    config = getattr(model, "config", None)
    size = getattr(config, "head_dim", None)
    if isinstance(size, int):
        return size
    width = getattr(config, "hidden_size", None)
    count = getattr(config, "num_attention_heads", None)
    if isinstance(width, int) and isinstance(count, int) and width % count == 0:
        return width // count
    raise ManifestError("the size of a head is not known from model.config: give 'head_size'")


class _Sizes:
    """The sizes of units over examples, each of `block` numbers."""

    def __init__(self, block: int) -> None:
        self.block = block
        self.examples = 0
        self.squares: Tensor | None = None

    def add(self, states: Tensor, mask: Tensor | None) -> None:
        """Add states (examples, positions, units), or (positions, units) of one example."""
        if states.dim() < 2:
            return
        states = states.reshape(-1, *states.shape[-2:]).double()
        if self.block > 1:
            sizes = states.view(*states.shape[:-1], -1, self.block).norm(dim=-1)
        else:
            sizes = states.abs()
        if mask is not None and mask.numel() == sizes.shape[0] * sizes.shape[1]:
            counts = mask.view(sizes.shape[:2]).double()[..., None]
            means = (sizes * counts).sum(1) / counts.sum(1).clamp(min=1)
        else:
            means = sizes.mean(1)
        squares = means.square().sum(0).cpu()
        self.squares = squares if self.squares is None else self.squares + squares
        self.examples += len(means)

    @property
    def value(self) -> Tensor:
        """The root mean square over examples."""
        assert self.squares is not None
        return (self.squares / self.examples).sqrt()

    def as_json(self) -> list[float]:
        return rounded(self.value)


class _Cosine:
    """How far a layer's outputs are from pointing where its inputs point."""

    def __init__(self) -> None:
        self.total = torch.zeros((), dtype=torch.float64)
        self.tokens = 0
        self.width = 0

    def add(self, given: Tensor | None, made: Any, mask: Tensor | None) -> None:
        """Add what went into a layer and what came out, where both are of one shape."""
        if given is None or not isinstance(made, Tensor) or given.shape != made.shape:
            return
        cosines = nn.functional.cosine_similarity(given.double(), made.double(), dim=-1).reshape(-1)
        if mask is not None and len(mask) == len(cosines):
            cosines = cosines[mask]
        self.total += cosines.sum().cpu()
        self.tokens += len(cosines)
        self.width = made.shape[-1]

    @property
    def value(self) -> Tensor:
        """1 - the mean cosine."""
        return 1 - self.total / self.tokens
