"""What some architectures need stated before they can be built, and what shows more of them."""

from __future__ import annotations

from tests.architectures.configs import Json

# The defaults of these config classes build no model.
NEEDED: dict[str, Json] = {
    "autoformer": {"prediction_length": 24},
    "informer": {"prediction_length": 24},
    "time_series_transformer": {"prediction_length": 24},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
}

# Settings beside the defaults under which further tensors appear.
VARIANTS: dict[str, tuple[Json, ...]] = {
    "t5": ({"feed_forward_proj": "gated-gelu"},),
    "mt5": ({"feed_forward_proj": "relu"},),
    "umt5": ({"feed_forward_proj": "relu"},),
    "longt5": ({"feed_forward_proj": "gated-gelu"},),
    "switch_transformers": ({"feed_forward_proj": "gated-gelu"},),
}
