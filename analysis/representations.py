"""Representations: how alike the hidden states of two groups are, by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..attribution.encoding import Encoded, batches, encode_corpus, forward, pad_id
from ..attribution.layer_change import block_states, pass_vectors
from ..corpora.examples import Corpus, CorpusError
from ..neurons.atlas import Record, library_versions, record_type
from ..neurons.errors import SetError
from ..neurons.subject import Subject
from .drives import whole

At = Literal["text", "prompt"]


@dataclass(frozen=True, eq=False)
class Representations:
    """Similarity of groups' last-token states; state 0 leaves the embedding, state s the s-th block.

    `cosine` [group, group, state] is that of the groups' mean states, `cosine_low` and `cosine_high` its 95 %
    percentile bootstrap over items. `cka` [group, group, state] is linear CKA over matched examples, 1 on the diagonal;
    its null, the matching undone, has mean 0, and `cka_high` is its 95 % quantile. `cka_p` is one-sided. NaN where
    fewer than four examples of two groups match. `counts` [group] are the examples, `matched` [group, group] the pairs.
    """

    subject: str
    groups: tuple[str, ...]
    counts: Int[Tensor, " group"]
    matched: Int[Tensor, "group group"]
    cosine: Float[Tensor, "group group state"]
    cosine_low: Float[Tensor, "group group state"]
    cosine_high: Float[Tensor, "group group state"]
    cka: Float[Tensor, "group group state"]
    cka_high: Float[Tensor, "group group state"]
    cka_p: Float[Tensor, "group group state"]
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(self.groups))
        object.__setattr__(self, "origin", MappingProxyType(dict(self.origin)))

    def to_record(self, name: str = "representations") -> Record:
        """The table as a record of the atlas."""
        arrays = {key: value.cpu().numpy() for key, value in vars(self).items() if isinstance(value, Tensor)}
        meta = {"subject": self.subject, "groups": list(self.groups), "origin": dict(self.origin)}
        return Record("representations", name, arrays, meta)


@record_type("representations")
def representations_from_record(record: Record) -> Representations:
    """The table back from an atlas."""
    return Representations(**{**record.meta, **{key: torch.from_numpy(array) for key, array in record.arrays.items()}})


def representations(
    subject: Subject,
    corpus: Corpus,
    *,
    at: At = "text",
    match: str = "item",
    center: bool = False,
    bootstraps: int = 200,
    draws: int = 200,
    seed: int = 0,
    split: str | None = None,
    max_tokens: int = 4096,
) -> Representations:
    """How alike every pair of groups is in each layer: cosine of mean last-token states, and linear CKA.

    FuxiTranyu (arXiv 2408.06273, section 6.2): v_l is the mean over a language's sentences of the last token's state,
    sim = cosine(v_1, v_2), per layer; the embedding is a state of its own. `at` says which token is the last: that of
    the text (prompt and answer), or of the `prompt`, where the answer is decided. States of all groups have a common
    part that holds these cosines near 1; `center` takes the mean over groups off first.

    CKA (Kornblith et al. 2019, arXiv 1905.00414) compares the geometry of examples that say the same in two groups
    (translations): those with the same value of the tag `match` ("item" is `Example.item`), means where several have
    it. HSIC is the unbiased estimate (Song et al. 2012), without which few examples of wide states look alike; the
    null pairs them at random `draws` times. Groups that share nothing have no CKA.

    Keeps 4 bytes per example, layer and channel. Raises SetError for an unknown `at`, CorpusError for a corpus of one group.
    """
    if at not in get_args(At):
        raise SetError(f"unknown place {at!r} of the last token; expected {', '.join(get_args(At))}")
    corpus = corpus.part(split, auto="train")
    if len(corpus.groups) < 2:
        raise CorpusError(f"corpus {corpus.name!r} has group {corpus.groups[0]!r} alone; similarity needs two or more")  # pyright: ignore[reportGeneralTypeIssues]
    states = last_states(subject, corpus, at=at, max_tokens=max_tokens)
    groups = torch.tensor([corpus.groups.index(example.group) for example in corpus])
    cosine = _cosines(states, groups, corpus, center, bootstraps, seed)
    cka, matched = _cka(states, corpus, match, draws, seed)
    return Representations(
        subject.fingerprint, corpus.groups, torch.bincount(groups), matched, *cosine, *cka,
        {
            "corpus": corpus.name, "corpus_hash": corpus.hash, "at": at, "match": match, "center": center,
            "bootstraps": bootstraps, "draws": draws, "seed": seed, "split": split, "versions": library_versions(),
        },
    )  # fmt: skip


def last_states(
    subject: Subject, corpus: Corpus, *, at: At = "text", max_tokens: int = 4096
) -> Float[Tensor, "example state model"]:
    """The last token's state behind the embedding and behind every block, as float32."""
    encoded = encode_corpus(subject, corpus)
    chosen: Sequence[Encoded] = (
        whole(encoded) if at == "text" else [replace(one, ids=one.ids[: one.start + 1]) for one in encoded]
    )
    found: Tensor | None = None
    with subject.scoring(), torch.no_grad():
        for batch in batches(chosen, max_tokens=max_tokens, pad_id=pad_id(subject)):
            with block_states(subject) as seen:
                forward(subject, batch)
            passes = torch.stack([pass_vectors(seen[place], batch, "last") for place in sorted(seen)], dim=1).float()
            found = torch.zeros((len(chosen), *passes.shape[1:])) if found is None else found
            found[batch.rows] = passes
    assert found is not None
    return found


