"""Run the steps over names and specs; freeze what they made into a Plan."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from surgeon import __version__
from surgeon.base.errors import CheckpointError, PlanError, SurgeonError
from surgeon.draft import Check, Draft, Outside, Tensors
from surgeon.draft.codes_guard import CodesGuard
from surgeon.draft.registry import OPS
from surgeon.formats.checkpoint import spec_of
from surgeon.lazy import TensorSpec, moved_from
from surgeon.recipe import Recipe, order
from surgeon.recipe.lineage import Lineage, Tracer
from surgeon.tokens.moves import TokenMoves
from surgeon.tokens.tokenizer import Tokenizer


class StepSummary(NamedTuple):
    """What one step did, for the report."""

    step: str
    op: str
    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    notes: tuple[str, ...]
    # The model that its result was kept as.
    into: str = ""


# Stands where writing puts a fingerprint of a file's tensors, and goes without checksums.
NO_CONTENT = "0" * 32
# Bytes of a tensor: a pebibyte, which leaves room for others below what file offsets count.
_LARGEST = 1 << 50


@dataclass(frozen=True)
class Plan:
    """The finished result of a recipe: what to write, and where each of it came from."""

    tensors: Tensors
    lineage: Lineage
    dropped: tuple[str, ...]
    steps: tuple[StepSummary, ...]
    checks: tuple[tuple[str, Check], ...]
    metadata: Mapping[str, str]
    sidecars: Mapping[str, Any]
    weights_file: str
    # The first step that holds the result to the class that its config names.
    class_asked_at: str | None = None
    # What steps say of the input's config; output.config says it last.
    config: Mapping[str, Any] = field(default_factory=dict)
    # What the tokenizer became where steps changed it, and the models that have its vocabulary.
    tokens: TokenMoves | None = None
    same_vocabulary: frozenset[str] = frozenset()

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that steps made."""
        return self.tokens.after if self.tokens else None


def make(
    recipe: Recipe,
    tensors: Tensors,
    models: Mapping[str, Tensors],
    outside: Outside,
    metadata: Mapping[str, str],
) -> Plan:
    """Run every step's rewrite; raises PlanError with the step where one is impossible."""
    draft = Draft(dict(tensors), dict(models), outside, recipe.seed)
    tracer = Tracer.of(tensors, models)
    guard = CodesGuard(tensors, draft.models, _quantisation(outside))
    summaries: list[StepSummary] = []
    checks: list[tuple[str, Check]] = []
    class_asked_at: str | None = None
    steps = [(step.stream, step.place, step.op, step.parameters, step.optional)
             for step in recipe.steps]  # fmt: skip
    if dtype := recipe.output.get("dtype"):
        steps.append(("output", "output.dtype", "cast", {"target": "**", "dtype": dtype}, True))
    for stream, place, op, parameters, optional in steps:
        before, noted, checked = dict(draft.tensors), len(draft.notes), len(draft.checks)
        draft.step, draft.optional = stream, optional
        try:
            OPS[op].apply(draft, parameters)
            added, changed, removed = _differences(before, draft.tensors)
            _check_names(added)
            _check_sizes(draft.tensors, (*added, *changed))
            guard.after(before, draft.tensors, draft.models)
            _check_placeholders(before, draft.tensors, changed)
        except SurgeonError as error:
            gone = [summary.removed for summary in summaries]
            said = order.explained(error, recipe.steps, gone)
            raise said.at(f"{recipe.label}: {place}") from None
        checks += [(f"{recipe.label}: {place}", check) for check in draft.checks[checked:]]
        if draft.class_asked and class_asked_at is None:
            class_asked_at = f"{recipe.label}: {place}"
        tracer.trace(before, draft, op, is_changed=bool(added or changed or removed))
        notes = tuple(draft.notes[noted:])
        makes_model = OPS[op].group == "merge" or op == "layers"
        into = str(parameters.get("into", "")) if makes_model else ""
        summaries.append(StepSummary(stream, op, added, changed, removed, notes, into))
    about_us = {"content": NO_CONTENT, "version": __version__, "recipe_sha256": recipe.sha256}
    return Plan(
        tensors=draft.tensors,
        lineage=tracer.finished(draft.tensors),
        dropped=tuple(name for name in tensors if name not in draft.tensors),
        steps=tuple(summaries),
        checks=tuple(checks),
        metadata={
            **metadata,
            **recipe.output.get("metadata", {}),
            "surgeon": json.dumps(about_us, sort_keys=True),
        },
        sidecars=draft.sidecars,
        weights_file=draft.weights_file,
        class_asked_at=class_asked_at,
        config=draft.config,
        tokens=_token_moves(draft),
        same_vocabulary=_of_one_vocabulary(draft),
    )


