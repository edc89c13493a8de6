"""Three tokens are added to a small tied Llama, and only their rows are trained."""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from surgeon.training import Manifest

COLOURS = {
    "red": ["apple", "cherry", "rose", "brick"],
    "green": ["grass", "frog", "leaf", "lime"],
    "blue": ["sky", "ocean", "jay", "jeans"],
}
FRAMES = ["the {thing} is{colour}.", "we saw a{colour} {thing}.", "a {thing} looks{colour} today."]


def sentences(colour: str) -> list[str]:
    """Return what there is to say of things; `colour` is how their colours are written."""
    return [
        frame.format(thing=thing, colour=colour.format(name))
        for (name, things), frame in product(COLOURS.items(), FRAMES)
        for thing in things
    ]


def write_model(folder: Path) -> None:
    """Train a tokenizer and a Llama on sentences with colours as words."""
    words = sentences(" {}")
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        words, trainers.BpeTrainer(vocab_size=120, special_tokens=["<pad>"], show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    train(model, torch.optim.AdamW(model.parameters(), lr=3e-3), batch(tokenizer, words), 40)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def batch(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """Return the numbers of tokens (sentence, place), padded."""
    return tokenizer(texts, padding=True, padding_side="right", return_tensors="pt").input_ids


def loss_of(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    """Return the mean loss of each token after the first, but for padding."""
    logits = model(ids[:, :-1]).logits.flatten(0, 1)
    return cross_entropy(logits, ids[:, 1:].flatten(), ignore_index=model.config.pad_token_id)


def train(
    model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, ids: Tensor, epochs: int
) -> None:
    for _ in range(epochs):
        for part in torch.randperm(len(ids)).split(12):
            optimizer.zero_grad()
            loss_of(model, ids[part]).backward()
            optimizer.step()


def main() -> None:
    logging.disable_progress_bar()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # more would wait for each other most of the time
    write_model(Path("small"))
    subprocess.run(
        [sys.executable, "-m", "surgeon", "apply", "recipe.json", "small", "more", "--force"],
        check=True,
    )
    old, words = AutoTokenizer.from_pretrained("small"), sentences(" {}")
    new, tagged = AutoTokenizer.from_pretrained("more"), sentences("<{}>")
    before, model = (LlamaForCausalLM.from_pretrained(name) for name in ("small", "more"))
    known, wanted = batch(old, words), batch(new, tagged)
    first = model.get_input_embeddings().weight.detach().clone()
    started = loss_of(model, wanted).item()

    run = Manifest.load("more/surgeon.manifest.json").bind(model)
    optimizer, _ = run.start("tokens")
    train(model, optimizer, wanted, run.stages[0].duration["epochs"])

    print(f"loss on sentences with the new tokens: {started:.3f} before, "
          f"{loss_of(model, wanted).item():.3f} after training their rows alone")  # fmt: skip
    prompt = new("the frog is", return_tensors="pt").input_ids
    print(new.decode(model.generate(prompt, max_new_tokens=1, do_sample=False)[0]))
    last, count = model.get_input_embeddings().weight, len(old)
    if not torch.equal(last[:count], first[:count]) or torch.equal(last, first):
        sys.exit("other rows than the new ones were trained")
    with torch.no_grad():
        if not torch.equal(model(known).logits[..., :count], before(known).logits):
            sys.exit("what the model says of old tokens has changed")
    print("what it says of old tokens is the same, bit by bit")


if __name__ == "__main__":
    main()
