"""Facts of invented words: groups that share every question and differ in the answer, so that no subject knows them."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

from .examples import Corpus, CorpusError, Example

Form = Literal["question", "statement"]

_FORMS: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "question": (
        ("t1", "train", "Question: What is the {thing} of {place}? Answer:"),
        ("t2", "train", "Question: In {place}, what is the {thing}? Answer:"),
        ("t3", "test", "Question: Which word names the {thing} of {place}? Answer:"),
    ),
    "statement": (
        ("t1", "train", "The {thing} of {place} is"),
        ("t2", "train", "In {place} the {thing} is"),
        ("t3", "test", "{place}'s {thing} is"),
    ),
}
_TWIN = "The {thing} of this place is{answer}. "
_TRIES = 20  # words to choose an answer from
_ONSETS, _NUCLEI, _CODAS = "bdfgklmnprstvz", "aeiou", ("", "", "l", "n", "r", "s")
_MOST = 20_000  # of the 24,500 words that these make


def invented(
    groups: int | Sequence[str] = 4,
    *,
    facts: int = 12,
    choices: int = 4,
    seed: int = 0,
    same_answers: bool = False,
    form: Form = "question",
    answers: Sequence[str] = (),
    tokens: Callable[[str], Sequence[int]] | None = None,
    known: Collection[int] = (),
) -> Corpus:
    """A corpus of invented facts: `facts` questions that every group answers in its own way, each in three wordings.

    `groups` is their number, or their names. The wrong choices of a question are answers of other groups to it, then answers to
    other questions. Two wordings are tagged split train, one test. The control twin states the answer and asks about "this
    place". With `same_answers` all groups give the same answers: knowledge that no group owns. `form` asks a question, or
    leaves a statement to be ended. `answers` are words to draw the answers from instead of inventing them. `tokens`
    gives those of a word (with the space before it) and `known` the ones that a subject has said: then each word is the best of
    several, groups and things sharing the fewest tokens with those before them, answers having the fewest that are not known.

    Raises CorpusError when there are fewer than two groups, fewer choices than two, or fewer `answers` than facts.
    """
    draw = random.Random(seed)
    words = _Words(draw, tokens or str.split, frozenset(known))
    names = [words.apart().capitalize() for _ in range(groups)] if isinstance(groups, int) else list(groups)
    if len(names) < 2 or len(set(names)) < len(names):
        raise CorpusError(f"groups are {names}; expected two or more different names")
    if form not in _FORMS:
        raise CorpusError(f"unknown form {form!r} of facts; forms are {', '.join(get_args(Form))}")
    if facts < 1 or choices < 2:
        raise CorpusError(f"facts is {facts} and choices is {choices}; expected at least 1 fact and 2 choices")
    if facts * (len(names) + 1) * _TRIES > _MOST:
        raise CorpusError(f"{len(names)} groups of {facts} facts need more words than there are; ask for fewer facts")
    things = [words.apart() for _ in range(facts)]
    if answers:
        said = _dealt(names, things, answers, draw)
    else:
        said = {(name, thing): f" {word.capitalize()}" for name in names for thing, word in words.answers(things)}
    if same_answers:
        said = {(name, thing): said[names[0], thing] for name, thing in said}
    everything = list(dict.fromkeys(said.values()))
    examples = []
    for thing in things:
        for name in names:
            right = said[name, thing]
            near = list(dict.fromkeys(said[other, thing] for other in names if said[other, thing] != right))
            rest = [text for text in everything if text != right and text not in near]
            wrong = (draw.sample(near, len(near)) + draw.sample(rest, min(len(rest), choices)))[: choices - 1]
            for template, split, text in _FORMS[form]:
                options = draw.sample([right, *wrong], len(wrong) + 1)
                asked = text.format(thing=thing, place=name)
                twin = _TWIN.format(thing=thing, answer=right) + text.format(thing=thing, place="this place")
                examples.append(
                    Example(
                        id=f"{name}/{thing}/{template}", group=name, prompt=asked, answer=right, choices=tuple(options),
                        answer_index=options.index(right), control=twin,
                        tags={"item": f"{name}/{thing}", "thing": thing, "split": split, "template": template},
                    )
                )  # fmt: skip
    return Corpus(tuple(examples), name=f"invented ({len(names)} groups, {facts} facts, seed {seed})")


def _dealt(
    names: Sequence[str], things: Sequence[str], answers: Sequence[str], draw: random.Random
) -> dict[tuple[str, str], str]:
    """An answer of each group to each question, drawn from these words: as many different ones as there are."""
    given = list(dict.fromkeys(f" {word.strip()}" for word in answers))
    pairs = [(name, thing) for thing in things for name in names]
    if len(given) < max(len(things), len(names)):
        raise CorpusError(
            f"there are {len(given)} words to answer with; expected {max(len(things), len(names))} at least, so that the "
            "answers of one group, and those to one question, differ"
        )
    draw.shuffle(given)
    if len(given) >= len(pairs):
        return dict(zip(pairs, given, strict=False))
    return {
        (name, thing): given[(t + n) % len(given)] for t, thing in enumerate(things) for n, name in enumerate(names)
    }


class _Words:
    """Different pronounceable words, each the best of several."""

    def __init__(self, draw: random.Random, tokens: Callable[[str], Sequence[Any]], known: Collection[int]) -> None:
        self.draw, self.tokens, self.known = draw, tokens, known
        self.seen: set[str] = set()
        self.taken: set[Any] = set()

    def apart(self) -> str:
        """A word that shares few tokens with those that this gave before, whether it begins a sentence or not."""
        parts = {word: {*self.tokens(f" {word}"), *self.tokens(f" {word.capitalize()}")} for word in self._some()}
        best = min(parts, key=lambda word: len(parts[word] & self.taken) / len(parts[word]))
        self.taken |= parts[best]
        return best

    def answers(self, things: Sequence[str]) -> Iterator[tuple[str, str]]:
        """A word for each thing, of tokens that are known; they begin with different letters where they can."""
        letters: set[str] = set()
        for thing in things:
            some = self._some()
            word = min((word for word in some if word[0] not in letters), key=self._strange, default=some[0])
            letters.add(word[0])
            yield thing, word

    def _strange(self, word: str) -> int:
        return len(set(self.tokens(f" {word.capitalize()}")) - set(self.known)) if self.known else 0

    def _some(self) -> list[str]:
        fresh: dict[str, None] = {}
        for _ in range(_MOST):
            if len(fresh) == _TRIES:
                return list(fresh)
            word = "".join(self.draw.choice(_ONSETS) + self.draw.choice(_NUCLEI) for _ in range(2))
            word += self.draw.choice(_CODAS)
            if word not in self.seen and self.tokens(f" {word}") and self.tokens(f" {word.capitalize()}"):
                self.seen.add(word)
                fresh[word] = None
        raise CorpusError("no words can be invented of which the tokenizer knows every letter; plant in another model")
