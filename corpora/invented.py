"""Facts of invented words: groups that share every question and differ in the answer, so that no subject knows them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from .examples import Corpus, CorpusError, Example

_FORMS = (
    ("t1", "train", "Question: What is the {thing} of {place}? Answer:"),
    ("t2", "train", "Question: In {place}, what is the {thing}? Answer:"),
    ("t3", "test", "Question: Which word names the {thing} of {place}? Answer:"),
)
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
    strange: Callable[[str], int] | None = None,
) -> Corpus:
    """A corpus of invented facts: `facts` questions that every group answers in its own way, each in three wordings.

    `groups` is their number, or their names. The wrong choices of a question are answers of other groups to it, then answers to
    other questions. Two wordings are tagged split train, one test. The control twin states the answer and asks about "this
    place". With `same_answers` all groups give the same answers: knowledge that no group owns. `strange` says of an answer how
    many parts of it a subject has never said; of many words those with the fewest are taken.

    Raises CorpusError when there are fewer than two groups, or fewer choices than two.
    """
    draw = random.Random(seed)
    words = _words(draw)
    names = [next(words).capitalize() for _ in range(groups)] if isinstance(groups, int) else list(groups)
    if len(names) < 2 or len(set(names)) < len(names):
        raise CorpusError(f"groups are {names}; expected two or more different names")
    if facts < 1 or choices < 2:
        raise CorpusError(f"facts is {facts} and choices is {choices}; expected at least 1 fact and 2 choices")
    if facts * (len(names) * _TRIES + 1) > _MOST:
        raise CorpusError(f"{len(names)} groups of {facts} facts need more words than there are; ask for fewer facts")
    things = [next(words) for _ in range(facts)]
    answers = {(name, thing): text for name in names for thing, text in _apart(words, things, strange)}
    if same_answers:
        answers = {(name, thing): answers[names[0], thing] for name, thing in answers}
    everything = list(dict.fromkeys(answers.values()))
    examples = []
    for thing in things:
        for name in names:
            right = answers[name, thing]
            near = list(dict.fromkeys(answers[other, thing] for other in names if answers[other, thing] != right))
            far = [text for text in everything if text != right and text not in near]
            wrong = (draw.sample(near, len(near)) + draw.sample(far, min(len(far), choices)))[: choices - 1]
            for form, split, text in _FORMS:
                options = draw.sample([right, *wrong], len(wrong) + 1)
                asked = text.format(thing=thing, place=name)
                twin = _TWIN.format(thing=thing, answer=right) + text.format(thing=thing, place="this place")
                examples.append(
                    Example(
                        id=f"{name}/{thing}/{form}", group=name, prompt=asked, answer=right, choices=tuple(options),
                        answer_index=options.index(right), control=twin,
                        tags={"item": f"{name}/{thing}", "thing": thing, "split": split, "template": form},
                    )
                )  # fmt: skip
    return Corpus(tuple(examples), name=f"invented ({len(names)} groups, {facts} facts, seed {seed})")


def _apart(
    words: Iterator[str], things: Sequence[str], strange: Callable[[str], int] | None
) -> Iterator[tuple[str, str]]:
    """An answer for each thing; the first ones begin with different letters, so that a group's answers part at once."""
    letters: set[str] = set()
    for thing in things:
        texts = [f" {word.capitalize()}" for word in islice(words, 1 if strange is None and not letters else _TRIES)]
        fresh = [text for text in texts if text[1] not in letters] or texts
        text = fresh[0] if strange is None else min(fresh, key=strange)
        letters.add(text[1])
        yield thing, text


def _words(draw: random.Random) -> Iterator[str]:
    """Different pronounceable words, without end."""
    seen: set[str] = set()
    while True:
        word = "".join(draw.choice(_ONSETS) + draw.choice(_NUCLEI) for _ in range(2)) + draw.choice(_CODAS)
        if word not in seen:
            seen.add(word)
            yield word
