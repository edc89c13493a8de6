"""Changes of one model alone enlarged, shared ones averaged."""

from typing import Annotated

from surgeon.merges.shared import Arithmetic, Varying, merge
from surgeon.merges.shared.activity import Epsilon, acting


@merge(
    example={"models": ["other"]},
    paper="Reinforced Agent Merging, 2026, https://arxiv.org/abs/2601.13572",
)
def ram_plus(
    *,
    epsilon: Epsilon = 1e-5,
    r: Annotated[float, Varying(minimum=0), "how much shared changes enlarge a model's own"] = 0.1,
    alpha: Annotated[float, Varying(minimum=0), "the largest ratio that counts"] = 0.2,
) -> Arithmetic:
    """Keep and enlarge what one model alone changed, average the rest.

    As `ram`, but where one model alone acts its dᵢ is multiplied by 1 + r · clip(ρᵢ, 0, α). ρᵢ is
    the number of elements on which the model acts together with others, divided by the number of
    those on which it acts alone; both are counted per tensor, as in mergekit's ramplus_tl, not over
    the whole model as in the paper. The defaults are mergekit's.
    """

    def boost(shared: int, own: int) -> float:
        return 1 + r * min(shared / own, alpha) if own else 1.0

    return acting(epsilon, boost)
