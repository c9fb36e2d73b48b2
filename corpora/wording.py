"""How the bundled corpus asks: question templates per topic, wrappers per task, and their splits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from .facts import LANGUAGES, Fact, fact_table, read_table, stable_hash

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Template:
    """A text with gaps that belongs to one split; names are t1, t2, ... for questions and w1, w2, ... for wrappers."""

    name: str
    split: str
    text: str


@dataclass(frozen=True)
class Topic:
    """A topic in one language: its statement, its question templates, and the words it is known by."""

    statement: str
    questions: tuple[Template, ...]
    keywords: tuple[str, ...]


@dataclass(frozen=True)
class Wording:
    """What a language puts around questions and statements."""

    language: str
    here: str
    space: str
    comma: str
    ask: str
    yes: str
    no: str
    targets: Mapping[str, str]
    topics: Mapping[str, Topic]
    wrappers: Mapping[str, tuple[Template, ...]]

    def statement(self, fact: Fact, *, place: str | None = None, answer: str | None = None) -> str:
        """The fact as a sentence, about `place` (its culture's country by default), with its answer or another one."""
        place = place or fact_table().names[fact.culture][self.language]
        text = self.topics[fact.topic].statement
        return text.format(country=place, answer=answer or fact.answers[self.language])

    def opening(self, fact: Fact) -> tuple[str, str]:
        """The fact's statement cut before the answer."""
        before, after = self.topics[fact.topic].statement.split("{answer}")
        country = fact_table().names[fact.culture][self.language]
        return before.format(country=country).rstrip(), f"{self.space}{fact.answers[self.language]}{after}"

    def pick(self, templates: tuple[Template, ...], split: str, *, key: str) -> tuple[Template, ...]:
        """The templates of one split in an order that depends on `key` alone."""
        return tuple(sorted((t for t in templates if t.split == split), key=lambda t: stable_hash(key, t.name)))


@cache
def wording(language: str) -> Wording:
    """The wording of one language, from `polis/tasks.toml` and `polis/templates.toml`."""
    raw = read_table("tasks.toml")[language]
    topics = {
        topic: Topic(rows[language]["statement"], tuple(_named("t", rows[language])), tuple(rows[language]["keywords"]))
        for topic, rows in read_table("templates.toml").items()
    }
    return Wording(
        language=language,
        topics=topics,
        targets=raw["translate"]["targets"],
        wrappers={task: tuple(_named("w", raw[task])) for task in ("choice", "yesno", "translate")},
        **{key: raw[key] for key in ("here", "space", "comma", "ask", "yes", "no")},
    )


def wordings() -> tuple[Wording, ...]:
    """The wordings of all languages."""
    return tuple(wording(language) for language in LANGUAGES)


def _named(letter: str, rows: Mapping[str, list[str]]) -> Iterator[Template]:
    texts = [(split, text) for split in SPLITS for text in rows[split]]
    return (Template(f"{letter}{number}", split, text) for number, (split, text) in enumerate(texts, start=1))
