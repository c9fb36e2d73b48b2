"""Language-general and language-specific neurons, from the awareness of neurons by language pair (LANDeRMT)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import or_
from types import MappingProxyType
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..neurons.errors import SetError
from ..neurons.pickling import by_fields
from ..neurons.scores import Scores
from ..neurons.sets import NeuronSet

Direction = Literal["low", "high"]


@dataclass(frozen=True, eq=False)
class PairNeurons:
    """Neurons that serve all language pairs alike, and those of each pair.

    `spread` [layer, neuron] is the variance that decided, `threshold` what it was held against. A neuron is never both
    general and specific; it may be specific to several pairs.
    """

    general: NeuronSet
    specific: Mapping[str, NeuronSet]
    spread: Float[Tensor, "layer neuron"]
    threshold: float

    __reduce__ = by_fields

    def __post_init__(self) -> None:
        object.__setattr__(self, "specific", MappingProxyType(dict(self.specific)))

    @property
    def pairs(self) -> tuple[str, ...]:
        return tuple(self.specific)

    def roles(self, pairs: Iterable[str]) -> dict[str, NeuronSet]:
        """The general set under `general` and these pairs' sets under their names, empty ones left out.

        Raises SetError for a pair that is not there, or when nothing is left.
        """
        wanted = tuple(pairs)
        missing = [pair for pair in wanted if pair not in self.specific]
        if missing:
            raise SetError(f"no language pair {missing[0]!r} among these neurons; they have {', '.join(self.pairs)}")
        found = {
            name: chosen
            for name, chosen in [("general", self.general), *((p, self.specific[p]) for p in wanted)]
            if chosen
        }
        if not found:
            raise SetError(
                f"no general neuron and none specific to {', '.join(wanted)}; raise 'aware' or move 'quantile'"
            )
        return found

    def of(self, *pairs: str) -> NeuronSet:
        """The general neurons and those specific to these pairs, as one set."""
        return reduce(or_, self.roles(pairs).values())


def pair_neurons(
    scores: Scores,
    *,
    layers: Iterable[int] | None = None,
    aware: float = 0.1,
    quantile: float = 0.5,
    general: Direction = "low",
    relative: bool = True,
    within: float = 1.0,
) -> PairNeurons:
    """Split the neurons of some layers by how much their awareness varies over language pairs.

    `scores` hold one group per language pair: `attribute(subject, language_pairs(corpus))`, whose Taylor values
    |dL/dh h| are LANDeRMT's awareness Phi (arXiv 2409.19523, Eq 2). X_i being neuron i's awareness over the pairs, its
    variance is held against lambda = sort(variance of all)[floor(quantile * n)]. The paper's quantile and direction are
    not known, nor is what else bounds the sets:

    - `layers`: those of `relevant_layers`; None takes all.
    - `aware`: only this share of those layers' neurons is looked at, the ones with the highest awareness for any pair (1
      takes all). Without it, idle neurons, whose awareness is nought for every pair, would count as general.
    - `quantile`, `general`: with `low`, general neurons are those with a variance below lambda, floor(quantile * n) of
      them where no two variances are equal; with `high` those at lambda or above. The others are specific.
    - `relative`: variances are of the awareness divided by its mean over pairs, after each pair's awareness was divided by
      the pair's mean over the n neurons. So a pair with long answers does not own every neuron, and a strong neuron is
      not specific for its strength. False takes the scores as they are, which is the formula by the letter.
    - `within`: a specific neuron belongs to every pair for which its awareness is at least this share of its highest; at
      1 to the highest alone. The comparison is between awarenesses as they enter the variance.

    Raises SetError when there are fewer than two pairs, or when an option is out of range.
    """
    _check(scores, aware, quantile, general, within)
    inside = torch.zeros(scores.num_layers, dtype=torch.bool)
    chosen = range(scores.num_layers) if layers is None else list(layers)
    for layer in chosen:
        if not 0 <= layer < scores.num_layers:
            raise SetError(f"layer {layer} is outside 0 to {scores.num_layers - 1}")
        inside[layer] = True
    candidates = _most_aware(scores.values, inside, aware)
    found = scores.values.double()[:, candidates]
    if relative:
        found = found / found.mean(dim=1, keepdim=True)
        found = found / found.mean(dim=0)
        found = found.nan_to_num(0.0)
    variance = found.var(dim=0, unbiased=False)
    count = variance.numel()
    threshold = float(variance.sort().values[min(int(quantile * count), count - 1)])
    is_general = (variance < threshold) == (general == "low")
    belongs = (found >= within * found.amax(dim=0)) & ~is_general
    origin = {
        "made": "pair_neurons", "layers": sorted(set(chosen)), "aware": aware, "quantile": quantile, "general": general,
        "relative": relative, "within": within, "corpus_hash": scores.origin.get("corpus_hash"),
    }  # fmt: skip

    def placed(members: Bool[Tensor, " candidate"], role: str) -> NeuronSet:
        mask = candidates.clone()
        mask[candidates] = members
        return NeuronSet(scores.site, scores.subject, mask, {**origin, "role": role})

    spread = torch.full(candidates.shape, torch.nan)
    spread[candidates] = variance.float()
    specific = {pair: placed(belongs[row], pair) for row, pair in enumerate(scores.groups)}
    return PairNeurons(placed(is_general, "general"), specific, spread, threshold)


def _check(scores: Scores, aware: float, quantile: float, general: str, within: float) -> None:
    if len(scores.groups) < 2:
        raise SetError(
            f"awareness must be of two language pairs or more, the scores have {', '.join(scores.groups)} alone; "
            "group the corpus by language pair (language_pairs)"
        )
    if general not in ("low", "high"):
        raise SetError(f"unknown direction {general!r}; general neurons are those of 'low' or of 'high' variance")
    for name, value in (("aware", aware), ("within", within)):
        if not 0 < value <= 1:
            raise SetError(f"{name} is {value}; expected a share above 0, at most 1")
    if not 0 <= quantile <= 1:
        raise SetError(f"quantile is {quantile}; expected 0 to 1")


def _most_aware(
    values: Float[Tensor, "group layer neuron"], inside: Bool[Tensor, " layer"], aware: float
) -> Bool[Tensor, "layer neuron"]:
    """The share `aware` of the neurons of these layers with the highest awareness for any pair; ties to the lower one."""
    width = values.shape[2]
    count = max(1, round(aware * int(inside.sum()) * width))
    best = values.amax(dim=0).masked_fill(~inside[:, None], -torch.inf)
    top = best.flatten().sort(descending=True, stable=True).indices[:count]
    mask = torch.zeros(best.numel(), dtype=torch.bool)
    mask[top] = True
    return mask.reshape(best.shape)
