"""How large the gradients are: of each group, each layer and each row block."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import hypot
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from surgeon.base.regions import count
from surgeon.base.tables import table
from surgeon.training.errors import ManifestError
from surgeon.training.held import Held
from surgeon.training.sharded import alike, index, is_sharded, local, owned
from surgeon.training.started import Started

if TYPE_CHECKING:
    from surgeon.pictures.figures import Figure


@dataclass(frozen=True)
class BlockGradient:
    """The Euclidean norm of one block's gradient; None where the backward pass left none."""

    block: str
    group: str
    layer: str
    elements: int
    norm: float | None


@dataclass(frozen=True)
class Gradients:
    """The gradients of all that a stage trains; `str()` is a table of them."""

    stage: str
    blocks: tuple[BlockGradient, ...]

    @property
    def groups(self) -> dict[str, float | None]:
        """The norm of each group's gradient."""
        return _joined((block.group, block.norm) for block in self.blocks)

    @property
    def layers(self) -> dict[str, float | None]:
        """The norm of each layer's gradient, by the name of the module."""
        return _joined((block.layer, block.norm) for block in self.blocks)

    @property
    def norm(self) -> float | None:
        """The norm of everything together: what a clip norm is compared with."""
        return _joined(("", block.norm) for block in self.blocks).get("")

    def as_json(self) -> dict[str, Any]:
        """Return the same as plain data."""
        return {
            "stage": self.stage,
            "norm": self.norm,
            "groups": self.groups,
            "layers": self.layers,
            "blocks": [asdict(block) for block in self.blocks],
        }

    def plot(self, path: str | Path | None = None) -> Figure:
        """Return a picture of every block's norm, or of every layer's; saved where asked.

        Needs matplotlib, the extra `picture`.
        """
        from surgeon.training.plots import gradients

        bars = [(block.block, block.group, block.norm) for block in self.blocks]
        layers = [(name or "(model)", "", norm) for name, norm in self.layers.items()]
        return gradients(self.stage, self.norm, bars, layers, path)

    def __str__(self) -> str:
        return f"stage {self.stage}\n{table(_HEADERS, self._rows(), right=_HEADERS[2:])}"

    def _repr_html_(self) -> str:
        from surgeon.pictures.notebook import rows_shown

        title = f"Gradients of stage {self.stage}"
        return rows_shown(title, _HEADERS, self._rows(), right=_HEADERS[2:])

    def _rows(self) -> list[tuple[str, ...]]:
        rows = [("(all)", "", "", self.norm)]
        rows += [("group", name, "", norm) for name, norm in self.groups.items()]
        rows += [("layer", name or "(model)", "", norm) for name, norm in self.layers.items()]
        rows += [("block", block.block, f"{block.elements:,}", block.norm) for block in self.blocks]
        return [(*row[:3], "none" if row[3] is None else f"{row[3]:.4g}") for row in rows]


_HEADERS = ("of", "name", "elements", "gradient norm")


def _joined(norms: Iterable[tuple[str, float | None]]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name, norm in norms:
        earlier = found.get(name)
        found[name] = earlier if norm is None else hypot(earlier or 0.0, norm)
    return found


def gradients_of(started: Started) -> Gradients:
    """Measure the gradients that the last backward pass left; raises ManifestError for none."""
    blocks = tuple(
        BlockGradient(
            started.spelled(held),
            group.name,
            held.name.rpartition(".")[0],
            count(held.region),
            _norm(held, started.parameters[held.name]),
        )
        for group, members in started.groups
        for held in members
    )
    if all(block.norm is None for block in blocks):
        raise ManifestError("there are no gradients; call it after backward(), before zero_grad()")
    return Gradients(started.name, blocks)


@torch.no_grad()
def _norm(held: Held, parameter: nn.Parameter) -> float | None:
    # The parameter's own, not the block's: DDP puts the gradients of all ranks there.
    if parameter.grad is None:
        return None
    if parameter.grad.layout != torch.strided:
        return float(torch.linalg.vector_norm(parameter.grad.coalesce().values()))
    part: Tensor = local(parameter.grad)[index(held.region, owned(held.name, parameter))]
    # 16 bits hold three digits of a norm, and in float16 none above 65504.
    part = part.float() if part.dtype in (torch.float16, torch.bfloat16) else part
    norm: Any = torch.linalg.vector_norm(alike(part, held.region, parameter))
    return float(norm.full_tensor() if is_sharded(norm) else norm)
