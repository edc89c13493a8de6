"""Laws over the registry: each op and merge is tested by its existing."""

from __future__ import annotations

import copy
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from surgeon import lazy, surgery
from surgeon.base.errors import SurgeonError
from surgeon.base.tables import json_text
from surgeon.draft import ties
from surgeon.draft.registry import COMMON, Op
from surgeon.lazy import Blockwise, Scratch, walk
from surgeon.merges import pruning
from surgeon.numeric.dtypes import DTYPES
from surgeon.output import report, units
from surgeon.output.execute import Options
from surgeon.output.layout import lay_out
from surgeon.recipe import OPS
from surgeon.recipe.plan import Plan
from surgeon.recipe.validation import problems_of
from tests.network import (
    SPECIAL,
    TIES,
    assert_identical,
    evaluated,
    example_bench,
    example_tensors,
    raw_bytes,
    read,
    write,
)

EVERY_OP = [pytest.param(op, id=name) for name, op in OPS.items()]
# Their examples run on other files than the others'.
ANOTHER_INPUT = ("dequantize", "lora_combine", "transplant_tokenizer", "vocabulary")
CHANGES_DTYPES = ("cast", "dequantize", "quantize")
MERGES = {name: op for name, op in OPS.items() if op.group == "merge"}


def step(op):
    return {"op": op.name, **op.example}


def header_of(path):
    content = path.read_bytes()
    return content[: 8 + int.from_bytes(content[:8], "little")]


def folder_of(op):
    return "merges" if op.group == "merge" else "ops"


@dataclass
class Run:
    """What an op's example makes of the example network, once for all laws that look at it."""

    op: Op
    before: dict[str, torch.Tensor]
    plan: Plan
    header: bytes
    content: bytes
    tensors: dict[str, torch.Tensor]
    manifest: dict
    inputs_are_as_they_were: bool


@cache
def run_of(name):
    with tempfile.TemporaryDirectory() as folder:
        bench = example_bench(Path(folder), name)
        op = OPS[name]
        files = [bench.input, *map(Path, bench.models.values())]
        contents = [path.read_bytes() for path in files]
        before, plan, made = read(bench.input), bench.plan(step(op)), bench.operate(step(op))
        unchanged = [path.read_bytes() for path in files] == contents
        return Run(op, before, plan, header_of(made.path), made.path.read_bytes(), made.tensors,
                   made.manifest, unchanged)  # fmt: skip


def runs():
    return map(run_of, OPS)


def but_for_inputs(manifest):
    """save_file writes metadata in any order, so that no two folders' inputs have one header."""
    return {key: value for key, value in manifest.items() if key != "inputs"}


# --- Each op is declared well ---------------------------------------------------------------------


def test_examples_fit_their_schema():
    for op in OPS.values():
        assert list(problems_of(step(op), op.step_schema, "")) == [], op.name


def test_summaries_are_short_sentences():
    for op in OPS.values():
        assert 10 < len(op.summary) <= 72, op.name
        assert op.summary.endswith("."), op.name
        assert op.summary[0].isupper(), op.name


def test_every_parameter_is_described_and_none_is_a_common_word():
    for op in OPS.values():
        for name, schema in op.parameters["properties"].items():
            assert schema.get("description"), (op.name, name)
            assert name not in COMMON, (op.name, name)


# Records of one table.
FAMILIES = {pruning: [method.name for method in pruning.METHODS]}


def test_file_function_and_recipe_word_are_one():
    for op in OPS.values():
        module = importlib.import_module(op.module)
        if module not in FAMILIES:
            declared = getattr(module, op.name, None) or getattr(module, f"{op.name}_")
            assert declared.__module__ == f"surgeon.{folder_of(op)}.{op.name}" == op.module


@pytest.mark.parametrize("folder", ["ops", "merges"])
def test_every_file_declares_the_op_of_its_name_or_a_family(folder):
    package = Path(importlib.import_module(f"surgeon.{folder}").__file__).parent
    files = {path.stem for path in package.glob("*.py")} - {"__init__"}
    for family, names in FAMILIES.items():
        if family.__name__.startswith(f"surgeon.{folder}."):
            files = files - {family.__name__.rpartition(".")[2]} | set(names)
    assert files == {name for name, op in OPS.items() if folder_of(op) == folder}


