"""Tables with columns of the user's own names: CSV, TSV, Parquet, and Hugging Face datasets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from ..columns import Columns, Rows, meeting, with_columns
from ..examples import CorpusError
from ..files import files_in, header_of, read_table
from ..formats import Reading, gather, register_format
from ..parts import evenly

PARTS = {"train": "train", "dev": "dev", "val": "dev", "valid": "dev", "validation": "dev", "test": "test"}


@register_format(
    "csv",
    title="a CSV or TSV table, columns named by options",
    source="any file with a header",
    licence="the file's own",
    looks=lambda path: path.suffix in (".csv", ".tsv") and {"prompt", "answer"} <= set(header_of(path)),
)
@with_columns
def read_csv(
    path: Path,
    *,
    columns: Columns,
    delimiter: Annotated[str | None, "What parts the fields; a tab in .tsv and a comma elsewhere by default."] = None,
) -> Reading:
    """The rows of a table, or of the tables in a folder; every row becomes an example, none is dropped.

    Files called train, dev (val, validation) or test give their rows the tag `split`.
    """
    files = files_in(path, "*.csv", "*.tsv")
    for file in files:
        header = header_of(file)
        if delimiter is None and len(header) == 1 and (mark := next((m for m in ";|" if m in header[0]), None)):
            raise CorpusError(
                f"{file}: the columns seem to be parted by {mark!r}; give delimiter={mark!r} (--delimiter)"
            )
    needed = tuple(name for name in columns.needed if "." not in name)
    rows = [_split(file, row) for file in files for row in read_table(file, columns=needed, delimiter=delimiter)]
    return _reading(columns, rows, path.stem)


@register_format(
    "parquet",
    title="a Parquet file, columns named by options",
    source="any file",
    licence="the file's own",
    looks=lambda path: path.suffix == ".parquet",
)
@with_columns
def read_parquet(path: Path, *, columns: Columns) -> Reading:
    """The rows of a Parquet file, or of every one in a folder; needs the extra `data` (pyarrow).

    Files called train, dev (val, validation) or test, also as in `train-00000-of-00001`, give the tag `split`.
    """
    rows = [_split(file, row) for file in files_in(path, "*.parquet") for row in _parquet(file)]
    return _reading(columns, rows, path.stem)


@register_format(
    "hub",
    title="a Hugging Face dataset by name (or a local folder in its layout), columns named by options",
    source="https://huggingface.co/datasets",
    licence="the dataset's own",
)
@with_columns
def read_hub(
    path: Path,
    *,
    columns: Columns,
    subset: Annotated[str | None, "Configuration of the dataset."] = None,
    part: Annotated[str | None, "Split of the dataset; all by default, each as the tag 'split'."] = None,
    most: Annotated[int | None, "Rows to take from a split, evenly spread; all by default."] = None,
) -> Reading:
    """The rows of a dataset through the library `datasets` (extra `data`); the path is the dataset's name.

    Labels that the dataset keeps as numbers with names are read as their names, but for the column of `answer_index`.
    """
    rows = list(_dataset(str(path), subset, part, most, numbers=columns.answer_index))
    return _reading(columns, rows, str(path))


def _reading(columns: Columns, rows: Rows, name: str) -> Reading:
    examples = list(columns.examples(rows))
    return gather(examples, name=name, notes=meeting(examples, space=columns.space))


def _split(file: Path, row: tuple[str, Mapping[str, Any]]) -> tuple[str, Mapping[str, Any]]:
    """The row with the split that its file's name says."""
    split = PARTS.get(file.stem.split("-")[0])
    return (row[0], {**row[1], "__split__": split}) if split else row


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


def _dataset(
    name: str, subset: str | None, part: str | None, most: int | None, *, numbers: str | None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
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
    for split, rows in parts.items():
        if part not in (None, split):
            continue
        labels = {
            column: feature.names
            for column, feature in rows.features.items()
            if column != numbers and getattr(feature, "names", None)
        }
        for place in evenly(range(len(rows)), most):
            row: dict[str, Any] = dict(rows[place])
            named = {column: names[row[column]] for column, names in labels.items() if row[column] in range(len(names))}
            yield f"{name} {split}, row {place + 1}", {**row, **named, "__split__": str(split)}
