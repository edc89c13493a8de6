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
            "properties": {"lr": _RATE_OR_NONE, "weight_decay": _RATE_OR_NONE},
        },
    },
}
_DURATION: Schema = _object(
    {
        "epochs": {"type": "integer", "minimum": 1},
        "steps": {"type": "integer", "minimum": 1},
    },
    minProperties=1,
    maxProperties=1,
    description="how long the stage lasts, for the training loop to read",
)
LAYER_DECAY: Schema = _object(
    {
        "container": {"type": "string", "description": "the numbered layers, such as 'blocks'"},
        "factor": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    },
    required=("container", "factor"),
    description="learning rates shrink by this factor with every layer of the container that has "
    "parameters, towards the input",
)
GROUP: Schema = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "params": _PATTERNS,
        "lr": {**_RATE, "description": "the learning rate itself"},
        "lr_scale": {**_RATE, "description": "times the optimizer's lr"},
        "weight_decay": _RATE_OR_NONE,
        "layer_decay": LAYER_DECAY,
    },
    "required": ["name", "params"],
    # Everything else is a setting of the optimizer's parameter group.
    "additionalProperties": {"type": ["number", "boolean", "string", "array", "null"]},
    "not": {"required": ["lr", "lr_scale"]},
}
STAGE: Schema = _object(
    {
        "name": {"type": "string", "minLength": 1},
        "duration": _DURATION,
        "train": _PATTERNS,
        "freeze": {**_PATTERNS, "minItems": 0},
        "groups": {"type": "array", "items": GROUP},
        "layer_decay": LAYER_DECAY,
        "scheduler": _TORCH_CLASS,
        "optimizer_state": {"enum": ["reset", "carry"]},
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
        "optimizer": _OPTIMIZER,
        "teacher": _object(
            {
                "model": {"type": "string", "description": "'input' or a model of the recipe"},
                "outputs": {
                    "type": "array",
                    "items": {"type": "string"},
                    "description": "the blocks of the old outputs; default: of what was widened",
                },
                "temperature": {**_POSITIVE, "default": 2.0},
                "weight": {**_POSITIVE, "default": 1.0},
            },
            required=("model",),
        ),
        "stages": {"type": "array", "items": STAGE, "minItems": 1},
        "unfreeze": _object(
            {
                "order": {"type": "array", "items": _PATTERNS, "minItems": 1},
                "duration": _DURATION,
                "lr_decay": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
            },
            required=("order",),
            description="a stage per entry, each training one more entry than the one before",
        ),
    },
    description="how the next training run is to train the result",
)

RECIPE_SCHEMA: Schema = _object(
    {
        "$schema": {"type": "string"},
        "surgeon": {"const": 1, "description": "the version of the recipe language"},
        "about": {"type": "string", "description": "what the recipe is for, in a line"},
        "vars": {
            "type": "object",
            "propertyNames": {"pattern": r"^[A-Za-z_]\w*$"},
            "description": "values for ${name}; a variable that is null must be set",
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
            }
        ),
    },
    required=("surgeon", "steps"),
)


