"""Which units are kept by a file of `surgeon.training.collect_importance`.

Heads and neurons have scores by the layer that reads them, channels one list for the whole model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from surgeon.base.errors import PlanError
from surgeon.draft import Draft
from surgeon.ops.shared.scores import best, named, numbers, read_scores, require_named, section

_READ = ("heads", "neurons")
_CHANNELS = "channels"


@dataclass(frozen=True)
class Kept:
    """The indices that are kept, by the module that reads them; '' where they are one for all."""

    indices: Mapping[str, list[int]]

    def of(self, module: str) -> list[int]:
        """Return what is kept of a module: as of what lies nearest to it; raises PlanError."""
        if "" in self.indices:
            return self.indices[""]
        near = {reader: _shared_parts(module, reader) for reader in self.indices}
        closest = [reader for reader, count in near.items() if count == max(near.values())]
        if len(closest) > 1:
            raise PlanError(
                f"'{module}' may be read by '{closest[0]}' or '{closest[1]}'; give each a step"
            )
        return self.indices[closest[0]]


def kept_by(
    draft: Draft,
    location: str,
    keep: object,
    units: int,
    readers: Iterable[str],
    shared_by: int | None,
) -> Kept:
    """Return which units are kept; `readers` are the modules that read them, `units` of each.

    Of units that share something by groups of `shared_by`, whole groups are kept, or else as many
    of each group. Raises PlanError where the file does not tell, or `keep` does not fit.
    """
    if not isinstance(keep, int) or isinstance(keep, bool):
        raise PlanError("with 'by', 'keep' is how many are kept, a number")
    if not 1 <= keep <= units:
        raise PlanError(f"'keep' is {keep}, and there are {units}")
    found = read_scores(draft, location, "importance")
    known = {word: section(found, word, location) for word in _READ if word in found}
    everyone = list(dict.fromkeys(readers))
    for word, scores in known.items():
        said = {module: named(scores, module) for module in everyone}
        if everyone and all(value is not None for value in said.values()):
            return Kept({
                module: _chosen(numbers(value, units, f"{location}: {word}.{module}"), keep,
                                shared_by)
                for module, value in said.items()
            })  # fmt: skip
        lacking = [module for module, value in said.items() if value is None]
        if 0 < len(lacking) < len(everyone):
            require_named(scores, lacking[0], f"{location}: {word}")
    channels = numbers(found.get(_CHANNELS), units, f"{location}: {_CHANNELS}")
    return Kept({"": _chosen(channels, keep, shared_by)})


def _chosen(scores: Sequence[float], keep: int, shared_by: int | None) -> list[int]:
    if shared_by is None:
        return best(scores, keep)
    groups, rest = divmod(len(scores), shared_by)
    if rest:
        raise PlanError(f"{len(scores)} are no groups of {shared_by}")
    if keep % shared_by == 0:
        sums = [sum(scores[g * shared_by : (g + 1) * shared_by]) for g in range(groups)]
        whole = best(sums, keep // shared_by)
        return [group * shared_by + index for group in whole for index in range(shared_by)]
    if keep % groups == 0:
        return best(scores, keep, parts=groups)
    raise PlanError(
        f"'keep' is {keep}: neither whole groups of {shared_by} that share one, nor as many of "
        f"each of {groups} groups"
    )


def _shared_parts(one: str, other: str) -> int:
    count = 0
    for a, b in zip(one.split("."), other.split("."), strict=False):
        if a != b:
            break
        count += 1
    return count
