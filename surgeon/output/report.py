"""What apply and plan say: text for people, and the same as JSON."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from surgeon.base.collection import collection_paused
from surgeon.base.documents import as_json
from surgeon.base.errors import listed
from surgeon.base.regions import count, parsed, remainder, split_block
from surgeon.base.tables import number, plural, shown, table
from surgeon.base.units import spoken_size
from surgeon.draft import Tensors, is_wholly_new, ties
from surgeon.lazy import ByteRange, LazyTensor
from surgeon.manifest.build import change_as_json
from surgeon.manifest.model import Stage, TorchClass
from surgeon.manifest.stages import is_parameter
from surgeon.model_folder.carried import carried_line
from surgeon.output.changes import changes_table, changes_tree, lost, specs_before
from surgeon.output.layout import OutputFile
from surgeon.output.opened import Opened
from surgeon.output.plan import OutputPlan
from surgeon.output.write import Result
from surgeon.recipe.fates import short_json, valid
from surgeon.recipe.plan import Plan, StepSummary

Json = dict[str, Any]
# A group of optimizer settings is shown in columns of its own for these, the rest in one.
_OWN_COLUMNS = ("lr", "weight_decay")


def written_bytes(tensors: Tensors) -> int:
    """Return the bytes of all tensors that are written, tied ones once."""
    owned = {id(tensor): tensor for tensor in tensors.values()}
    return sum(tensor.spec.size_bytes for tensor in owned.values())


# apply


def applied(result: Result, seconds: float) -> list[str]:
    """Return what apply did: notes, a line per step, totals."""
    opened, written = result.plan.opened, result.written
    plan = opened.plan
    lines = [f"note: {shown(note)}" for note in [*opened.notes, *written.notes]]
    lines += [_step_line(index, step) for index, step in enumerate(plan.steps)]
    lines += _tied_lines(plan)
    kinds = [_kind(tensor) for tensor in plan.tensors.values()]
    parts = [f"{kinds.count(kind):,} {kind}" for kind in ("copied", "computed", "created")]
    parts += [f"{len(lost(plan, opened.input.tensors)):,} dropped"]
    lines.append(f"{plural(len(kinds), 'tensor')}: {', '.join(parts)}")
    total = written.copied_bytes + written.computed_bytes + written.linked_bytes
    linked = f"{spoken_size(written.linked_bytes)} linked, " if written.linked_bytes else ""
    lines.append(
        f"{spoken_size(total)}: {linked}{spoken_size(written.copied_bytes)} copied, "
        f"{spoken_size(written.computed_bytes)} computed, in {seconds:.1f} s"
    )
    if changes := result.plan.config_changes:
        lines.append(shown(f"config.json: {', '.join(map(_in_words, changes))}"))
    if result.optimizer:
        lines.append(f"{_state_line(opened)}; in {shown(str(result.optimizer))}")
    return lines


def _tied_lines(plan: Plan) -> list[str]:
    """Say where the recipe tied names, and who finds both in what is stored once."""
    stored: dict[str, list[str]] = {}
    for alias, owner in ties(plan.tensors).items():
        if any(change.op == "tie" for name in (alias, owner) for change in plan.lineage[name]):
            stored.setdefault(owner, []).append(alias)
    return [
        shown(
            f"tied: {listed(aliases)} is stored as '{owner}'; safetensors' load_model and "
            f"transformers' from_pretrained know both, load_file finds '{owner}' alone"
        )
        for owner, aliases in stored.items()
    ]


def _state_line(opened: Opened) -> str:
    """Return where an optimizer's state comes from, and which parameters go on with it."""
    assert opened.state is not None
    tensors = opened.plan.tensors
    blocks: dict[str, list[str]] = {}
    for block in opened.state.parameters:
        name = block if block in tensors else split_block(block)[0]
        blocks.setdefault(name, []).append(block)
    whole = {name for name, found in blocks.items() if _is_all(name, tensors[name], found)}
    parts = [block for name in blocks if name not in whole for block in blocks[name]]
    without = [
        name
        for name in tensors.keys() - blocks.keys() - ties(tensors).keys()
        if is_parameter(name, tensors[name].spec.dtype)
    ]
    said = [f"whole for {_parameters(whole)}"] if whole else []
    said += [f"in part for {_parameters(blocks.keys() - whole)} ({listed(parts)})"] if parts else []
    said += [f"not for {_parameters(without)} ({listed(sorted(without))})"] if without else []
    return f"optimizer state of {shown(opened.state.place)}: goes on {', '.join(said)}"


