"""Pairs of generators that evolve: which of them are called for an instruction, and what is learned from what they made.

After Star-Agents (Zhou et al. 2024, arXiv 2411.14497), Eq 1 to 3 and 8. What the paper leaves open (beta, n, l, M, the measure of
similarity) is an argument here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt32

from .examples import CorpusError
from .near import gram_sets, minhashes, normalised

Agent = Callable[[Sequence[Sequence[Mapping[str, str]]]], Sequence[str]]
HASHES = 128
FLOOR = 1e-6

REWRITE = (
    "Rewrite this instruction so that it asks for the same kind of thing in other words and at another level of difficulty. "
    "Give the new instruction and nothing else.\n\n{instruction}"
)


class Pair(NamedTuple):
    """The names of the generator that rewrites the instruction and of the one that answers it."""

    instruction: str
    response: str


@dataclass(frozen=True)
class Made:
    """What a pair made of a seed row, and its score."""

    pair: Pair
    instruction: str
    response: str
    score: float = float("nan")


class AgentPairs:
    """The probabilities of pairs, and the memory of which pair did well on which instruction.

    Every pair but the `base` ones has a probability, equal at the start (Eq 3); base pairs are always called, and nothing is
    learned about them. `calls` (M) other pairs are called for an instruction: `remembered` (l) of them are sampled, by
    probability and without repeating, from the owners of the `similar` (n) most similar instructions in memory, and the rest
    from all others. Where either are too few, more come from the other. Similarity is the estimated Jaccard coefficient of
    character 4-grams.

    The same seed and the same calls give the same choices. Raises CorpusError for numbers or names that do not fit.
    """

    def __init__(
        self,
        instructors: Sequence[str],
        responders: Sequence[str],
        *,
        base: Sequence[tuple[str, str]] = (),
        calls: int = 3,
        remembered: int = 1,
        similar: int = 5,
        beta: float = 0.1,
        seed: int = 0,
    ) -> None:
        every = [Pair(a, b) for a in instructors for b in responders]
        self.base = tuple(Pair(*one) for one in base)
        unknown = [one for one in self.base if one not in every]
        if unknown:
            raise CorpusError(
                f"base pair {tuple(unknown[0])} has a name that is no generator's; expected two of those given"
            )
        if len(set(every)) != len(every):
            raise CorpusError(
                "a generator's name stands twice; expected distinct names of instructors, and of responders"
            )
        self.pairs = tuple(one for one in every if one not in self.base)
        if not 1 <= calls <= len(self.pairs) or not 0 <= remembered <= calls or similar < 0 or not beta >= 0:
            raise CorpusError(
                f"calls is {calls}, remembered {remembered}, similar {similar}, beta {beta}; expected 1 to {len(self.pairs)} calls "
                "(pairs that are no base pairs), at most as many remembered, and beta and similar of 0 or more"
            )
        self.calls, self.remembered, self.similar, self.beta = calls, remembered, similar, beta
        self.weights: Float[np.ndarray, " pair"] = np.full(len(self.pairs), 1 / len(self.pairs))
        self.memory: list[tuple[str, Pair]] = []
        self._signatures: list[UInt32[np.ndarray, " hash"]] = []
        self._random = np.random.default_rng(seed)

    @property
    def probabilities(self) -> dict[Pair, float]:
        """What each pair but the base ones is sampled with."""
        return dict(zip(self.pairs, self.weights.tolist(), strict=True))

    def choose(self, instruction: str) -> tuple[Pair, ...]:
        """The pairs to call: the base pairs, then M others."""
        owners = {pair for _, pair in self.recalled(instruction)}
        mine = [place for place, pair in enumerate(self.pairs) if pair in owners]
        chosen = self._sample(mine, min(self.remembered, len(mine)))
        rest = [place for place in range(len(self.pairs)) if place not in mine]
        if len(rest) < self.calls - len(chosen):
            rest = [place for place in range(len(self.pairs)) if place not in chosen]
        chosen += self._sample(rest, self.calls - len(chosen))
        return (*self.base, *(self.pairs[place] for place in chosen))

    def learn(self, made: Made) -> None:
        """p + beta * pi for the pair that made it, renormalised (Eq 8).

        A weight never falls below one millionth, so that a pair with bad luck is not lost for good (ours; pi can be below 0).
        A base pair or a score of NaN changes nothing.
        """
        if made.pair in self.base or made.score != made.score:
            return
        place = self.pairs.index(made.pair)
        self.weights[place] = max(FLOOR, self.weights[place] + self.beta * made.score)
        self.weights = np.maximum(self.weights / self.weights.sum(), FLOOR)
        self.weights /= self.weights.sum()

    def remember(self, instruction: str, pair: Pair) -> None:
        """Put an instruction into memory, with the pair whose data was best for it as its owner."""
        self.memory.append((instruction, pair))
        self._signatures.append(_signature(instruction))

    def recalled(self, instruction: str) -> list[tuple[str, Pair]]:
        """The `similar` most similar instructions in memory with their owners; of equal ones the latest."""
        if not self.memory or not self.similar:
            return []
        alike = (np.stack(self._signatures) == _signature(instruction)).mean(axis=1)
        order = np.lexsort((-np.arange(len(alike)), -alike))[: self.similar]
        return [self.memory[place] for place in order]

    def _sample(self, places: Sequence[int], count: int) -> list[int]:
        """So many different ones of these pairs, by probability."""
        if not count:
            return []
        weights = self.weights[list(places)]
        return self._random.choice(places, size=count, replace=False, p=weights / weights.sum()).tolist()


def evolve(
    seeds: Sequence[tuple[str, str]],
    pairs: AgentPairs,
    instructors: Mapping[str, Agent],
    responders: Mapping[str, Agent],
    score: Callable[[tuple[str, str], Sequence[Made]], Sequence[float]],
    *,
    rewrite: str = REWRITE,
    respond: str = "{instruction}",
) -> Iterator[tuple[Made, ...]]:
    """For each seed (instruction, response) all that the chosen pairs made of it with scores, the best first (Eq 1).

    An instruction agent rewrites the seed's instruction; a response agent gives the response (Eq 2). Eq 2 shows it the old
    response alone; here it sees the new instruction, which it is to answer: `respond` may show it both ({instruction},
    {response}). Agents take a batch of chat prompts and give a text for each; an instructor is asked once a seed, a responder
    with all that it has to answer. `score` gives pi of each. What came back empty has no score, and a seed on which nothing
    scored, or a base pair was best, is not remembered.

    Raises CorpusError when an agent gives another number of texts than it was asked for, or `score` of numbers.
    """
    for instruction, response in seeds:
        chosen = pairs.choose(instruction)
        asked = [{"role": "user", "content": rewrite.format(instruction=instruction)}]
        rewritten = {
            name: _asked(instructors[name], [asked])[0] for name in dict.fromkeys(p.instruction for p in chosen)
        }
        answers: dict[Pair, str] = {}
        for name in dict.fromkeys(pair.response for pair in chosen):
            own = [pair for pair in chosen if pair.response == name and rewritten[pair.instruction]]
            texts = [respond.format(instruction=rewritten[pair.instruction], response=response) for pair in own]
            prompts = [[{"role": "user", "content": text}] for text in texts]
            answers |= dict(zip(own, _asked(responders[name], prompts) if own else [], strict=True))
        made = [Made(pair, rewritten[pair.instruction], answers.get(pair, "")) for pair in chosen]
        whole = [one for one in made if one.response]
        scores = list(score((instruction, response), whole)) if whole else []
        if len(scores) != len(whole):
            raise CorpusError(f"the scorer gave {len(scores)} scores for {len(whole)} rows; expected one each")
        scored = [replace(one, score=float(value)) for one, value in zip(whole, scores, strict=True)]
        for one in scored:
            pairs.learn(one)
        ranked = sorted(scored, key=lambda one: -one.score if one.score == one.score else float("inf"))
        if ranked and ranked[0].score == ranked[0].score and ranked[0].pair not in pairs.base:
            pairs.remember(instruction, ranked[0].pair)
        yield (*ranked, *(one for one in made if not one.response))


def _asked(agent: Agent, prompts: Sequence[Sequence[Mapping[str, str]]]) -> list[str]:
    texts = [text.strip() for text in agent(prompts)]
    if len(texts) != len(prompts):
        raise CorpusError(f"an agent gave {len(texts)} texts for {len(prompts)} prompts; expected one each")
    return texts


def _signature(text: str) -> UInt32[np.ndarray, " hash"]:
    sets = gram_sets([normalised(text)])
    return minhashes(sets.indptr, sets.data.view(np.uint64), num=HASHES)[0]
