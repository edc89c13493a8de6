"""What is measured: the commands, what stands beside each, and what each must reach.

The targets are those of the project's design; they hold for size 1 on 2 cores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.measure import OUTPUT

RESULT = f"{OUTPUT}/result.safetensors"
FOLDER = f"{OUTPUT}/result"


@dataclass(frozen=True)
class Limit:
    """The most that a job may take: `copies` × the flushed copy + `seconds`; and memory, in MB."""

    seconds: float
    copies: float = 0
    megabytes: int | None = None


@dataclass(frozen=True)
class CopyJob:
    """A command that writes a checkpoint, beside `cp` of a file or folder of the same size.

    The recipe `NAME.json` is made where there are `steps`. What `calculates` is measured with NumPy
    loops, too.
    """

    name: str
    title: str
    arguments: Sequence[str]
    inputs: Sequence[str]
    copied: str
    # None: for information only.
    limit: Limit | None
    steps: Sequence[Mapping[str, object]] = ()
    calculates: bool = False


@dataclass(frozen=True)
class HeaderJob:
    """A command that reads headers only: on one file, and on 10 000 and 100 000 tensors."""

    name: str
    # Each with the input after these words; none where the command takes no checkpoint.
    arguments: Sequence[str]
    # None: only there for the growth.
    checkpoints: Sequence[tuple[str, str, Limit | None]]
    alone: Limit | None = None


@dataclass(frozen=True)
class PeerJob:
    """The same merge by surgeon and by mergekit, both from one mergekit configuration.

    `parameters` are common to all models; with `base` the first of the inputs is the base model.
    `part` of the size is enough where mergekit takes very long.
    """

    name: str
    title: str
    method: str
    inputs: Sequence[str]
    parameters: Mapping[str, object]
    base: bool
    # At least so many times faster, at most this part of the peer's memory; None: for information.
    faster: float | None
    memory: float
    part: float = 1


Job = CopyJob | HeaderJob | PeerJob


def _apply(recipe: str, *inputs: str, **variables: object) -> list[str]:
    settings = [word for name, value in variables.items() for word in ("--set", f"{name}={value}")]
    return ["surgeon", "apply", recipe, *inputs, RESULT, *settings]


def _copy_job(
    name: str, title: str, recipe: str, *inputs: str, limit: Limit | None, copied: str = "",
    **variables: object,
) -> CopyJob:  # fmt: skip
    return CopyJob(
        name, title, _apply(recipe, *inputs, **variables), inputs, copied or inputs[0], limit
    )


def _merge_job(op: str, models: int, copies: float, *, megabytes: int = 100,
               **parameters: object) -> CopyJob:  # fmt: skip
    """Measure a merge of so many checkpoints; its title leaves out a base model."""
    inputs = _MODELS[:models]
    others = models - 1 if op in _WITH_BASE else models
    settings = "".join(f", {word} {value}" for word, value in parameters.items())
    return CopyJob(
        f"{op}-{others}", f"{op} of {others}{settings}", _apply(f"{op}-{others}.json", *inputs),
        inputs, _A, Limit(0, copies, megabytes), [{"op": op, "models": "*", **parameters}],
        calculates=True,
    )  # fmt: skip


def _peer_job(
    method: str,
    models: int,
    *,
    base: bool = False,
    faster: float | None,
    part: float = 1,
    **parameters: object,
) -> PeerJob:
    title = f"{method} of {models}" + (f", {part:g} of the size" if part != 1 else "")
    return PeerJob(
        f"mergekit-{method}", title, method, _MODELS[:models], parameters, base, faster,
        memory=0.05, part=part,
    )  # fmt: skip


_MODELS = _A, _B, _C, _D = tuple(f"{letter}.safetensors" for letter in "abcd")
_TINY = tuple(f"tiny-{letter}.safetensors" for letter in "abc")
_WITH_BASE = {"ties", "breadcrumbs", "breadcrumbs_ties", "dare_ties", "della_ties", "model_stock"}
_EDIT = Limit(0, 0.6, 60)
_CHECKPOINTS = (
    ("200 tensors, one file", "small.safetensors"),
    ("10 000 tensors, 100 shards", "folder-10k"),
    ("100 000 tensors, 1000 shards", "folder-100k"),
)
# Ten times the tensors, start-up left out, in at most so many times the time: 10 is linear,
# 100 quadratic, and the rest is room for noise.
GROWTH_LIMIT = 13


def _header_job(name: str, arguments: Sequence[str], least: float, most: float) -> HeaderJob:
    limits = (Limit(least), None, Limit(most))
    checkpoints = [(*pair, limit) for pair, limit in zip(_CHECKPOINTS, limits, strict=True)]
    return HeaderJob(name, ["surgeon", name, "--json", *arguments], checkpoints)


# In the order that lets the data of earlier jobs be deleted early.
JOBS: tuple[Job, ...] = (
    HeaderJob("help", ["surgeon", "--help"], (), alone=Limit(0.12)),
    HeaderJob(
        "validate", ["surgeon", "validate", "--set", "layer=lm_head", "add-output-nodes"], (),
        alone=Limit(0.2),
    ),
    _header_job("inspect", [], 0.15, 1.0),
    _header_job("plan", ["--set", "prefix=model", "strip-prefix"], 0.2, 1.2),
    HeaderJob(
        "inspect-distributed", ["surgeon", "inspect", "--json"],
        [("12 000 chunks", "distributed", Limit(1.0))],
    ),
    _copy_job("convert", "`.pt` to safetensors", "convert-to-safetensors", "a.pt", limit=_EDIT),
    _copy_job(
        "cast", "cast float32 to bfloat16", "cast-for-export", "float32.safetensors", copied=_A,
        limit=Limit(0, 0.65, 80),
    ),
    _copy_job("no-op", "a recipe without steps", "convert-to-safetensors", _A, limit=_EDIT),
    _copy_job("rename", "rename 299 tensors", "strip-prefix", _A, limit=_EDIT, prefix="model"),
    _copy_job(
        "widen", "widen the head by 16 rows", "add-output-nodes", _A, limit=_EDIT,
        layer="lm_head", new=16,
    ),
    CopyJob(
        "link", "the same in one of eight shards, `--link`",
        ["surgeon", "apply", "add-output-nodes", "sharded", FOLDER, "--link", "--set",
         "layer=lm_head", "--set", "new=16"],
        ["sharded"], "sharded", Limit(0, 0.35, 60),
    ),
    _peer_job("linear", 2, faster=12, weight=1.0),
    _peer_job("slerp", 2, base=True, faster=12, t=0.3),
    _peer_job("ties", 3, base=True, faster=60, weight=1.0, density=0.2),
    _peer_job("breadcrumbs", 3, base=True, faster=None, weight=1.0, density=0.2, gamma=0.01),
    _peer_job("dare_ties", 3, base=True, faster=20, weight=1.0, density=0.2),
    _peer_job("della", 3, base=True, faster=40, weight=1.0, density=0.5, epsilon=0.1),
    _peer_job("karcher", 3, faster=None, part=0.02),
    _peer_job("model_stock", 3, base=True, faster=12),
    _peer_job("sce", 3, base=True, faster=None, select_topk=0.2),
    _merge_job("average", 2, 0.7, megabytes=80),
    _merge_job("slerp", 2, 1.0, t=0.3),
    _merge_job("nuslerp", 2, 1.0),
    _merge_job("karcher", 3, 2.0),
    _merge_job("average", 4, 0.9, megabytes=80),
    _merge_job("model_stock", 4, 1.3),
    _merge_job("ties", 4, 2.0, density=0.2),
    _merge_job("breadcrumbs", 4, 2.0, density=0.2, gamma=0.01),
    _merge_job("dare_ties", 4, 2.5, density=0.2),
    _merge_job("della_ties", 4, 4.0, density=0.5, epsilon=0.1),
    _copy_job(
        "tiny", "ties of 2, 16 000 tiny tensors", "ties", *_TINY, limit=Limit(1.5), density=0.2
    ),
)  # fmt: skip


def data_of(job: Job) -> set[str]:
    """Return the names of the checkpoints that a job needs."""
    match job:
        case CopyJob():
            return {*job.inputs, job.copied}
        case HeaderJob():
            return {name for _, name, _ in job.checkpoints}
        case PeerJob():
            return set(job.inputs)
