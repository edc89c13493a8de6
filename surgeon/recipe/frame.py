"""The JSON Schemas around the steps: the recipe's frame and its training section."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def _object(
    properties: dict[str, Schema], *, required: tuple[str, ...] = (), **more: Any
) -> Schema:
    schema: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**schema, **({"required": list(required)} if required else {}), **more}


_PATTERNS: Schema = {
    "type": ["string", "array"],
    "items": {"type": "string"},
    "minItems": 1,
    "description": "tensors, modules, '@new', '@vectors', or row blocks such as 'fc.weight[7:8]'",
}
_TORCH_CLASS: Schema = {
    "type": "object",
    "properties": {
        "class": {
            "type": "string",
            "pattern": r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$",
            "description": "the import path of a class, such as torch.optim.AdamW",
        },
        "args": {"type": "object", "description": "its keyword arguments", "default": {}},
    },
    "required": ["class"],
    "additionalProperties": False,
}
_POSITIVE: Schema = {"type": "number", "exclusiveMinimum": 0}
# Zero passes the schema: the manifest's own message for it says what to do instead.
_RATE: Schema = {"type": "number", "minimum": 0}
_RATE_OR_NONE: Schema = {"type": ["number", "null"], "minimum": 0}
_OPTIMIZER: Schema = {
    **_TORCH_CLASS,
    "properties": {
        **_TORCH_CLASS["properties"],
        "args": {
            **_TORCH_CLASS["properties"]["args"],
            "properties": {
                "lr": {**_RATE_OR_NONE, "description": "the learning rate"},
                "weight_decay": {**_RATE_OR_NONE, "description": "the weight decay"},
            },
        },
    },
}
_DURATION: Schema = _object(
    {
        "epochs": {"type": "integer", "minimum": 1, "description": "in epochs"},
        "steps": {"type": "integer", "minimum": 1, "description": "in optimizer steps"},
    },
    minProperties=1,
    maxProperties=1,
    description="how long the stage lasts, for the training loop to read",
)
LAYER_DECAY: Schema = _object(
    {
        "container": {
            "type": "string",
            "description": "the numbered layers, such as 'blocks'; '' where the model itself is "
            "a Sequential",
        },
        "factor": {
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": 1,
            "description": "per layer",
        },
    },
    required=("container", "factor"),
    description="learning rates shrink by this factor with every layer of the container that has "
    "parameters, towards the input",
)
GROUP: Schema = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "description": "the group's name"},
        "params": _PATTERNS,
        "lr": {**_RATE, "description": "the learning rate itself"},
        "lr_scale": {**_RATE, "description": "times the optimizer's lr"},
        "weight_decay": {**_RATE_OR_NONE, "description": "the group's own weight decay"},
        "layer_decay": LAYER_DECAY,
    },
    "required": ["name", "params"],
    # Everything else is a setting of the optimizer's parameter group.
    "additionalProperties": {"type": ["number", "boolean", "string", "array", "null"]},
    "not": {"required": ["lr", "lr_scale"]},
}
STAGE: Schema = _object(
    {
        "name": {"type": "string", "minLength": 1, "description": "what `run.start` takes"},
        "duration": _DURATION,
        "train": {**_PATTERNS, "description": "what trains; all else is frozen"},
        "freeze": {**_PATTERNS, "minItems": 0, "description": "what is frozen; all else trains"},
        "groups": {
            "type": "array",
            "items": GROUP,
            "description": "optimizer groups; what no group names is in the group `default`",
        },
        "layer_decay": LAYER_DECAY,
        "scheduler": {**_TORCH_CLASS, "description": "a scheduler of torch.optim.lr_scheduler"},
        "optimizer_state": {
            "enum": ["reset", "carry"],
            "default": "reset",
            "description": "carry: moments go on from the stage, or the run, before",
        },
        "after": {
            "type": "array",
            "items": _object(
                {
                    "align_rows": {
                        **_PATTERNS,
                        "description": "weights whose new rows get the mean norm of their old "
                        "ones, or the rows themselves, such as 'fc.weight[7:8]'",
                    }
                },
                required=("align_rows",),
            ),
            "description": "what is done to the weights when the stage ends",
        },
    },
    required=("name",),
    **{"not": {"required": ["train", "freeze"]}},
)
TRAINING: Schema = _object(
    {
        "optimizer": {**_OPTIMIZER, "description": "the optimizer of all stages"},
        "teacher": _object(
            {
                "model": {"type": "string", "description": "'input' or a model of the recipe"},
                "outputs": {
                    "type": "array",
                    "items": {"type": "string"},
                    "description": "the blocks of the old outputs; default: of what was widened",
                },
                "temperature": {
                    **_POSITIVE,
                    "default": 2.0,
                    "description": "what logits are divided by",
                },
                "weight": {**_POSITIVE, "default": 1.0, "description": "the loss's factor"},
            },
            required=("model",),
            description="the old model's outputs are kept up (learning without forgetting)",
        ),
        "stages": {
            "type": "array",
            "items": STAGE,
            "minItems": 1,
            "description": "what the next run does, in order",
        },
        "unfreeze": _object(
            {
                "order": {
                    "type": "array",
                    "items": _PATTERNS,
                    "minItems": 1,
                    "description": "what trains first, then what joins in each stage",
                },
                "duration": {**_DURATION, "description": "how long each stage lasts"},
                "lr_decay": {
                    "type": "number",
                    "exclusiveMinimum": 0,
                    "maximum": 1,
                    "description": "what the learning rate is multiplied by from entry to entry",
                },
            },
            required=("order",),
            description="a stage per entry, each training one more entry than the one before",
        ),
    },
    description="how the next training run is to train the result",
)

RECIPE_SCHEMA: Schema = _object(
    {
        "$schema": {"type": "string", "description": "where the JSON Schema is, for editors"},
        "surgeon": {"const": 1, "description": "the version of the recipe language"},
        "about": {"type": "string", "description": "what the recipe is for, in a line"},
        "vars": {
            "type": "object",
            "propertyNames": {"pattern": r"^[A-Za-z_]\w*$"},
            "description": "values for ${name}; a variable that is null must be set",
        },
        "help": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "what each variable is for; `surgeon recipes NAME` shows it",
        },
        "example": {
            "type": "object",
            "description": "values of variables with which the recipe is shown",
        },
        "models": {
            "type": "object",
            "propertyNames": {"minLength": 1},
            "additionalProperties": {"type": ["string", "null"]},
            "description": "other checkpoints by name; null is given on the command line",
        },
        "seed": {"type": "integer", "minimum": 0, "default": 0},
        "steps": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"op": {"type": "string"}},
                "required": ["op"],
            },
        },
        "training": TRAINING,
        "output": _object(
            {
                "dtype": {
                    "type": ["string", "null"],
                    "format": "dtype",
                    "description": "cast all floating-point tensors",
                },
                "shard_size": {
                    "type": ["string", "integer"],
                    "format": "size",
                    "description": "the most bytes in one file of a model folder",
                    "default": "5GB",
                },
                "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
                "config": {
                    "type": "object",
                    "description": "merged into a model folder's config.json; what follows from "
                    "the steps need not be said",
                },
                "chat_template": {
                    "type": "string",
                    "minLength": 1,
                    "description": "a model folder's chat template, as Jinja; it is written into "
                    "chat_template.jinja, where transformers reads it",
                },
            }
        ),
    },
    required=("surgeon", "steps"),
)
