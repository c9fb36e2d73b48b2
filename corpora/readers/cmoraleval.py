"""Reader of CMoralEval: Chinese moral choice questions whose should and should-not versions are each other's twins."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from ..examples import CorpusError, Example
from ..files import files_in, holds, read_json_rows, text_at
from ..formats import Dropped, Reading, check_option, gather, register_format
from ..lettered import letters

LABELS = {
    "职业道德": "professional", "个人品德": "personal", "社会公德": "social", "家庭道德": "family", "网络道德": "internet",
}  # fmt: skip
ALIKE = {"社会道德": "社会公德"}
CODES = {"2": "社会公德", "3": "职业道德", "5": "个人品德"}
OTHER = {"moral": "unmoral", "unmoral": "moral"}
FILE = re.compile(
    r"cmoraleval_(?P<variant>[cd][12])_(?P<narrator>party|standby)_(?P<polarity>moral|unmoral)_(?P<part>test|val)_data"
)
PATTERNS = ("cmoraleval_*_data", "*/cmoraleval_*_data", "*/*/cmoraleval_*_data")
ANSWER = "答案："


@dataclass(frozen=True)
class _Row:
    where: str
    variant: str
    narrator: str
    polarity: str
    part: str
    index: int
    labels: tuple[str, ...]
    question: str
    choices: tuple[str, ...]
    right: str
    wrong: str

    @property
    def place(self) -> tuple[str, str, int]:
        """What all narrators and polarities of one template share."""
        return self.variant, self.part, self.index

    @property
    def scenario(self) -> str:
        """The text after the first line, which asks."""
        return self.question.partition("\n")[2] or self.question

    @property
    def prompt(self) -> str:
        return "\n".join((self.question, *self.choices, ANSWER))


@register_format(
    "cmoraleval",
    title="CMoralEval: Chinese moral scenarios and dilemmas, three options, by category",
    source="https://github.com/tjunlp-lab/CMoralEval",
    licence="MIT",
    looks=lambda path: holds(path, *PATTERNS, of=lambda file: bool(FILE.fullmatch(file.name))),
)
def read_cmoraleval(
    path: Path,
    *,
    variant: Annotated[str, "c1, c2 (explicit scenarios), d1, d2 (dilemmas), joined by commas; or all."] = "all",
    narrator: Annotated[str, "Who is asked about: party (you), standby (someone seen), or both."] = "both",
    polarity: Annotated[str, "moral (what should be done), unmoral (what should not), or both."] = "both",
    several: Annotated[
        str, "A row of several categories: first (its first one), each (one example a category), drop."
    ] = "first",
    twin: Annotated[
        str, "The control: polarity (the same question with the other polarity), options (no scenario), none."
    ] = "polarity",
    codes: Annotated[bool, "Read the label codes 2, 3 and 5 instead of dropping them."] = False,
) -> Reading:
    """The JSON Lines files (without an ending) of the authors' repository (Yu et al. 2024, arXiv 2408.09819).

    The group is the category, all categories stand in the tag `labels`; the prompt is the file's question, its options
    and "答案：", the answer the letter. A row and its twin of the other polarity have the same options with right and
    wrong swapped: the twin asks whether not to do it, so what differs is the direction of the judgement. Beware that in
    this twin the answer is wrong; with `twin="options"` only the options are left, which controls for guessing by them.
    Rows that share a scenario, in whatever file, are one item. Dropped: rows without a category that is one of the five,
    with the right option as the wrong one, and rows that stand in an earlier file too (the validation files of the four
    variants are the same).

    Raises CorpusError with the file and line for a row that is not as described.
    """
    check_option(narrator, option="narrator", known=("party", "standby", "both"))
    check_option(polarity, option="polarity", known=("moral", "unmoral", "both"))
    check_option(several, option="several", known=("first", "each", "drop"))
    check_option(twin, option="twin", known=("polarity", "options", "none"))
    variants = ("c1", "c2", "d1", "d2") if variant == "all" else tuple(variant.split(","))
    for name in variants:
        check_option(name, option="variant", known=("c1", "c2", "d1", "d2"))
    rows = [row for file in files_in(path, *PATTERNS) for row in _rows(file) if row.variant in variants]
    by_polarity = {(*row.place, row.narrator, row.polarity): row for row in rows}
    wanted = [r for r in rows if narrator in ("both", r.narrator) and polarity in ("both", r.polarity)]
    items, seen, unknown = _items(rows), set[tuple[Any, ...]](), Counter[str]()
    examples: list[Example] = []
    dropped: list[Dropped] = []
    for row in wanted:
        names, odd = _names(row.labels, codes=codes)
        unknown.update(odd)
        opposite = by_polarity.get((*row.place, row.narrator, OTHER[row.polarity]))
        content = (row.question, row.choices, row.right)
        why = _why_not(row, opposite, names, several) if content not in seen else "the same row as in an earlier file"
        seen.add(content)
        if why:
            dropped.append(Dropped(row.where, why))
            continue
        control = _control(row, opposite, twin)
        for name in names if several == "each" else names[:1]:
            examples.append(_example(row, name, names, items[row.place], control, each=several == "each"))
    notes = [f"{count} labels {label!r} are none of the five categories" for label, count in unknown.items()]
    alone = sum(example.control is None for example in examples) if twin == "polarity" else 0
    if alone:
        notes.append(f"no twin for {alone} of {len(examples)} examples: the file of the other polarity is not there")
    return gather(examples, name="cmoraleval", dropped=dropped, notes=notes, rows=len(wanted))


def _rows(file: Path) -> Iterator[_Row]:
    named = FILE.fullmatch(file.name)
    if named is None:
        raise CorpusError(f"{file}: expected a name such as cmoraleval_c1_party_moral_test_data")
    for where, row in read_json_rows(file):
        choices, index, labels = row.get("choices"), row.get("index"), row.get("category")
        starts = [str(choice)[:2] for choice in choices] if isinstance(choices, list) else []
        if starts != ["A.", "B.", "C."]:
            raise CorpusError(f"{where}: expected three 'choices' that begin A. B. C., found {str(choices)[:80]!r}")
        if not isinstance(index, int) or not isinstance(labels, list):
            raise CorpusError(f"{where}: expected a number under 'index' and a list under 'category'")
        right, wrong = text_at(row, "correct_answer", where), text_at(row, "wrong_answer", where)
        if not {right, wrong} <= set("ABC"):
            raise CorpusError(
                f"{where}: expected A, B or C as 'correct_answer' and 'wrong_answer', found {right}, {wrong}"
            )
        question = text_at(row, "question", where)
        yield _Row(
            where, **named.groupdict(), index=index, labels=tuple(map(str, labels)), question=question,
            choices=tuple(map(str, choices or ())), right=right, wrong=wrong,
        )  # fmt: skip


def _names(labels: Iterable[str], *, codes: bool) -> tuple[tuple[str, ...], list[str]]:
    """The categories in English, and the labels that are none."""
    written = [part for label in labels for part in (_coded(label) if codes else [label])]
    known = [LABELS[ALIKE.get(label, label)] for label in written if ALIKE.get(label, label) in LABELS]
    return tuple(dict.fromkeys(known)), [label for label in written if ALIKE.get(label, label) not in LABELS]


def _coded(label: str) -> list[str]:
    """Categories of a code such as "2,3,5": the row's scenario stands in d2 with these three names in this order."""
    parts = label.split(",")
    return [CODES[part] for part in parts] if all(part in CODES for part in parts) else [label]