def test_unknown_parameters_are_refused():
    for op in OPS.values():
        (problem,) = problems_of({**step(op), "no_such": 1}, op.step_schema, "steps[0]")
        assert problem.startswith("steps[0]: 'no_such' is unknown")


def test_merges_name_their_paper():
    assert [name for name, op in MERGES.items() if "http" not in op.paper] == []


# What recipes may hold by mistake, where something else belongs.
ODD = [
    None, 0, -1, 1, 2, 1.5, 4.0, 1e308, 10**20, True, "", "x", "**", "!x", "re:(", "{i}", "encoder",
    "encoder.{i+1}", "encoder.0.weight[0:1]", "@new", "@vectors", "other", "third", "0:1", "::2",
    "BF16", "float8_e4m3fn", "1GB", [], [1], [0.5, 0.5], ["encoder"], ["**", "!classifier"], [[0]],
    ["other", "third"], {}, {"a": 1}, {"target": "encoder"}, {"by_layer": [0, 1]},
    [{"target": "encoder", "value": 1}],
]  # fmt: skip


def places(value, path=()):
    """Yield the path of each value in a document, the document's own left out."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in inside:
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from places(item, (*path, key))


def mutated(op, random):
    """Return an example in which something is another thing, or there is something more."""
    changed = copy.deepcopy(step(op))
    for _ in range(random.choice([1, 1, 2])):
        new = [(name,) for name in (*op.parameters["properties"], "target")]
        old = [path for path in places(changed) if path != ("op",)]
        *above, key = random.choice(random.choice([new, old]))
        inner = changed
        for part in above:
            inner = inner[part]
        inner[key] = copy.deepcopy(random.choice(ODD))
    return changed


@pytest.mark.parametrize("op", EVERY_OP)
def test_mistakes_end_in_lines(op, example):
    """Whatever stands in a step, it is planned, or what is wrong with it is said."""
    random = Random(op.name)
    problems = []
    for _ in range(4):
        changed = mutated(op, random)
        try:
            recipe = example.recipe(changed)
            with surgery.opened(recipe, str(example.input), example.models) as opened:
                report.planned(surgery.output_plan(opened, None))
                json_text(report.planned_as_json(surgery.output_plan(opened, None)))
        except SurgeonError as error:
            problems += error.problems
    assert all(problem.isprintable() for problem in problems)


# --- Each op does what its plan says --------------------------------------------------------------


ZEROS = b"0" * 32


def test_written_header_equals_the_plan():
    """But for the fingerprint of what is written, which has a place of its width."""
    for run in runs():
        planned = lay_out(run.plan.tensors, run.plan.metadata)
        begin, end = planned.content_at, planned.content_at + len(ZEROS)
        assert run.header[begin:end] != ZEROS, run.op.name
        assert run.header[:begin] + ZEROS + run.header[end:] == planned.header, run.op.name


def test_library_reads_what_was_planned():
    torch_dtypes = {name: getattr(torch, row.torch, None) for name, row in DTYPES.items()}
    for run in runs():
        specs = {name: tensor.spec for name, tensor in run.plan.tensors.items()}
        planned = {name: (torch_dtypes[s.dtype], s.shape) for name, s in specs.items()}
        found = {name: (t.dtype, tuple(t.shape)) for name, t in run.tensors.items()}
        assert found == planned, run.op.name


def test_untouched_tensors_keep_their_bits():
    for run in runs():
        untouched = [name for name in run.before if run.plan.lineage.get(name) == ()]
        assert_identical(
            {n: run.tensors[n] for n in untouched}, {n: run.before[n] for n in untouched}
        )


def test_input_files_are_never_changed():
    assert [run.op.name for run in runs() if not run.inputs_are_as_they_were] == []


def test_dtypes_are_kept():
    for run in runs():
        kept = run.before.keys() & run.tensors.keys() if run.op.name not in CHANGES_DTYPES else ()
        changed = [name for name in kept if run.tensors[name].dtype != run.before[name].dtype]
        assert changed == [], run.op.name


def test_ties_survive():
    for run in runs():
        there = {alias: owner for alias, owner in TIES.items() if alias in run.plan.tensors}
        assert run.op.name == "untie" or ties(run.plan.tensors).items() >= there.items()


def test_manifest_lists_exactly_the_planned_tensors():
    for run in runs():
        assert run.manifest["tensors"].keys() == run.plan.tensors.keys(), run.op.name


# --- Same recipe, same inputs, same bytes ---------------------------------------------------------


def without_fingerprint(content: bytes) -> bytes:
    """Return a file's bytes without the entry that there is nothing to make of."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = re.sub(rb'\\"content\\": \\"[0-9a-f]{32}\\", ', b"", content[8:start], count=1)
    header = header.rstrip()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[start:]


