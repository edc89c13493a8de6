"""Put together what the ranks of a DeepSpeed ZeRO run saved, stages 1 to 3; reads headers only.

Each rank holds its part of the float32 parameters, laid end to end, and of the optimizer's moments
in the same layout. What lies where follows deepspeed/utils/zero_to_fp32.py (Apache-2.0), which
makes one file of them, and deepspeed/runtime/zero/.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from surgeon.base.errors import CheckpointError, listed
from surgeon.formats.checkpoint import Contents, Opaque, is_tensor, plain, spec_of
from surgeon.lazy import Joined, LazyTensor, Rearranged, Sharded, Stored, TensorSpec, is_stored
from surgeon.numeric.dtypes import DTYPES

ReadFile = Callable[[Path], Contents]
_OPTIMIZER = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
_MODEL = re.compile(r"(?:zero_pp_rank_(\d+)_)?mp_rank_(\d+)_model_states\.pt")
_OTHER = re.compile(r"layer_.*|expp_rank_.*|mp_rank_0*[1-9].*|zero_pp_rank_\d+_mp_rank_0*[1-9].*")
_LONGEST_TAG = 200
_WITH_DEEPSPEED = "convert it where DeepSpeed is: python zero_to_fp32.py . OUT"


def tag_folder(folder: Path) -> Path | None:
    """Return the folder of a DeepSpeed checkpoint's ranks: it, or the one that `latest` names."""
    if _has_ranks(folder):
        return folder
    latest = folder / "latest"
    if not os.path.isfile(latest):  # noqa: PTH113 (Path.is_file raises where it may not look)
        return None
    with latest.open(encoding="utf-8", errors="replace") as file:
        tag = file.read(_LONGEST_TAG).strip()
    inner = folder / tag
    return inner if tag and Path(tag).name == tag and _has_ranks(inner) else None


def _has_ranks(folder: Path) -> bool:
    try:
        return any(map(_OPTIMIZER.fullmatch, os.listdir(folder)))  # noqa: PTH208 (names alone)
    except OSError:
        return False


@dataclass(frozen=True)
class _Rank:
    """What one rank saved of its optimizer: its parts of the parameters, and the state of each."""

    parts: tuple[Stored, ...]
    state: Mapping[object, Any]
    groups: Sequence[Any]


def open_deepspeed(folder: Path, read: ReadFile) -> Contents:
    """Return {"model": ..., "optimizer": ...}; raises CheckpointError where they do not fit."""
    with ExitStack() as stack:
        opened: list[Contents] = []

        def value_of(path: Path) -> Mapping[object, Any]:
            contents = read(path)
            stack.callback(contents.close)
            opened.append(contents)
            if not isinstance(contents.value, dict):
                raise CheckpointError(f"{path}: found a {plain(contents.value)}, expected a dict")
            return contents.value

        optimizers, models = _files(folder)
        try:
            found = [_dict(value_of(path), "optimizer_state_dict") for path in optimizers]
            states = [value_of(path) for path in models]
            value = _put_together(found, states)
        except ValueError as error:
            raise CheckpointError(f"{folder}: {error}; {_WITH_DEEPSPEED}") from None
        hashes = "".join(contents.header_sha256 for contents in opened)
        notes = dict.fromkeys(note for contents in opened for note in contents.notes)
        stage = found[0].get("zero_stage")
        about = f"DeepSpeed ZeRO stage {stage}: float32 parameters of {len(found)} ranks"
        return Contents(
            path=folder,
            value=value,
            header_sha256=hashlib.sha256(hashes.encode()).hexdigest(),
            size_bytes=sum(contents.size_bytes for contents in opened),
            origins={t: record for contents in opened for t, record in contents.origins.items()},
            close=stack.pop_all().close,
            weight_files=tuple(file for contents in opened for file in contents.weight_files),
            notes=(about, *notes),
        )


def _files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the ranks' files of optimizers and of models, in the order of the ranks."""
    names = os.listdir(folder)  # noqa: PTH208 (names alone)
    if others := sorted(name for name in names if _OTHER.fullmatch(name)):
        raise CheckpointError(
            f"{folder}: found {listed(others, 3)}: parts of a pipeline, of tensor-parallel ranks "
            f"or of experts, which are not put together here; {_WITH_DEEPSPEED}"
        )

    def ordered(form: re.Pattern[str]) -> list[Path]:
        matches = [match for name in names if (match := form.fullmatch(name))]
        return [folder / m.string for m in sorted(matches, key=lambda m: int(m[1] or 0))]

    return ordered(_OPTIMIZER), ordered(_MODEL)