def _parameters(names: Collection[str]) -> str:
    return plural(len(names), "parameter")


def _is_all(name: str, tensor: LazyTensor, blocks: Sequence[str]) -> bool:
    """Say whether a tensor's blocks, or its own name, are all of it."""
    shape = tensor.spec.shape
    slices = [None if block == name else split_block(block)[1] for block in blocks]
    return not remainder(shape, [parsed(found, shape) for found in slices])


def _in_words(change: Json) -> str:
    before = f" {short_json(change['before'])} ->" if "before" in change else ""
    after = short_json(change["after"]) if "after" in change else "removed"
    return f"{change['key']}{before} {after}"


def _config_table(opened: Opened) -> str:
    """Return what a model folder's config.json becomes, and what to know of the folder."""
    rows = [
        (
            change["key"],
            short_json(change["before"]) if "before" in change else "",
            short_json(change["after"]) if "after" in change else "(removed)",
        )
        for change in opened.folder_files.changes
    ]
    parts = [table(("config.json", "before", "after"), rows)] if rows else []
    return "\n".join([*parts, *(f"note: {shown(note)}" for note in opened.folder_files.notes)])


def _state_as_json(opened: Opened, file: Path | None = None) -> Json | None:
    if opened.state is None:
        return None
    return {
        **({"file": str(file)} if file else {}),
        "from": opened.state.place,
        "parameters": list(opened.state.parameters),
        "reset": {reason: list(names) for reason, names in opened.state.reset.items()},
    }


def _kind(tensor: LazyTensor) -> str:
    if tensor.new_regions() and is_wholly_new(tensor):
        return "created"
    pieces = tensor.pieces(0, tensor.spec.count) if tensor.spec.count else ()
    return "copied" if all(isinstance(piece, ByteRange) for piece in pieces) else "computed"


def _step_line(index: int, step: StepSummary) -> str:
    named = step.op if step.step == str(index) else f"{step.step} ({step.op})"
    counts = {"added": step.added, "changed": step.changed, "removed": step.removed}
    parts = [f"{len(names):,} {word}" for word, names in counts.items() if names]
    kept = f"its result is the model '{shown(step.into)}'" if step.into else "no tensor changed"
    return f"[{index}] {named}: {', '.join(parts) or kept}"


def _steps_as_json(plan: Plan) -> list[Json]:
    return [
        {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in step._asdict().items()
            if key != "into" or value
        }
        for step in plan.steps
    ]


def _files_as_json(files: Iterable[OutputFile]) -> list[Json]:
    return [{"file": file.name, "bytes": file.size_bytes} for file in files]


def applied_as_json(result: Result) -> Json:
    """Return what apply did; the same for the same recipe and inputs."""
    opened = result.plan.opened
    return {
        "output": str(result.output),
        "manifest": str(result.manifest),
        "files": [
            {**file, "header_sha256": result.written.files[file["file"]].header_sha256}
            for file in _files_as_json(result.plan.weights)
        ],
        "tensors": len(opened.plan.tensors),
        "copied_bytes": result.written.copied_bytes,
        "computed_bytes": result.written.computed_bytes,
        "linked_bytes": result.written.linked_bytes,
        "dropped": lost(opened.plan, opened.input.tensors),
        "optimizer_state": _state_as_json(opened, result.optimizer),
        "config": valid(result.plan.config_changes),
        "steps": _steps_as_json(opened.plan),
        "notes": [*opened.notes, *result.written.notes],
    }


# plan


@collection_paused()
def planned(output: OutputPlan, *, as_tree: bool = False) -> str:
    """Return what a recipe would do: changed tensors, checks, training stages."""
    opened = output.opened
    plan = opened.plan
    changes = (changes_tree if as_tree else changes_table)(opened)
    parts = [changes, _unchanged_line(plan), _config_table(opened)]
    places: dict[str, int] = {}
    for place, _ in plan.checks:
        places[place] = places.get(place, 0) + 1
    if places:
        lines = [f"  {shown(place)}: {plural(n, 'check')}" for place, n in places.items()]
        parts.append("\n".join(["before it writes, apply reads values for these checks", *lines]))
    parts.append(shown(carried_line(output.carried or {})))
    if opened.state:
        parts.append(_state_line(opened))
    if opened.stages.optimizer:
        parts.append(f"optimizer {_called(opened.stages.optimizer)}")
    if teacher := opened.stages.teacher:
        parts.append(
            f"teacher {shown(teacher.model)}, temperature {teacher.temperature}, "
            f"weight {teacher.weight}: {', '.join(map(shown, teacher.outputs))}"
        )
    parts += [_stage(stage, plan) for stage in opened.stages.stages]
    return "\n\n".join(part for part in parts if part)


