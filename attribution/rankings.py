"""Rankings: every way that a selection can order neurons by one and the same scores, by name."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from ..neurons.errors import SetError
from ..neurons.scores import Scores
from .selection import BY, CONTRASTS, contrasted

RANKINGS = tuple(by if contrast is None else f"{by}/{contrast}" for contrast in (None, *CONTRASTS) for by in BY)


def ranking_parts(name: str) -> tuple[str, str | None]:
    """(`by`, `contrast`) of a ranking, as `select` takes them. Raises SetError for an unknown name."""
    if name not in RANKINGS:
        raise SetError(f"unknown ranking {name!r}; rankings are {', '.join(RANKINGS)}")
    by, _, contrast = name.partition("/")
    return by, contrast or None


def rankings(scores: Scores) -> dict[str, Float[Tensor, "group layer neuron"]]:
    """What `select` ranks, for every pair of `by` and `contrast` that these scores allow.

    Names are `values`, `signed`, `positive`, each alone or with a contrast (`positive/ratio`). Left out are the contrasts with
    other groups where there is one group, `z` below three groups, and `controls` where no control twins were scored.
    """
    return {name: contrasted(scores, contrast, by) for name in RANKINGS for by, contrast in [ranking_parts(name)]
            if _possible(scores, contrast)}  # fmt: skip


def _possible(scores: Scores, contrast: str | None) -> bool:
    if contrast == "controls":
        return scores.control_values is not None and scores.control_signed is not None
    return contrast is None or len(scores.groups) >= (3 if contrast == "z" else 2)
