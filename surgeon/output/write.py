"""An OutputPlan to the disk: one loop over its files, then all of them appear."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from surgeon.base.errors import listed
from surgeon.draft import Check
from surgeon.formats.checkpoint import Record
from surgeon.manifest import build
from surgeon.manifest.model import Manifest, WeightFile, checkpoint_of, text
from surgeon.manifest.names import manifest_of
from surgeon.numeric.decompositions import on_device
from surgeon.output.execute import Executor, Options, Written
from surgeon.output.layout import OutputFile
from surgeon.output.plan import OutputPlan
from surgeon.output.publish import Publication, publication, writing
from surgeon.remote.paths import RemotePath


@dataclass(frozen=True)
class Result:
    """What a run wrote, for the report."""

    plan: OutputPlan
    written: Written

    @property
    def output(self) -> Path:
        return self.plan.path

    @property
    def manifest(self) -> Path:
        return manifest_of(self.plan.path)

    @property
    def optimizer(self) -> Path | None:
        return self.plan.folder / self.plan.state.name if self.plan.state else None


class Crew(Protocol):
    """Those who write tensor files: an `Executor`, or a cluster's workers."""

    @property
    def files_at_once(self) -> int: ...

    def kept(self, plan: OutputPlan) -> Collection[str] | None:
        """Return which files of an earlier run are gone on with; None: what fails leaves none."""
        ...

    def check(self, checks: Sequence[tuple[str, Check]], size_bytes: int) -> list[str]: ...

    def write(self, files: Sequence[OutputFile], place: Publication) -> Written: ...

    def verify_records(
        self, records: Sequence[Record], files: Sequence[OutputFile], written: Written
    ) -> None: ...


def write(plan: OutputPlan, options: Options, crew: Crew | None = None) -> Result:
    """Write what is planned, and publish it; raises before anything appears at the output."""
    if options.checksums == "none":
        plan = plan.without_content()
    completed = partial(_completed, plan, options.device)
    with on_device(options.device):
        if isinstance(plan.path, RemotePath):
            from surgeon.output.elsewhere import write_elsewhere

            return Result(plan, write_elsewhere(plan, plan.path, options, completed))
        return Result(plan, _write(plan, crew or Executor(options), completed))


def _write(plan: OutputPlan, executor: Crew, completed: Callable[[Written], Manifest]) -> Written:
    checks = plan.opened.plan.checks
    notes = executor.check(checks, sum(file.size_bytes for file in plan.weights))
    with (
        writing(plan.path),
        publication(plan.path, plan.is_folder, plan.replaced, executor.kept(plan)) as output,
    ):
        for name, source in (plan.carried or {}).items():
            output.carry(source, name)
        for name, content in (plan.texts or {}).items():
            output.put(name, content)
        written = Written()
        copied = []
        for start in range(0, len(plan.tensor_files), executor.files_at_once):
            files = []
            for file in plan.tensor_files[start : start + executor.files_at_once]:
                is_linked = file.source is not None and output.link(file.source, file.name)
                copied += [file.name] if file.source and not is_linked else []
                files.append(file if is_linked else replace(file, source=None))
            written.add(executor.write(files, output))
        executor.verify_records(plan.records, plan.tensor_files, written)
        output.put(manifest_of(plan.path).name, text(completed(written)))
        output.publish(obsolete=plan.obsolete)
    linked = [f"cannot be linked here, so copied: {listed(copied)}"] if copied else []
    written.notes += [*linked, *notes, *output.notes, *plan.notes]
    return written


def _completed(plan: OutputPlan, device: str, written: Written) -> Manifest:
    """Return the manifest, with what was found out while writing."""
    opened, files = plan.opened, written.files
    parts = [
        WeightFile(
            file=file.name,
            size_bytes=file.size_bytes,
            header_sha256=files[file.name].header_sha256,
        )
        for file in plan.weights
    ]
    checksums: dict[str, str] = {}
    for file in plan.weights:
        checksums |= files[file.name].checksums
    state = None
    if opened.state and plan.state:
        state = opened.state.entry(plan.state.name, files[plan.state.name].sha256)
    return build.build(
        opened.recipe,
        opened.plan,
        opened.checkpoints,
        opened.stages,
        checkpoint=checkpoint_of(plan.checkpoint, parts),
        checksums=checksums,
        optimizer_state=state,
        carried=plan.brought,
        device=device,
    )
