"""The page of an output or a plan: what is on it, and that it stands alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file, save_file

from surgeon import samples
from surgeon.cli.commands import commands
from tests.pictures.parsed import labels, parsed, require_alone, rows, said, section

LAYERS = 4
SHRINK: dict[str, Any] = {
    "surgeon": 1,
    "about": "Three layers, and two more outputs.",
    "steps": [
        {"op": "layers", "container": "model.layers", "take": ["0:2", "3"]},
        {"id": "grow", "op": "widen", "target": "lm_head", "rows": 2, "init": "mean"},
        {"op": "expect", "target": "lm_head.weight", "shape": [102, 16]},
        {"op": "expect", "target": "**", "finite": True},
    ],
    "training": {
        "optimizer": {"class": "torch.optim.SGD", "args": {"lr": 0.02}},
        "stages": [
            {"name": "warm-up", "duration": {"epochs": 2}, "train": ["@new"],
             "groups": [{"name": "new", "params": ["@new"], "lr": 0.2}]},
            {"name": "joint", "duration": {"epochs": 8},
             "scheduler": {"class": "torch.optim.lr_scheduler.StepLR", "args": {"step_size": 4}}},
        ],
    },
}  # fmt: skip
MERGE: dict[str, Any] = {
    "surgeon": 1,
    "models": {"chat": None, "code": None},
    "steps": [
        {"op": "average", "models": ["chat"], "weights": [1, 1], "into": "both"},
        {"op": "slerp", "models": ["both"], "t": 0.5, "target": "model"},
        {"op": "average", "models": ["code"], "weights": [1, 1], "target": "lm_head"},
    ],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models, recipes, an output of each, and the page of each output."""
    folder = tmp_path_factory.mktemp("report")
    samples.main(folder)
    for name, recipe in {"shrink": SHRINK, "merge": MERGE}.items():
        (folder / f"{name}.json").write_text(json.dumps(recipe))
    base, chat, code = (folder / f"{name}.safetensors" for name in ("base", "chat", "code"))
    run("apply", folder / "shrink.json", base, folder / "small.safetensors")
    run("apply", folder / "merge.json", base, chat, code, folder / "merged.safetensors")
    run("report", folder / "small.safetensors", "-o", folder / "small.html")
    run("report", folder / "merged.safetensors", "-o", folder / "merged.html")
    run("report", folder / "shrink.json", base, "-o", folder / "plan.html")
    return folder