def _token_moves(draft: Draft) -> TokenMoves | None:
    found = draft.tokenizers.get(None)
    if found is None:
        return None
    before = draft.outside.read_tokenizer(None)
    return TokenMoves(before, found) if found is not before else None


def _of_one_vocabulary(draft: Draft) -> frozenset[str]:
    """Return the models whose rows are those of the state's tokens."""
    own = draft.tokenizers.get(None)
    return frozenset(
        model
        for model, other in draft.tokenizers.items()
        if own and model is not None and (other is own or other.ids == own.ids)
    )


def _quantisation(outside: Outside) -> Any:
    """Return what the input's config says of quantisation; nothing where it cannot be read.

    That is an error where a step reads it, or an output would have it changed.
    """
    try:
        return outside.read_config(None).get("quantization_config")
    except CheckpointError:
        return None


def _differences(before: Tensors, after: Tensors) -> tuple[tuple[str, ...], ...]:
    """Return the names that were added, that are bound to other tensors, and that were removed."""
    added, changed = [], []
    for name, tensor in after.items():
        was = before.get(name)
        if was is None:
            added.append(name)
        elif was is not tensor:
            changed.append(name)
    removed = [name for name in before if name not in after]
    return tuple(added), tuple(changed), tuple(removed)


def _check_names(created: Collection[str]) -> None:
    """Raise PlanError for names that a safetensors file cannot hold, or nobody can type."""
    if "".join(created).isprintable() and "" not in created and "__metadata__" not in created:
        return
    bad = [n for n in created if not n or n == "__metadata__" or not n.isprintable()]
    if bad:
        raise PlanError(*(f"{name!r} cannot be a tensor's name" for name in sorted(bad)))


def _check_placeholders(before: Tensors, after: Tensors, changed: Iterable[str]) -> None:
    """Raise PlanError where values are made of what ZeRO-3 left in the place of a parameter."""
    empty = [
        name
        for name in changed
        if before[name].spec.shape == after[name].spec.shape == (0,)
        and name.endswith(("weight", "bias"))
        and moved_from(before[name]) != moved_from(after[name])
    ]
    if empty:
        raise PlanError(
            f"'{empty[0]}' is of shape (0,), as DeepSpeed's ZeRO-3 leaves a parameter that nothing "
            "gathered; run zero_to_fp32.py, or save with stage3_gather_16bit_weights_on_model_save"
        )


def _check_sizes(tensors: Tensors, names: Collection[str]) -> None:
    """Raise PlanError for tensors that no file can hold, or that nobody could read again."""
    # Many tensors share a spec.
    specs = {id(spec): spec for name in names if (spec := tensors[name].spec)}
    problems = {key: problem for key, spec in specs.items() if (problem := _problem_of(spec))}
    if problems:
        found = ((name, problems.get(id(tensors[name].spec))) for name in names)
        raise PlanError(*(f"'{name}' {problem}" for name, problem in found if problem))


def _problem_of(spec: TensorSpec) -> str:
    if spec.size_bytes > _LARGEST:
        return f"would be {spec}, more bytes than a file can have"
    try:
        spec_of(spec.dtype, spec.shape)
    except ValueError as error:
        return f"could not be read again: {error}"
    return ""
