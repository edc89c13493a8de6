"""Write a manifest anew for a model that has another layout in memory than its checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import Tensor, nn

from surgeon.base.errors import Hints, listed
from surgeon.base.regions import Region, count, parsed, remainder, spelled, split_block, whole
from surgeon.manifest.model import Manifest, Stage, StateFile, TensorEntry
from surgeon.training.errors import ManifestError
from surgeon.training.layout import Layout, Place, layout_of
from surgeon.training.live import all_seen

_SAVE_AS_IN_MEMORY = (
    "load the checkpoint before the surgery with from_pretrained, save it with "
    "save_pretrained(FOLDER, save_original_format=False), and apply the recipe to that"
)
_Kind = TypeVar("_Kind", bound=Manifest)


@dataclass(frozen=True, kw_only=True)
class PlacedState(StateFile):
    """The entry of a state file whose tensors have the checkpoint's names and layout.

    `parameters` are those of the model; `listed` those of the file, which lie at `places`.
    """

    listed: tuple[str, ...]
    places: Mapping[str, Place]


def followed(manifest: _Kind, model: nn.Module) -> _Kind:
    """Return the manifest with the names, shapes and blocks that the model has in memory.

    It is the manifest itself where the two layouts are one. Raises ManifestError where a part of
    the checkpoint cannot be found in the model, with how the two are made to agree.
    """
    live = all_seen(model, manifest)
    tensors: Mapping[str, Tensor] = {**live.buffers, **live.parameters}
    layout = layout_of(model, tensors)
    moved = {n: p for n, p in layout.items()
             if p is None or p.name != n or not p.is_whole(tensors[n])}  # fmt: skip
    if not moved:
        return manifest
    view = _View(manifest, tensors, layout)
    if view.as_in_memory >= view.as_on_disk:
        if problems := list(_unclear(manifest, tensors, moved)):
            raise ManifestError(*problems)
        return manifest
    if problems := list(view.problems(live.parameters)):
        raise ManifestError(*problems)
    return replace(
        manifest,
        tensors=dict(view.entries()),
        ties=dict(view.ties()),
        teacher=manifest.teacher
        and replace(manifest.teacher, outputs=view.blocks(manifest.teacher.outputs)),
        optimizer_state=manifest.optimizer_state and view.state(manifest.optimizer_state),
        stages=tuple(view.stage(stage) for stage in manifest.stages),
    )


def _unclear(manifest: Manifest, tensors: Mapping[str, Tensor], moved: Layout) -> Iterator[str]:
    """Say which blocks may be of the checkpoint's rows or of the model's, which differ."""
    for stage in manifest.stages:
        texts = [*stage.frozen, *(text for group in stage.groups for text in group.params)]
        texts += [text for action in stage.after for text in action.align_rows]
        for text in texts:
            name, slices = (text, None) if text in tensors else split_block(text)
            if slices is not None and name in moved:
                yield (
                    f"'{text}': transformers keeps '{name}' in another order in memory than on "
                    "disk, so that a part of it is not the same part there; train or freeze all "
                    "of it"
                )


class _View:
    """A manifest of the layout on disk, seen from a model with its own."""

    def __init__(self, manifest: Manifest, tensors: Mapping[str, Tensor], layout: Layout) -> None:
        self._manifest = manifest
        self._tensors = tensors
        self._layout = layout
        stated = manifest.tensors.items()
        self.as_in_memory = sum(
            name in tensors and tuple(tensors[name].shape) == entry.shape for name, entry in stated
        )
        self.as_on_disk = sum(
            (place := layout.get(name)) is not None and place.shape == entry.shape
            for name, entry in stated
        )

    def problems(self, parameters: Mapping[str, Tensor]) -> Iterator[str]:
        """Say what of the checkpoint has no place in the model, or the other way round."""
        lost = [name for name in self._manifest.tensors if self._layout.get(name, self) is None]
        if lost:
            yield (
                f"{listed(lost)} of the manifest cannot be found in the model: transformers "
                f"computes what is in memory from it; {_SAVE_AS_IN_MEMORY}"
            )
        used: set[str] = set()
        for name, entry in self._manifest.tensors.items():
            place = self._layout.get(name)
            if place is None:
                continue
            used.add(place.name)
            if place.shape != entry.shape:
                yield (
                    f"'{name}' is {place.shape} in the model, where it lies in '{place.name}', "
                    f"and {entry.shape} in the manifest; bind a model that is built for the "
                    "checkpoint as it is after the surgery"
                )
        stated = {*self._manifest.tensors, *self._manifest.ties}
        hint = Hints(self._manifest.tensors)
        for name, place in self._layout.items():
            if place is None or name in stated or not used & parameters.keys() & {place.name}:
                continue
            if place.region != whole(self._tensors[place.name].shape):
                yield (
                    f"'{name}' is in the model, as a part of '{place.name}', not in the "
                    f"manifest{hint(name)}"
                )

    def entries(self) -> Iterator[tuple[str, TensorEntry]]:
        """Yield the model's tensors that the manifest's make up."""
        for name, entry in self._manifest.tensors.items():
            place = self._layout.get(name)
            if place is None:
                yield name, entry
            else:
                yield place.name, replace(entry, shape=tuple(self._tensors[place.name].shape))

    def ties(self) -> Iterator[tuple[str, str]]:
        """Yield which of the model's names are one tensor."""
        for alias, owner in self._manifest.ties.items():
            places = self._layout.get(alias), self._layout.get(owner)
            here, there = (place.name if place else name
                           for place, name in zip(places, (alias, owner), strict=True))  # fmt: skip
            if here != there:
                yield here, there

    def stage(self, stage: Stage) -> Stage:
        """Return a stage with the model's names and blocks."""
        return replace(
            stage,
            groups=tuple(replace(g, params=self.blocks(g.params)) for g in stage.groups),
            frozen=self.blocks(stage.frozen),
            after=tuple(replace(a, align_rows=self.blocks(a.align_rows)) for a in stage.after),
            eval_modules=tuple(self._module(name) for name in stage.eval_modules),
        )

    def state(self, state: StateFile) -> PlacedState:
        """Return the entry of a state file, with where its tensors lie."""
        return PlacedState(
            file=state.file,
            sha256=state.sha256,
            matched_by=state.matched_by,
            parameters=tuple(text for one in state.parameters for text in self.blocks([one])),
            listed=state.parameters,
            places={name: place for name, place in self._layout.items() if place},
        )

    def blocks(self, texts: Iterable[str]) -> tuple[str, ...]:
        """Return the model's blocks that the manifest's are, those together that fill a box."""
        regions: dict[str, list[Region]] = {}
        others: list[str] = []
        for text in texts:
            name, slices = (text, None) if text in self._layout else split_block(text)
            place = self._layout.get(self._manifest.ties.get(name, name))
            if place is None:
                others.append(text)
                continue
            try:
                part = parsed(slices, place.shape)
            except ValueError as error:
                raise ManifestError(f"'{text}': {error}") from None
            regions.setdefault(place.name, []).append(place.part(part))
        return (
            *others,
            *(
                spelled(name, region, self._tensors[name].shape)
                for name, found in regions.items()
                for region in _together(found, tuple(self._tensors[name].shape))
            ),
        )

    def _module(self, name: str) -> str:
        for disk, place in self._layout.items():
            if place and disk.startswith(f"{name}."):
                rest = disk.removeprefix(f"{name}.")
                if place.name.endswith(f".{rest}"):
                    return place.name.removesuffix(f".{rest}")
        return name


def _together(regions: list[Region], shape: tuple[int, ...]) -> list[Region]:
    """Return fewer regions with the same elements, if there are such and none is there twice."""
    fewer = remainder(shape, remainder(shape, regions))
    is_same = sum(map(count, fewer)) == sum(map(count, regions))
    return fewer if is_same and len(fewer) < len(regions) else regions
