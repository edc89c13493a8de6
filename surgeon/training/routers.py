"""What routers of experts are made of, and what they did: hidden states of prompts, choices.

The op `experts` reads what `collect_router` writes; `keep_experts` and `merge_experts` read what
`collect_routing` writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from surgeon.training.errors import ManifestError
from surgeon.training.watching import (
    Forward,
    hooked,
    in_eval_mode,
    rounded,
    run_model,
    seen_positions,
)

_MLP = re.compile(r"(?P<layer>(?:.+\.)?layers\.\d+)\.mlp")
# What divides a length of zero: as large as to leave nothing of it.
_LEAST_LENGTH = 1e-8

Prompts = Mapping[str, Sequence[str] | Mapping[str, Sequence[str]]]


def collect_router(
    model: nn.Module,
    tokenizer: Callable[[str], Mapping[str, Any]],
    prompts: Prompts,
    path: str | Path,
    *,
    inputs: Literal["mlp", "layer"] = "mlp",
    tokens: Literal["mean", "last"] = "mean",
) -> None:
    """Write rows for the routers of a mixture to be, from a dense model's hidden states.

    `prompts` are the texts of each expert, or {"positive": texts, "negative": texts}. Of each
    layer, a row is the mean over an expert's texts of the hidden states there, less the mean of the
    negative ones, scaled to length 1: those that the feed-forward layer gets, which the router will
    get in its place, or with `inputs="layer"` those that the whole layer gets. Of a text it is the
    mean of all tokens, or the last one. `tokenizer(text)["input_ids"]` are a text's tokens. The
    model is in eval mode meanwhile. float32, as `layers.0.mlp.EXPERT`. Raises ManifestError where
    the model has no such layers, or a text no tokens.
    """
    layers = {name: found["layer"] for name, _ in model.named_modules()
              if (found := _MLP.fullmatch(name))}  # fmt: skip
    if not layers:
        raise ManifestError("there are no layers 'layers.0.mlp' to collect hidden states from")
    watched = {name: name if inputs == "mlp" else layer for name, layer in layers.items()}
    rows: dict[str, Tensor] = {}
    with in_eval_mode(model), torch.no_grad():
        for expert, said in prompts.items():
            sides = said if isinstance(said, Mapping) else {"positive": said}
            if not sides.get("positive"):
                raise ManifestError(f"there are no positive prompts for expert '{expert}'")
            wanted = _mean_states(model, tokenizer, sides["positive"], watched, tokens)
            if sides.get("negative"):
                other = _mean_states(model, tokenizer, sides["negative"], watched, tokens)
                wanted = {name: state - other[name] for name, state in wanted.items()}
            for name, state in wanted.items():
                rows[f"{name}.{expert}"] = (state / state.norm().clamp(min=_LEAST_LENGTH)).float()
    save_file({name: row.cpu().contiguous() for name, row in rows.items()}, path, {"format": "pt"})


def _mean_states(
    model: nn.Module,
    tokenizer: Callable[[str], Mapping[str, Any]],
    texts: Sequence[str],
    watched: Mapping[str, str],
    tokens: str,
) -> dict[str, Tensor]:
    """Return {feed-forward layer: the mean of its hidden states} over texts, in float64."""
    device = next(model.parameters()).device
    totals: dict[str, Tensor] = {}

    def look(name: str, given: Sequence[Any], result: Any) -> None:
        states = given[0][0].double()
        one = states.mean(0) if tokens == "mean" else states[-1]
        totals[name] = totals.get(name, 0) + one

    with hooked(model, set(watched.values()), look):
        for text in texts:
            ids = torch.as_tensor(tokenizer(text)["input_ids"], device=device).reshape(1, -1)
            if not ids.numel():
                raise ManifestError(f"the prompt {text!r} has no tokens")
            model(input_ids=ids)
    return {name: totals[place] / len(texts) for name, place in watched.items()}


def collect_routing(
    model: nn.Module,
    batches: Iterable[Any],
    path: str | Path,
    *,
    forward: Forward | None = None,
) -> None:
    """Write how often each expert was chosen, with which weight, and which are taken for alike.

    Of each layer with experts: `frequency`, the share of tokens that went through an expert,
    `weight`, the mean over all tokens of the weight that it got, and `similarity`, the correlation
    of the router's logits of each two experts. Experts are the modules `experts` of transformers,
    which are given the chosen numbers and weights. `forward(model, batch)` runs the model; by
    default model(batch) for a tensor, model(**batch) for a mapping, model(batch[0]) for a tuple or
    list. Of a mapping with an `attention_mask`, masked positions do not count. The model is in eval
    mode meanwhile. JSON. Raises ManifestError where no experts were chosen.
    """
    found = {n: m for n, m in model.named_modules() if n.rpartition(".")[2] == "experts"}
    seen = {name: _Seen(*_router_of(model, name)) for name in found}
    mask: list[Tensor | None] = [None]

    def look(name: str, given: Sequence[Any], result: Any) -> None:
        seen[name].add([value for value in given if isinstance(value, Tensor)], mask[0])

    with in_eval_mode(model), torch.no_grad(), hooked(model, set(found), look):
        for batch in batches:
            mask[0] = seen_positions(batch)
            run_model(model, batch, forward)
    layers: dict[str, Any] = {}
    for name, one in seen.items():
        layer = name.rpartition(".")[0].rpartition(".")[0]
        if layer in layers:
            raise ManifestError(f"layer '{layer}' has several modules 'experts'")
        if one.tokens:
            layers[layer] = one.as_json()
    if not layers:
        raise ManifestError(
            "no module 'experts' was given the numbers and weights of chosen experts, as those of "
            "transformers 5 are"
        )
    tokens = max(one.tokens for one in seen.values())
    Path(path).write_text(json.dumps({"surgeon": "routing", "tokens": tokens, "layers": layers}))


def _router_of(model: nn.Module, experts: str) -> tuple[Tensor, Tensor | None]:
    """Return the rows of the router beside some experts, and its bias where it has one."""
    block = model.get_submodule(experts.rpartition(".")[0])
    for word in ("gate", "router"):
        router = getattr(block, word, None)
        rows, bias = getattr(router, "weight", None), getattr(router, "bias", None)
        if isinstance(rows, Tensor):
            return rows, bias if isinstance(bias, Tensor) else None
    raise ManifestError(f"'{experts}' has no router beside it, a module 'gate' or 'router'")


class _Seen:
    """Sums over tokens of what one router chose."""

    def __init__(self, rows: Tensor, bias: Tensor | None) -> None:
        self.rows, self.bias = rows, bias
        self.tokens = 0
        count = len(rows)
        self.chosen = torch.zeros(count, dtype=torch.float64)
        self.weight = torch.zeros(count, dtype=torch.float64)
        self.sums = torch.zeros(count, dtype=torch.float64)
        self.products = torch.zeros(count, count, dtype=torch.float64)

    def add(self, given: Sequence[Tensor], mask: Tensor | None) -> None:
        """Add the states, the chosen numbers and their weights of some tokens."""
        if len(given) != 3 or given[1].is_floating_point():
            return
        states, numbers, weights = (value.reshape(-1, value.shape[-1]) for value in given)
        if mask is not None and len(mask) == len(states):
            states, numbers, weights = states[mask], numbers[mask], weights[mask]
        numbers, weights = numbers.cpu().long(), weights.double().cpu()
        count = len(self.chosen)
        self.tokens += len(states)
        self.chosen += torch.bincount(numbers.reshape(-1), minlength=count)
        self.weight.index_add_(0, numbers.reshape(-1), weights.reshape(-1))
        logits = states.double() @ self.rows.double().T
        logits = logits if self.bias is None else logits + self.bias.double()
        self.sums += logits.sum(0).cpu()
        self.products += (logits.T @ logits).cpu()

    def as_json(self) -> dict[str, Any]:
        """Return what is written of a layer."""
        means = self.sums / self.tokens
        covariance = self.products / self.tokens - torch.outer(means, means)
        spread = covariance.diagonal().clamp(min=0).sqrt()
        scale = torch.outer(spread, spread)
        alike = torch.where(scale > 0, covariance / scale.where(scale > 0, 1), 0)
        alike.fill_diagonal_(1)
        return {
            "frequency": rounded(self.chosen / self.tokens),
            "weight": rounded(self.weight / self.tokens),
            "similarity": [rounded(row, digits=4) for row in alike.clamp(-1, 1)],
        }
