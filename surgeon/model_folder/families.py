"""What goes by the same name in most architectures, for those that nothing else is known of.

A place is `name[dimension]`: a pattern for the end of a tensor's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Names that many architectures share.

    `sizes` maps numbers of the config to places; `labels` are places with a row for each label. An
    `output` embedding is tied to the `embedding` where `tie_word_embeddings` says so.
    """

    sizes: Mapping[str, tuple[str, ...]]
    labels: tuple[str, ...]
    embedding: str
    output: str


COMMON = Family(
    sizes={
        "vocab_size": (
            "(embed_tokens|wte|word_embeddings|embed_in|shared|tok_embeddings|embeddings).weight[0]",
            "(lm_head|embed_out).(weight|bias)[0]",
        ),
    },
    labels=(
        "(classifier|score|qa_outputs).(weight|bias)[0]",
        "classifier.(out_proj|1).(weight|bias)[0]",
    ),
    embedding="(embed_tokens|wte|word_embeddings|embed_in|shared).weight",
    output="(lm_head|embed_out|lm_head.decoder|cls.predictions.decoder).weight",
)
