"""experts: dense models of one architecture become a mixture of experts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

from surgeon.base.errors import PlanError, listed
from surgeon.draft import Draft, Tensors
from surgeon.draft.codes_guard import require_numbers
from surgeon.draft.registry import op
from surgeon.initialisers import fresh
from surgeon.lazy import Copied, LazyTensor, TensorSpec
from surgeon.lazy.forms import Linear
from surgeon.numeric.dtypes import DTYPES, Array
from surgeon.ops.shared.arithmetic import calculated
from surgeon.ops.shared.expert_rows import ROUTER_SCHEMA, Rows
from surgeon.ops.shared.moe_layouts import DENSE, MoeLayout, layout_of, require_plain, said_of

# What stands for the input itself among models.
INPUT = "@input"
_MLP = re.compile(r"(?P<mlp>(?:.+\.)?layers\.\d+\.mlp)\.(?P<part>.+)")
_ENTRY: dict[str, Any] = {
    "type": ["string", "object"],
    "minLength": 1,
    "properties": {
        "model": {"type": "string", "minLength": 1, "description": "the model, or '@input'"},
        "name": {
            "type": "string",
            "minLength": 1,
            "description": "what the router's rows and prompts call it; default the model",
        },
        "scale": {"type": "number", "description": "what multiplies its output; default 1"},
    },
    "required": ["model"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class _Expert:
    """One expert: where it comes from, what it is called."""

    model: str
    name: str
    scale: float

    @classmethod
    def of(cls, entry: str | Mapping[str, Any]) -> _Expert:
        given: Mapping[str, Any] = {"model": entry} if isinstance(entry, str) else entry
        return cls(given["model"], given.get("name", given["model"]), given.get("scale", 1))


@op(
    group="structure",
    example={"models": ["@input", "other"], "layout": "mixtral"},
    paper="Sukhbaatar et al. 2024, Branch-Train-MiX: Mixing Expert LLMs into a Mixture-of-Experts "
    "LLM, https://arxiv.org/abs/2403.07816",
)
def experts(
    draft: Draft,
    *,
    models: Annotated[
        list[Any] | Literal["*"],
        "the experts in order: names of models, '@input' for the input itself, or {model, name, "
        "scale}; '*' is the input and all models",
        {"items": _ENTRY, "minItems": 1},
    ],
    per_token: Annotated[int, "how many experts each token goes through", {"minimum": 1}] = 2,
    router: Annotated[
        dict[str, Any] | None,
        "the router's rows: {random: std} (default 0.02), {rows: file} or {prompts: {expert: "
        "texts}}",
        ROUTER_SCHEMA,
    ] = None,
    shared: Annotated[
        str | dict[str, Any] | None, "the expert that all tokens go through", _ENTRY
    ] = None,
    layout: Annotated[
        Literal["mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3"] | None,
        "the model type of the mixture; default what config.json makes of it",
    ] = None,
) -> None:
    """Make a mixture of experts of dense models of one architecture.

    The feed-forward layers of the models become the experts; everything else is the input's. A
    Llama or Mistral becomes Mixtral, or with `shared` Qwen2-MoE; Qwen2 becomes Qwen2-MoE, Qwen3
    Qwen3-MoE, a DeepSeek-V3 whose layers are all dense DeepSeek-V3. In a model folder config.json
    is written so that the weights of the chosen experts add up to 1: equal experts compute what the
    dense model did. A shared expert is added to that; in Qwen2-MoE times the sigmoid of a row of
    its own, which is zero, and so a half, unless the router's rows say it.

    Rows from `prompts` need `pip install "surgeon-checkpoints[tokenizers]"`: the sum of the token
    embeddings of all prompts of an expert, scaled to length 1; negative prompts' are subtracted,
    and the rest is scaled again. They are the same in all layers. `surgeon.training.collect_router`
    writes `rows` from hidden states, of each layer its own. Raises where layers differ in names or
    shapes.
    """
    entries = [_Expert.of(e) for e in ([INPUT, *draft.models] if models == "*" else models)]
    own = None if shared is None else _Expert.of(shared)
    everyone = [*entries, *([own] if own else [])]
    config = draft.outside.read_config(None)
    chosen = layout_of(config, layout, is_shared=own is not None)
    require_plain(chosen, config)
    if per_token > len(entries):
        raise PlanError(f"per_token is {per_token}, but there are {len(entries)} experts")
    names = [one.name for one in everyone]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise PlanError(f'there are several experts {listed(twice)}; give each a "name"')
    layers = _layers(draft, everyone)
    rows = Rows(draft, router or {"random": 0.02}, tuple(e.name for e in entries),
                own.name if own else None)  # fmt: skip
    made: dict[str, Tensors] = {}
    for mlp, parts in layers.items():
        made[mlp] = _block(draft, chosen, mlp, parts, entries, own, rows)
    draft.tensors = _in_place(draft.tensors, made)
    draft.config |= said_of(chosen, config, per_token)


def _layers(draft: Draft, everyone: Sequence[_Expert]) -> dict[str, dict[str, str]]:
    """Return {dense layer: {its part: the weight's name}}; raises PlanError where models differ."""
    found: dict[str, dict[str, str]] = {}
    for name in draft.tensors:
        if match := _MLP.fullmatch(name):
            found.setdefault(match["mlp"], {})[match["part"]] = name
    if not found:
        raise PlanError(
            f"there are no layers 'layers.0.mlp' with {', '.join(DENSE)}; upcycle makes experts of "
            "any names"
        )
    wanted = {f"{part}.weight" for part in DENSE}
    problems = []
    for mlp, parts in found.items():
        odd = sorted(parts.keys() ^ wanted)
        problems += [f"'{mlp}' has not just the weights of {', '.join(DENSE)}: {listed(odd)}"] * (
            bool(odd)
        )
    for model in dict.fromkeys(one.model for one in everyone if one.model != INPUT):
        problems += _differences(draft, model, found)
    if problems:
        raise PlanError(*problems)
    require_numbers(draft.tensors, [name for parts in found.values() for name in parts.values()])
    return found


def _differences(
    draft: Draft, model: str, layers: Mapping[str, Mapping[str, str]]
) -> Iterator[str]:
    others = draft.model(model)
    names = [name for parts in layers.values() for name in parts.values()]
    for name in names:
        if name not in others:
            yield f"'{name}' is not in model '{model}'"
        elif others[name].spec.shape != draft.spec(name).shape:
            yield (
                f"'{name}' is {draft.spec(name)} here but {others[name].spec} in model '{model}'; "
                "experts are of one size"
            )
    more = [n for n in others if _MLP.fullmatch(n) and n not in draft.tensors]
    if more:
        yield f"{listed(more)}: in model '{model}' only"
    require_numbers(others, [name for name in names if name in others])


def _block(
    draft: Draft,
    layout: MoeLayout,
    mlp: str,
    parts: Mapping[str, str],
    entries: Sequence[_Expert],
    shared: _Expert | None,
    rows: Rows,
) -> Tensors:
    """Return the tensors of a mixture in the place of one dense layer."""
    block = f"{mlp.rpartition('.')[0]}.{layout.block}"
    first = draft.spec(parts["gate_proj.weight"])
    made: Tensors = {}
    moved: set[str] = set()
    for number, entry in enumerate(entries):
        for part in DENSE:
            name = parts[f"{part}.weight"]
            made[f"{block}.{layout.expert(number, part)}"] = _weight(
                draft, entry, name, part, moved
            )
    if shared is not None:
        for part in DENSE:
            name = parts[f"{part}.weight"]
            made[f"{block}.{layout.shared}.{part}.weight"] = _weight(
                draft, shared, name, part, moved
            )
    hidden = first.shape[1]
    gate = f"{block}.gate.weight"
    made[gate] = rows.router(mlp, TensorSpec(first.dtype, (len(entries), hidden)), gate)
    if layout.shared_gate:
        gate = f"{block}.{layout.shared_gate}"
        made[gate] = rows.gate(mlp, TensorSpec(first.dtype, (1, hidden)), gate)
    if layout.correction:
        name = f"{block}.{layout.correction}"
        spec = TensorSpec("F32", (len(entries),))
        made[name] = fresh(spec, "zeros", draft.stream(name), name="bias")
    return made


def _weight(draft: Draft, entry: _Expert, name: str, part: str, moved: set[str]) -> LazyTensor:
    """Return a weight of an expert: the input's own once, copies otherwise."""
    if entry.model == INPUT:
        tensor = draft[name] if name not in moved else Copied(draft[name])
        moved.add(name)
    else:
        tensor = Copied(draft.model(entry.model)[name])
    wanted = draft.spec(name)
    by = entry.scale if part == "down_proj" else 1
    if by == 1 and tensor.spec == wanted:
        return tensor
    if DTYPES[wanted.dtype].kind != "float":
        raise PlanError(f"'{name}' is {wanted}, not floating-point")
    kernel = partial(_multiply, by)
    return calculated(name, wanted, kernel, (tensor,), "error", Linear([by]))


def _multiply(by: float, blocks: Sequence[Array], statistics: None, out: Array) -> Array:
    out[...] = blocks[0] * by
    return out


def _in_place(tensors: Tensors, made: Mapping[str, Tensors]) -> Tensors:
    """Return the tensors with blocks in the place of the dense layers' first tensors."""
    result: Tensors = {}
    done: set[str] = set()
    for name, tensor in tensors.items():
        match = _MLP.fullmatch(name)
        if match is None:
            result[name] = tensor
        elif match["mlp"] not in done:
            done.add(match["mlp"])
            result |= made[match["mlp"]]
    return result