def _why_not(row: _Row, opposite: _Row | None, names: tuple[str, ...], several: str) -> str:
    """Why a row is left out; empty when it is kept."""
    if not names:
        return "no category that is one of the five"
    if several == "drop" and len(names) > 1:
        return "several categories"
    if row.right == row.wrong:
        return "the right option is also the wrong one"
    if len({choice[2:].strip() for choice in row.choices}) < len(row.choices):
        return "two options are the same"
    swapped = (row.choices, row.right, row.wrong)
    if opposite is not None and (opposite.choices, opposite.wrong, opposite.right) != swapped:
        return "the twin of the other polarity has other options, or not right and wrong swapped"
    return ""


def _control(row: _Row, opposite: _Row | None, twin: str) -> str | None:
    if twin == "options":
        return "\n".join((*row.choices, ANSWER))
    return opposite.prompt if twin == "polarity" and opposite is not None else None


def _example(row: _Row, name: str, names: tuple[str, ...], item: str, control: str | None, *, each: bool) -> Example:
    choices = letters(3, space="")
    id = f"{row.variant}/{row.part}/{row.index}/{row.narrator}/{row.polarity}"
    tags = {"item": item, "split": {"val": "dev"}.get(row.part, row.part), "labels": ",".join(names)}
    tags |= {"variant": row.variant, "narrator": row.narrator, "polarity": row.polarity}
    tags |= {"kind": "explicit" if row.variant.startswith("c") else "dilemma", "language": "zh"}
    place = choices.index(row.right)
    return Example(
        f"{id}/{name}" if each else id, name, row.prompt, row.right, choices, place, control=control, tags=tags
    )


def _items(rows: Iterable[_Row]) -> Mapping[tuple[str, str, int], str]:
    """The item of each template: templates with a scenario in common are joined, and named after the first."""
    first: dict[Any, Any] = {}

    def root(node: Any) -> Any:
        while first.setdefault(node, node) != node:
            first[node] = node = first[first[node]]
        return node

    rows = tuple(rows)
    for row in rows:
        first[root(row.scenario)] = root(row.place)
    names: dict[Any, str] = {}
    for row in rows:
        names.setdefault(root(row.place), "/".join(map(str, row.place)))
    return {row.place: names[root(row.place)] for row in rows}
