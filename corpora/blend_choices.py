"""BLEnD's annotations as multiple choice: a country's agreed answer among what people of other countries answered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .countries import country_name, with_article
from .examples import CorpusError
from .files import read_json, text_at
from .formats import Dropped
from .lettered import drawn, place_by

AGREED = 2  # annotators of the five who must have said an answer
UNSURE = 2  # so many may have left the question open
WRONG = 3


@dataclass(frozen=True)
class Made:
    """A multiple choice question, the number of those made of its country and question id."""

    country: str
    id: str
    number: int
    question: str
    options: tuple[str, ...]
    place: int


@dataclass(frozen=True)
class _Asked:
    where: str
    question: str
    answers: tuple[tuple[tuple[str, ...], int], ...]  # ways to say it in English, and how many said so
    open: str  # why annotators left it open; empty when they did not

    @property
    def agreed(self) -> list[str]:
        """The answers most people gave, when at least two did."""
        top = max((count for _, count in self.answers), default=0)
        return [said[0] for said, count in self.answers if count == top >= AGREED]

    @property
    def all(self) -> list[str]:
        return [one for said, _ in self.answers for one in said]


def questions_made(files: Iterable[Path], *, most: int) -> Iterator[Made | Dropped]:
    """Up to `most` questions of every country and question id, the same in every run.

    The rules are those of the authors' program, but for its judgement by a language model of whether two answers mean the
    same: the right option is an answer that most annotators gave (two or more); a wrong one was given by two or more of
    another country, shares no word with any answer of this country nor with another option, and is no equal number; at
    most one is taken of each other country. A question is left out of a country whose annotators called it not
    applicable or left it open more than twice, or when fewer than three wrong options are found.
    """
    asked = {file.name.removesuffix("_data.json"): dict(_file(file)) for file in files}
    for country, rows in asked.items():
        for id, row in rows.items():
            if row.open or not row.agreed:
                yield Dropped(row.where, row.open or f"no answer that {AGREED} annotators agreed on")
                continue
            pool = _wrong({other: rows[id] for other, rows in asked.items() if other != country and id in rows}, row)
            if len(pool) < WRONG:
                yield Dropped(row.where, f"fewer than {WRONG} wrong options from other countries")
                continue
            yield from _made(country, id, row, pool, most)


def _made(country: str, id: str, row: _Asked, pool: list[str], most: int) -> Iterator[Made]:
    """Right answers in turn, each with another three of the wrong ones while there are any."""
    seen: set[frozenset[str]] = set()
    for attempt in range(4 * most):
        right = row.agreed[attempt % len(row.agreed)]
        wrong = drawn(pool, WRONG, key=f"{country}/{id}/{attempt}")
        if frozenset((right, *wrong)) in seen:
            continue
        seen.add(frozenset((right, *wrong)))
        place = place_by(f"{country}/{id}/{attempt}/right", WRONG + 1)
        question = row.question.replace("your country", with_article(country_name(country)))
        yield Made(country, id, len(seen), question, (*wrong[:place], right, *wrong[place:]), place)
        if len(seen) == most:
            return


def _wrong(others: Mapping[str, _Asked], row: _Asked) -> list[str]:
    """Answers of other countries, one each, the most agreed first, all different from each other and from the right ones."""
    offered = sorted(
        (
            (-count, country, said[0])
            for country, other in others.items()
            for said, count in other.answers
            if count >= AGREED
        )
    )
    taken: dict[str, str] = {}
    for _, country, answer in offered:
        if country not in taken and all(may_differ(answer, known) for known in (*row.all, *taken.values())):
            taken[country] = answer
    return list(taken.values())


def may_differ(one: str, other: str) -> bool:
    """Whether two answers share no word and neither holds the other; numbers by their value."""
    one, other = one.casefold(), other.casefold()
    try:
        return float(one) != float(other)
    except ValueError:
        words = [set(text.replace("/", " ").replace(",", " ").split()) for text in (one, other)]
        return one not in other and other not in one and not words[0] & words[1]


def _file(file: Path) -> Iterator[tuple[str, _Asked]]:
    """The questions of a country: an object by question id, or a list with `ID` in the Hugging Face dataset."""
    data = read_json(file)
    rows = (
        data.items() if isinstance(data, Mapping) else [(None, row) for row in data] if isinstance(data, list) else []
    )
    for number, (key, row) in enumerate(rows, start=1):
        where = f"{file}, question {key or number}"
        if not isinstance(row, Mapping):
            raise CorpusError(f"{where}: expected an object, found {str(row)[:60]!r}")
        yield key or text_at(row, "ID", where), _asked(row, where)
    if not rows:
        raise CorpusError(f"{file}: expected questions by their id, found {str(data)[:60]!r}")


def _asked(row: Mapping[str, Any], where: str) -> _Asked:
    answers, idks = row.get("annotations"), row.get("idks")
    if not isinstance(answers, list) or not isinstance(idks, Mapping) or not all(map(_counted, idks.values())):
        raise CorpusError(f"{where}: expected a list under 'annotations' and counts under 'idks'")
    counted = []
    for answer in answers:
        said, count = (answer.get(name) if isinstance(answer, Mapping) else None for name in ("en_answers", "count"))
        if not isinstance(said, list) or not isinstance(count, int):
            raise CorpusError(f"{where}: expected 'en_answers' and 'count' of an answer, found {str(answer)[:60]!r}")
        if any(str(one).strip() for one in said):
            counted.append((tuple(str(one).strip() for one in said if str(one).strip()), count))
    why = "annotators called it not applicable" if idks.get("not-applicable") else ""
    if not why and sum(idks.values()) > UNSURE:
        why = f"more than {UNSURE} annotators left it open"
    return _Asked(where, text_at(row, "en_question", where), tuple(counted), why)


def _counted(value: Any) -> bool:
    return isinstance(value, int)