def _dict(value: Mapping[object, Any], key: str) -> Mapping[object, Any]:
    found = value.get(key)
    if not isinstance(found, dict):
        raise ValueError(f"found {key!r} that is {plain(found)}, expected a dict")
    return found


def _put_together(
    found: Sequence[Mapping[object, Any]], states: Sequence[Mapping[object, Any]]
) -> dict[str, Any]:
    stage, count = found[0].get("zero_stage"), found[0].get("partition_count")
    count = max(count) if isinstance(count, list) and count else count
    if stage not in (0, 1, 2, 3) or not states:
        raise ValueError(f"found stage {plain(stage)} and {len(states)} files of model states")
    if count != len(found):
        raise ValueError(f"found {len(found)} ranks' optimizers, expected {plain(count)}")
    key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
    ranks = [_rank(rank, key) for rank in found]
    if len({len(rank.parts) for rank in ranks}) != 1:
        raise ValueError("found ranks with different numbers of groups")
    groups = [_shapes(shapes) for shapes in _list(states[0].get("param_shapes"))]
    cut = _cut_stage3 if stage == 3 else _cut_stage2
    trained = dict(cut([rank.parts for rank in ranks], groups))
    model = _ordered(states, trained, is_whole=stage != 3)
    return {"model": model, "optimizer": _optimizer(ranks, groups, cut)}


def _rank(saved: Mapping[object, Any], key: str) -> _Rank:
    parts = saved.get(key)
    if not isinstance(parts, list) or not all(
        is_stored(part) and len(part.spec.shape) == 1 for part in parts
    ):
        raise ValueError(f"found {key!r} that is no list of flat tensors")
    base = saved.get("base_optimizer_state", saved.get("optimizer_state_dict"))
    state = base.get("state") if isinstance(base, dict) else None
    groups = base.get("param_groups") if isinstance(base, dict) else None
    return _Rank(
        tuple(parts),
        state if isinstance(state, dict) else {},
        groups if isinstance(groups, list) else [],
    )


def _list(shapes: object) -> list[Any]:
    return shapes if isinstance(shapes, list) else [shapes]


def _shapes(shapes: object) -> dict[str, tuple[int, ...]]:
    if not isinstance(shapes, dict) or not all(isinstance(name, str) for name in shapes):
        raise ValueError("found no shapes of parameters under their names ('param_shapes')")
    # As those of any tensor are checked.
    return {name: spec_of("F32", tuple(shape)).shape for name, shape in shapes.items()}


Cut = Callable[
    [Sequence[Sequence[Stored]], Sequence[Mapping[str, tuple[int, ...]]]],
    Iterator[tuple[str, LazyTensor]],
]


def _cut_stage2(
    parts: Sequence[Sequence[Stored]], groups: Sequence[Mapping[str, tuple[int, ...]]]
) -> Iterator[tuple[str, LazyTensor]]:
    """Yield parameters: each group lies end to end over the ranks, with padding behind it."""
    if len(groups) != len(parts[0]):
        raise ValueError(f"found {len(parts[0])} groups, expected {len(groups)}")
    for number, shapes in enumerate(groups):
        flat = [rank[number] for rank in parts]
        offset = 0
        for name, shape in shapes.items():
            yield name, _composed(_sliced(flat, offset, prod(shape)), shape)
            offset += prod(shape)
        _require_used(offset, sum(part.spec.count for part in flat), 2 * len(parts))


