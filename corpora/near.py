"""Near-duplicates: texts whose character n-grams overlap, found by MinHash and confirmed by counting.

Candidates come from MinHash signatures in bands (Broder 1997; Leskovec, Rajaraman & Ullman, Mining of Massive Datasets, 3.4);
each is then confirmed by its exact Jaccard coefficient, so that nothing is reported that is not there.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt32, UInt64

from .examples import CorpusError, Messages

GRAM = 4
BANDS, ROWS = 20, 5  # a pair with Jaccard 0.7 is missed once in 40 times, with 0.8 once in 2,800
LEAST = 0.7
NEIGHBOURS = 30  # in a band's bucket of more texts than that, a text meets so many others and not all
COMMON, FEW = 0.2, 50  # n-grams in more than this share of so many texts or more are the template's and say nothing
_SLACK = (
    0.25  # candidates whose signatures agree less than the threshold by so much are dropped unseen (six deviations)
)
_BLOCK = 1 << 16
_SEED = 20241114


@dataclass(frozen=True, eq=False)
class NearPairs:
    """Pairs of texts by their places, `first` below `second` [pair], with the Jaccard coefficient of their n-grams.

    `complete` is False where more texts were alike at once than all pairs of them could be looked at: groups of such texts are
    still found, not every pair in them.
    """

    first: Int[np.ndarray, " pair"]
    second: Int[np.ndarray, " pair"]
    jaccard: Float[np.ndarray, " pair"]
    complete: bool = True

    def __len__(self) -> int:
        return len(self.first)

    def where(self, kept: Bool[np.ndarray, " pair"]) -> NearPairs:
        """Some of the pairs."""
        return NearPairs(self.first[kept], self.second[kept], self.jaccard[kept], self.complete)


def plain_text(prompt: str | Messages) -> str:
    """A prompt as one text: of chat messages, their contents, a line each."""
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)


def normalised(text: str) -> str:
    """What duplicates are compared by: NFKC, without case, runs of white space as one space."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()


def near_pairs(texts: Sequence[str], *, threshold: float = 0.8) -> NearPairs:
    """Pairs of different normalised texts whose sets of character 4-grams have a Jaccard coefficient of `threshold` or more.

    N-grams that stand in more than a fifth of the texts do not count (in 50 texts or more): they are the template's. Texts that
    are the same are no pair of this; give each once. The result depends on the texts alone.

    Raises CorpusError for a threshold outside [0.7, 1]: below, too many pairs would be missed.
    """
    if not LEAST <= threshold <= 1:
        raise CorpusError(
            f"the threshold of near-duplicates is {threshold}; expected a Jaccard coefficient, {LEAST} to 1"
        )
    sets = gram_sets(texts)
    signatures = minhashes(sets.indptr, sets.data.view(np.uint64), num=BANDS * ROWS)
    first, second, complete = _candidates(signatures, np.diff(sets.indptr) > 0)
    jaccard = np.empty(len(first))
    for start in range(0, len(first), _BLOCK):
        part = slice(start, start + _BLOCK)
        jaccard[part] = _jaccard(sets, signatures, first[part], second[part], threshold)
    pairs = NearPairs(first, second, jaccard, complete)
    return pairs.where(jaccard >= threshold - 1e-9)


def gram_sets(texts: Sequence[str]) -> Any:
    """The n-grams of each text as a sparse matrix [text, n-gram] whose entries are the n-grams' hashes, never 0."""
    from scipy.sparse import csr_array

    owner, hashes = _grams([f" {text} " for text in texts])
    distinct, column = np.unique(hashes, return_inverse=True)
    cells = np.sort(owner * len(distinct) + column)
    cells = cells[np.diff(cells, prepend=-1) > 0]  # a text's n-grams count once
    owner, column = cells // max(1, len(distinct)), cells % max(1, len(distinct))
    if len(texts) >= FEW:
        kept = (np.bincount(column, minlength=len(distinct)) <= COMMON * len(texts))[column]
        owner, column = owner[kept], column[kept]
    indptr = np.searchsorted(owner, np.arange(len(texts) + 1))
    return csr_array((distinct[column].view(np.int64), column, indptr), shape=(len(texts), len(distinct)))


