"""A line of an error taken apart, and put together again."""

import pytest

from surgeon.base.problems import Located, located


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("recipe.json: steps[2].rows: 0 is less than the minimum of 1",
         ("recipe.json", "steps[2].rows", "0 is less than the minimum of 1", None)),
        ("r.json: steps[2] (widen 'a-b'): no tensor matches 'f'; did you mean 'fc'?",
         ("r.json", "steps[2] (widen 'a-b')", "no tensor matches 'f'", "did you mean 'fc'?")),
        ("r.json: --set x: the recipe declares no variable of that name; it declares none",
         ("r.json", "--set x", "the recipe declares no variable of that name",
          "it declares none")),
        ("r.json: training: stage 's': group 'a': lr_scale needs an lr; say one; or not",
         ("r.json", "training: stage 's': group 'a'", "lr_scale needs an lr",
          "say one; or not")),
        ("runs/in.pt#model.ema: is no zip", ("runs/in.pt#model.ema", None, "is no zip", None)),
        ("my model: exists; --force", ("my model", None, "exists", "--force")),
        ("OUTPUT is missing: after the input", (None, None, "OUTPUT is missing: after the input",
                                                None)),
        ("'a.b: c' is F32 (2, 3)", (None, None, "'a.b: c' is F32 (2, 3)", None)),
        ("interrupted", (None, None, "interrupted", None)),
    ],
)  # fmt: skip
def test_a_line_has_file_place_message_and_hint(line, parts):
    found = located(line, ["my model"])
    assert found == Located(*parts)
    assert found.text == line
