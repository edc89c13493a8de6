"""What is made for a terminal: folded tables, layers that fare alike, colours, progress."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from surgeon.base.folding import folded
from surgeon.base.screen import Screen, on
from surgeon.base.tables import table
from surgeon.cli import catalogue
from surgeon.cli.commands import main  # noqa: F401  (registers the commands)
from surgeon.cli.group import commands
from surgeon.inspection import diff
from surgeon.inspection.compare import compare
from surgeon.inspection.verify import verify

LAYERS = 32


def model(folder: Path, name: str, seed: int) -> Path:
    generator = torch.Generator().manual_seed(seed)
    made = {"model.embed_tokens.weight": torch.randn(5, 4, generator=generator)}
    for layer in range(LAYERS):
        for part in ("self_attn.q_proj", "mlp.up_proj", "post_attention_layernorm"):
            values = torch.randn(4, 4, generator=generator)
            made[f"model.layers.{layer}.{part}.weight"] = values
    save_file(made, folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors"


def piped(*words: object, **more: str) -> str:
    command = [sys.executable, "-m", "surgeon", *map(str, words)]
    return subprocess.run(command, capture_output=True, env=environment(more), text=True).stdout


def environment(more: dict[str, str]) -> dict[str, str]:
    without = ("CI", "NO_COLOR", "COLUMNS")
    kept = {name: value for name, value in os.environ.items() if name not in without}
    return kept | {"TERM": "xterm"} | more


def on_terminal(*words: object, columns: int = 100, code: str = "", **more: str) -> str:
    """Run a command in a terminal of some columns; return everything that it shows."""
    terminal, side = os.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    start = ["-c", code] if code else ["-m", "surgeon"]
    command = [sys.executable, *start, *map(str, words)]
    with subprocess.Popen(command, stdout=side, stderr=side, env=environment(more)):
        os.close(side)
        shown = b"".join(_read(terminal))
    os.close(terminal)
    return shown.decode().replace("\r\n", "\n")


def _read(terminal: int) -> Iterator[bytes]:
    try:
        while block := os.read(terminal, 1 << 16):
            yield block
    except OSError:  # the other side is closed
        return


# tables


def test_a_table_is_folded_where_it_is_too_wide_and_loses_nothing() -> None:
    rows = [("model.layers.0.self_attn.q_proj.weight", "12,345", "put end to end " * 9)] * 2
    plain = table(("name", "size", "what it does"), rows, right=("size",))
    with on(Screen(48)):
        text = table(("name", "size", "what it does"), rows, right=("size",))
    assert max(map(len, text.splitlines())) <= 48 < max(map(len, plain.splitlines()))
    assert text.count("12,345") == 2
    assert sorted(re.sub(r"\s", "", text)) == sorted(re.sub(r"\s", "", plain))


def test_a_table_that_fits_is_as_it_is_without_a_terminal() -> None:
    rows = [("a", "1"), ("  b", "22")]
    plain = table(("name", "size"), rows, right=("size",), indent=2)
    with on(Screen(80)):
        assert table(("name", "size"), rows, right=("size",), indent=2) == plain


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([("l.0.w", "x"), ("l.1.w", "x"), ("l.3.w", "x")], [("l.{0-1,3}.w", "x")]),
        ([("l.0.w", "x"), ("l.1.w", "y")], [("l.0.w", "x"), ("l.1.w", "y")]),
        ([("l.1.w", "with b:k.1.w"), ("l.2.w", "with b:k.2.w")],
         [("l.{1-2}.w", "with b:k.{1-2}.w")]),
        ([("l.1.w", "with k.1.w"), ("l.2.w", "with k.1.w")],
         [("l.1.w", "with k.1.w"), ("l.2.w", "with k.1.w")]),
        ([("l.3.w", "from l.2.w"), ("l.4.w", "from l.3.w")], [("l.{3-4}.w", "from l.{2-3}.w")]),
        ([("l.2.w", "density 0.2"), ("l.3.w", "density 0.2")], [("l.{2-3}.w", "density 0.2")]),
        ([(f"l.{i}.experts.{j}.w", "x") for i in range(3) for j in range(4)],
         [("l.{0-2}.experts.{0-3}.w", "x")]),
        ([("l.01.w", "x"), ("l.1.w", "x")], [("l.01.w", "x"), ("l.1.w", "x")]),
    ],
)  # fmt: skip
def test_rows_that_differ_in_a_layer_alone_are_one(
    rows: list[tuple[str, ...]], wanted: list[tuple[str, ...]]
) -> None:
    assert folded(rows) == wanted


def test_figures_of_folded_rows_are_their_lowest_and_highest() -> None:
    rows = [("l.0", "-0.5", "1,000"), ("l.1", "3e-05", "1,000"), ("l.2", "-7", "1,000")]
    assert folded(rows, between=(1, 2)) == [("l.{0-2}", "-7..3e-05", "1,000")]


@pytest.mark.parametrize(
    ("cells", "wanted"),
    [
        (("w [1.0, 0.5]", "w [1.0, 0.75]"), "w [1.0, 0.5..0.75]"),
        (("by 0.5, in [k.0.w]", "by 1e-05, in [k.1.w]"), "by 1e-05..0.5, in [k.{0-1}.w]"),
        (("w [1.0, 0.12345678901]", "w [1.0, 0.9]"), "w [1.0, 0.1235..0.9]"),
        (("parts 2", "parts 3"), None),  # what is counted is told of each
        (("w [1.0]", "w [1.0, 0.5]"), None),
    ],
)
def test_fractions_of_parameters_fold_to_their_span(
    cells: tuple[str, str], wanted: str | None
) -> None:
    rows = [(f"l.{layer}.{expert}", f"merge ({cell})")
            for layer, cell in enumerate(cells) for expert in (7, 8)]  # fmt: skip
    apart = [(f"l.{layer}.{{7-8}}", f"merge ({cell})") for layer, cell in enumerate(cells)]
    assert folded(rows, within=[1]) == (
        [("l.{0-1}.{7-8}", f"merge ({wanted})")] if wanted else apart
    )


# commands


def test_a_merge_with_numbers_by_layer_is_one_line_for_all_layers(tmp_path: Path) -> None:
    recipe = tmp_path / "m.json"
    recipe.write_text('{"surgeon": 1, "models": {"m": null}, "steps": [{"op": "average", '
                      '"models": ["m"], "weights": [{"by_layer": [0, 0.5]}, 1]}]}')  # fmt: skip
    a, b = (model(tmp_path, name, seed) for seed, name in enumerate("ab"))
    for more in ((), ("--tree",)):
        shown = on_terminal("plan", recipe, a, b, *more, columns=200)
        assert len(shown.splitlines()) < 20
        assert "weights [0.0..0.5, 1.0]" in shown
    assert (
        len(re.findall(r"layers.31.* \(weights \[0\.5, 1\.0\]", piped("plan", recipe, a, b))) == 3
    )


def test_new_layers_are_one_line_whether_their_number_was_taken_or_not(tmp_path: Path) -> None:
    words = ["llama-pro-blocks", model(tmp_path, "a", 0), "--set", 'zero=["up_proj"]']
    shown = on_terminal("plan", *words, "--tree", "--set", "every=4", columns=120)
    assert re.search(r"\{4,9,14,19,24,29,34,39\}\.mlp\.up_proj\.weight .* new \(zeros\)", shown)


def test_layers_are_one_line_on_a_terminal_and_all_listed_in_a_pipe(tmp_path: Path) -> None:
    words = ["plan", "ties", *(model(tmp_path, name, seed) for seed, name in enumerate("abc"))]
    shown, all_of_it = on_terminal(*words), piped(*words)
    assert max(map(len, shown.splitlines())) <= 100
    assert shown.count("model.layers.{0-31}.mlp.up_") == 1
    assert len(shown.splitlines()) < 30
    for layer in range(LAYERS):
        assert f"model.layers.{layer}.mlp.up_proj.weight" in all_of_it


def test_diff_and_compare_fold_layers_too(tmp_path: Path) -> None:
    a, b = model(tmp_path, "a", 0), model(tmp_path, "b", 1)
    shown = on_terminal("diff", a, b, columns=110)
    assert re.search(r"layers\.\{0-31\}\.mlp\.up_proj\.weight +changed +[\d.]+\.\.[\d.]+ ", shown)
    assert len(piped("diff", a, b).splitlines()) > 3 * LAYERS
    assert re.search(r"model\.layers\.\{0-31\} +48 +0\.00%", on_terminal("compare", a, a))


def test_inspect_folds_layers_and_their_figures(tmp_path: Path) -> None:
    a = model(tmp_path, "a", 0)
    shown = on_terminal("inspect", a, columns=80)
    assert re.search(r"layers\.\{0-31\}\.mlp\.up_proj\.weight +F32 +\(4, 4\) +64 B\n", shown)
    values = load_file(a)
    tensors = [values[f"model.layers.{layer}.mlp.up_proj.weight"] for layer in range(LAYERS)]
    lows = sorted(tensor.min().item() for tensor in tensors)
    shown = on_terminal("inspect", a, "--stats", columns=200)
    assert f" {lows[0]:.4g}..{lows[-1]:.4g} " in shown
    assert len(piped("inspect", a, "--stats").splitlines()) > 3 * LAYERS


def test_figures_of_many_layers_take_two_lines_where_one_is_too_long(tmp_path: Path) -> None:
    shown = on_terminal("diff", model(tmp_path, "a", 0), model(tmp_path, "b", 1), columns=60)
    assert max(map(len, shown.splitlines())) <= 60
    assert re.search(r"changed +[\d.]+\.\. ", shown)


def test_papers_are_listed_where_they_have_room() -> None:
    def shown(columns: int | None) -> str:
        with on(Screen(columns)):
            return catalogue.table_of_ops()

    assert "Yadav" in shown(None)
    assert "Yadav" in shown(200)
    assert "Yadav" not in shown(80)
    assert len(shown(80).splitlines()) < 200
    assert "papers are on the pages: surgeon ops ties" in shown(80)


def test_what_stands_beside_tables_is_folded_too(tmp_path: Path) -> None:
    compared = compare([str(model(tmp_path, name, seed)) for seed, name in enumerate("abc")], 1)
    with on(Screen(60)):
        texts = [catalogue.table_of_ops(), catalogue.page("ties"), compared.as_text()]
    for text in texts:
        prose = [line for line in text.splitlines()
                 if "/" not in line and not re.search(r"\S {2,}\S", line)]  # fmt: skip
        assert max(map(len, prose)) <= 60
    rows = [line for line in compared.as_text().splitlines() if line.startswith("model.layers")]
    assert max(map(len, rows)) > 60  # where there is no terminal
    assert max(len(line) for line in texts[-1].splitlines() if "/" not in line) <= 60


def test_headers_above_numbers_are_folded_before_names() -> None:
    headers, row = ("name", "change of B"), ("model.head", "1.2 MB")
    with on(Screen(18)):
        lines = table(headers, [row], right=headers[1:]).splitlines()
    assert lines == ["name        change", "              of B", "model.head  1.2 MB"]


@pytest.mark.parametrize("columns", [60, 100])
@pytest.mark.parametrize("words", ["ops", "recipes", "ops widen", "ops training", "recipes ties"])
def test_lists_and_pages_keep_to_the_columns_that_there_are(words: str, columns: int) -> None:
    shown = on_terminal(*words.split(), columns=columns)
    tables = [line for line in shown.splitlines() if re.search(r"\S {2,}\S", line)]
    assert tables
    assert max(map(len, tables)) <= columns


def test_no_command_is_cut_off_in_help() -> None:
    text = " ".join(CliRunner().invoke(commands, ["--help"]).output.split())
    assert "..." not in text.partition("Commands:")[2]
    assert (
        "Hash OUTPUT again and compare with its manifest; exits with 1 where they differ. " in text
    )


# plan --tree


def tree_recipe(folder: Path) -> Path:
    path = folder / "recipe.json"
    path.write_text(
        '{"surgeon": 1, "steps": ['
        '{"op": "widen", "target": "model.layers.*.mlp.up_proj", "rows": 1, "init": "zeros"},'
        '{"op": "copy", "from": "model.embed_tokens.weight", "to": "head.weight"},'
        '{"op": "delete", "target": "model.layers.*.post_attention_layernorm"}]}'
    )
    return path


def test_a_tree_tells_new_kept_changed_and_dropped_apart(tmp_path: Path) -> None:
    shown = piped("plan", "--tree", tree_recipe(tmp_path), model(tmp_path, "a", 0))
    signs = dict(re.findall(r"^([-+~=]) +(\S+)", shown, re.MULTILINE))
    named = {name: sign for sign, name in re.findall(r"^([-+~=]) +(\S+)", shown, re.MULTILINE)}
    assert signs.keys() == set("-+~=")
    assert named["head.weight"] == "+"
    assert named["mlp.up_proj.weight"] == "~"
    assert named["post_attention_layernorm.weight"] == "-"
    assert named["self_attn.q_proj.weight"] == named["embed_tokens.weight"] == "="
    assert shown.count("layers.{0-31}") == 1


@pytest.mark.parametrize(
    ("option", "more", "terminal", "pipe"),
    [("auto", {}, True, False), ("auto", {"NO_COLOR": "1"}, False, False),
     ("always", {"NO_COLOR": "1"}, True, True), ("never", {}, False, False)],
)  # fmt: skip
def test_signs_are_coloured_where_asked_for(
    tmp_path: Path, option: str, more: dict[str, str], terminal: bool, pipe: bool
) -> None:
    words = ["plan", "--tree", "--color", option, tree_recipe(tmp_path), model(tmp_path, "a", 0)]
    assert ("\x1b[32m+" in on_terminal(*words, **more)) == terminal
    assert ("\x1b[32m+" in piped(*words, **more)) == pipe


@pytest.mark.parametrize("words", [("--tree", "--json"), ("--color", "always")])
def test_options_that_would_do_nothing_are_refused(tmp_path: Path, words: tuple[str, ...]) -> None:
    arguments = ["plan", *words, str(tree_recipe(tmp_path)), str(model(tmp_path, "a", 0))]
    assert CliRunner().invoke(commands, arguments).exit_code == 2


# progress


def test_what_is_read_adds_up_to_what_was_announced(tmp_path: Path) -> None:
    announced, done = [], []

    @contextmanager
    def watch(total_bytes):  # type: ignore[no-untyped-def]
        announced.append(total_bytes)
        yield done.append

    a, b = model(tmp_path, "a", 0), model(tmp_path, "b", 1)
    piped("apply", "convert-to-safetensors", a, "-o", tmp_path / "out.safetensors")
    diff.compare(str(a), str(b), (), watch=watch)
    verify(tmp_path / "out.safetensors", 1, watch=watch)
    values = 4 * (5 * 4 + LAYERS * 3 * 16)
    assert announced == [values, values]
    assert sum(done) == 2 * values


@pytest.mark.parametrize(("least", "is_shown"), [(1, True), (10**8, False)])
def test_progress_of_reading_is_for_long_work(tmp_path: Path, least: int, is_shown: bool) -> None:
    code = (
        f"from surgeon.cli import commands, screens\nscreens._LONG_BYTES = {least}\ncommands.main()"
    )
    a, b = model(tmp_path, "a", 0), model(tmp_path, "b", 1)
    assert ("reading" in on_terminal("diff", a, b, code=code)) == is_shown