def _cosines(
    states: Float[Tensor, "example state model"],
    groups: Int[Tensor, " example"],
    corpus: Corpus,
    center: bool,
    bootstraps: int,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines of the groups' mean states, and their interval; items are resampled, in all groups that have them."""
    items = {item: place for place, item in enumerate(dict.fromkeys(example.item for example in corpus))}
    item = torch.tensor([items[example.item] for example in corpus])
    num = len(corpus.groups)
    drawn = torch.randint(len(items), (bootstraps, len(items)), generator=torch.Generator().manual_seed(seed))
    weight = torch.zeros((bootstraps, len(items))).scatter_add_(1, drawn, torch.ones(drawn.shape))[:, item]
    weight = torch.cat([torch.ones(1, len(item)), weight])  # the first draw is the data
    own = torch.nn.functional.one_hot(groups, num).T.float()
    shares = weight[:, None] * own
    shares = shares / shares.sum(dim=2, keepdim=True)  # [draw, group, example]
    tables = []
    for state in states.unbind(dim=1):
        means = shares @ state
        means = means - means.mean(dim=1, keepdim=True) if center else means
        unit = means / means.norm(dim=2, keepdim=True)
        tables.append(unit @ unit.transpose(1, 2))
    table = torch.stack(tables, dim=-1)
    if not bootstraps:
        nothing = torch.full(table.shape[1:], torch.nan)
        return table[0], nothing, nothing.clone()
    low, high = table[1:].nanquantile(torch.tensor([0.025, 0.975]), dim=0)
    return table[0], low, high


def _cka(
    states: Float[Tensor, "example state model"], corpus: Corpus, match: str, draws: int, seed: int
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """CKA, the 95 % quantile of its null and its p-value, each [group, group, state], and the number of matches."""
    num, depth = len(corpus.groups), states.shape[1]
    rows: list[dict[str, list[int]]] = [{} for _ in corpus.groups]
    for place, example in enumerate(corpus):
        key = example.item if match == "item" else example.tags.get(match)
        if key is not None:
            rows[corpus.groups.index(example.group)].setdefault(key, []).append(place)
    tables = [torch.full((num, num, depth), torch.nan) for _ in range(3)]
    matched = torch.tensor([[len(a.keys() & b.keys()) for b in rows] for a in rows])
    rng = np.random.default_rng(seed)
    for i in range(num):
        for j in range(i):
            keys = [key for key in rows[i] if key in rows[j]]
            if len(keys) < 4:
                continue
            for state in range(depth):
                a, b = (torch.stack([states[r[key], state].mean(dim=0) for key in keys]) for r in (rows[i], rows[j]))
                value, null = linear_cka(a, b, draws=draws, rng=rng)
                hits = int((null >= value).sum())
                ends = float(np.quantile(null, 0.95)) if draws else float("nan")
                for table, number in zip(tables, (value, ends, (1 + hits) / (1 + draws)), strict=True):
                    table[i, j, state] = table[j, i, state] = number
    tables[0][range(num), range(num)] = 1.0
    return (tables[0], tables[1], tables[2]), matched


def linear_cka(
    a: Float[Tensor, "example width"], b: Float[Tensor, "example other"], *, draws: int = 0, rng: Any = None
) -> tuple[float, np.ndarray]:
    """Linear CKA of two sets of states of the same examples, and its values with b's examples in random orders.

    HSIC(a, b) / sqrt(HSIC(a, a) HSIC(b, b)), each the unbiased estimate <A, B> / (n (n - 3)) of U-centred Gram matrices.
    Needs four examples. NaN where the states of one do not vary.
    """
    first, second = _u_centred(a), _u_centred(b)
    scale = float(np.sqrt((first * first).sum() * (second * second).sum()))
    if not scale > 0:
        return float("nan"), np.full(draws, np.nan)
    generator = np.random.default_rng(0) if rng is None else rng
    orders = [generator.permutation(len(first)) for _ in range(draws)]
    null = np.array([(first * second[np.ix_(order, order)]).sum() / scale for order in orders])
    return float((first * second).sum() / scale), null


def _u_centred(states: Float[Tensor, "example width"]) -> Float[np.ndarray, "example example"]:
    """The Gram matrix with rows and columns off the diagonal of mean 0 (Szekely & Rizzo 2014)."""
    centred = (states - states.mean(dim=0)).double().numpy()
    gram = centred @ centred.T
    np.fill_diagonal(gram, 0.0)
    count = len(gram)
    rows = gram.sum(axis=1)
    gram = gram - (rows[:, None] + rows[None]) / (count - 2) + rows.sum() / ((count - 1) * (count - 2))
    np.fill_diagonal(gram, 0.0)
    return gram