_SHA256: Schema = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_BLOCKS: Schema = {
    "type": "array",
    "items": {"type": "string"},
    "description": "parameters by their final names: whole, or blocks such as 'fc.weight[7:8]'",
}
_WEIGHT_FILE: dict[str, Schema] = {
    "file": {"type": "string", "description": "its name, without a folder"},
    "bytes": {"type": "integer", "minimum": 0},
    "header_sha256": {
        **_SHA256,
        "description": "pins names, shapes, dtypes and layout; of a folder, over its files' own",
    },
}
_WEIGHT_FILE_KEYS = tuple(_WEIGHT_FILE)
_CHANGE: Schema = _object(
    {
        "step": {"type": "string", "description": "the step's id, or else its position"},
        "op": {"type": "string"},
        "into": {"type": "string", "description": "the model that the step kept its result as"},
        "from": {
            "type": "array",
            "items": {"type": "string"},
            "description": "what it was made of: earlier names, and 'model:name'",
        },
        "new": {**_BLOCKS, "description": "the blocks that the step created"},
        "init": {"type": ["string", "array"], "items": {"type": "string"}},
        "parameters": {"type": "object", "description": "of a merge, as they are for this tensor"},
    },
    required=("step", "op"),
)
_TENSOR: Schema = _object(
    {
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "dtype": {"type": "string", "description": "the safetensors name, such as 'BF16'"},
        "crc32": {"type": "string", "pattern": "^[0-9a-f]{8}$"},
        "sha256": _SHA256,
        "lineage": {
            "type": "array",
            "items": _CHANGE,
            "description": "what the steps did to it, in order; nothing where it is as it was",
        },
    },
    required=("shape", "dtype"),
)
_MANIFEST_STAGE: Schema = _object(
    {
        "name": {"type": "string", "minLength": 1},
        "duration": _DURATION,
        "groups": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "minLength": 1},
                    "params": {**_BLOCKS, "minItems": 1},
                    "lr": _POSITIVE,
                },
                "required": ["name", "params"],
                # Everything else is a setting of the optimizer's parameter group.
                "additionalProperties": {"type": ["number", "boolean", "string", "array", "null"]},
            },
        },
        "frozen": _BLOCKS,
        "eval_modules": {
            "type": "array",
            "items": {"type": "string"},
            "description": "normalisation layers whose running statistics must not move",
        },
        "scheduler": _TORCH_CLASS,
        "optimizer_state": {"enum": ["reset", "carry"]},
        "after": {
            "type": "array",
            "items": _object(
                {"align_rows": {**_BLOCKS, "minItems": 1}},
                required=("align_rows",),
                description="these rows get the mean norm of the other rows of their weight",
            ),
        },
    },
    required=("name", "groups", "frozen", "eval_modules", "optimizer_state"),
    description="every element of every parameter is in exactly one group, or frozen",
)
MANIFEST_SCHEMA: Schema = _object(
    {
        "surgeon_manifest": {"const": 1, "description": "the version of the manifest"},
        "checkpoint": _object(
            {
                **_WEIGHT_FILE,
                "files": {
                    "type": "array",
                    "items": _object(_WEIGHT_FILE, required=_WEIGHT_FILE_KEYS),
                    "minItems": 2,
                    "description": "the weight files, where `file` is the index of several",
                },
            },
            required=_WEIGHT_FILE_KEYS,
            description="the checkpoint that this manifest belongs to",
        ),
        "recipe": _object(
            {
                "sha256": {**_SHA256, "description": "with its variables filled in"},
                "vars": {"type": "object", "description": "the values of its variables"},
                "text": {"type": "object", "description": "the recipe as it was written"},
            },
            required=("sha256", "vars", "text"),
        ),
        "inputs": {
            "type": "object",
            "additionalProperties": _object(_WEIGHT_FILE, required=_WEIGHT_FILE_KEYS),
            "description": "the checkpoints it was made from: 'input' and the models by name",
        },
        "surgeon": {"type": "string", "description": "the version of surgeon that wrote it"},
        "tensors": {"type": "object", "additionalProperties": _TENSOR},
        "ties": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "{alias: owner} of names that share one tensor",
        },
        "optimizer": _OPTIMIZER,
        "teacher": _object(
            {
                "file": {"type": "string"},
                "sha256": _SHA256,
                "outputs": _BLOCKS,
                "temperature": _POSITIVE,
                "weight": _POSITIVE,
            },
            required=("file", "sha256", "outputs", "temperature", "weight"),
        ),
        "optimizer_state": _object(
            {
                "file": {"type": "string", "description": "its name, without a folder"},
                "sha256": _SHA256,
                "parameters": {**_BLOCKS, "description": "the blocks that have old state in it"},
            },
            required=("file", "sha256", "parameters"),
            description="what the optimizer of the earlier run kept, after the same surgery",
        ),
        "stages": {"type": "array", "items": _MANIFEST_STAGE, "minItems": 1},
    },
    required=(
        "surgeon_manifest", "checkpoint", "recipe", "inputs", "surgeon", "tensors", "ties",
        "stages",
    ),
    description="how the next training run is to train the checkpoint that it lies beside",
)  # fmt: skip
