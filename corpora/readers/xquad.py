"""Reader of XQuAD: questions whose answer stands in a paragraph, in eleven and more languages; SQuAD's own files too."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from ..cues import answer_cue
from ..examples import CorpusError, Example
from ..files import files_in, read_json, text_at
from ..formats import Dropped, Reading, gather, register_format
from ..parts import only, parted, placed

NAME = re.compile(r"xquad\.(\w+)\.json")


def _looks(path: Path) -> bool:
    return any(
        NAME.fullmatch(name) for name in ([path.name] if path.is_file() else (f.name for f in path.glob("*.json")))
    )


@register_format(
    "xquad",
    title="XQuAD: extractive questions on the same paragraphs in eleven languages (xquad.LANG.json)",
    source="https://github.com/google-deepmind/xquad",
    licence="CC BY-SA 4.0",
    looks=_looks,
)
def read_xquad(
    path: Path,
    *,
    cue: Annotated[str | None, "Word before the answer; by default 'Answer:' in the question's language."] = None,
    languages: Annotated[str | None, "Only these languages, joined by commas, such as es,zh."] = None,
    longest: Annotated[
        int | None, "Leave out questions with more characters than this, paragraph and answer too."
    ] = None,
) -> Reading:
    """XQuAD (Artetxe et al. 2020, arXiv 1910.11856) in SQuAD 1.1's layout, a file per language called `xquad.LANG.json`.

    Language is the group; the prompt is paragraph, question and the language's word for "Answer:", the answer the first
    one given; the wrong choices are three answers to other questions on the paragraph (then on the article), none of which
    holds the right one or is held by it. The control is the question without its paragraph: it controls for the language,
    for what the question alone gives away and for what is known by heart, not for the length. Translations share the item
    `xquad/ID`, the article's title is the topic. The files are a test set and make no split. Dropped: questions that
    are too long in one of the languages, answers that do not stand in their paragraph, questions with no wrong choice.
    """
    named = {match[1]: file for file in files_in(path, "xquad.*.json") if (match := NAME.fullmatch(file.name))}
    files = only(named, languages, path=path, what="file xquad.LANG.json of")
    rows = [row for name, file in files.items() for row in _rows(file, name, cue)]
    examples, dropped = parted(rows if longest is None else _short(rows, longest))
    return gather(examples, name="xquad", dropped=dropped)


def _rows(file: Path, language: str, cue: str | None) -> Iterator[Example | Dropped]:
    for article in _list(read_json(file), "data", f"{file}"):
        title = str(article.get("title", "")).replace("_", " ")
        paragraphs = _list(article, "paragraphs", f"{file}, article {title!r}")
        asked = [
            _asked(paragraph, f"{file}, article {title!r}, paragraph {n}") for n, paragraph in enumerate(paragraphs, 1)
        ]
        for place, (context, questions) in enumerate(asked):
            elsewhere = [answer for other, (_, rest) in enumerate(asked) if other != place for _, _, answer in rest]
            for number, (id, question, answer) in enumerate(questions):
                where = f"{file}, question {id}"
                if answer not in context:
                    yield Dropped(where, "the answer does not stand in its paragraph")
                    continue
                here = (questions[(number + step) % len(questions)][2] for step in range(1, len(questions)))
                wrong = _apart(answer, chain(here, elsewhere))
                if not wrong:
                    yield Dropped(where, "no other answer could be a wrong choice")
                    continue
                word, space = answer_cue(language, cue)
                choices, index = placed(space + answer, [space + one for one in wrong], key=id)
                control = f"{question}\n{word}"
                tags = {"item": f"xquad/{id}", "language": language, "topic": title, "task": "reading"}
                yield Example(
                    f"{language}/{id}", language, f"{context}\n{control}", choices[index], choices, index, control, tags
                )  # fmt: skip


def _short(rows: list[Example | Dropped], longest: int) -> list[Example | Dropped]:
    """The rows whose text has at most so many characters in every language, so that all keep the same questions."""
    examples = [row for row in rows if isinstance(row, Example)]
    long = {row.item for row in examples if len(f"{row.prompt}{row.answer}") > longest}
    why = f"more than {longest} characters in one of the languages"
    return [Dropped(row.id, why) if isinstance(row, Example) and row.item in long else row for row in rows]


def _asked(paragraph: Mapping[str, Any], where: str) -> tuple[str, list[tuple[str, str, str]]]:
    """A paragraph and its questions: id, question, first answer."""
    questions = []
    for question in _list(paragraph, "qas", where):
        answers = _list(question, "answers", where)
        id = text_at(question, "id", where)
        questions.append(
            (id, text_at(question, "question", f"{where}, {id}"), text_at(answers[0], "text", f"{where}, {id}"))
        )
    return text_at(paragraph, "context", where), questions


def _list(value: Any, name: str, where: str) -> list[Mapping[str, Any]]:
    found = value.get(name) if isinstance(value, Mapping) else None
    if not isinstance(found, list) or not found or not all(isinstance(one, Mapping) for one in found):
        raise CorpusError(f"{where}: expected a list of objects under {name!r}, found {str(found)[:60]!r}")
    return found


def _apart(answer: str, others: Iterator[str], num: int = 3) -> list[str]:
    """The first texts that neither hold the answer or one another nor are held by them."""
    found: list[str] = []
    for other in others:
        low = other.lower()
        if len(found) < num and not any(low in one.lower() or one.lower() in low for one in (answer, *found)):
            found.append(other)
    return found
