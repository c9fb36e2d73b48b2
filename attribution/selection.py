"""Selection: from scores to sets. Separate from scoring, so that one pass serves every selection."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..neurons.errors import SetError
from ..neurons.scores import Scores
from ..neurons.sets import NeuronSet
from .exact import evaluated

CONTRASTS = ("others", "ratio", "controls", "z")
FLOOR = 0.3  # of the mean absolute score of a layer, added below a ratio
BY = ("values", "signed", "positive")


def select(
    scores: Scores,
    *,
    top: float | int = 0.01,
    scope: str = "global",
    contrast: str | None = None,
    by: str = "values",
    layers: Iterable[int] | None = None,
) -> dict[str, NeuronSet]:
    """The neurons that each group depends on most.

    `top` is a share of the site's neurons (a float up to 1.0) or a number of neurons; `scope` takes it over all layers
    together or in each layer; `layers` takes it from these layers only. What is ranked is `by` (`values`, the mean
    absolute scores, `signed` ones, or `positive`, the mean of the positive parts), after the contrast:

    - None: the scores themselves (Leng & Xiong's top k %).
    - `others`: score minus the mean score of the other groups.
    - `ratio`: score over the mean absolute score of the other groups (to which 0.3 of the layer's mean is added).
    - `z`: that difference divided by the standard deviation over all groups (CULNIG 8.3, as a ranking); three groups at least.
    - `controls`: score minus the score on the control twins (CULNIG 8.2); needs `attribute(..., controls=True)`.

    Of exact scores only the neurons that were evaluated can be chosen; a share is of the site all the same.

    Ties fall to the lower layer, then the lower index. Raises SetError when `top` is not in range or more than there are to
    choose from, or when the contrast needs what the scores lack.
    """
    if scope not in ("global", "layer"):
        raise SetError(f"unknown scope {scope!r}; scopes are global, layer")
    ranked = contrasted(scores, contrast, by)
    depth, width = scores.num_layers, scores.width
    count = _count(top, depth * width if scope == "global" else width)
    allowed = _allowed(layers, depth)
    open_to = allowed[:, None].expand(depth, width)
    if scope == "global" and count > int(open_to.sum()):
        raise SetError(
            f"top is {count} neurons, layers {allowed.nonzero().flatten().tolist()} have {int(open_to.sum())}"
        )
    if "evaluated" in scores.origin:
        open_to = open_to & evaluated(scores).mask
        room = int(open_to.sum()) if scope == "global" else int(open_to.sum(dim=1)[allowed].min())
        if count > room:
            raise SetError(
                f"top is {count} neurons{' of a layer' * (scope == 'layer')}, but {scores.method!r} evaluated only {room} there; "
                f"give a number up to {room}, or evaluate more"
            )
    ranked = ranked.masked_fill(~open_to, -torch.inf)
    sets = {}
    for row, group in enumerate(scores.groups):
        flat = ranked[row].reshape(1, -1) if scope == "global" else ranked[row]
        chosen = flat.sort(dim=1, descending=True, stable=True).indices[:, :count]
        mask = (
            torch.zeros_like(flat, dtype=torch.bool).scatter_(1, chosen, True).reshape(depth, width) & allowed[:, None]
        )
        origin = {
            "made": "select", "group": group, "top": top, "scope": scope, "contrast": contrast, "by": by,
            "layers": allowed.nonzero().flatten().tolist(),
            "method": scores.method, "objective": scores.objective, "corpus_hash": scores.origin.get("corpus_hash"),
        }  # fmt: skip
        sets[group] = NeuronSet(scores.site, scores.subject, mask, origin)
    return sets


def exclusive(sets: Mapping[str, NeuronSet]) -> dict[str, NeuronSet]:
    """Each group's set without the neurons that any other group's set holds too."""
    masks = _masks(sets)
    counts = masks.sum(dim=0)
    alone = {}
    for (group, own), mask in zip(sets.items(), masks, strict=True):
        origin = {"made": "exclusive", "group": group, "among": list(sets), "of": dict(own.origin)}
        alone[group] = NeuronSet(own.site, own.subject, mask & (counts == 1), origin)
    return alone


def in_common(sets: Mapping[str, NeuronSet], *, at_least: int | None = None) -> NeuronSet:
    """The neurons of at least so many of the sets (by default of all). Raises SetError when there are not so many sets."""
    number = len(sets) if at_least is None else at_least
    if not sets or not 1 <= number <= len(sets):
        raise SetError(f"at_least is {at_least}; expected 1 to {len(sets)}, the number of sets")
    first = next(iter(sets.values()))
    origin = {"made": "in_common", "at_least": number, "among": list(sets)}
    return NeuronSet(first.site, first.subject, _masks(sets).sum(dim=0) >= number, origin)


def _masks(sets: Mapping[str, NeuronSet]) -> Bool[Tensor, "set layer neuron"]:
    """The masks of sets that may be combined; the algebra refuses others."""
    first = next(iter(sets.values()))
    return torch.stack([(one | (first & one)).mask for one in sets.values()])


def contrasted(scores: Scores, contrast: str | None, by: str = "values") -> Float[Tensor, "group layer neuron"]:
    """The tensor that a selection ranks."""
    if by not in BY:
        raise SetError(f"cannot rank by {by!r}; rank by {', '.join(map(repr, BY))}")
    own = _ranked(scores.values, scores.signed, by)
    if contrast is None:
        return own
    if contrast == "controls":
        if scores.control_values is None or scores.control_signed is None:
            raise SetError(
                "these scores have no controls; score them with attribute(..., controls=True) (locate --controls)"
            )
        return own - _ranked(scores.control_values, scores.control_signed, by)
    if contrast not in CONTRASTS:
        raise SetError(f"unknown contrast {contrast!r}; contrasts are None, {', '.join(CONTRASTS)}")
    if len(scores.groups) < 2:
        raise SetError(
            f"contrast {contrast!r} needs at least two groups, the scores have {', '.join(scores.groups)} alone"
        )
    if contrast == "z" and len(scores.groups) < 3:
        raise SetError(
            "contrast 'z' needs at least three groups: between two every difference is two standard deviations"
        )
    if contrast == "ratio":
        return specificity(own, scores.values)
    others = (own.sum(dim=0, keepdim=True) - own) / (len(scores.groups) - 1)
    if contrast == "others":
        return own - others
    spread = own.std(dim=0, unbiased=False, keepdim=True)
    return torch.where(spread > 0, (own - others) / spread, torch.zeros_like(own))


def _ranked(
    values: Float[Tensor, "group layer neuron"], signed: Float[Tensor, "group layer neuron"], by: str
) -> Float[Tensor, "group layer neuron"]:
    """The mean of |s|, of s, or of its positive part (|s| + s) / 2, over a group's examples."""
    return {"values": values, "signed": signed, "positive": (values + signed) / 2}[by]


def specificity(
    own: Float[Tensor, "group layer neuron"], values: Float[Tensor, "group layer neuron"]
) -> Float[Tensor, "group layer neuron"]:
    """A group's own scores over the mean absolute score of the other groups.

    A share of the layer's mean absolute score is added below, so that what matters to nobody is not specific to anybody.
    """
    others = (values.sum(dim=0, keepdim=True) - values) / max(1, len(values) - 1)
    floor = FLOOR * values.mean(dim=(0, 2), keepdim=True)
    return own / (others + floor).clamp(min=torch.finfo(values.dtype).tiny)


def _allowed(layers: Iterable[int] | None, depth: int) -> Bool[Tensor, " layer"]:
    if layers is None:
        return torch.ones(depth, dtype=torch.bool)
    allowed = torch.zeros(depth, dtype=torch.bool)
    for layer in layers:
        if not 0 <= layer < depth:
            raise SetError(f"layer {layer} is outside 0 to {depth - 1}")
        allowed[layer] = True
    return allowed


def _count(top: float | int, neurons: int) -> int:
    share = isinstance(top, float) and 0 < top <= 1
    if not share and (isinstance(top, bool) or not isinstance(top, int) or not 1 <= top <= neurons):
        raise SetError(f"top is {top!r}; expected a share between 0 and 1, or a whole number from 1 to {neurons}")
    return max(1, round(top * neurons)) if share else int(top)
