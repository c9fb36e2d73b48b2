"""Reader of MGSM: 250 grade-school maths questions in eleven languages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from ..cues import answer_cue
from ..examples import CorpusError, Example
from ..files import files_in, read_lines
from ..formats import Dropped, Reading, gather, register_format
from ..parts import only, with_choices, with_others_prompts

NAME = re.compile(r"mgsm_(\w+)\.tsv")
NUMBER = re.compile(r"-?\d+(\.\d+)?")


def _looks(path: Path) -> bool:
    names = [path.name] if path.is_file() else [file.name for file in (*path.glob("*.tsv"), *path.glob("mgsm/*.tsv"))]
    return any(NAME.fullmatch(name) for name in names)


@register_format(
    "mgsm",
    title="MGSM: 250 maths questions in eleven languages (mgsm_LANG.tsv)",
    source="https://github.com/google-research/url-nlp/tree/main/mgsm",
    licence="CC BY 4.0",
    looks=_looks,
)
def read_mgsm(
    path: Path,
    *,
    cue: Annotated[str | None, "Word before the answer; by default 'Answer:' in the question's language."] = None,
    languages: Annotated[str | None, "Only these languages, joined by commas, such as de,zh."] = None,
) -> Reading:
    """MGSM (Shi et al. 2022, arXiv 2210.03057) in its layout: a question, a tab and a number on a line, no header.

    Language is the group; the answer is the number alone without the commas at thousands (no chain of thought is in these
    files), the wrong choices are the nearest numbers that answer other questions. Translations share the item
    `mgsm/LINE`. The control is another question: it controls for the language, the form and for writing this number, not
    for working it out. The files are a test set and make no split. Dropped: answers that are not one number.
    """
    found = files_in(path, "mgsm_*.tsv", "mgsm/mgsm_*.tsv")
    files = {match[1]: file for file in found if (match := NAME.fullmatch(file.name))}
    examples: list[Example] = []
    dropped: list[Dropped] = []
    for language, file in only(files, languages, path=path, what="file mgsm_LANG.tsv of").items():
        word, space = answer_cue(language, cue)
        for number, line in enumerate(read_lines(file), start=1):
            question, *rest = line.split("\t")
            if len(rest) != 1 or not question.strip():
                raise CorpusError(
                    f"{file}, line {number}: expected a question, a tab and an answer, found {line[:60]!r}"
                )
            answer = rest[0].strip().replace(",", "")
            if not NUMBER.fullmatch(answer):
                dropped.append(Dropped(f"{file}, line {number}", "the answer is not one number"))
                continue
            tags = {"item": f"mgsm/{number}", "language": language, "task": "maths"}
            prompt = f"{question.strip()}\n{word}"
            examples.append(Example(f"{language}/{number}", language, prompt, space + answer, tags=tags))
    numbered = with_choices(examples, near=float)
    return gather(with_others_prompts(numbered), name="mgsm", dropped=dropped)
