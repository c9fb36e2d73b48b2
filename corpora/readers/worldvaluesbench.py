"""Reader of WorldValuesBench: what most people of a country answer to the questions of the World Values Survey."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from ..countries import country_name, with_article
from ..examples import CorpusError, Example
from ..files import files_in, header_of, holds, iter_table, read_json, text_at
from ..formats import Dropped, Reading, check_option, gather, register_format
from ..lettered import ANSWER

PARTS = ("full", "train", "valid", "test")
FOLDERS = ("", "*/", "*/*/")
METADATA = tuple(f"{folder}question_metadata.json" for folder in FOLDERS)
VALUES = tuple(f"{folder}*_value_qa.tsv" for folder in FOLDERS)
PERSON = "D_INTERVIEW"
PROMPT = "{who} is asked: {question}\nThe reply is a number from {low} to {high}.\n{answer}"
Counts = Mapping[str, Mapping[str, Counter[int]]]  # country -> question id -> reply -> how many


@register_format(
    "worldvaluesbench",
    title="WorldValuesBench: the majority's reply to World Values Survey questions, by country",
    source="https://github.com/Demon702/WorldValuesBench",
    licence="the World Values Survey's terms (Wave 7): no redistribution",
    looks=lambda path: path.is_dir() and holds(path, *VALUES, of=lambda file: PERSON in header_of(file)),
)
def read_worldvaluesbench(
    path: Path,
    *,
    part: Annotated[str, "Participants: full, train, valid or test."] = "full",
    least: Annotated[int, "Leave out a country's question with fewer replies than this."] = 10,
    twin: Annotated[str, "The control: anyone (the same question, no country named), none."] = "anyone",
) -> Reading:
    """A folder with `question_metadata.json` and `PART/PART_demographic_qa.tsv`, `PART/PART_value_qa.tsv`, as made by the
    authors' program from the survey (Zhao et al. 2024, LREC-COLING).

    One example for every country and value question: the group is the country, the answer the number that most of its
    participants gave, the choices every number of the question's scale. The twin asks "a person" without a country and
    has the same answer: it controls for what anyone replies. A question is one item in all countries; the tag `share`
    is the majority's share and `replies` how many there were, to leave out weak majorities. The parts divide participants,
    not questions, so they are no `split`. Dropped: questions of a country with fewer than `least` replies, or with two
    replies equally frequent. Replies off the scale are not counted, and noted.
    """
    check_option(part, option="part", known=PARTS)
    check_option(twin, option="twin", known=("anyone", "none"))
    scales = dict(_scales(files_in(path, *METADATA)[0]))
    demographic, value = (
        files_in(path, *(f"{folder}{part}_{kind}_qa.tsv" for folder in FOLDERS))[0] for kind in ("demographic", "value")
    )
    home = {
        row[PERSON]: country_name(text_at(row, "B_COUNTRY", where))
        for where, row in iter_table(demographic, columns=(PERSON, "B_COUNTRY"))
    }
    counts, off = _counts(value, home, scales)
    examples: list[Example] = []
    dropped: list[Dropped] = []
    for country, questions in sorted(counts.items()):
        for id, replies in questions.items():
            where, ranked = f"{value}, {id} in {country}", replies.most_common(2)
            if replies.total() < least:
                dropped.append(Dropped(where, f"fewer than {least} replies"))
            elif len(ranked) == 2 and ranked[0][1] == ranked[1][1]:
                dropped.append(Dropped(where, "two replies are equally frequent"))
            else:
                examples.append(_example(country, id, scales[id], replies, twin=twin))
    notes = [f"{off} replies are off their question's scale and not counted"] if off else []
    return gather(examples, name="worldvaluesbench", dropped=dropped, notes=notes)


def _scales(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The value questions with an ordinal scale, by id."""
    data = read_json(file)
    if not isinstance(data, Mapping):
        raise CorpusError(f"{file}: expected questions by their id, found {str(data)[:60]!r}")
    for id, question in data.items():
        if isinstance(question, Mapping) and question.get("use_case") == "value":
            low, high = question.get("answer_scale_min"), question.get("answer_scale_max")
            if not isinstance(low, int) or not isinstance(high, int) or low >= high:
                raise CorpusError(f"{file}, {id}: expected a scale of whole numbers, found {low!r} to {high!r}")
            yield id, {**question, "question": text_at(question, "question", f"{file}, {id}")}


def _counts(file: Path, home: Mapping[str, str], scales: Mapping[str, Mapping[str, Any]]) -> tuple[Counts, int]:
    """How often each reply was given, and how many replies are off the scale. Read person by person: there are 93,278."""
    counts: dict[str, dict[str, Counter[int]]] = defaultdict(lambda: defaultdict(Counter))
    known: dict[str, int] = {}
    off = 0
    for where, row in iter_table(file, columns=(PERSON,)):
        if row[PERSON] not in home:
            raise CorpusError(
                f"{where}: the participant {row[PERSON]!r} is not in the demographic file of the same part"
            )
        country = counts[home[row[PERSON]]]
        for id, scale in scales.items():
            if reply := row.get(id, ""):
                if (number := known.get(reply)) is None:
                    number = known[reply] = _whole(reply, f"{where}, {id}")
                if scale["answer_scale_min"] <= number <= scale["answer_scale_max"]:
                    country[id][number] += 1
                else:
                    off += 1
    return counts, off


def _whole(reply: str, where: str) -> int:
    """4 of "4" and of "4.0", as tables that were written with gaps have it."""
    try:
        number = float(reply)
    except ValueError:
        number = 0.5
    if not number.is_integer():
        raise CorpusError(f"{where}: expected a whole number or nothing, found {reply[:40]!r}")
    return int(number)


def _example(country: str, id: str, scale: Mapping[str, Any], replies: Counter[int], *, twin: str) -> Example:
    low, high = scale["answer_scale_min"], scale["answer_scale_max"]
    fields = {"question": scale["question"], "low": low, "high": high, "answer": ANSWER}
    majority, count = replies.most_common(1)[0]
    tags = {"item": id, "topic": str(scale.get("category", "")), "language": "en"}
    tags |= {"share": f"{count / replies.total():.3f}", "replies": str(replies.total())}
    return Example(
        f"{country}/{id}",
        country,
        PROMPT.format(who=f"A person from {with_article(country)}", **fields),
        f" {majority}",
        tuple(f" {number}" for number in range(low, high + 1)),
        majority - low,
        PROMPT.format(who="A person", **fields) if twin == "anyone" else None,
        tags,
    )
