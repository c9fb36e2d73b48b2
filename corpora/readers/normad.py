"""Reader of NormAd: is what a story tells acceptable in its country; the twin states the rule instead of the country."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ..countries import country_name
from ..examples import Example
from ..files import files_in, header_of, holds, read_table, text_at
from ..formats import Dropped, Reading, check_option, gather, register_format
from ..lettered import ANSWER

COLUMNS = ("ID", "Country", "Axis", "Subaxis", "Value", "Rule-of-Thumb", "Story", "Gold Label")
PATTERN = "normad_etiquette_final_data*.csv"
LABELS = ("yes", "no", "neutral")
ASK = "Is this behaviour acceptable {by}? Answer yes, no, or neutral when it says nothing of it."
PROMPT = f"{{known}}\nStory: {{story}}\n{ASK}\n{ANSWER}"


@register_format(
    "normad",
    title="NormAd: everyday stories, acceptable or not by a country's customs",
    source="https://huggingface.co/datasets/akhilayerukola/NormAd",
    licence="CC BY 4.0",
    looks=lambda path: holds(path, PATTERN, of=lambda file: set(COLUMNS) <= set(header_of(file))),
)
def read_normad(
    path: Path,
    *,
    twin: Annotated[
        str, "The control: rule (the rule of thumb instead of the country), value (the value), none."
    ] = "rule",
    neutral: Annotated[bool, "Keep the rows that are labelled neutral."] = True,
) -> Reading:
    """`normad_etiquette_final_data.csv` as published with the paper (Rao et al. 2024, arXiv 2404.12464).

    The group is the country, the prompt names it and tells the story, the choices are " yes", " no" and " neutral": single
    words that the prompt names. The twin is the same story with the rule of thumb in the place of the country: the answer
    follows from the rule, so what is left over is the country's customs. Stories of one country with one rule are one item.
    In the first published file a neutral story's country is the story's own and its rule another country's (the authors
    later exchanged the two); `neutral=False` leaves these rows out. Dropped: rows with another label or without a rule.
    """
    check_option(twin, option="twin", known=("rule", "value", "none"))
    examples: list[Example] = []
    dropped: list[Dropped] = []
    items: dict[tuple[str, str], str] = {}
    for where, row in read_table(files_in(path, PATTERN)[0], columns=COLUMNS):
        label, rule, value = (row[name].strip() for name in ("Gold Label", "Rule-of-Thumb", "Value"))
        if label not in LABELS or not rule or not value:
            why = "no rule of thumb or no value" if label in LABELS else f"the label is none of {', '.join(LABELS)}"
            dropped.append(Dropped(where, why))
            continue
        if label == "neutral" and not neutral:
            continue
        id, story = text_at(row, "ID", where), text_at(row, "Story", where)
        country = country_name(text_at(row, "Country", where))
        known = {"rule": f"Rule: {rule}", "value": f"Value: {value}", "none": None}[twin]
        control = PROMPT.format(known=known, story=story, by=f"by this {twin}") if known else None
        choices = tuple(f" {name}" for name in LABELS)
        tags = {"item": items.setdefault((country, rule), id), "topic": row["Axis"].strip(), "language": "en"}
        examples.append(
            Example(
                id, country, PROMPT.format(known=f"Country: {country}", story=story, by="by this country's customs"),
                f" {label}", choices, LABELS.index(label), control, tags,
            )
        )  # fmt: skip
    return gather(examples, name="normad", dropped=dropped)
