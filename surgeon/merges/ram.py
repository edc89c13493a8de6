"""Changes of one model alone kept whole, shared ones averaged."""

from surgeon.merges.shared import Arithmetic, merge
from surgeon.merges.shared.activity import Epsilon, acting


@merge(
    example={"models": ["other"]},
    paper="Reinforced Agent Merging, 2026, https://arxiv.org/abs/2601.13572",
)
def ram(*, epsilon: Epsilon = 1e-5) -> Arithmetic:
    """Keep what one model alone changed, average what several did.

    With the base model b and dᵢ = xᵢ - b, a model acts where |dᵢ| > ε · rms(dᵢ), per tensor;
    b + dᵢ where one model alone acts, b + mean dᵢ over those that act where several do, b
    elsewhere. The paper and mergekit compare with an absolute ε (1e-5), which takes all changes
    that small for none; "epsilon": 0 counts every change.
    """
    return acting(epsilon)