@pytest.mark.parametrize("op", EVERY_OP)
def test_bytes_do_not_depend_on_threads_and_checksums(op, example, monkeypatch):
    expected = run_of(op.name)
    monkeypatch.setattr("surgeon.output.workers._SHARED_FROM", 0)
    monkeypatch.setattr(units, "UNIT", 1 << 10)
    # Threads; processes are forked where there is less to copy than here, below.
    monkeypatch.setattr("surgeon.output.workers.sys.platform", "darwin")
    made = example.operate(step(op), options=Options(workers=2, checksums="sha256"))
    assert made.path.read_bytes() == expected.content
    made = example.operate(step(op), options=Options(workers=8))
    assert made.path.read_bytes() == expected.content
    assert but_for_inputs(made.manifest) == but_for_inputs(expected.manifest)


# With each recipe as other processes would have it made: as it is, and by workers that are forked.
OTHER_PROCESS = """
import json, sys
from pathlib import Path
from surgeon import recipe, surgery
from surgeon.output import units, workers
from surgeon.output.execute import Options
workers.sys = type(sys)("sys")
workers.sys.platform = "linux"
kinds = {"alone": (workers._SHARED_FROM, units.UNIT, Options()),
         "forked": (0, 1 << 10, Options(workers=8, checksums="none"))}
for folder in map(Path, sys.argv[1:]):
    source, models = json.loads((folder / "operands.json").read_text())
    for kind, (workers._SHARED_FROM, units.UNIT, options) in kinds.items():
        with surgery.opened(recipe.load(str(folder / "recipe.json"), {}), source, models) as opened:
            surgery.write(opened, folder / f"{kind}.safetensors", options, force=True)
    assert "torch" not in sys.modules or folder.name == "match"
"""


@pytest.fixture
def elsewhere(tmp_path):
    """A folder for each op, in which another process has written what its example makes."""
    folder = tmp_path
    usual = example_bench(folder)
    for name, op in OPS.items():
        (folder / name).mkdir()
        is_usual = name not in {*SPECIAL, *ANOTHER_INPUT}
        bench = usual if is_usual else example_bench(folder / name, name)
        (folder / name / "recipe.json").write_text(json.dumps({"surgeon": 1, "steps": [step(op)]}))
        operands = json.dumps([str(bench.input), bench.models])
        (folder / name / "operands.json").write_text(operands)
    # One op alone may import torch, and comes last.
    names = sorted(OPS, key="match".__eq__)
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", OTHER_PROCESS, *(str(folder / name) for name in names)]
    subprocess.run(command, env=environment, cwd=folder, check=True)
    return folder


def test_bytes_do_not_depend_on_the_process_or_on_how_many(elsewhere):
    for name, expected in zip(OPS, runs(), strict=True):
        made = elsewhere / name / "alone.safetensors"
        assert made.read_bytes() == expected.content, name
        manifest = json.loads(made.with_name("alone.manifest.json").read_text())
        manifest["checkpoint"]["file"] = expected.manifest["checkpoint"]["file"]
        assert but_for_inputs(manifest) == but_for_inputs(expected.manifest), name
        forked = (elsewhere / name / "forked.safetensors").read_bytes()
        assert forked == without_fingerprint(expected.content), name


# --- Kernels --------------------------------------------------------------------------------------


def planned_and_open(example, op):
    return surgery.opened(example.recipe(step(op)), str(example.input), example.models)


@pytest.mark.parametrize("op", EVERY_OP)
def test_written_bytes_equal_evaluating_in_blocks_of_any_size(op, example):
    written = run_of(op.name).tensors
    with planned_and_open(example, op) as opened:
        for name, tensor in opened.plan.tensors.items():
            for window in (1, 3, 64, tensor.spec.count or 1):
                assert evaluated(tensor, window, Scratch()) == raw_bytes(written[name]), name