def run(*words: object, code: int = 0) -> Result:
    result = CliRunner().invoke(commands, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


def page(made: Path, name: str) -> Any:
    return parsed((made / name).read_text("utf-8"))


@pytest.mark.parametrize("name", ["small.html", "merged.html", "plan.html"])
def test_a_page_is_well_formed_and_stands_alone(made: Path, name: str) -> None:
    text = (made / name).read_text("utf-8")
    assert text.startswith("<!doctype html>\n<html lang")
    require_alone(parsed(text))
    assert str(made) not in text
    assert "http" not in text.replace("http-equiv", "")


def test_a_plan_tells_the_same_as_its_document_and_twice_the_same(made: Path) -> None:
    document = run("plan", made / "shrink.json", made / "base.safetensors", "--json").stdout
    (made / "told.json").write_text(document)
    run("report", made / "told.json", "-o", made / "told.html")
    assert (made / "told.html").read_bytes() == (made / "plan.html").read_bytes()


def test_signs_and_shapes_are_those_of_the_files(made: Path) -> None:
    old, new = (load_file(made / f"{name}.safetensors") for name in ("base", "small"))
    found = [row for row in rows(section(page(made, "plan.html"), "Tensors")) if row[0] in "+~-="]
    by_name = {row[1]: row for row in found}
    assert by_name["lm_head.weight"][:4] == [
        "~", "lm_head.weight", f"F32 {old['lm_head.weight'].shape}",
        f"F32 {new['lm_head.weight'].shape}",
    ]  # fmt: skip
    assert "[100:102]" in by_name["lm_head.weight"][4]
    of_a_layer = sum(name.startswith("model.layers.0.") for name in old)
    assert by_name["{0-1}"][0] == "="
    assert f"{2 * of_a_layer} tensors kept" in by_name["{0-1}"]
    assert Counter(row[0] for row in found)["~"] == 1 + of_a_layer


def test_totals_are_those_of_the_tensors(made: Path) -> None:
    old = load_file(made / "base.safetensors")
    dropped = [name for name in old if name.startswith("model.layers.2.")]
    size = sum(old[name].nbytes for name in dropped)
    said_first = said(next(page(made, "plan.html").iter("main")))
    assert f"-{len(dropped)} tensors dropped, {size / 1000:.1f} kB" in said_first


def test_new_rows_are_drawn_where_they_are(made: Path) -> None:
    part = section(page(made, "plan.html"), "Tensors")
    drawing = next(d for d in part.iter("svg") if d.get("aria-label") == "where it is new")
    whole, new = drawing.findall("rect")
    assert float(new.get("y", 0)) + float(new.get("height", 0)) == pytest.approx(18)
    assert new.get("width") == drawing.get("viewBox", "").split()[2]
    assert whole.get("fill") != new.get("fill")


def test_a_manifest_says_what_it_cannot_tell(made: Path) -> None:
    part = section(page(made, "small.html"), "Tensors")
    assert "Tensors that were dropped" in said(part)
    found = {row[1]: row for row in rows(part)}
    # What grew by whole rows had fewer; what moved may have been anything.
    assert found["lm_head.weight"][2] == "F32 (100, 16)"
    assert "not told" in {row[2] for row in found.values()}


def test_rates_stand_where_the_axis_has_them(made: Path) -> None:
    part = section(page(made, "plan.html"), "Training")
    chart = next(d for d in part.iter("svg") if "rates" in said(next(iter(d.iter("title")))))
    lines = {p.get("data-group"): p.get("d", "") for p in chart.iter("path")}
    ticks = {said(t): float(t.get("y", 0)) - 4 for t in chart.iter("text")}
    new, joint = lines["0"], lines["1"]
    per_decade = ticks["0.01"] - ticks["0.1"]
    assert float(new[1:].split("H")[0].split()[1]) == pytest.approx(
        ticks["0.1"] - np.log10(2) * per_decade, abs=0.1
    )
    # From 0.02 down to a tenth, in the middle of eight epochs.
    levels = [float(joint[1:].split("H")[0].split()[1]), float(joint.split("V")[1].split("H")[0])]
    assert levels[1] - levels[0] == pytest.approx(per_decade, abs=0.2)
    assert labels(chart)[:4] == ["warm-up", "2 epochs", "joint", "8 epochs"]


def test_groups_and_stages_are_a_table(made: Path) -> None:
    found = [*rows(section(page(made, "plan.html"), "Training"))]
    assert found[0] == ["group", "warm-up · 2 epochs", "joint · 8 epochs"]
    assert found[1] == ["new", "0.21 block, 32 elements", ""]
    assert found[2][0] == "default"
    assert found[2][2].startswith("0.02")


def test_lineage_shows_models_steps_and_what_was_kept(made: Path) -> None:
    (drawing,) = section(page(made, "merged.html"), "Lineage").iter("svg")
    boxes = [[said(text) for text in g.iter("text")] for g in drawing.iter("g") if g.find("rect")
             is not None]  # fmt: skip
    titles = [box[0] for box in boxes]
    assert sorted(titles) == sorted(
        ["chat", "code", "average, kept as 'both'", "input", "slerp", "average", "output"]
    )
    assert ["chat", "chat.safetensors"] in boxes
    # Down: input, slerp, average, output. Into steps: chat, the input, both, code.
    assert len([p for p in drawing.iter("path") if "C" in p.get("d", "")]) == 4


def test_checks_say_what_passed(made: Path) -> None:
    assert ["✓", "expect (2)", "passed"] in [*rows(section(page(made, "small.html"), "Checks"))]
    found = [*rows(section(page(made, "plan.html"), "Checks"))]
    assert any("checks of values, made by apply" in row[2] for row in found)


def test_verify_finds_what_changed_since(made: Path, tmp_path: Path) -> None:
    for suffix in ("safetensors", "manifest.json"):
        (tmp_path / f"it.{suffix}").write_bytes((made / f"small.{suffix}").read_bytes())
    run("report", tmp_path / "it.safetensors", "-o", tmp_path / "it.html", "--verify")
    good = [*rows(section(page(tmp_path, "it.html"), "Checks"))]
    assert good[-1] == ["✓", "the file's bytes", "hashed again, and as the manifest says"]
    data = bytearray((tmp_path / "it.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "it.safetensors").write_bytes(data)
    run("report", tmp_path / "it.safetensors", "-o", tmp_path / "it.html", "--verify")
    assert [*rows(section(page(tmp_path, "it.html"), "Checks"))][-1][0] == "✗"


HOSTILE = ["<script>alert(1)</script>.weight", '"onload="x.w', "a&b<!--.w", "{0-9999999999}.w",
           "{,}.w", "]]>.w", "x" * 5000, ".".join("abc" * 100), "x.\u202ereversed"]  # fmt: skip


def test_names_stay_text(tmp_path: Path) -> None:
    save_file({name: np.zeros((2, 3), "f4") for name in HOSTILE}, tmp_path / "in.safetensors")
    recipe = {"surgeon": 1, "about": "<b>bold</b>",
              "steps": [{"op": "scale", "target": "**", "by": 2}]}  # fmt: skip
    (tmp_path / "r.json").write_text(json.dumps(recipe))
    run("apply", tmp_path / "r.json", tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    run("report", tmp_path / "out.safetensors", "-o", tmp_path / "p.html")
    root = page(tmp_path, "p.html")
    require_alone(root)
    titles = {span.get("title") for span in root.iter("span")}
    assert "<script>alert(1)</script>.weight" in titles
    assert "\u202e" not in said(root)
    assert "9 tensors changed, 216 B" in said(root)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("shrink.json", "-o", "x.html"), "is a recipe; its input goes beside it"),
        (("small.safetensors", "-o", "x.png"), "a report is a .html or .htm file"),
        (("small.safetensors", "-o", "no/x.html"), "there is no folder"),
        (("small.safetensors", "-o", "x.html", "--set", "a=1"), "for a recipe with its input"),
        (("shrink.json", "base.safetensors", "-o", "x.html", "--verify"), "--verify is for"),
        (("wrong.json", "-o", "x.html"), "tensors.x.shape: 'big' is not an array"),
    ],
)
def test_what_cannot_be_reported_is_refused(
    made: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], problem: str
) -> None:
    monkeypatch.chdir(made)
    plan = json.loads(run("plan", "shrink.json", "base.safetensors", "--json").stdout)
    plan["tensors"] = {"x": {"shape": "big", "dtype": "F32"}}
    (made / "wrong.json").write_text(json.dumps(plan))
    assert problem in run("report", *words, code=2).stderr
    assert not (made / "x.html").exists()