def _called(wanted: TorchClass) -> str:
    arguments = ", ".join(f"{key}={value!r}" for key, value in wanted.args.items())
    return shown(f"{wanted.path}({arguments})")


def _unchanged_line(plan: Plan) -> str:
    same = [plan.tensors[name] for name, changes in plan.lineage.items() if not changes]
    size = sum(
        tensor.spec.size_bytes for tensor in {id(tensor): tensor for tensor in same}.values()
    )
    stay = "stays as it is" if len(same) == 1 else "stay as they are"
    return f"{plural(len(same), 'tensor')} ({spoken_size(size)}) {stay}"


def _stage(stage: Stage, plan: Plan) -> str:
    duration = ", ".join(f"{n} {unit}" for unit, n in stage.duration.items())
    title = f"stage {shown(stage.name)}{f', {duration}' if duration else ''}"
    rows = [
        (
            group.name,
            f"{len(group.params):,}",
            f"{_elements(group.params, plan):,}",
            number(group.settings.get("lr")),
            number(group.settings.get("weight_decay")),
            ", ".join(f"{k}={v!r}" for k, v in group.settings.items() if k not in _OWN_COLUMNS),
        )
        for group in stage.groups
    ]
    frozen = stage.frozen
    if frozen:
        rows.append(("(frozen)", f"{len(frozen):,}", f"{_elements(frozen, plan):,}", "", "", ""))
    headers = ("group", "parameters", "elements", "lr", "weight_decay", "settings")
    lines = [title, table(headers, rows, right=headers[1:5], indent=2)]
    if stage.eval_modules:
        lines.append(f"  in eval mode: {', '.join(map(shown, stage.eval_modules))}")
    if stage.scheduler:
        lines.append(f"  scheduler {_called(stage.scheduler)}")
    for action in stage.after:
        lines.append(f"  in the end aligns {', '.join(map(shown, action.align_rows))}")
    return "\n".join(lines)


def _elements(params: Iterable[str], plan: Plan) -> int:
    def of_one(param: str) -> int:
        if param in plan.tensors:
            return plan.tensors[param].spec.count
        name, slices = split_block(param)
        return count(parsed(slices, plan.tensors[name].spec.shape))

    return sum(map(of_one, params))


@collection_paused()
def planned_as_json(output: OutputPlan) -> Json:
    """Return a plan as a document for CI."""
    opened = output.opened
    plan, stages = opened.plan, opened.stages
    tensors: Json = {}
    for name, tensor in plan.tensors.items():
        spec = tensor.spec
        lineage = [change_as_json(change) for change in plan.lineage[name]]
        tensors[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "lineage": lineage}
    gone = lost(plan, opened.input.tensors)
    return {
        "recipe": opened.recipe.as_json(),
        "inputs": {
            name: {"file": given.path.name, "bytes": given.size_bytes}
            for name, given in opened.checkpoints.items()
        },
        "steps": _steps_as_json(plan),
        "tensors": tensors,
        "ties": ties(plan.tensors),
        "before": {
            name: {"dtype": spec.dtype, "shape": list(spec.shape)}
            for name, spec in specs_before(opened, gone).items()
        },
        "dropped": gone,
        "files": _files_as_json(output.weights),
        "carried": sorted(output.carried or ()),
        "checks": [place for place, _ in plan.checks],
        "optimizer": as_json(stages.optimizer) if stages.optimizer else None,
        "optimizer_state": _state_as_json(opened),
        "config": valid(opened.folder_files.changes),
        "teacher": as_json(stages.teacher) if stages.teacher else None,
        "stages": [as_json(stage) for stage in stages.stages],
        "notes": [*opened.notes, *opened.folder_files.notes],
    }
