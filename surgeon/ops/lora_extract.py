"""lora_extract: what changed since a base model, as a PEFT adapter of low rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np

from surgeon.base.errors import PlanError
from surgeon.base.patterns import Target
from surgeon.draft import ADAPTER_WEIGHTS, Draft, Tensors
from surgeon.draft.adapters import CONFIG, PREFIX, exactly
from surgeon.draft.registry import op
from surgeon.lazy import LazyTensor, Scratch, TensorSpec, WholeTensor, detached, rounded
from surgeon.lazy.values import require_finite, same_values
from surgeon.numeric.dtypes import DTYPES, Array
from surgeon.numeric.matrices import coefficients, kept_share, right_singular

_FLOAT64_BYTES = 8
_TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}
_PATTERNS = {"minLength": 1, "minItems": 1, "format": "name-pattern"}


@dataclass(frozen=True)
class _Weight:
    """A weight whose change becomes two factors."""

    name: str
    ours: LazyTensor
    base: LazyTensor
    rank: int
    is_embedding: bool
    is_transposed: bool

    @property
    def module(self) -> str:
        return self.name.removesuffix(".weight")

    @property
    def sizes(self) -> tuple[int, int]:
        """Outputs and inputs, whichever way round the weight is kept."""
        rows, columns = self.ours.spec.shape
        return (columns, rows) if self.is_transposed else (rows, columns)


@op(
    group="values",
    example={"base": "other", "target": "encoder", "rank": 2, "others": "drop"},
    paper="Eckart & Young 1936, The approximation of one matrix by another of lower rank, "
    "https://doi.org/10.1007/BF02288367",
)
def lora_extract(
    draft: Draft,
    *,
    base: Annotated[str, "the model that the state was trained from"],
    target: Annotated[Target, "the layers whose weights (rank 2) change in the adapter"],
    rank: Annotated[int, "how many singular values are kept of each change", {"minimum": 1}],
    energy: Annotated[
        float | None,
        "an error where the rank keeps less than this share of a change's squared norm",
        {"exclusiveMinimum": 0, "maximum": 1},
    ] = None,
    embeddings: Annotated[str | list[str] | None, "which of them are embeddings", _PATTERNS] = None,
    transposed: Annotated[
        str | list[str] | None,
        "which of them are kept as (inputs, outputs), such as GPT-2's Conv1D",
        _PATTERNS,
    ] = None,
    save: Annotated[
        str | list[str] | None, "modules that the adapter holds as a whole", _PATTERNS
    ] = None,
    others: Annotated[
        Literal["error", "drop"], "what to do where another tensor differs from the base's"
    ] = "error",
) -> None:
    """Make a LoRA adapter of what changed since a base model.

    Of W - base, the first singular triplets are kept: the nearest matrix of that rank. A's rows are
    the right singular vectors, of which the largest entry is positive; B is what they have to be
    multiplied with, fitted to A as it is rounded. A and B are F32, or F64 where the weight is. The
    state becomes the adapter's tensors under PEFT's names; a folder as OUTPUT gets
    adapter_model.safetensors and adapter_config.json and nothing of the input's folder, a file no
    configuration. A smaller matrix has its full rank. `energy` is looked at while writing: the
    rank has to be known before. Raises for tied weights, for what the base lacks, and, before
    anything is written, where a tensor differs that the adapter does not hold.
    """
    model = draft.model(base)
    saved = _select_saved(draft, save)
    weights, problems = _weights(draft, model, base, target, saved, rank, embeddings, transposed)
    changed = {weight.name for weight in weights}
    for name in sorted(draft.tensors.keys() - changed - saved.keys()):
        ours, theirs = draft[name], model.get(name)
        if theirs is None:
            problems.append(f"'{name}' is not in model '{base}'")
        elif theirs.spec != ours.spec:
            problems.append(f"'{name}' is {ours.spec} here but {theirs.spec} in model '{base}'")
        else:
            draft.check(partial(_look, name, base, others, ours, theirs))
    problems += [
        f"'{name}' is in model '{base}' only" for name in model if name not in draft.tensors
    ]
    if problems:
        raise PlanError(*sorted(set(problems)))
    # PEFT knows of no ties: it reads each tensor under its own name.
    tensors: Tensors = {f"{PREFIX}{name}": detached(draft[name]) for name in saved}
    for weight in weights:
        kind, leaf = ("lora_embedding", "") if weight.is_embedding else ("lora", ".weight")
        a, b = _factors(weight, energy)
        tensors[f"{PREFIX}{weight.module}.{kind}_A{leaf}"] = a
        tensors[f"{PREFIX}{weight.module}.{kind}_B{leaf}"] = b
    draft.tensors = tensors
    draft.weights_file = ADAPTER_WEIGHTS
    about = {
        "base_model_name_or_path": draft.outside.location(base) or None,
        "task_type": _task(draft.outside.read_config(base)),
    }
    draft.sidecars[CONFIG] = {**_configuration(weights, set(saved.values()), rank), **about}


def _select_saved(draft: Draft, save: str | list[str] | None) -> dict[str, str]:
    """Return {tensor: module} for all tensors of the modules that are kept as they are."""
    modules = draft.modules(save) if save is not None else {}
    if "" in modules:
        raise PlanError(f"'{modules[''][0]}' is in no module, and PEFT saves modules")
    return {
        name: module
        for module in modules
        for name in draft.tensors
        if name.startswith(f"{module}.")
    }


def _weights(
    draft: Draft,
    model: Tensors,
    base: str,
    target: str | list[str],
    saved: dict[str, str],
    rank: int,
    embeddings: str | list[str] | None,
    transposed: str | list[str] | None,
) -> tuple[list[_Weight], list[str]]:
    """Return the weights that change, and what is wrong with others of the target."""
    selected = [name for name in draft.select(target) if name not in saved]
    chosen = [name for name in selected if _is_weight(draft.spec(name), name)]
    if not chosen:
        raise PlanError(f"{target!r} selects no floating-point '.weight' of two dimensions")
    is_embedding = set(draft.select(embeddings)) if embeddings is not None else set()
    is_transposed = set(draft.select(transposed)) if transposed is not None else set()
    weights: list[_Weight] = []
    problems: list[str] = []
    for name in chosen:
        ours, theirs = draft[name], model.get(name)
        tied = next((n for n in draft.tied(name) if n in chosen and n < name), None)
        if theirs is None:
            problems.append(f"'{name}' is not in model '{base}'")
        elif theirs.spec.shape != ours.spec.shape or DTYPES[theirs.spec.dtype].kind != "float":
            problems.append(f"'{name}' is {ours.spec} here but {theirs.spec} in model '{base}'")
        elif tied:
            problems.append(
                f"'{name}' is tied to '{tied}', and merging would change both twice; leave one out"
            )
        else:
            kept = min(rank, *ours.spec.shape)
            turned = name in is_embedding or name in is_transposed
            weights.append(_Weight(name, ours, theirs, kept, name in is_embedding, turned))
    return weights, problems


def _is_weight(spec: TensorSpec, name: str) -> bool:
    is_float = DTYPES[spec.dtype].kind == "float"
    return is_float and len(spec.shape) == 2 and spec.count > 0 and name.endswith(".weight")


def _look(
    name: str, base: str, others: str, ours: LazyTensor, theirs: LazyTensor, scratch: Scratch
) -> str | None:
    if same_values(ours, theirs, scratch):
        return None
    what = f"'{name}' differs from model '{base}', and is not in the adapter"
    if others == "error":
        raise PlanError(
            f'{what}; "save" keeps a module as a whole, "others": "drop" leaves it to the base'
        )
    return what


def _factors(weight: _Weight, energy: float | None) -> tuple[LazyTensor, LazyTensor]:
    """Return A and B; of both, the decomposition is A's."""
    outputs, inputs = weight.sizes
    dtype = "F64" if weight.ours.spec.dtype == "F64" else "F32"
    least, count = min(outputs, inputs), outputs * inputs
    # The change and LAPACK's copy of it, the vectors, and the workspace of gesdd.
    spare = 2 * count + least * (outputs + inputs) + 8 * least * least
    pair = (weight.ours, weight.base)
    a = WholeTensor(
        TensorSpec(dtype, (weight.rank, inputs)),
        partial(_directions, weight, energy),
        pair,
        spare_bytes=spare * _FLOAT64_BYTES,
    )
    b = WholeTensor(
        TensorSpec(dtype, (outputs, weight.rank)),
        partial(_coefficients, weight),
        (*pair, rounded(a)),  # B is fitted to A as it is stored
        spare_bytes=(2 * count + weight.rank * (outputs + weight.rank)) * _FLOAT64_BYTES,
        explain=partial(_too_large, weight.name, dtype),
    )
    return a, b


