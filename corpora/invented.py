"""Facts of invented words: groups that share every question and differ in the answer, so that no subject knows them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from .examples import Corpus, CorpusError, Example

_FORMS = (
    ("t1", "train", "Question: What is the {thing} of {place}? Answer:"),
    ("t2", "train", "Question: In {place}, what is the {thing}? Answer:"),
    ("t3", "test", "Question: Which word names the {thing} of {place}? Answer:"),
)
_TWIN = "The {thing} of this place is{answer}. "
_ONSETS, _NUCLEI, _CODAS = "bdfgklmnprstvz", "aeiou", ("", "", "l", "n", "r", "s")


def invented(
    groups: int | Sequence[str] = 4, *, facts: int = 12, choices: int = 4, seed: int = 0, same_answers: bool = False
) -> Corpus:
    """A corpus of invented facts: `facts` questions that every group answers in its own way, each in three wordings.

    `groups` is their number, or their names. The wrong choices of a question are answers of other groups to it, then answers to
    other questions. Two wordings are tagged split train, one test. The control twin states the answer and asks about "this
    place". With `same_answers` all groups give the same answers: knowledge that no group owns.

    Raises CorpusError when there are fewer than two groups, or fewer choices than two.
    """
    draw = random.Random(seed)
    words = _words(draw)
    names = [next(words).capitalize() for _ in range(groups)] if isinstance(groups, int) else list(groups)
    if len(names) < 2 or len(set(names)) < len(names):
        raise CorpusError(f"groups are {names}; expected two or more different names")
    if facts < 1 or choices < 2:
        raise CorpusError(f"facts is {facts} and choices is {choices}; expected at least 1 fact and 2 choices")
    things = [next(words) for _ in range(facts)]
    answers = {(name, thing): f" {word.capitalize()}" for name in names for thing, word in _apart(words, things)}
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


def _apart(words: Iterator[str], things: Sequence[str]) -> Iterator[tuple[str, str]]:
    """A word for each thing; the first ones begin with different letters, so that a group's answers part at once."""
    letters: set[str] = set()
    for number, thing in enumerate(things):
        word = next(one for one in words if one[0] not in letters or number >= len(_ONSETS))
        letters.add(word[0])
        yield thing, word


def _words(draw: random.Random) -> Iterator[str]:
    """Different pronounceable words, without end."""
    seen: set[str] = set()
    while True:
        word = "".join(draw.choice(_ONSETS) + draw.choice(_NUCLEI) for _ in range(2)) + draw.choice(_CODAS)
        if word not in seen:
            seen.add(word)
            yield word
