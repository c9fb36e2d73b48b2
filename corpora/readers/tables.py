"""Tables with columns of the user's own names: CSV, TSV, Parquet, and Hugging Face datasets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from ..examples import CorpusError, Example
from ..files import header_of, read_table
from ..formats import Reading, gather, register_format
from ..rows import parse_row

Column = Annotated[str, "Column that holds it."]
MaybeColumn = Annotated[str | None, "Column that holds it; left out when there is none."]
ChoiceColumns = Annotated[str | None, "Columns of the choices, joined by commas, or one column that holds a list."]
Tags = Annotated[str | None, "Columns to keep as tags, joined by commas; name=column renames."]
EVERYWHERE = Annotated[str | None, "One group for every row, instead of a column."]


@register_format(
    "csv",
    title="a CSV or TSV table, columns named by options",
    source="any file with a header",
    licence="the file's own",
    looks=lambda path: path.suffix in (".csv", ".tsv") and {"prompt", "answer"} <= set(header_of(path)),
)
def read_csv(
    path: Path,
    *,
    group: Column = "group",
    prompt: Column = "prompt",
    answer: MaybeColumn = "answer",
    choices: ChoiceColumns = None,
    answer_index: MaybeColumn = None,
    control: MaybeColumn = None,
    id: MaybeColumn = None,
    tags: Tags = None,
    all_in: EVERYWHERE = None,
) -> Reading:
    """The rows of a table; every row becomes an example, none is dropped."""
    names = _Columns(group, prompt, answer, choices, answer_index, control, id, tags, all_in)
    return gather(names.examples(read_table(path, columns=names.needed)), name=path.stem)


@register_format(
    "parquet",
    title="a Parquet file, columns named by options",
    source="any file",
    licence="the file's own",
    looks=lambda path: path.suffix == ".parquet",
)
def read_parquet(
    path: Path,
    *,
    group: Column = "group",
    prompt: Column = "prompt",
    answer: MaybeColumn = "answer",
    choices: ChoiceColumns = None,
    answer_index: MaybeColumn = None,
    control: MaybeColumn = None,
    id: MaybeColumn = None,
    tags: Tags = None,
    all_in: EVERYWHERE = None,
) -> Reading:
    """The rows of a Parquet file, or of every one in a folder; needs the extra `data` (pyarrow)."""
    from ..files import files_in

    names = _Columns(group, prompt, answer, choices, answer_index, control, id, tags, all_in)
    rows = [row for file in files_in(path, "*.parquet") for row in _parquet(file)]
    return gather(names.examples(rows), name=path.stem)


@register_format(
    "hub",
    title="a Hugging Face dataset by name (or a local folder in its layout), columns named by options",
    source="https://huggingface.co/datasets",
    licence="the dataset's own",
)
def read_hub(
    path: Path,
    *,
    subset: Annotated[str | None, "Configuration of the dataset."] = None,
    part: Annotated[str | None, "Split of the dataset; all by default, each as the tag 'split'."] = None,
    group: Column = "group",
    prompt: Column = "prompt",
    answer: MaybeColumn = "answer",
    choices: ChoiceColumns = None,
    answer_index: MaybeColumn = None,
    control: MaybeColumn = None,
    id: MaybeColumn = None,
    tags: Tags = None,
    all_in: EVERYWHERE = None,
) -> Reading:
    """The rows of a dataset through the library `datasets` (extra `data`); the path is the dataset's name."""
    names = _Columns(group, prompt, answer, choices, answer_index, control, id, tags, all_in)
    return gather(names.examples(_dataset(str(path), subset, part)), name=str(path))


class _Columns:
    """Which columns hold which fields of an example."""

    def __init__(
        self, group: str, prompt: str, answer: str | None, choices: str | None, answer_index: str | None,
        control: str | None, id: str | None, tags: str | None, all_in: str | None,
    ) -> None:  # fmt: skip
        self.all_in = all_in
        self.single = {"group": None if all_in else group, "prompt": prompt, "answer": answer}
        self.single |= {"answer_index": answer_index, "control": control, "id": id}
        if choices and answer_index and answer == "answer":
            self.single["answer"] = None
        self.choices = tuple((choices or "").split(",")) if choices else ()
        self.tags = dict(_renamed(one) for one in tags.split(",")) if tags else {}

    @property
    def needed(self) -> tuple[str, ...]:
        given = (name for name in self.single.values() if name is not None)
        return tuple(dict.fromkeys((*given, *self.choices, *self.tags.values())))

    def examples(self, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterable[Example]:
        for number, (where, row) in enumerate(rows, start=1):
            missing = [name for name in self.needed if name not in row]
            if missing:
                raise CorpusError(f"{where}: no column {missing[0]!r}; the columns are {', '.join(row)}")
            fields: dict[str, Any] = {field: row[name] for field, name in self.single.items() if name is not None}
            if self.all_in is not None:
                fields["group"] = self.all_in
            if self.choices:
                fields["choices"] = _choices([row[name] for name in self.choices])
            if isinstance(fields.get("answer_index"), str):
                fields["answer_index"] = _integer(fields["answer_index"], where)
            kept = {name: str(row[column]) for name, column in self.tags.items() if row[column] not in (None, "")}
            fields["tags"] = {**({"split": row["__split__"]} if "__split__" in row else {}), **kept}
            fields = {name: value for name, value in fields.items() if value not in (None, "")}
            yield parse_row(fields, where=where, default_id=f"row-{number}")


def _renamed(text: str) -> tuple[str, str]:
    name, _, column = text.partition("=")
    return name, column or name


def _choices(values: list[Any]) -> list[Any]:
    """The texts of the columns that are filled, or the list that one column holds."""
    if len(values) == 1 and not isinstance(values[0], str):
        return list(values[0])
    return [value for value in values if value not in (None, "")]


def _integer(text: str, where: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise CorpusError(f"{where}: expected a whole number for 'answer_index', found {text!r}") from None


def _parquet(file: Path) -> list[tuple[str, Mapping[str, Any]]]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise CorpusError("reading Parquet needs pyarrow: pip install 'neuropolis[data]'") from None
    try:
        rows = parquet.read_table(file).to_pylist()
    except Exception as error:
        raise CorpusError(f"{file}: cannot be read as Parquet ({str(error).splitlines()[0]})") from error
    return [(f"{file}, row {number}", row) for number, row in enumerate(rows, start=1)]


def _dataset(name: str, subset: str | None, part: str | None) -> list[tuple[str, Mapping[str, Any]]]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise CorpusError("reading Hugging Face datasets needs: pip install 'neuropolis[data]'") from None
    try:
        parts = load_dataset(name, subset)
    except Exception as error:
        raise CorpusError(f"the dataset {name!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    if part is not None and part not in parts:
        raise CorpusError(f"the dataset {name!r} has no split {part!r}; it has {', '.join(map(str, parts))}")
    return [
        (f"{name} {split}, row {number}", {**dict(row), "__split__": str(split)})
        for split, rows in parts.items()
        if part in (None, split)
        for number, row in enumerate(rows, start=1)
    ]
