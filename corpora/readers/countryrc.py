"""Reader of CountryRC: passages that name a country and ask for it; they need its name and nothing of its culture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from ..countries import country_name, with_article
from ..examples import CorpusError, Example
from ..files import files_in, first_json, holds, read_json, text_at
from ..formats import Reading, check_option, gather, register_format
from ..lettered import ANSWER, drawn, letters, listed, place_by

COUNTRIES = (
    "Algeria,Assam,Azerbaijan,China,Ethiopia,Greece,Indonesia,Iran,Mexico,North Korea,Northern Nigeria,"
    "South Korea,Spain,UK,US,West Java"
)
WORDINGS = (
    "{passage}\nQuestion: {question}\n{options}\n{answer}",
    "Read the text and choose.\n{passage}\n{question}\n{options}\n{answer}",
    "Question: {question}\nText: {passage}\n{options}\n{answer}",
    "{passage}\nAccording to this, {question_lower}\nOptions:\n{options}\n{answer}",
)
PATTERNS = ("data.json", "CountryRC/data.json", "data/CountryRC/data.json")
SLOT = re.compile(r"\{(\w*)\}")


def _is_countryrc(file: Path) -> bool:
    first = first_json(file) if file.suffix == ".json" else None
    return isinstance(first, dict) and {"context", "question"} <= set(first) and "{country}" in str(first["context"])


@register_format(
    "countryrc",
    title="CountryRC: reading passages with {country} slots, four countries as options",
    source="https://github.com/ynklab/CULNIG",
    licence="MIT",
    looks=lambda path: holds(path, *PATTERNS, of=_is_countryrc),
)
def read_countryrc(
    path: Path,
    *,
    countries: Annotated[str, "The countries to put in, joined by commas; BLEnD's sixteen by default."] = COUNTRIES,
    wordings: Annotated[int, "How many of the four wordings of the prompt to make of each passage."] = 4,
    twin: Annotated[str, "The control: options (the passage removed), none."] = "options",
) -> Reading:
    """`data/CountryRC/data.json` of CULNIG's repository (Yamamoto et al. 2026, arXiv 2510.08284).

    Every passage is filled with every country, its group; a second country where it has `{country_dummy}` and the other
    options are drawn from the rest, the same in every run. The tag `half` is `neur` for the first half of the passages
    (CULNIG scores neurons on these) and `test` for the rest; a passage is an item whatever country stands in it. The
    answer is the letter of the country. The corpus is itself a control: neurons that it finds carry a country's name.
    Its own twin asks with the passage removed and controls for what letters and options say. No row is dropped.
    """
    names = [country_name(name) for name in countries.split(",") if name.strip()]
    if len(set(names)) != len(names) or len(names) < 4:
        raise CorpusError(f"expected four or more different countries, found {', '.join(names) or 'none'}")
    if not 1 <= wordings <= len(WORDINGS):
        raise CorpusError(f"the option wordings is {wordings}; expected 1 to {len(WORDINGS)}")
    check_option(twin, option="twin", known=("options", "none"))
    file = files_in(path, *PATTERNS)[0]
    passages = read_json(file)
    if not isinstance(passages, list) or not all(isinstance(passage, Mapping) for passage in passages):
        raise CorpusError(f"{file}: expected a list of passages, found {str(passages)[:80]}")
    examples = [
        _example(passage, f"{file}, row {number}", name, names, wording, twin, number <= len(passages) // 2)
        for number, passage in enumerate(passages, start=1)
        for name in names
        for wording in range(wordings)
    ]
    return gather(examples, name="countryrc", rows=len(passages))


def _example(
    passage: Mapping[str, Any], where: str, name: str, names: list[str], wording: int, twin: str, first: bool
) -> Example:
    id, context, question = (text_at(passage, field, where) for field in ("id", "context", "question"))
    slots = set(SLOT.findall(context))
    if "country" not in slots or slots - {"country", "country_dummy"}:
        raise CorpusError(f"{where}: expected the slot {{country}}, perhaps {{country_dummy}}, found {sorted(slots)}")
    others = drawn([other for other in names if other != name], 3, key=f"{id}/{name}")
    place = place_by(f"{id}/{name}/{wording}", 4)
    options = [*others[:place], name, *others[place:]]
    filled = {"country": with_article(name), "country_dummy": with_article(others[0])}
    fields = {"question": question, "question_lower": question[:1].lower() + question[1:], "answer": ANSWER}
    prompt = WORDINGS[wording].format(
        passage=SLOT.sub(lambda slot: filled[slot[1]], context), options=listed(options), **fields
    )
    choices = letters(4)
    tags = {"item": id, "half": "neur" if first else "test", "wording": str(wording + 1), "language": "en"}
    return Example(
        f"{name}/{id}/{wording + 1}", name, prompt, choices[place], choices, place,
        f"{question}\n{listed(options)}\n{ANSWER}" if twin == "options" else None, tags,
    )  # fmt: skip