def minhashes(
    indptr: Int[np.ndarray, " bound"], hashes: UInt64[np.ndarray, " gram"], *, num: int
) -> UInt32[np.ndarray, "text hash"]:
    """MinHash signatures: of each text the least value of each of `num` hash functions over its n-grams (all ones for none)."""
    random = np.random.default_rng(_SEED)
    factors = random.integers(1, 1 << 63, size=num, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    shifts = random.integers(0, 1 << 63, size=num, dtype=np.uint64)
    filled = np.diff(indptr) > 0
    found = np.full((len(filled), num), np.iinfo(np.uint32).max, dtype=np.uint32)
    starts = indptr[:-1][filled]
    if len(starts):
        for place in range(num):
            mixed = ((hashes * factors[place] + shifts[place]) >> np.uint64(32)).astype(np.uint32)
            found[filled, place] = np.minimum.reduceat(mixed, starts)
    return found


def first_of_each(num: int, links: Sequence[tuple[int, int]]) -> list[int]:
    """The first of all that hang together by links, for each of `num` things."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first, second = np.array(links, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(links)), (first, second)), shape=(num, num))
    _, starts, which = np.unique(connected_components(graph, directed=False)[1], return_index=True, return_inverse=True)
    return starts[which].tolist()


def _grams(texts: Sequence[str]) -> tuple[Int[np.ndarray, " gram"], UInt64[np.ndarray, " gram"]]:
    """(text, hash) of every character n-gram; a text shorter than that counts as one n-gram."""
    padded = [text.ljust(GRAM) for text in texts]
    lengths = np.array([len(text) for text in padded], dtype=np.int64)
    points = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    owner = np.repeat(np.arange(len(texts)), lengths)
    ends = np.cumsum(lengths)
    inside = np.arange(len(points)) <= (ends - GRAM)[owner]
    rolled = np.zeros(len(points), dtype=np.uint64)
    for step in range(GRAM):
        shifted = np.zeros_like(points)
        shifted[: len(points) - step] = points[step:]
        rolled = rolled * np.uint64(0x110001) + shifted  # 21 bits a character: four of them are told apart exactly
    return owner[inside], _mixed(rolled[inside])


def _mixed(x: UInt64[np.ndarray, " gram"]) -> UInt64[np.ndarray, " gram"]:
    """Scramble 64-bit numbers one to one (the finaliser of MurmurHash3), so that low bits of hashes are of use."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        x = (x ^ (x >> np.uint64(33))) * np.uint64(factor)
    return x ^ (x >> np.uint64(33)) | np.uint64(1)


def _candidates(
    signatures: UInt32[np.ndarray, "text hash"], filled: Bool[np.ndarray, " text"]
) -> tuple[Int[np.ndarray, " pair"], Int[np.ndarray, " pair"], bool]:
    """Pairs of texts that agree on a whole band, and whether they are all such pairs."""
    num, found, complete = len(signatures), [np.empty(0, dtype=np.int64)], True
    rows = np.flatnonzero(filled)
    for keys in _band_keys(signatures[filled]):
        order = np.argsort(keys, kind="stable")
        keys, texts = keys[order], rows[order]
        for step in range(1, NEIGHBOURS + 1):
            same = keys[step:] == keys[:-step]
            a, b = texts[step:][same], texts[:-step][same]
            found.append(np.minimum(a, b) * num + np.maximum(a, b))
        beyond = NEIGHBOURS + 1
        complete &= not bool((keys[beyond:] == keys[:-beyond]).any())
    pairs = np.sort(np.concatenate(found))
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]
    return pairs // max(num, 1), pairs % max(num, 1), complete


def _band_keys(signatures: UInt32[np.ndarray, "text hash"]) -> Iterator[UInt64[np.ndarray, " text"]]:
    for band in range(BANDS):
        keys = np.zeros(len(signatures), dtype=np.uint64)
        for column in range(band * ROWS, (band + 1) * ROWS):
            keys = _mixed(keys + signatures[:, column].astype(np.uint64) + np.uint64(column))
        yield keys


def _jaccard(
    sets: Any,
    signatures: UInt32[np.ndarray, "text hash"],
    first: Int[np.ndarray, " pair"],
    second: Int[np.ndarray, " pair"],
    threshold: float,
) -> Float[np.ndarray, " pair"]:
    """Exact Jaccard coefficients; 0 where the signatures rule the threshold out."""
    found = np.zeros(len(first))
    likely = (signatures[first] == signatures[second]).mean(axis=1) >= threshold - _SLACK
    a, b = sets[first[likely]].astype(bool).astype(np.int64), sets[second[likely]].astype(bool).astype(np.int64)
    shared = a.multiply(b).sum(axis=1)
    sizes = np.diff(sets.indptr)
    found[likely] = shared / np.maximum(sizes[first[likely]] + sizes[second[likely]] - shared, 1)
    return found