@pytest.mark.parametrize("wrong", ["fc.weight[a:b]", "fc.weight[0:999]", "nowhere[0:1]"])
def test_blocks_that_are_none_are_an_error(made: Path, tmp_path: Path, wrong: str) -> None:
    manifest = json.loads((made / "small.manifest.json").read_text())
    manifest["stages"][0]["frozen"] = [wrong.replace("fc", "lm_head")]
    (tmp_path / "x.manifest.json").write_text(json.dumps(manifest))
    result = run("report", tmp_path / "x.manifest.json", "-o", tmp_path / "x.html", code=3)
    assert "x.manifest.json: " in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("alike", [True, False])
def test_sixty_thousand_tensors_are_a_few_megabytes(tmp_path: Path, alike: bool) -> None:
    entry = {"shape": [512, 128], "dtype": "BF16", "lineage": [{"step": "0", "op": "scale"}]}
    names = [f"m.layers.{i}.experts.{j}.w" for i in range(60) for j in range(1000)]
    if not alike:
        names = [f"t{index:x}z.{index * 7919 % 65537:x}q" for index in range(60_000)]
    sha = "0" * 64
    manifest = {
        "surgeon_manifest": 1, "surgeon": "0", "inputs": {}, "ties": {},
        "checkpoint": {"file": "m.safetensors", "bytes": 1, "header_sha256": sha},
        "recipe": {"sha256": sha, "vars": {}, "text": {"steps": [{"op": "scale"}]}},
        "tensors": dict.fromkeys(names, entry),
        "stages": [{"name": "all", "groups": [{"name": "g", "params": names, "lr": 1.0}],
                    "frozen": [], "eval_modules": [], "optimizer_state": "reset"}],
    }  # fmt: skip
    (tmp_path / "m.manifest.json").write_text(json.dumps(manifest))
    run("report", tmp_path / "m.manifest.json", "-o", tmp_path / "m.html")
    text = (tmp_path / "m.html").read_text()
    assert len(text) < (20_000 if alike else 3_000_000)
    assert "60,000 tensors changed, 7.9 GB" in said(parsed(text))
