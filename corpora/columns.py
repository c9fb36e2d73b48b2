"""Columns of a user's own table: which of them hold the fields of an example, as options of every reader of tables."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from .examples import CorpusError, Example
from .formats import Reading
from .rows import parse_row

Rows = Iterable[tuple[str, Mapping[str, Any]]]
GAP = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True)
class Columns:
    """Names of columns; `choices.text` reaches into a column that holds an object."""

    group: Annotated[str, "Column of the group."] = "group"
    prompt: Annotated[str, "Column of the prompt, or a text with {column} in it."] = "prompt"
    answer: Annotated[str | None, "Column of the answer; not needed with --answer-index."] = "answer"
    choices: Annotated[
        str | None, "Columns of all choices, the right one too, by commas; or one that holds a list."
    ] = None
    answer_index: Annotated[str | None, "Column of the right choice's place: a number from 0, or a letter from A."] = (
        None
    )
    space: Annotated[str, "Put before every answer and choice where prompts end without a blank."] = ""
    control: Annotated[str | None, "Column of the control prompt, or a text with {column} in it."] = None
    id: Annotated[str | None, "Column of the id; rows are numbered without one."] = None
    tags: Annotated[str | None, "Columns to keep as tags, by commas; name=column renames."] = None
    all_in: Annotated[str | None, "One group for every row, instead of a column."] = None

    @property
    def single(self) -> dict[str, str]:
        """The columns of one text each, by field."""
        given = {"group": None if self.all_in else self.group, "id": self.id, "answer_index": self.answer_index}
        given |= {"answer": None if self.choices and self.answer_index and self.answer == "answer" else self.answer}
        return {field: name for field, name in given.items() if name is not None}

    @property
    def templates(self) -> dict[str, str]:
        """Prompt and control as texts with gaps; a column's name is a text with that one gap."""
        given = {"prompt": self.prompt, "control": self.control}
        return {field: text if GAP.search(text) else f"{{{text}}}" for field, text in given.items() if text is not None}

    @property
    def tagged(self) -> dict[str, str]:
        """The columns to keep, by the tag's name."""
        pairs = (one.strip().partition("=") for one in self.tags.split(",")) if self.tags else ()
        return {name: column or name for name, _, column in pairs}

    @property
    def needed(self) -> tuple[str, ...]:
        """Every column that must be there."""
        gaps = (name for text in self.templates.values() for name in GAP.findall(text))
        return tuple(dict.fromkeys((*self.single.values(), *gaps, *self._choices, *self.tagged.values())))

    @property
    def _choices(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.choices.split(",")) if self.choices else ()

    def examples(self, rows: Rows) -> Iterator[Example]:
        """An example for every row; a row's `__split__` becomes its tag `split`. CorpusError says where and what."""
        for number, (where, row) in enumerate(rows, start=1):
            found: dict[str, Any] = {field: _text(_at(row, name, where)) for field, name in self.single.items()}
            for field, text in self.templates.items():
                found[field] = GAP.sub(lambda gap: _filled(_at(row, gap[1], where)), text)  # noqa: B023 - used at once
            found["group"] = self.all_in or found.get("group")
            if self._choices:
                found["choices"] = self._list([_at(row, name, where) for name in self._choices])
            if "answer_index" in found:
                found["answer_index"] = _place(found["answer_index"], where)
            if isinstance(found.get("answer"), str) and found["answer"]:
                found["answer"] = self.space + found["answer"]
            split = {"split": str(row["__split__"])} if "__split__" in row else {}
            kept = {tag: _filled(_at(row, name, where)) for tag, name in self.tagged.items()}
            found["tags"] = split | {tag: value for tag, value in kept.items() if value}
            found = {field: value for field, value in found.items() if value not in (None, "")}
            yield parse_row(found, where=where, default_id=f"row-{number}")

    def _list(self, values: list[Any]) -> list[Any]:
        """The choices in the columns that are filled, or the list that one column holds."""
        several = len(values) > 1 or not isinstance(values[0], list | tuple)
        texts = [_text(value) for value in (values if several else values[0]) if value not in (None, "")]
        return [self.space + text if isinstance(text, str) else text for text in texts]


def with_columns(read: Callable[..., Reading]) -> Callable[..., Reading]:
    """A reader `(path, *, columns, ...)` as one that takes the fields of `Columns` as options of its own."""
    hints = get_type_hints(Columns, include_extras=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    options = {
        f.name: inspect.Parameter(f.name, kind, default=f.default, annotation=hints[f.name]) for f in fields(Columns)
    }
    path, *own = (one for one in inspect.signature(read, eval_str=True).parameters.values() if one.name != "columns")

    @wraps(read)
    def reader(path: Path, **given: Any) -> Reading:
        columns = Columns(**{name: given.pop(name) for name in options if name in given})
        return read(path, columns=columns, **given)

    setattr(reader, "__signature__", inspect.Signature([path, *options.values(), *own]))  # noqa: B010 - formats.py reads it
    return reader


def meeting(examples: Iterable[Example], *, space: str) -> list[str]:
    """A note when no prompt and answer have a blank between them, as most tables hold texts without one."""
    rows = list(examples)
    if space or not rows or not isinstance(rows[0].prompt, str):
        return []
    if any(row.answer[0].isspace() or row.prompt[-1:].isspace() for row in rows if isinstance(row.prompt, str)):
        return []
    text = f"{rows[0].prompt[-20:]}{rows[0].answer[:20]}"
    return [
        f'prompt and answer meet without a blank, as in {text!r}; give --space " " (space=" ") if one belongs there'
    ]


def _at(row: Mapping[str, Any], name: str, where: str) -> Any:
    """A column's value; a name with dots reaches into objects."""
    value: Any = row
    for key in (name,) if name in row else name.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise CorpusError(
                f"{where}: no column {name!r}; the columns are {', '.join(n for n in row if n != '__split__')}"
            )
        value = value[key]
    return value


def _text(value: Any) -> Any:
    """A whole number as a text; anything else as it is."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _filled(value: Any) -> str:
    return "" if value is None else str(value)


def _place(value: Any, where: str) -> int:
    """The place that a number or a letter names."""
    text = str(value).strip()
    if text.isdecimal():
        return int(text)
    if len(text) == 1 and "A" <= text.upper() <= "Z":
        return ord(text.upper()) - ord("A")
    raise CorpusError(f"{where}: expected a whole number from 0 or a letter from A for 'answer_index', found {value!r}")
