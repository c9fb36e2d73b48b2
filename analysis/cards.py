"""Cards: what single neurons say, what drives them in each group, what they resemble, and how they score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..corpora.examples import Corpus
from ..neurons.atlas import Record, library_versions, record_type
from ..neurons.errors import SetError
from ..neurons.scores import Scores
from ..neurons.sets import NeuronSet
from ..neurons.subject import Subject
from .drives import Drives, driving
from .parameters import neuron_parameters
from .readout import written_tokens

Neuron = tuple[str, int, int] | str
_TENSORS = (
    "layers", "indices", "promoted", "promoted_logits", "suppressed", "suppressed_logits", "mean", "active", "highest",
    "lowest", "shown", "activations", "neighbour_layers", "neighbour_indices", "neighbour_cosines", "scores", "ranks",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Cards:
    """Cards of neurons of one site, beside each other: entry c of every array is about neuron (site, layers[c], indices[c]).

    Tokens it writes: `promoted` and `suppressed` [card, token] are token ids, highest and lowest first, with their
    logits; `vocabulary` has the text of every id that occurs. -1 and NaN where a site writes nothing. What drives it:
    `mean`, `active` (share of tokens at which it is positive), `highest` and `lowest` [card, group] over a group's tokens; `shown`
    [card, group, place] are rows of `texts`, the examples where its activation is farthest from 0, and `activations`
    [card, group, place, token] its activation at each of their tokens, NaN behind the end. A text has `id`, `group` and
    its `tokens`. Its neighbours by the cosine of their weights, nearest first: `neighbour_layers`, `neighbour_indices`
    and `neighbour_cosines` [card, place]. `scores` [card, method, group] and `ranks`, 1 for the site's highest.
    """

    site: str
    subject: str
    groups: tuple[str, ...]
    methods: tuple[str, ...]
    layers: Int[Tensor, " card"]
    indices: Int[Tensor, " card"]
    promoted: Int[Tensor, "card token"]
    promoted_logits: Float[Tensor, "card token"]
    suppressed: Int[Tensor, "card token"]
    suppressed_logits: Float[Tensor, "card token"]
    vocabulary: Mapping[int, str]
    mean: Float[Tensor, "card group"]
    active: Float[Tensor, "card group"]
    highest: Float[Tensor, "card group"]
    lowest: Float[Tensor, "card group"]
    shown: Int[Tensor, "card group place"]
    activations: Float[Tensor, "card group place token"]
    texts: tuple[Mapping[str, Any], ...]
    neighbour_layers: Int[Tensor, "card place"]
    neighbour_indices: Int[Tensor, "card place"]
    neighbour_cosines: Float[Tensor, "card place"]
    scores: Float[Tensor, "card method group"]
    ranks: Int[Tensor, "card method group"]
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("groups", "methods", "texts"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("vocabulary", "origin"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def neurons(self) -> tuple[str, ...]:
        """The neurons as site:layer:index."""
        pairs = zip(self.layers.tolist(), self.indices.tolist(), strict=True)
        return tuple(f"{self.site}:{layer}:{index}" for layer, index in pairs)

    def tokens(self, card: int, *, suppressed: bool = False) -> list[tuple[str, float]]:
        """The tokens that a neuron promotes, or suppresses, where its activation is positive, with their logits."""
        ids = (self.suppressed if suppressed else self.promoted)[card].tolist()
        logits = (self.suppressed_logits if suppressed else self.promoted_logits)[card].tolist()
        return [(self.vocabulary[i], value) for i, value in zip(ids, logits, strict=True) if i >= 0]

    def examples(self, card: int, group: str) -> list[tuple[Mapping[str, Any], list[float]]]:
        """The texts of a group that drive a neuron most, each with its activation at every token."""
        if group not in self.groups:
            raise SetError(f"no group {group!r} on these cards; they have {', '.join(self.groups)}")
        place = self.groups.index(group)
        found = []
        for row, values in zip(self.shown[card, place].tolist(), self.activations[card, place], strict=True):
            if row >= 0:
                found.append((self.texts[row], values[: len(self.texts[row]["tokens"])].tolist()))
        return found

    def to_record(self, name: str = "cards") -> Record:
        """The cards as a record of the atlas."""
        arrays = {key: getattr(self, key).cpu().numpy() for key in _TENSORS}
        meta = {
            "site": self.site, "subject": self.subject, "groups": list(self.groups), "methods": list(self.methods),
            "vocabulary": {str(key): text for key, text in self.vocabulary.items()},
            "texts": [dict(text) for text in self.texts], "origin": dict(self.origin),
        }  # fmt: skip
        return Record("cards", name, arrays, meta)


@record_type("cards")
def cards_from_record(record: Record) -> Cards:
    """Cards back from an atlas."""
    arrays = {key: torch.from_numpy(array) for key, array in record.arrays.items()}
    vocabulary = {int(key): text for key, text in record.meta["vocabulary"].items()}
    return Cards(**{**record.meta, "vocabulary": vocabulary, **arrays})


def neuron_card(subject: Subject, corpus: Corpus, neuron: Neuron, **options: Any) -> Cards:
    """The card of one neuron, (site, layer, index) or "site:layer:index"; see `neuron_cards` for the options."""
    return neuron_cards(subject, corpus, [neuron], **options)


def neuron_cards(
    subject: Subject,
    corpus: Corpus,
    neurons: Sequence[Neuron] | NeuronSet,
    *,
    scores: Scores | Mapping[str, Scores] | None = None,
    tokens: int = 10,
    examples: int = 3,
    neighbours: int = 10,
    split: str | None = "auto",
    max_tokens: int = 4096,
) -> Cards:
    """What neurons of one site say, for all of them in one pass over the corpus.

    Promoted and suppressed tokens are read as in `readout.vocabulary_logits`, with the final norm. Activations are over every
    token of an example, the answer included. Neighbours are neurons of the site, in all layers, whose concatenated
    weights (`neuron_parameters`) have the highest cosine with the neuron's own. `scores` are shown as they are, by
    method, for the corpus's groups; a rank of 1 is the site's highest value.

    Raises SetError when there is no neuron, when one lies outside the site or the site's subject, or when neurons or
    scores are of different sites; SiteError for neurons of routed experts, whose pass is another for every token.
    """
    site, layers, indices = _places(subject, neurons)
    corpus = corpus.part(split, auto="train")
    given = {} if scores is None else {scores.method: scores} if isinstance(scores, Scores) else dict(scores)
    values, ranks = _scored(subject, site, given, corpus.groups, layers, indices)
    promoted, up, suppressed, down, vocabulary = written_tokens(subject, site, layers, indices, tokens)
    found: Drives = driving(subject, corpus, site, layers, indices, examples=examples, max_tokens=max_tokens)
    return Cards(
        site, subject.fingerprint, corpus.groups, tuple(given), torch.tensor(layers), torch.tensor(indices),
        promoted, up, suppressed, down, vocabulary,
        found.mean, found.active, found.highest, found.lowest, found.shown, found.activations, found.texts,
        *_neighbours(subject, site, layers, indices, neighbours), values, ranks,
        {
            "corpus": corpus.name, "corpus_hash": corpus.hash, "num_examples": len(corpus), "split": split,
            "logits": "head(norm(direction)) - head(norm(0)), less the vocabulary's mean",
            "neighbours": "cosine of concatenated weights", "versions": library_versions(),
        },
    )  # fmt: skip


def parse_neuron(text: str) -> tuple[str, int, int]:
    """(site, layer, index) from "mlp:3:17". Raises SetError for another form."""
    parts = text.split(":")
    if len(parts) != 3 or not all(part.strip().isdigit() for part in parts[1:]):
        raise SetError(f"cannot read {text!r} as a neuron; expected SITE:LAYER:INDEX, such as mlp:3:17")
    return parts[0].strip(), int(parts[1]), int(parts[2])


def _places(subject: Subject, neurons: Sequence[Neuron] | NeuronSet) -> tuple[str, list[int], list[int]]:
    if isinstance(neurons, NeuronSet):
        neurons.check(subject)
        named = [(neurons.site, layer, index) for layer, index in neurons]
    else:
        named = [parse_neuron(one) if isinstance(one, str) else one for one in neurons]
    if not named:
        raise SetError("no neurons to look at; give (site, layer, index) or a set that is not empty")
    sites = sorted({site for site, _, _ in named})
    if len(sites) > 1:
        raise SetError(f"the neurons are of sites {', '.join(sites)}; look at those of one site at a time")
    place = subject.site(sites[0])
    for site, layer, index in named:
        if not (0 <= layer < place.num_layers and 0 <= index < place.width):
            raise SetError(
                f"neuron {site}:{layer}:{index} is outside the {place.num_layers} layers of {place.width} neurons of "
                f"site {site!r} of {subject.name!r}"
            )
    return sites[0], [layer for _, layer, _ in named], [index for _, _, index in named]


def _neighbours(
    subject: Subject, site: str, layers: Sequence[int], indices: Sequence[int], count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Layer, index and cosine of the nearest other neurons; layers are read one at a time."""
    own = torch.stack([neuron_parameters(subject, site, layer)[i] for layer, i in zip(layers, indices, strict=True)])
    own = own / own.norm(dim=1, keepdim=True)
    width = subject.site(site).width
    best, where = torch.zeros(len(own), 0), torch.zeros(len(own), 0, dtype=torch.long)
    for layer in range(subject.site(site).num_layers):
        others = neuron_parameters(subject, site, layer)
        cosines = (own @ (others / others.norm(dim=1, keepdim=True)).T).nan_to_num(-torch.inf).cpu()
        mine = torch.tensor([index if at == layer else -1 for at, index in zip(layers, indices, strict=True)])
        rows = (mine >= 0).nonzero().flatten()
        cosines[rows, mine[rows]] = -torch.inf  # a neuron is no neighbour of its own
        places = torch.arange(width).expand(len(own), -1) + layer * width
        best, where = torch.cat([best, cosines], dim=1), torch.cat([where, places], dim=1)
        kept = best.topk(min(count, best.shape[1]), dim=1)
        best, where = kept.values, where.gather(1, kept.indices)
    missing = best.isinf()  # neurons without weights are at no angle
    return (
        (where // width).masked_fill(missing, -1), (where % width).masked_fill(missing, -1),
        best.masked_fill(missing, torch.nan),
    )  # fmt: skip


def _scored(
    subject: Subject,
    site: str,
    scores: Mapping[str, Scores],
    groups: Sequence[str],
    layers: Sequence[int],
    indices: Sequence[int],
) -> tuple[Float[Tensor, "card method group"], Int[Tensor, "card method group"]]:
    """The neurons' values under each method, NaN for groups without a score, and their ranks in the site, 0 there."""
    values = torch.full((len(layers), len(scores), len(groups)), torch.nan)
    ranks = torch.zeros(values.shape, dtype=torch.long)
    for m, (name, one) in enumerate(scores.items()):
        if one.site != site or one.subject != subject.fingerprint:
            raise SetError(
                f"scores {name!r} are of site {one.site!r} of subject {one.subject}, the neurons of site {site!r} of "
                f"{subject.fingerprint}"
            )
        for g, group in enumerate(groups):
            if group in one.groups:
                all_values = one.of(group)
                values[:, m, g] = all_values[layers, indices].float()
                ranks[:, m, g] = torch.stack([(all_values > v).sum() + 1 for v in all_values[layers, indices]])
    return values, ranks
