"""What steps may read besides the state, found beside the checkpoints of a run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.base.errors import PlanError
from surgeon.draft import Outside, Tensors
from surgeon.draft.fused import FusedHeads
from surgeon.formats import Checkpoint
from surgeon.model_folder.files import config_of, generation_of
from surgeon.ops.shared import torch_module
from surgeon.recipe import Recipe, read_json
from surgeon.recipe.locations import beside_recipe
from surgeon.remote.paths import path_of
from surgeon.tokens.folder import read_text, read_tokenizer
from surgeon.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:
    from surgeon.model_folder.vocabulary import Places


def outside_of(
    recipe: Recipe,
    checkpoint: Checkpoint,
    models: Mapping[str, Checkpoint],
    locations: Mapping[str, str | Checkpoint],
    open_model: Callable[[str], Tensors],
    *,
    allow_code: bool,
) -> Outside:
    """Return what a recipe's steps may ask for; it is read when one does.

    `open_model` opens a checkpoint that a step names by its place. Without `allow_code` a step that
    wants a module built is refused.
    """

    def path(location: str) -> Path:
        return path_of(beside_recipe(recipe, location))

    return Outside(
        open_model=open_model,
        read_json=lambda named: read_json(path(named), named),
        build_module=torch_module.build if allow_code else torch_module.refuse,
        read_config=lambda name: config_of(models[name] if name else checkpoint),
        tied_names=cache(lambda name: _tied_names(name, checkpoint, models)),
        fused_heads=_fused_heads(checkpoint),
        location=lambda name: str(locations[name]) if name in models else "",
        text_of=lambda location: read_text(path(location)),
        read_tokenizer=cache(lambda name: _tokenizer(name, checkpoint, models)),
        open_tokenizer=cache(lambda location: read_tokenizer(path(location))),
        vocabularies=lambda name, tensors: _vocabularies(
            config_of(models.get(name or "", checkpoint)), tensors
        ),
        named_ids=lambda: _named_ids(checkpoint),
    )


# What is known of architectures takes a while to import: these do so where a step asks.


def _tied_names(
    name: str | None, checkpoint: Checkpoint, models: Mapping[str, Checkpoint]
) -> Mapping[str, str]:
    if name is not None:
        if name not in models:
            return {}  # a step made it
        checkpoint = models[name]
    if not (config := config_of(checkpoint)):
        return {}
    from surgeon.model_folder.ties import tied_names

    return tied_names(config, checkpoint.tensors)


def _tokenizer(
    name: str | None, checkpoint: Checkpoint, models: Mapping[str, Checkpoint]
) -> Tokenizer:
    """Return the tokenizer beside the weights of the input, or of a model."""
    if name is not None:
        if name not in models:
            raise PlanError(f"model '{name}' is made by a step, and has no tokenizer of its own")
        checkpoint = models[name]
    path = checkpoint.folder or checkpoint.path
    if not path.exists():
        raise PlanError(f"{path}: there is no tokenizer beside tensors in memory; give a folder")
    return read_tokenizer(path if path.is_dir() else path.parent)


def _vocabularies(config: Mapping[str, Any], tensors: Tensors) -> Mapping[str, Places]:
    from surgeon.model_folder.vocabulary import vocabularies

    return vocabularies(dict(config), tensors)


def _named_ids(checkpoint: Checkpoint) -> Collection[int]:
    from surgeon.model_folder.vocabulary import named_ids

    return named_ids(config_of(checkpoint), generation_of(checkpoint))


def _fused_heads(checkpoint: Checkpoint) -> Callable[[str], FusedHeads | None]:
    @cache
    def known() -> Callable[[str], FusedHeads | None]:
        from surgeon.model_folder.fused import fused_heads

        config = config_of(checkpoint)
        return fused_heads(config, checkpoint.tensors) if config else lambda name: None

    return lambda name: known()(name)