def _cut_stage3(
    parts: Sequence[Sequence[Stored]], groups: Sequence[Mapping[str, tuple[int, ...]]]
) -> Iterator[tuple[str, LazyTensor]]:
    """Yield parameters: each lies over all ranks in equal parts, the last of them padded."""
    offset = 0
    for name, shape in (item for shapes in groups for item in shapes.items()):
        each, left = -(-prod(shape) // len(parts)), prod(shape)
        pieces: list[Stored] = []
        for rank in parts:
            pieces += _sliced(rank, offset, min(each, left))
            left -= min(each, left)
        yield name, _composed(pieces, shape)
        offset += each
    for rank in parts:
        _require_used(offset, sum(part.spec.count for part in rank), 1)


def _require_used(offset: int, available: int, alignment: int) -> None:
    """Raise where parameters and the padding behind them are not all that there is."""
    if -(-offset // alignment) != -(-available // alignment):
        raise ValueError(f"found {available} elements of parameters, expected {offset} by shapes")


def _sliced(flat: Sequence[Stored], begin: int, count: int) -> list[Stored]:
    """Return elements of tensors that lie end to end."""
    pieces = []
    for part in flat:
        length = part.spec.count
        low, high = max(begin, 0), min(begin + count, length)
        if low < high:
            offset = part.offset + low * DTYPES[part.spec.dtype].bits // 8
            pieces.append(Stored(part.file, offset, TensorSpec(part.spec.dtype, (high - low,))))
        begin -= length
    if sum(piece.spec.count for piece in pieces) != count:
        raise ValueError("found fewer elements of parameters than their shapes have")
    return pieces or [Stored(flat[0].file, 0, TensorSpec(flat[0].spec.dtype, (0,)))]


def _composed(pieces: Sequence[Stored], shape: tuple[int, ...]) -> LazyTensor:
    pieces = [piece for piece in pieces if piece.spec.count] or pieces[:1]
    if len(pieces) == 1:
        return Stored(pieces[0].file, pieces[0].offset, TensorSpec(pieces[0].spec.dtype, shape))
    return Sharded(Rearranged(Joined(tuple(pieces), 0), (0,), shape))


def _ordered(
    states: Sequence[Mapping[object, Any]], trained: dict[str, LazyTensor], *, is_whole: bool
) -> dict[str, Any]:
    """Return parameters and buffers in the order of the module's state_dict."""
    first = states[0]
    module = _dict(first, "module")
    buffers = first.get("buffer_names") or ()
    named: dict[str, Any] = {name: module[name] for name in buffers if name in module}
    frozen = first.get("frozen_param_shapes") or {}
    for name, shape in (_shapes(frozen) if frozen else {}).items():
        held = [_dict(state, "frozen_param_fragments").get(name) for state in states]
        fragments = [part for part in held if is_stored(part)]
        if len(fragments) < len(held):
            raise ValueError(f"found no values of the frozen parameter {name!r}")
        flat = [Stored(part.file, part.offset, TensorSpec(part.spec.dtype, (part.spec.count,)))
                for part in fragments[: 1 if is_whole else None]]  # fmt: skip
        named[name] = _composed(_sliced(flat, 0, prod(shape)), shape)
    named |= trained
    shared = first.get("shared_params") or {}
    for alias, source in shared.items() if isinstance(shared, dict) else shared:
        if source in named:
            named[alias] = named[source]
    missing = [
        str(name) for name, value in module.items() if name not in named and is_tensor(value)
    ]
    if missing:
        raise ValueError(f"found {listed(missing)} in the module, and neither shape nor buffer")
    return {name: named[name] for name in [*(n for n in module if n in named), *named]}


def _optimizer(
    ranks: Sequence[_Rank], groups: Sequence[Mapping[str, tuple[int, ...]]], cut: Cut
) -> dict[str, Any]:
    """Return the optimizer's state under the parameters' names, as far as it is one of moments."""
    names = [name for shapes in groups for name in shapes]
    state: dict[str, dict[str, Any]] = {name: {} for name in names}
    count = len(ranks[0].parts)
    kept = [[entry for number in range(count) if isinstance(entry := rank.state.get(number), dict)]
            for rank in ranks]  # fmt: skip
    if not count or any(len(own) < count for own in kept):
        unread = Opaque("state that is not one of moments beside the parameters")
        state = {name: {"state": unread} for name in names}
        return {"state": state, "param_groups": [{"params": list(names)}]}
    for key, value in kept[0][0].items():
        moments = [
            [_moment(entry.get(key), part) for entry, part in zip(own, rank.parts, strict=True)]
            for own, rank in zip(kept, ranks, strict=True)
        ]
        if all(moment is not None for own in moments for moment in own):
            for name, tensor in cut(moments, groups):  # type: ignore[arg-type]  # none is None
                state[name][key] = tensor
            continue
        is_number = not is_tensor(value) or not value.spec.shape
        for name in names:
            state[name][key] = value if is_number else Opaque("a tensor of another layout")
    described = [
        {
            **(ranks[0].groups[number] if number < len(ranks[0].groups) else {}),
            "params": list(shapes),
        }
        for number, shapes in enumerate(groups)
    ]
    return {"state": state, "param_groups": described}


def _moment(value: object, part: Stored) -> Stored | None:
    """Return what an optimizer keeps for a part of the parameters, without padding, if it is that.

    Of the last rank's parameters the padding is not saved, of their moments it is.
    """
    if not is_stored(value) or len(value.spec.shape) != 1:
        return None
    if value.spec.count < part.spec.count:
        return None
    return Stored(value.file, value.offset, TensorSpec(value.spec.dtype, part.spec.shape))
