"""The pages of the site: README and docs as they are, and a page each that the registry knows.

`make site` runs this, and mkdocs over what it writes into `.site/`. Links to source files, which
are not part of the site, become plain names.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from posixpath import normpath
from typing import Any

import yaml

from surgeon.cli import recipe_pages, word_pages
from surgeon.draft.registry import OPS, OURS
from surgeon.initialisers import INITIALISERS
from surgeon.model_folder.architectures import DATA, record_of
from tests.docs import ROOT, op_page

SITE = ROOT / ".site"
_LINK = re.compile(r"\[([^\]]*)\]\((?!https?://|#)([^)\s]+)\)")
# What docs/ is made into the site of, in the order in which one reads it.
READ = {
    "Write": (
        "first-jobs",
        "recipes",
        "patterns",
        "ops",
        "merges",
        "experts",
        "tokens",
        "search",
        "commands",
        "library",
    ),
    "Read": ("reading", "remote", "model-folders", "layouts"),
    "Look": ("pictures",),
    "Train": ("manifest", "optimizer-state", "frameworks"),
    "Coming from elsewhere": ("coming-from",),
    "Besides": ("writing-an-op", "safety", "replacing", "cluster", "performance", "glossary"),
}


def pages() -> dict[str, str]:
    """Return every page by its path in the site, with links that lead within it."""
    found = {"index.md": (ROOT / "README.md").read_text()}
    for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        found[name] = (ROOT / name).read_text()
    for page in [*(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*/README.md")]:
        found[str(page.relative_to(ROOT))] = page.read_text()
    found |= generated()
    known = found.keys() | assets().keys()
    return {path: linked(path, text, known) for path, text in found.items()}


def assets() -> dict[str, Path]:
    """Return the files that pages show, or lead to, besides other pages."""
    shown = [file for folder in ("pictures", "terminal") for file in
             sorted((ROOT / "docs" / folder).iterdir())]  # fmt: skip
    return {str(file.relative_to(ROOT)): file for file in shown}


def linked(path: str, text: str, known: Any) -> str:
    """Return a page whose links lead to pages of the site, or are plain text."""

    def link(found: re.Match[str]) -> str:
        title, (target, _, anchor) = found[1], found[2].partition("#")
        place = normpath(str(Path(path).parent / target)) if target else path
        place = {"README.md": "index.md"}.get(place, place)
        if f"{place}/README.md" in known:
            place = f"{place}/README.md"
        if place not in known:
            return title
        up = "../" * path.count("/")
        return f"[{title}]({up}{place}{'#' + anchor if anchor else ''})"

    return _LINK.sub(link, text)


def generated() -> dict[str, str]:
    """Return the pages that are made of what surgeon knows of itself."""
    found = {f"reference/ops/{name}.md": _op(name) for name in _ours()}
    found |= {f"reference/initialisations/{n}.md": _word(n, r.about) for n, r in
              INITIALISERS.items() if n not in OPS}  # fmt: skip
    found |= {f"reference/recipes/{row['name']}.md": _recipe(row["name"]) for row in
              recipe_pages.recipes()}  # fmt: skip
    found["reference/training.md"] = _word("training", "The training section of a recipe.")
    found["reference/architectures.md"] = _architectures()
    return found


def _ours() -> list[str]:
    return [name for name in OPS if OPS.origin(name) == OURS]


def _op(name: str) -> str:
    op = OPS[name]
    recipe = {"surgeon": 1, "steps": [{"op": name, **op.example}]}
    kind = "A merge." if op.group == "merge" else f"A step ({op.group})."
    parts = [f"# {name}", kind, op_page(op), "## As a recipe"]
    parts.append(f"```json\n{json.dumps(recipe, indent=2, ensure_ascii=False)}\n```")
    return "\n\n".join(parts) + "\n"


def _word(name: str, about: str) -> str:
    return f"# {name}\n\n{about}\n\n```text\n{word_pages.page(name)}\n```\n"


def _recipe(name: str) -> str:
    text = recipe_pages.text_of(name)
    rows = [f"| `{v.name}` | {v.meaning.replace('|', '&#124;')} | `{json.dumps(v.default)}` | "
            f"`{json.dumps(v.example)}` |" for v in recipe_pages.variables_of(text)]  # fmt: skip
    papers = dict.fromkeys(OPS[step["op"]].paper for step in text["steps"] if step["op"] in OPS)
    parts = [f"# {name}", text["about"], *(f"Paper: {paper}" for paper in papers if paper)]
    parts += [
        "\n".join(["| variable | what | default | example |", "|---|---|---|---|", *rows]),
        f"```sh\n{recipe_pages.command_of(name, text)}\n```",
        f"```json\n{recipe_pages.source_of(name)}```",
    ]
    return "\n\n".join(parts) + "\n"


def _architectures() -> str:
    with DATA.open("rb") as file:
        types = sorted(json.loads(file.readline())["types"])
    rows = [_architecture(name, record_of(name) or {}) for name in types]
    about = (
        f"Of these {len(types)} model types of transformers the config follows the tensors "
        "([model folders](../docs/model-folders.md))."
    )
    titles = "| model type | classes | tensors known | lists followed |\n|---|---|---|---|\n"
    head = f"# Architectures\n\n{about}\n\n{titles}"
    return head + "\n".join(rows) + "\n"


def _architecture(name: str, record: dict[str, Any]) -> str:
    classes, lists = record.get("classes", {}), record.get("lists", {})
    named = ", ".join(f"`{one}`" for one in classes)
    followed = ", ".join(f"`{one}`" for one in lists)
    return f"| `{name}` | {named} | {len(record.get('rows', ()))} | {followed} |"


def navigation(known: Any) -> list[Any]:
    """Return the menu: what is written by hand in its order, what is generated by name."""

    def below(folder: str) -> list[str]:
        return sorted(path for path in known if path.startswith(folder))

    ops = below("reference/ops/")
    merges = [path for path in ops if OPS[Path(path).stem].group == "merge"]
    return [
        {"Home": "index.md"},
        *({title: [f"docs/{name}.md" for name in names]} for title, names in READ.items()),
        *([{"More": more}] if (more := _unsorted(known)) else []),
        {"Ops": [path for path in ops if path not in merges]},
        {"Merges": merges},
        {"Initialisations": below("reference/initialisations/")},
        {"Ready-made recipes": below("reference/recipes/")},
        {"Training section": "reference/training.md"},
        {"Architectures": "reference/architectures.md"},
        {"Examples": below("examples/")},
        {"Changes": "CHANGELOG.md"},
        {"Contribute": "CONTRIBUTING.md"},
    ]


def _unsorted(known: Any) -> list[str]:
    """Return the pages of docs/ that have no place in the order yet."""
    sorted_ones = {f"docs/{name}.md" for names in READ.values() for name in names}
    return sorted(path for path in known if path.startswith("docs/") and path not in sorted_ones)


def settings(known: Any) -> dict[str, Any]:
    """Return mkdocs' own settings; links and anchors that lead nowhere are warnings."""
    return {
        "site_name": "surgeon",
        "docs_dir": str(SITE / "pages"),
        # Without the fonts of other servers: the pages can be read without a network.
        "theme": {"name": "material", "font": False,
                  "features": ["navigation.indexes", "content.code.copy", "search.highlight"]},
        "markdown_extensions": ["tables", "pymdownx.superfences", "pymdownx.highlight",
                                {"toc": {"permalink": True}}],
        "plugins": ["search"],
        "validation": {"omitted_files": "warn", "absolute_links": "warn",
                       "unrecognized_links": "warn", "not_found": "warn", "anchors": "warn"},
        "nav": navigation(known),
    }  # fmt: skip


def written(root: Path) -> Iterator[Path]:
    """Write everything that mkdocs reads, anew."""
    shutil.rmtree(root, ignore_errors=True)
    found = pages()
    for name, text in found.items():
        path = root / "pages" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        yield path
    for name, file in assets().items():
        path = root / "pages" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, path)
    settings_file = root / "mkdocs.yml"
    settings_file.write_text(yaml.safe_dump(settings(found.keys()), sort_keys=False))
    yield settings_file


if __name__ == "__main__":
    print(f"{len(list(written(SITE)))} files")
