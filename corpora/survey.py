"""A survey of values: questions with options, what each culture answers, and how a person of a culture is asked."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, get_args

from .examples import CorpusError, Messages

Asking = Literal["unaware", "aware", "thinking"]
WORDINGS = ("unaware", "aware", "thinking", "question", "control", "writer", "write")
NEIGHBOURS = 3


@dataclass(frozen=True)
class Question:
    """A question and its options, whose numbers go up from `first`. Every scale counts as ordered."""

    id: str
    text: str
    options: tuple[str, ...]
    topic: str = ""
    first: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", tuple(self.options))
        if not self.id or not self.text.strip():
            raise CorpusError(f"question {self.id!r}: its id or its text is empty")
        if len(self.options) < 2 or not all(option.strip() for option in self.options):
            raise CorpusError(f"question {self.id!r}: expected two or more options, found {list(self.options)!r:.80}")

    @property
    def numbers(self) -> range:
        """The numbers that its options are printed with."""
        return range(self.first, self.first + len(self.options))

    @property
    def printed(self) -> str:
        """The options as a prompt has them: `1.Yes 2.No`."""
        return " ".join(f"{number}.{option}" for number, option in zip(self.numbers, self.options, strict=True))

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that name its text, options and numbering: ids repeat from file to file."""
        said = json.dumps([self.text, self.options, self.first])
        return hashlib.sha256(said.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Culture:
    """What a culture is called in prompts: an adjective with its article."""

    name: str
    article: str = ""

    @property
    def with_article(self) -> str:
        """Such as `an American`; without an article of its own `an` stands before A, E, I and O."""
        return f"{self.article or ('an' if self.name[:1] in 'AEIOaeio' else 'a')} {self.name}"


@dataclass(frozen=True)
class Survey:
    """A survey, its answers by culture, and its wording.

    `proportions` [culture][question id][option number] are shares of those who were asked, `similarity` [culture][culture]
    says how alike two cultures answer (any scale; only its order counts). `left_out` says which questions and cultures of
    the files are not used, and why.
    """

    name: str
    questions: tuple[Question, ...]
    cultures: Mapping[str, Culture]
    proportions: Mapping[str, Mapping[str, Mapping[int, float]]]
    wording: Mapping[str, str]
    similarity: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "questions", tuple(self.questions))
        for name in ("cultures", "proportions", "wording", "similarity", "left_out"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        ids = [question.id for question in self.questions]
        if not ids or len(set(ids)) < len(ids):
            twice = next((id for id in ids if ids.count(id) > 1), None)
            raise CorpusError(f"{self.name}: {f'question {twice!r} stands there twice' if twice else 'no question'}")
        if missing := [name for name in WORDINGS if name not in self.wording]:
            raise CorpusError(f"{self.name}: wording {missing[0]!r} is missing; expected {', '.join(WORDINGS)}")

    @property
    def topics(self) -> tuple[str, ...]:
        """The questions' topics in order of first appearance."""
        return tuple(dict.fromkeys(question.topic for question in self.questions))

    def culture(self, key: str) -> Culture:
        """The culture of this key. Raises CorpusError that lists what there is."""
        if key not in self.cultures:
            raise CorpusError(f"{self.name} has no culture {key!r}; it has {', '.join(self.cultures)}")
        return self.cultures[key]

    def majority(self, key: str) -> dict[str, int]:
        """The most frequent option of every question that a culture answered; of equal ones the first in the file."""
        self.culture(key)
        answers = self.proportions.get(key, {})
        found = ((question.id, answers.get(question.id, {})) for question in self.questions)
        return {id: max(shares, key=lambda number: shares[number]) for id, shares in found if shares}

    def neighbours(self, key: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The names of the three cultures most and least similar to one. Raises CorpusError without similarities."""
        self.culture(key)
        others = {other: value for other, value in self.similarity.get(key, {}).items() if other in self.cultures}
        others.pop(key, None)
        if len(others) < 2 * NEIGHBOURS:
            raise CorpusError(
                f"{self.name} has similarities of {key!r} with {len(others)} cultures, cross-culture thinking needs "
                f"{2 * NEIGHBOURS}; add them to country_similarity.json, or leave 'thinking' out"
            )
        ranked = [self.cultures[other].name for other in sorted(others, key=lambda other: -others[other])]
        return tuple(ranked[:NEIGHBOURS]), tuple(ranked[: -NEIGHBOURS - 1 : -1])


def asked(survey: Survey, question: Question, culture: str | None = None, *, asking: Asking = "aware") -> Messages:
    """A question as chat messages to a person of no culture (`unaware`), of a culture (`aware`), or of one that is compared.

    `thinking` is cross-culture thinking: the aware prompt, and the three most and least similar cultures.
    """
    user = filled(survey, "question", question=question.text, options=question.printed)
    return _messages(system_prompt(survey, culture, asking=asking), user)


def asked_control(
    survey: Survey, question: Question, culture: str, number: int, *, asking: Asking = "aware"
) -> Messages:
    """The twin of a question that names the option to choose, under the same culture's system prompt."""
    option = question.options[number - question.first]
    user = filled(survey, "control", question=question.text, options=question.printed, option=option)
    return _messages(system_prompt(survey, culture, asking=asking), user)


def system_prompt(survey: Survey, culture: str | None = None, *, asking: Asking = "aware") -> str:
    """Whose values are asked for. Raises CorpusError when a culture is needed and missing, or given and not used."""
    if asking not in get_args(Asking):
        raise CorpusError(f"unknown way of asking {asking!r}; expected {', '.join(get_args(Asking))}")
    if (culture is None) != (asking == "unaware"):
        raise CorpusError(
            f"asking {asking!r} with culture {culture!r}; 'unaware' goes without a culture, others with one"
        )
    if culture is None:
        return filled(survey, "unaware")
    own = survey.culture(culture)
    text = filled(survey, "aware", culture=own.name, a_culture=own.with_article)
    if asking == "thinking":
        near, far = survey.neighbours(culture)
        text += filled(survey, "thinking", culture=own.name, similar=_listed(near), different=_listed(far))
    return text


def plain_prompt(messages: Messages) -> str:
    """Chat messages as one text for a model without a chat template; the answer follows after a space."""
    return "\n\n".join([*(message["content"] for message in messages), "Answer:"])


def first_number(text: str, *, most: int) -> int | None:
    """The first whole number in a text; None where there is none or it is above `most`."""
    found = re.search(r"\d+", text)
    digits = found[0].lstrip("0") if found else ""
    if not found or len(digits) > len(str(most)):  # int() takes no thousands of digits
        return None
    number = int(digits or "0")
    return number if number <= most else None


def filled(survey: Survey, name: str, **gaps: str) -> str:
    """A wording of the survey with its gaps filled. Raises CorpusError for a gap that there is nothing for."""
    try:
        return survey.wording[name].format(survey=survey.name, **gaps)
    except (KeyError, IndexError) as error:
        known = ", ".join(f"{{{gap}}}" for gap in ("survey", *gaps))
        raise CorpusError(f"{survey.name}: wording {name!r} has the gap {error}; it may have {known}") from None


def _messages(system: str, user: str) -> Messages:
    return ({"role": "system", "content": system}, {"role": "user", "content": user})


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
