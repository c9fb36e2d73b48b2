"""Format of CultureSPA's World Values Survey files: what most of a country answered, as multiple choice."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ..formats import Dropped, Reading, check_option, gather, register_format
from ..wvs import is_survey, read_survey, survey_corpus


@register_format(
    "wvs",
    title="CultureSPA's World Values Survey: what most of a country answered, by country",
    source="https://github.com/shaoyangxu/CultureSPA",
    licence="none stated; the World Values Survey has terms of its own: do not pass the files on",
    looks=is_survey,
)
def read_wvs(
    path: Path,
    *,
    cultures: Annotated[str | None, "Keys of countries such as USA,CHN, joined by commas; all by default."] = None,
    asking: Annotated[str, "System prompt: unaware, aware (of the culture), thinking (cross-culture)."] = "aware",
    chat: Annotated[bool, "Chat messages, as the authors ask; otherwise plain text."] = True,
) -> Reading:
    """The questions with each country's most frequent answer (see `survey_corpus`); CultureSPA's loop reads them itself.

    Left out are the questions that the authors leave out, and those that a country was not asked.
    """
    check_option(asking, option="asking", known=("unaware", "aware", "thinking"))
    survey = read_survey(path)
    wanted = tuple(cultures.split(",")) if cultures else None
    corpus = survey_corpus(survey, cultures=wanted, asking=asking, chat=chat)  # pyright: ignore[reportArgumentType]
    dropped = [Dropped(f"{path}, {what}", why) for what, why in survey.left_out.items()]
    unasked = len(survey.questions) * len(corpus.groups) - len(corpus)
    notes = [f"{unasked} pairs of a question and a country have no answers"] if unasked else []
    return gather(corpus, name="wvs", dropped=dropped, notes=notes)
