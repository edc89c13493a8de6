"""mergekit's merge methods (0.1.5, https://github.com/arcee-ai/mergekit), and which op is which.

What they mean is read off from mergekit's documentation and behaviour.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Json = dict[str, Any]

_RANDOM = "the random masks are surgeon's own: equal in distribution, not element by element"
_CLAMPED = "t is clamped to [0, 1], and tiny changes count like large ones"
_QUARTILES = "quartiles are exact; mergekit samples large tensors and rounds down"
_ACTIVE = "epsilon is relative to the size of a model's changes; mergekit's is absolute"
_SELECTED = "tiny changes count like large ones; select_topk is a fraction of all elements"
_EQUAL = "of equal magnitudes the first are kept"
_OUTLIERS = f"{_EQUAL}; gamma is dropped at any density below 1"
_STRAIGHT = "a straight line where the cosine is beyond 0.9995 or a norm is zero"
_NEAR = "t below 1e-6 is no special case"
_SHORT = "short tensors count like long ones"


@dataclass(frozen=True)
class Method:
    """A mergekit method: its op, and {its parameter: (ours, mergekit's default)}.

    `per_model` are those that a model may set for itself; a default of None means that there is
    none. `fixed` are those that do not vary: integers where the default is one. `base` says what
    the state is: mergekit's base model, the base model where there is one (and the op is `relative`
    then), or the first model. `switches` are booleans, mergekit's default first, and what each
    means here.
    """

    op: str
    base: Literal["required", "optional", "first"] = "required"
    per_model: Mapping[str, tuple[str, float | None]] = field(default_factory=dict)
    shared: Mapping[str, tuple[str, float | None]] = field(default_factory=dict)
    fixed: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    switches: Mapping[str, Mapping[bool, Json]] = field(default_factory=dict)
    differs: str = ""
    # mergekit keeps everything at a density of 1, and this op does that.
    at_density_one: str = ""


_WEIGHT: Mapping[str, tuple[str, float | None]] = {"weight": ("weights", None)}
_ON_OFF: Mapping[bool, Json] = {True: {"normalize": True}, False: {"normalize": False}}
_OFF_ON: Mapping[bool, Json] = {False: {"normalize": False}, True: {"normalize": True}}
_RESCALE: Mapping[bool, Json] = {True: {"rescale": "l1"}, False: {"rescale": "none"}}
_MEMORY_ONLY: Mapping[bool, Json] = {False: {}, True: {}}
_ROWS: Mapping[bool, Json] = {False: {"granularity": "tensor"}, True: {"granularity": "row"}}


def _arithmetic(
    op: str,
    normalize: Mapping[bool, Json],
    *,
    random: bool = False,
    at_density_one: str = "",
    differs: str = "",
    **per_model: float,
) -> Method:
    """Return a method of mergekit's family of task arithmetic."""
    return Method(
        op,
        per_model={**_WEIGHT, **{word: (word, default) for word, default in per_model.items()}},
        shared={"lambda": ("lambda", 1.0)},
        switches={
            "normalize": normalize,
            "int8_mask": _MEMORY_ONLY,
            "rescale": _RESCALE if random else {False: {}},
        },
        differs=_RANDOM if random else differs,
        at_density_one=at_density_one,
    )


METHODS: Mapping[str, Method] = {
    "linear": Method("average", "first", _WEIGHT, switches={"normalize": _ON_OFF}),
    "slerp": Method("slerp", shared={"t": ("t", None)}, differs=_STRAIGHT),
    "nuslerp": Method("nuslerp", "optional", _WEIGHT, differs=_STRAIGHT),
    "multislerp": Method(
        "multislerp", "optional", _WEIGHT, switches={"normalize_weights": _ON_OFF}
    ),
    "karcher": Method(
        "karcher",
        "first",
        fixed={"max_iter": ("max_iterations", 10), "tol": ("tolerance", 1e-5)},
        differs=_SHORT,
    ),
    "task_arithmetic": _arithmetic("task_arithmetic", _OFF_ON),
    "ties": _arithmetic("ties", _ON_OFF, differs=_EQUAL, density=1.0),
    "dare_linear": _arithmetic("dare", _OFF_ON, random=True, density=1.0),
    "dare_ties": _arithmetic("dare_ties", _OFF_ON, random=True, density=1.0),
    "della_linear": _arithmetic(
        "della", _OFF_ON, random=True, at_density_one="task_arithmetic", density=1.0, epsilon=0.15
    ),
    "della": _arithmetic(
        "della_ties", _ON_OFF, random=True, at_density_one="ties", density=1.0, epsilon=0.15
    ),
    "breadcrumbs": _arithmetic(
        "breadcrumbs",
        _OFF_ON,
        at_density_one="task_arithmetic",
        differs=_OUTLIERS,
        density=1.0,
        gamma=0.01,
    ),
    "breadcrumbs_ties": _arithmetic(
        "breadcrumbs_ties",
        _OFF_ON,
        at_density_one="ties",
        differs=_OUTLIERS,
        density=1.0,
        gamma=0.01,
    ),
    "model_stock": Method("model_stock", switches={"filter_wise": _ROWS}, differs=_CLAMPED),
    "nearswap": Method("nearswap", shared={"t": ("t", None)}, differs=_NEAR),
    "arcee_fusion": Method("fusion", differs=_QUARTILES),
    "sce": Method(
        "sce",
        shared={"select_topk": ("select_topk", 1.0)},
        switches={"int8_mask": _MEMORY_ONLY},
        differs=_SELECTED,
    ),
    "ram": Method("ram", shared={"epsilon": ("epsilon", 1e-5)}, differs=_ACTIVE),
    "ramplus_tl": Method(
        "ram_plus",
        shared={"epsilon": ("epsilon", 1e-5), "r": ("r", 0.1), "alpha": ("alpha", 0.2)},
        differs=_ACTIVE,
    ),
}