@pytest.mark.parametrize("op", EVERY_OP)
def test_kernels_leave_their_operands_alone(op, example):
    with planned_and_open(example, op) as opened:
        for tensor in opened.plan.tensors.values():
            for form in walk(tensor):
                if isinstance(form, Blockwise):
                    run_on_read_only_blocks(form)


def run_on_read_only_blocks(form):
    """Writing to an operand raises."""
    scratch = Scratch()
    count = form.spec.count
    raised = lazy.upcast_blocks(form.operands, 0, count, scratch, form.working)
    blocks = lazy.Blocks([block.copy() for block in raised], 0)
    for block in blocks:
        block.flags.writeable = False
    statistics = form.statistics(lazy.Operands(form.operands, scratch)) if form.statistics else None
    form.kernel(blocks, statistics, np.empty_like(blocks[0]))


def test_merging_a_model_with_itself_returns_it(example):
    example.models |= dict.fromkeys(("other", "third"), str(example.input))
    for op in MERGES.values():
        assert_identical(example.operate(step(op)).tensors, read(example.input))


@pytest.mark.parametrize("op", MERGES.values(), ids=MERGES)
def test_zeros_keep_the_sign_that_the_base_model_gives_them(op, example):
    if op.name == "average":
        pytest.skip("it has no base model: the mean of -0 and 0 is 0")
    state = {name: signed_zeros(tensor) for name, tensor in read(example.input).items()}
    zeros = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    example.input = write(example.folder / "signed.safetensors", state)
    zero = str(write(example.folder / "zero.safetensors", zeros))
    example.models |= dict.fromkeys(("other", "third"), zero)
    assert_identical(example.operate(step(op)).tensors, state)


def signed_zeros(tensor):
    if not tensor.is_floating_point():
        return torch.zeros_like(tensor)
    signs = torch.where(torch.arange(tensor.numel()) % 3 == 0, -0.0, 0.0)
    return signs.reshape(tensor.shape).to(tensor.dtype)


# --- A recipe of no steps -------------------------------------------------------------------------

STORABLE = {
    name: getattr(torch, row.torch)
    for name, row in DTYPES.items()
    if row.bits >= 8 and hasattr(torch, row.torch)
}


def of_every_dtype(shape):
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, dtype in STORABLE.items():
        size = max(1, DTYPES[name].bits // 8) * int(np.prod(shape))
        raw = torch.randint(0, 2 if name == "BOOL" else 256, (size,), generator=generator)
        tensors[f"{name}.{len(shape)}"] = raw.to(torch.uint8).view(dtype).view(shape)
    return tensors


def with_sorted_metadata(content):
    """What save_file wrote, with the metadata (in a hash map's order there) sorted by key."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


@pytest.mark.parametrize("metadata", [{"format": "pt"}, {}, {"zebra": "1", "ångström": 'é\n"x"'}])
def test_no_steps_write_what_save_file_writes(metadata, bench):
    shapes = [(), (3,), (0, 4), (5, 3)]
    tensors = {name: t for shape in shapes for name, t in of_every_dtype(shape).items()}
    save_file(tensors, bench.input, metadata)
    written = bench.operate().path.read_bytes()
    ours = json.loads(header_of(bench.output)[8:])["__metadata__"]["surgeon"]
    expected = bench.folder / "expected.safetensors"
    save_file(tensors, expected, {**metadata, "surgeon": ours})
    assert written == with_sorted_metadata(expected.read_bytes())


def test_our_metadata_is_a_version_a_fingerprint_and_a_hash_of_the_recipe(example):
    example.operate()
    ours = json.loads(header_of(example.output)[8:])["__metadata__"]["surgeon"]
    assert json.loads(ours).keys() == {"content", "version", "recipe_sha256"}


def test_metadata_survives(bench):
    save_file(example_tensors(), bench.input, {"format": "pt", "stage": "1", "note": "ü"})
    with surgery.opened(bench.recipe(), str(bench.input), {}) as opened:
        metadata = opened.plan.metadata
    assert metadata.items() >= {"format": "pt", "stage": "1", "note": "ü"}.items()


def test_order_of_names_in_the_input_does_not_matter(bench):
    tensors = example_tensors()
    bench.given(tensors)
    first = bench.operate().path.read_bytes()
    bench.given(dict(reversed(tensors.items())))
    assert bench.operate().path.read_bytes() == first