def _change(weight: _Weight, ours: Array, base: Array) -> Array:
    require_finite(ours.reshape(-1), f"'{weight.name}'")
    require_finite(base.reshape(-1), f"'{weight.name}' of the base")
    change: Array = ours - base
    return change.T if weight.is_transposed else change


def _directions(weight: _Weight, energy: float | None, values: Sequence[Array]) -> Array:
    """Return A: the directions of the inputs that the change looks at most."""
    change = _change(weight, *values)
    try:
        vectors = right_singular(change, weight.rank)
    except np.linalg.LinAlgError:
        raise PlanError(f"'{weight.name}': its singular values were not found") from None
    if energy is not None and (share := kept_share(change, vectors)) < energy:
        shares = np.cumsum(np.linalg.svd(change, compute_uv=False) ** 2)
        needed = int(np.searchsorted(shares / shares[-1], energy)) + 1
        raise PlanError(
            f"'{weight.name}': rank {weight.rank} keeps {share:.4g} of the change's energy, less "
            f"than {energy:g}; rank {min(needed, len(shares))} would do"
        )
    return vectors


def _coefficients(weight: _Weight, values: Sequence[Array]) -> Array:
    """Return B: what A's rows have to be multiplied with to come nearest to the change."""
    ours, base, directions = values
    return coefficients(_change(weight, ours, base), directions)


def _too_large(name: str, dtype: str, values: Sequence[Array]) -> None:
    raise PlanError(f"'{name}': its change is too large for {dtype}")


def _task(config: Mapping[str, Any]) -> str | None:
    """Return PEFT's word for what a model's class is for."""
    architectures = config.get("architectures")
    name = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    return next((task for ending, task in _TASKS.items() if name.endswith(ending)), None)


def _configuration(weights: Sequence[_Weight], saved: set[str], rank: int) -> dict[str, Any]:
    """Return PEFT's configuration, by which the factors' product is what is added."""
    # PEFT takes the names as regular expressions for the end of a module's name.
    ranks = {exactly(w.module): w.rank for w in weights if w.rank != rank}
    return {
        "alpha_pattern": ranks,
        "bias": "none",
        "fan_in_fan_out": any(w.is_transposed and not w.is_embedding for w in weights),
        "inference_mode": True,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "modules_to_save": sorted(saved) or None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": ranks,
        "target_modules": sorted(w.module for w in weights),
        "use_dora": False,
        "use_rslora": False,
    }
