"""From a parsed row (a mapping) to an example, with errors that say where, which field, expected and found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .examples import CorpusError, Example, Messages

FIELDS = ("id", "group", "prompt", "answer", "choices", "answer_index", "control", "tags")


def parse_row(row: Any, *, where: str, default_id: str) -> Example:
    """The example of one row of the native format; a field that is null counts as left out.

    `id` may be left out (`default_id`), so may `answer` when `choices` and `answer_index` are given, and `answer_index`
    when `answer` is one of the `choices`. Raises CorpusError that begins with `where`.
    """
    if not isinstance(row, Mapping):
        raise CorpusError(f"{where}: expected an object with the fields of an example, found {_found(row)}")
    unknown = [name for name in row if name not in FIELDS]
    if unknown:
        raise CorpusError(f"{where}: unknown field {unknown[0]!r}; the fields are {', '.join(FIELDS)}")
    given = {name: value for name, value in row.items() if value is not None}
    choices = _choices(given, where)
    answer, index = _answer(given, choices, where)
    return Example(
        id=_text(given, "id", where) if "id" in given else default_id,
        group=_text(given, "group", where),
        prompt=_prompt(given, "prompt", where),
        answer=answer,
        choices=choices,
        answer_index=index,
        control=_prompt(given, "control", where) if "control" in given else None,
        tags=_tags(given, where),
    )


def _text(given: Mapping[str, Any], name: str, where: str) -> str:
    if name not in given:
        raise CorpusError(f"{where}: field {name!r} is missing; expected a string that is not empty")
    return _string(given[name], name, where)


def _string(value: Any, name: str, where: str, *, empty: bool = False) -> str:
    if not isinstance(value, str) or not (value or empty):
        raise CorpusError(
            f"{where}: field {name!r}: expected a string{'' if empty else ' that is not empty'}, found {_found(value)}"
        )
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise CorpusError(f"{where}: field {name!r}: expected Unicode text, found half a surrogate pair in {value!a}")
    return value


def _prompt(given: Mapping[str, Any], name: str, where: str) -> str | Messages:
    """A text, or chat messages."""
    messages = given.get(name)
    if not isinstance(messages, list | tuple):
        return _text(given, name, where)
    if not messages:
        raise CorpusError(f"{where}: field {name!r}: expected at least one message, found an empty list")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            raise CorpusError(
                f"{where}: field '{name}[{number}]': expected a message with 'role' and 'content', "
                f"found {_found(message)}"
            )
        _string(message["role"], f"{name}[{number}].role", where)
        _string(message["content"], f"{name}[{number}].content", where, empty=True)
    return tuple(dict(message) for message in messages)


def _choices(given: Mapping[str, Any], where: str) -> tuple[str, ...]:
    if "choices" not in given:
        return ()
    choices = given["choices"]
    if not isinstance(choices, list | tuple) or not choices:
        raise CorpusError(f"{where}: field 'choices': expected a list of strings, found {_found(choices)}")
    return tuple(_string(choice, f"choices[{number}]", where) for number, choice in enumerate(choices))


def _answer(given: Mapping[str, Any], choices: tuple[str, ...], where: str) -> tuple[str, int | None]:
    """The answer and its place among the choices, each found from the other when it is left out."""
    index = _index(given, choices, where)
    if "answer" not in given and index is not None:
        return choices[index], index
    answer = _text(given, "answer", where)
    if not choices:
        return answer, None
    if index is None:
        if choices.count(answer) != 1:
            raise CorpusError(
                f"{where}: field 'choices': expected the answer {answer!r} once among them, "
                f"found it {choices.count(answer)} times in {_found(list(choices))}"
            )
        return answer, choices.index(answer)
    if choices[index] != answer:
        raise CorpusError(
            f"{where}: field 'answer_index': expected the place of the answer {answer!r}, "
            f"found {index}, which is the choice {choices[index]!r}"
        )
    return answer, index


def _index(given: Mapping[str, Any], choices: tuple[str, ...], where: str) -> int | None:
    if "answer_index" not in given:
        return None
    index = given["answer_index"]
    if not choices:
        raise CorpusError(f"{where}: field 'answer_index' is {_found(index)} but there are no 'choices' to count in")
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(choices):
        raise CorpusError(
            f"{where}: field 'answer_index': expected an integer from 0 to {len(choices) - 1}, found {_found(index)}"
        )
    return index


def _tags(given: Mapping[str, Any], where: str) -> dict[str, str]:
    tags = given.get("tags", {})
    if not isinstance(tags, Mapping):
        raise CorpusError(f"{where}: field 'tags': expected an object of strings, found {_found(tags)}")
    for name, value in tags.items():
        _string(name, "tags (a name)", where, empty=True)
        _string(value, f"tags.{name}", where, empty=True)
    return dict(tags)


def _found(value: Any) -> str:
    """A short picture of a value and its kind."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
