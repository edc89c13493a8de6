"""A small language model of letters, pruned by importance and at random."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import statistics
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import torch
from safetensors.torch import load_file, save_file
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, rms_norm, scaled_dot_product_attention, silu

from surgeon.cli.commands import commands
from surgeon.training import collect_importance

WIDTH, HEADS, HEAD, NEURONS, LAYERS, CONTEXT = 64, 4, 16, 160, 4, 64
WHOLE = {"heads": HEADS, "neurons": NEURONS, "layers": LAYERS}
KEPT = {"heads": 3, "neurons": 96, "layers": 3}
BATCH, RATE = 16, 4e-3
# Pruned networks go on learning for a while, as the original did at its end.
MORE = 25
AFTER = f"then {MORE} steps more"


class RMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, (WIDTH,), self.weight)


class Attention(nn.Module):
    def __init__(self, heads: int) -> None:
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj"):
            self.add_module(name, nn.Linear(WIDTH, heads * HEAD, bias=False))
        self.o_proj = nn.Linear(heads * HEAD, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (-1, HEAD)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        made = scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(made.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, neurons: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(WIDTH, neurons, bias=False)
        self.up_proj = nn.Linear(WIDTH, neurons, bias=False)
        self.down_proj = nn.Linear(neurons, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, heads: int, neurons: int) -> None:
        super().__init__()
        self.input_layernorm, self.self_attn = RMSNorm(), Attention(heads)
        self.post_attention_layernorm, self.mlp = RMSNorm(), FeedForward(neurons)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Network(nn.Module):
    """The names are Llama's, for which the ready-made recipe is."""

    def __init__(self, letters: int, heads: int, neurons: int, layers: int) -> None:
        super().__init__()
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(letters, WIDTH),
                "embed_positions": nn.Embedding(CONTEXT, WIDTH),
                "layers": nn.ModuleList([Layer(heads, neurons) for _ in range(layers)]),
                "norm": RMSNorm(),
            }
        )
        self.lm_head = nn.Linear(WIDTH, letters, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.model["embed_tokens"](ids) + self.model["embed_positions"](places)
        for layer in self.model["layers"]:
            x = layer(x)
        return self.lm_head(self.model["norm"](x))


def text() -> tuple[Tensor, Tensor, Tensor, int]:
    """Return Python's own help as letters: to learn from, to measure importance by, to test.

    The test is the 20 000 letters in the end.
    """
    written = "\n".join(topics[name] for name in sorted(topics))
    letters = {letter: number for number, letter in enumerate(sorted(set(written)))}
    ids = torch.tensor([letters[letter] for letter in written])
    return ids[:-40_000], ids[-40_000:-20_000], ids[-20_000:], len(letters)


def batches(ids: Tensor, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    for _ in range(steps):
        starts = torch.randint(len(ids) - CONTEXT - 1, (BATCH,), generator=generator)
        yield torch.stack([ids[start : start + CONTEXT + 1] for start in starts])


def loss_of(network: Network, batch: Tensor) -> Tensor:
    logits = network(batch[:, :-1])
    return cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def train(network: Network, ids: Tensor, steps: int, seed: int, begin: float = 1.0) -> None:
    """Learn with a rate that falls to nothing; `begin` says how far down it begins."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE * begin, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 20) * (1 - step / steps)
    )
    for batch in batches(ids, steps, torch.Generator().manual_seed(seed)):
        optimizer.zero_grad()
        loss_of(network, batch).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()


@torch.no_grad()
def perplexity(network: Network, ids: Tensor) -> float:
    """Return how many letters the network hesitates among, on text that it did not see."""
    pieces = ids[: len(ids) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)
    return math.exp(statistics.fmean(float(loss_of(network, part)) for part in pieces.split(64)))


def at_random(found: Path, seed: int, path: Path) -> Path:
    """Write a file like that of the importances, with other numbers in it."""
    said = json.loads(found.read_text())
    draw = random.Random(seed)
    for kind in ("heads", "neurons", "layers"):
        said[kind] = {name: [draw.random() for _ in row] for name, row in said[kind].items()}
    path.write_text(json.dumps(said))
    return path


def pruned(start: Path, by: Path, letters: int, kept: dict[str, int]) -> Network:
    """Apply the ready-made recipe, and load what comes of it."""
    output = start.with_name("pruned.safetensors")
    settings = {"by": by.name, "head_size": HEAD, **kept}
    given = [word for key, value in settings.items()
             for word in ("--set", f"{key}={json.dumps(value)}")]  # fmt: skip
    arguments = ["apply", "prune-by-importance", start.name, output.name, "--force", "--quiet"]
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        commands.main([*arguments, *given], standalone_mode=False)
    network = Network(letters, **kept)
    network.load_state_dict(load_file(output))
    return network


def run(seed: int, steps: int, draws: int) -> dict[str, list[dict[str, float]]]:
    """Return {way: [{what was pruned: perplexity}]} of one network."""
    learn, measure, test, letters = text()
    torch.manual_seed(seed)
    whole = Network(letters, **WHOLE)
    train(whole, learn, steps, seed)
    start, importance = Path("start.safetensors"), Path("importance.json")
    save_file(whole.state_dict(), start)
    data = [part[:, :-1] for part in batches(measure, 20, torch.Generator().manual_seed(1))]
    collect_importance(whole, data, importance, head_size=HEAD)
    found = {"nothing pruned": [{"all three": perplexity(whole, test)}]}
    ways = [("importance", importance)]
    ways += [("random", at_random(importance, draw, Path(f"random-{draw}.json")))
             for draw in range(draws)]  # fmt: skip
    for way, by in ways:
        measured = {
            word: perplexity(pruned(start, by, letters, WHOLE | {word: KEPT[word]}), test)
            for word in KEPT
        }
        network = pruned(start, by, letters, KEPT)
        measured["all three"] = perplexity(network, test)
        train(network, learn, MORE, seed + 1, begin=0.3)
        measured[AFTER] = perplexity(network, test)
        found.setdefault(way, []).append(measured)
    return found


def spread(values: list[float]) -> str:
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="how many networks to train")
    parser.add_argument("--steps", type=int, default=250, help="how long to train one")
    parser.add_argument("--draws", type=int, default=4, help="random prunings of each")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the tensors are small
    runs = [run(seed, options.steps, options.draws) for seed in range(options.seeds)]
    columns = [*KEPT, "all three", AFTER]
    rows = []
    for way in runs[0]:
        measured = [one for each in runs for one in each[way]]
        rows.append([way, *(spread([one[word] for one in measured if word in one])
                            for word in columns)])  # fmt: skip
    better = [
        sum(one[word] > each["importance"][0][word] for each in runs for one in each["random"])
        for word in columns
    ]
    rows.append(["random ones that are worse", *better])
    print(f"perplexity of letters; {options.draws * len(runs)} random prunings")
    print(tabulate(rows, ["kept by", *columns], tablefmt="github"))
    for each in runs:
        drawn = statistics.fmean(one["all three"] for one in each["random"])
        assert each["importance"][0]["all three"] < drawn, "pruning at random was better"


if __name__ == "__main__":
    main()
