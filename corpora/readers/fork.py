"""Reader of FORK: two-choice questions on food customs whose answer depends on the country."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ..countries import country_name
from ..examples import CorpusError, Example
from ..files import files_in, first_json, header_of, holds, read_json_rows, read_table, text_at
from ..formats import Dropped, Reading, check_option, gather, register_format
from ..lettered import ANSWER, letters, listed

COLUMNS = ("ID", "Question", "Option A", "Option B", "Answer Key", "Country", "Type", "Dimension")
KINDS = ("explicit", "implicit", "underspecified")


def _is_fork(file: Path) -> bool:
    found = first_json(file) if file.suffix in (".json", ".jsonl") else header_of(file)
    return isinstance(found, dict | tuple) and set(COLUMNS) <= set(found)


@register_format(
    "fork",
    title="FORK: food customs, two options, by country",
    source="https://github.com/shramay-palta/FORK_ACL2023",
    licence="CC BY 4.0",
    looks=lambda path: holds(path, "fork.csv", "fork.jsonl", of=_is_fork),
)
def read_fork(
    path: Path,
    *,
    kind: Annotated[str, "explicit (names the country), implicit (hints at it), underspecified, or all."] = "all",
    twin: Annotated[str, "The control: options (the question removed), none."] = "options",
) -> Reading:
    """`fork.csv` or `fork.jsonl` of the authors' repository (Palta & Rudinger 2023, Findings of ACL).

    The group is the country, the prompt the question with both options, the answer a letter (they are balanced: 92 times
    each). The twin keeps the options and drops the question, so it controls for what is likelier to be said of food
    anywhere. Questions with the same two options are variants of one item: they differ in country and wording only. An
    underspecified question names no country; its authors hold the answer of the United States for the default one, so
    it measures a prior and not knowledge. Dropped: a row with the same option twice.
    """
    check_option(kind, option="kind", known=(*KINDS, "all"))
    check_option(twin, option="twin", known=("options", "none"))
    file = files_in(path, "fork.csv", "fork.jsonl")[0]
    rows = read_table(file, columns=COLUMNS) if file.suffix == ".csv" else list(read_json_rows(file))
    examples, dropped = [], []
    for where, row in rows:
        values = {name: text_at(row, name, where) for name in COLUMNS}
        options, choices = (values["Option A"], values["Option B"]), letters(2)
        kind_of, key = values["Type"].lower(), values["Answer Key"]
        if key not in ("A", "B") or kind_of not in KINDS:
            raise CorpusError(
                f"{where}: expected the 'Answer Key' A or B and a 'Type' of {', '.join(KINDS)}, found {key!r}, {kind_of!r}"
            )
        if kind not in ("all", kind_of):
            continue
        if options[0] == options[1]:
            dropped.append(Dropped(where, "both options are the same"))
            continue
        tags = {"item": " | ".join(sorted(options)), "kind": kind_of, "topic": values["Dimension"], "language": "en"}
        examples.append(
            Example(
                values["ID"], country_name(values["Country"]), f"{values['Question']}\n{listed(options)}\n{ANSWER}",
                f" {key}", choices, "AB".index(key), f"{listed(options)}\n{ANSWER}" if twin == "options" else None, tags,
            )
        )  # fmt: skip
    return gather(examples, name="fork", dropped=dropped)
