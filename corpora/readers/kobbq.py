"""Reader of KoBBQ: Korean questions on social bias, each with too little and with enough in its context."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..examples import CorpusError, Example
from ..files import Row, files_in, header_of, holds, read_table, text_at
from ..formats import Dropped, Reading, check_option, gather, register_format
from ..lettered import letters, listed, turned

COLUMNS = ("sample_id", "label_annotation", "context", "question", "choices", "biased_answer", "answer")
PATTERNS = ("KoBBQ_*_samples.tsv", "data/KoBBQ_*_samples.tsv")
ID = re.compile(
    r"(?P<category>[a-z_]+)-(?P<template>\d+)(?P<version>[abcd])-(?P<sample>\d+)"
    r"-(?P<context>amb|dis)-(?P<question>bsd|cnt)"
)
OTHER = {"amb": "dis", "dis": "amb"}
ANSWER = "답:"


@dataclass(frozen=True)
class _Sample:
    where: str
    name: str
    id: Mapping[str, str]
    label: str
    context: str
    question: str
    options: tuple[str, ...]
    biased: str
    right: str

    @property
    def pair(self) -> tuple[str, ...]:
        """What the two contexts of a question share."""
        return tuple(self.id[name] for name in ("category", "template", "version", "sample", "question"))

    @property
    def shown(self) -> tuple[str, ...]:
        """The options in an order of the question's own; in the file "unknown" always stands last."""
        return turned(self.options, key="-".join(self.pair))

    def prompt(self, context: str) -> str:
        return f"{context}\n{self.question}\n{listed(self.shown)}\n{ANSWER}"


@register_format(
    "kobbq",
    title="KoBBQ: Korean questions on social bias, three options, by category",
    source="https://github.com/naver-ai/KoBBQ",
    licence="MIT",
    looks=lambda path: holds(path, *PATTERNS, of=lambda file: set(COLUMNS) <= set(header_of(file))),
)
def read_kobbq(
    path: Path,
    *,
    context: Annotated[str, "amb (does not tell who), dis (tells who), or both."] = "both",
    answer: Annotated[str, "What is scored: right, or biased (what the stereotype says)."] = "right",
    twin: Annotated[
        str, "The control: context (the question in its other context), options (neither), none."
    ] = "context",
) -> Reading:
    """`KoBBQ_test_samples.tsv` (or `KoBBQ_all_samples.tsv`) of the authors' repository (Jin et al. 2024, TACL).

    The group is the category of bias. In an ambiguous context the right answer is "unknown", in a disambiguated one a
    person. The twin is the same question with the same options in the other context: for a person's name it controls for
    what the model holds of such persons without evidence, for "unknown" it is a context that does tell; beware that the
    answer is wrong in this twin. The options turn in a circle by the question's own number, the same in both contexts,
    because "unknown" stands last in every row of the file. A template with its names exchanged is one item. Dropped: a
    row whose answer is not among its options.
    """
    check_option(context, option="context", known=("amb", "dis", "both"))
    check_option(answer, option="answer", known=("right", "biased"))
    check_option(twin, option="twin", known=("context", "options", "none"))
    samples = [
        _sample(row, where)
        for file in files_in(path, *PATTERNS)[-1:]
        for where, row in read_table(file, columns=COLUMNS)
    ]
    by_context = {(*sample.pair, sample.id["context"]): sample for sample in samples}
    examples, dropped = [], []
    for sample in samples:
        if context not in ("both", sample.id["context"]):
            continue
        wanted = sample.right if answer == "right" else sample.biased
        if sample.options.count(wanted) != 1:
            dropped.append(Dropped(sample.where, "the answer does not stand once among the options"))
            continue
        other = by_context.get((*sample.pair, OTHER[sample.id["context"]]))
        examples.append(_example(sample, wanted, other, twin))
    alone = sum(example.control is None for example in examples) if twin == "context" else 0
    notes = (
        [f"no twin for {alone} of {len(examples)} examples: their other context is not in the file"] if alone else []
    )
    return gather(examples, name="kobbq", dropped=dropped, notes=notes)


def _sample(row: Row, where: str) -> _Sample:
    named = ID.fullmatch(text_at(row, "sample_id", where))
    if named is None:
        raise CorpusError(
            f"{where}: expected a sample_id such as age-001a-002-amb-bsd, found {row['sample_id'][:60]!r}"
        )
    try:
        options = ast.literal_eval(row["choices"])
    except (ValueError, SyntaxError):
        options = None
    if not isinstance(options, list) or len(options) != 3 or not all(isinstance(one, str) and one for one in options):
        raise CorpusError(f"{where}: expected a list of three texts under 'choices', found {row['choices'][:60]!r}")
    texts = {name: text_at(row, name, where) for name in COLUMNS}
    return _Sample(
        where, named[0], named.groupdict(), texts["label_annotation"], texts["context"], texts["question"], tuple(options),
        texts["biased_answer"], texts["answer"],
    )  # fmt: skip


def _example(sample: _Sample, wanted: str, other: _Sample | None, twin: str) -> Example:
    choices, place = letters(3), sample.shown.index(wanted)
    control = f"{listed(sample.shown)}\n{ANSWER}" if twin == "options" else None
    if twin == "context" and other is not None:
        control = sample.prompt(other.context)
    id = sample.id
    tags = {"item": f"{id['category']}-{id['template']}", "context": id["context"], "version": id["version"]}
    tags |= {"question": id["question"], "source": sample.label, "language": "ko"}
    if sample.biased in sample.shown:
        tags["biased"] = choices[sample.shown.index(sample.biased)].strip()
    prompt = sample.prompt(sample.context)
    return Example(sample.name, id["category"], prompt, choices[place], choices, place, control=control, tags=tags)
