"""Tiny model folders with tokenizers that were trained, made with transformers and tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.late import Late

transformers: Any = Late("transformers", is_optional=True)
CORPUS = [
    "the quick brown fox jumps over the lazy dog, and the dog sleeps on",
    "pack my box with five dozen liquor jugs; how vexingly quick daft zebras jump",
    "a tokenizer cuts text into pieces, and every piece has a row in the embedding",
    "rows of tokens are moved, kept, added and trimmed: numbers follow the tokens",
    "sphinx of black quartz, judge my vow. jackdaws love my big sphinx of quartz",
] * 4
TEXTS = ["the quick brown dog", "every piece of text", "jump over my quartz box", "zebras vow"]


def bpe(size: int = 300, corpus: list[str] = CORPUS) -> Any:
    """Byte-level BPE, as GPT-2's; its special tokens come first."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(corpus, trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet,
        show_progress=False))  # fmt: skip
    return made


def llama_bpe(size: int = 120, corpus: list[str] = CORPUS) -> Any:
    """BPE with spaces as `▁` and bytes to fall back to, as Llama's."""
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
                                      decoders.Fuse(), decoders.Strip(" ", 1, 0)])  # fmt: skip
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    made.train_from_iterator(corpus, trainers.BpeTrainer(
        vocab_size=size + 259, special_tokens=specials, show_progress=False))  # fmt: skip
    document = json.loads(made.to_str())
    # Bytes are no added tokens.
    document["added_tokens"] = document["added_tokens"][:3]
    made = tokenizers.Tokenizer.from_str(json.dumps(document))
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return made


def wordpiece(size: int = 120) -> Any:
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(CORPUS, trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=specials, show_progress=False))  # fmt: skip
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return made


def unigram(size: int = 120) -> Any:
    made = tokenizers.Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.train_from_iterator(CORPUS, trainers.UnigramTrainer(
        vocab_size=size, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>",
        show_progress=False))  # fmt: skip
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return made


def wordlevel(size: int = 60) -> Any:
    made = tokenizers.Tokenizer(models.WordLevel(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.train_from_iterator(CORPUS, trainers.WordLevelTrainer(
        vocab_size=size, special_tokens=["[UNK]", "[PAD]"], show_progress=False))  # fmt: skip
    return made


_ROLES = {
    "bpe": {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"},
    "llama_bpe": {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    "wordpiece": {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]",
                  "sep_token": "[SEP]", "mask_token": "[MASK]"},
    "unigram": {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
    "wordlevel": {"unk_token": "[UNK]", "pad_token": "[PAD]"},
}  # fmt: skip
KINDS = {"bpe": bpe, "llama_bpe": llama_bpe, "wordpiece": wordpiece, "unigram": unigram,
         "wordlevel": wordlevel}  # fmt: skip


def write_tokenizer(folder: Path, kind: str, made: Any = None) -> Any:
    """Write a tokenizer as transformers saves it, and return transformers'."""
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made or KINDS[kind](), **_ROLES[kind]
    )
    fast.save_pretrained(folder)
    return fast


def ids_of(fast: Any) -> dict[str, int]:
    """Return the token ids that a config names."""
    roles = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: number for name in roles if (number := getattr(fast, name)) is not None}


def llama(rows: int, **settings: Any) -> Any:
    settings = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None, **settings}
    config = transformers.LlamaConfig(
        vocab_size=rows, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, **settings)  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def gpt2(rows: int, **settings: Any) -> Any:
    config = transformers.GPT2Config(
        vocab_size=rows, n_embd=16, n_layer=2, n_head=2, n_positions=64, **settings)  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def bert(rows: int, **settings: Any) -> Any:
    settings = {key: value for key, value in settings.items() if key == "pad_token_id"}
    config = transformers.BertConfig(
        vocab_size=rows, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=64, **settings)  # fmt: skip
    return transformers.BertForMaskedLM(config)


def bart(rows: int, **settings: Any) -> Any:
    start = settings["eos_token_id"]
    config = transformers.BartConfig(
        vocab_size=rows, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=24,
        decoder_ffn_dim=24, encoder_attention_heads=2, decoder_attention_heads=2,
        max_position_embeddings=64, decoder_start_token_id=start, forced_eos_token_id=start,
        **settings)  # fmt: skip
    made = transformers.BartForConditionalGeneration(config)
    made.final_logits_bias = torch.randn(1, rows)
    return made


def llava(rows: int, **settings: Any) -> Any:
    text = transformers.LlamaConfig(
        vocab_size=rows, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, **settings)  # fmt: skip
    vision = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        image_size=8, patch_size=4)  # fmt: skip
    config = transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_index=5)
    return transformers.LlavaForConditionalGeneration(config)


MODELS = {"llama": llama, "gpt2": gpt2, "bert": bert, "bart": bart, "llava": llava}


def write_model(
    folder: Path, model: str, kind: str, *, padding: int = 0, made: Any = None, seed: int = 0,
    **settings: Any,
) -> Any:  # fmt: skip
    """Write a folder of a tiny random model with a tokenizer; returns transformers' tokenizer."""
    fast = write_tokenizer(folder, kind, made)
    torch.manual_seed(seed)
    made_model = MODELS[model](len(fast) + padding, **ids_of(fast), **settings)
    with torch.no_grad():
        for name, parameter in made_model.named_parameters():
            if "norm" not in name.lower():
                parameter.normal_(0, 0.3)
    made_model.save_pretrained(folder)
    return fast


def load(folder: Path) -> tuple[Any, Any]:
    """Return a folder's model and tokenizer as transformers loads them."""
    config = transformers.AutoConfig.from_pretrained(folder)
    loaded = getattr(transformers, config.architectures[0])
    model, info = loaded.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] - set(model._tied_weights_keys or ()), info
    assert not info["unexpected_keys"], info
    assert not info["mismatched_keys"], info
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder)
