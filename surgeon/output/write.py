"""An OutputPlan to the disk: one loop over its files, then all of them appear."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from surgeon.base.errors import listed
from surgeon.manifest import build as manifest
from surgeon.output import publish
from surgeon.output.execute import Executor, Options, Written
from surgeon.output.layout import OutputFile
from surgeon.output.plan import OutputPlan


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
        return self.plan.folder / self.plan.manifest

    @property
    def optimizer(self) -> Path | None:
        return self.plan.folder / self.plan.state.name if self.plan.state else None


def write(plan: OutputPlan, options: Options) -> Result:
    """Write what is planned, and publish it; raises before anything appears at the output."""
    executor = Executor(options)
    checks = plan.opened.plan.checks
    notes = executor.check(checks, sum(file.size_bytes for file in plan.weights))
    with publish.writing(plan.path), publish.unit(plan.path, plan.is_folder) as unit:
        for name, source in (plan.carried or {}).items():
            unit.carry(source, name)
        for name, text in (plan.texts or {}).items():
            unit.put(name, text)
        files: dict[int, OutputFile] = {}
        copied = []
        for file in plan.tensor_files:
            is_linked = file.source is not None and unit.link(file.source, file.name)
            copied += [file.name] if file.source and not is_linked else []
            descriptor = unit.descriptor(file.name)
            files[descriptor] = file if is_linked else replace(file, source=None)
        written = executor.write(files)
        executor.verify_records(plan.records, plan.tensor_files, written)
        unit.put(plan.manifest, manifest.text(_manifest(plan, written)))
        unit.publish(obsolete=plan.obsolete)
    linked = [f"cannot be linked here, so copied: {listed(copied)}"] if copied else []
    written.notes += [*linked, *notes, *plan.notes]
    return Result(plan, written)


def _manifest(plan: OutputPlan, written: Written) -> dict[str, object]:
    opened = plan.opened
    checksums = {
        name: checksum
        for file in plan.weights
        for name, checksum in written.files[file.name].checksums.items()
    }
    state = None
    if opened.state and plan.state:
        digest = written.files[plan.state.name].sha256
        state = {"file": plan.state.name, "sha256": digest,
                 "parameters": list(opened.state.parameters)}  # fmt: skip
    return manifest.build(
        opened.recipe,
        opened.plan,
        opened.checkpoints,
        opened.stages,
        file=plan.checkpoint,
        files=plan.weights,
        checksums=checksums,
        optimizer_state=state,
    )
