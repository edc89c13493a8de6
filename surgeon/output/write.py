"""An OutputPlan to the disk: one loop over its files, then all of them appear."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from surgeon.base.errors import listed
from surgeon.manifest.build import teacher_sha256
from surgeon.manifest.model import Manifest, checkpoint_of, text
from surgeon.manifest.names import manifest_of
from surgeon.output import publish
from surgeon.output.execute import Executor, Options, Written
from surgeon.output.layout import OutputFile
from surgeon.output.plan import OutputPlan

# Files that are written at a time: a process may have few open, and its inputs are too.
_OPEN_AT_ONCE = 32


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


def write(plan: OutputPlan, options: Options) -> Result:
    """Write what is planned, and publish it; raises before anything appears at the output."""
    if options.checksums == "none":
        plan = plan.without_content()
    executor = Executor(options)
    checks = plan.opened.plan.checks
    notes = executor.check(checks, sum(file.size_bytes for file in plan.weights))
    with publish.writing(plan.path), publish.unit(plan.path, plan.is_folder, plan.replaced) as unit:
        for name, source in (plan.carried or {}).items():
            unit.carry(source, name)
        for name, content in (plan.texts or {}).items():
            unit.put(name, content)
        written = Written()
        copied = []
        for start in range(0, len(plan.tensor_files), _OPEN_AT_ONCE):
            files: dict[int, OutputFile] = {}
            for file in plan.tensor_files[start : start + _OPEN_AT_ONCE]:
                is_linked = file.source is not None and unit.link(file.source, file.name)
                copied += [file.name] if file.source and not is_linked else []
                descriptor = unit.descriptor(file.name)
                files[descriptor] = file if is_linked else replace(file, source=None)
            written.add(executor.write(files))
            unit.rest()
        executor.verify_records(plan.records, plan.tensor_files, written)
        unit.put(manifest_of(plan.path).name, text(_completed(plan, written)))
        unit.publish(obsolete=plan.obsolete)
    linked = [f"cannot be linked here, so copied: {listed(copied)}"] if copied else []
    written.notes += [*linked, *notes, *unit.notes, *plan.notes]
    return Result(plan, written)


def _completed(plan: OutputPlan, written: Written) -> Manifest:
    """Return the manifest with what was found out while writing."""
    opened, state = plan.opened, plan.state
    checksums: dict[str, str] = {}
    hashes = {file.name: written.files[file.name].header_sha256 for file in plan.weights}
    checkpoint = plan.manifest.checkpoint
    parts = [replace(part, header_sha256=hashes[file.name], size_bytes=file.size_bytes)
             for part, file in zip(checkpoint.parts, plan.weights, strict=True)]  # fmt: skip
    for file in plan.weights:
        checksums |= written.files[file.name].checksums
    return plan.manifest.with_checksums(
        checksums,
        checkpoint=checkpoint_of(checkpoint.file, parts),
        teacher=teacher_sha256(opened.stages, opened.checkpoints),
        optimizer_state=written.files[state.name].sha256 if state else "",
    )
