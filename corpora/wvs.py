"""Reader of the World Values Survey as CultureSPA publishes it, and of any survey in the same three files."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .examples import Corpus, CorpusError, Example
from .survey import Asking, Culture, Question, Survey, asked, asked_control, plain_prompt

QUESTIONS, PROPORTIONS, SIMILARITY = (
    "wvs_questions.json", "proportions_group_by_country.json", "country_similarity.json"
)  # fmt: skip
DEFAULTS = Path(__file__).parent / "surveys" / "wvs.toml"


def is_survey(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a survey's files (or has them in its folder `data`)."""
    return any((place / QUESTIONS).is_file() for place in (Path(folder), Path(folder) / "data"))


def read_survey(folder: str | os.PathLike[str], *, config: str | os.PathLike[str] | None = None) -> Survey:
    """A survey from the three files of CultureSPA's `data` folder (Xu et al. 2024, arXiv 2410.12971).

    - `wvs_questions.json`: a list of {"Q_id", "question", "option_lst"}.
    - `proportions_group_by_country.json`: culture -> Q_id -> {option number: share}; {} where a culture was not asked.
    - `country_similarity.json`: culture -> culture -> number. May be missing; only cross-culture thinking needs it.

    Names, topics, excluded questions, numbering and wording come from `config`, by default from a `survey.toml` in the
    folder, else from the package's `surveys/wvs.toml`: 259 of the 291 questions (Q223 and Q260-Q290 are left out, as the
    authors do) and 18 of the 19 cultures (MEX is left out). What a `survey.toml` does not have is taken from there too.

    Raises CorpusError with file and entry for what is not as described.
    """
    root = Path(folder)
    place = root if (root / QUESTIONS).is_file() else root / "data"
    rules = _rules(config or (place / "survey.toml" if (place / "survey.toml").is_file() else None))
    left_out: dict[str, str] = {}
    questions = tuple(_questions(place / QUESTIONS, rules, left_out))
    proportions = _proportions(place / PROPORTIONS, {question.id for question in questions})
    cultures = _cultures(rules, proportions, left_out, place)
    likeness = _similarity(place / SIMILARITY) if (place / SIMILARITY).is_file() else {}
    return Survey(
        rules["name"], questions, cultures, {key: proportions[key] for key in cultures},
        {name: text.removeprefix("\n") for name, text in rules["wording"].items()}, likeness, left_out,
    )  # fmt: skip


def survey_corpus(
    survey: Survey,
    *,
    cultures: Iterable[str] | None = None,
    asking: Asking = "aware",
    chat: bool = True,
    control: bool = True,
) -> Corpus:
    """Every question put to every culture that answered it, as examples: the answer is the majority's option number.

    A culture is a group, an example's id `CULTURE/Q_id`, its item the question, its topic a tag. Prompts are chat messages
    whose answers are bare numbers; with `chat=False` they are texts ending in "Answer:", and answers begin with a space, for
    models without a chat template. A majority option that is not among those printed is left out.

    The control twin has the same system prompt, question, options and answer, but says which option to choose: what it
    takes to know the format, the culture's name and the number is in both, what the culture would answer only in the
    question. The culture-unaware prompt is no twin: nobody can know its answer; asked that way, examples have none.
    """
    examples = []
    for key in survey.cultures if cultures is None else cultures:
        gold = survey.majority(key)
        for question in survey.questions:
            if gold.get(question.id) in question.numbers:
                examples.append(
                    survey_example(survey, question, key, gold[question.id], asking=asking, chat=chat, control=control)
                )
    return Corpus(tuple(examples), name=f"{survey.name} ({asking})")


def survey_example(
    survey: Survey,
    question: Question,
    culture: str,
    number: int,
    *,
    asking: Asking = "aware",
    chat: bool = True,
    control: bool = True,
    tags: Mapping[str, str] | None = None,
) -> Example:
    """A question put to a person of a culture, with the number of the option that is taken as right (see `survey_corpus`)."""
    messages = asked(survey, question, None if asking == "unaware" else culture, asking=asking)
    control = control and asking != "unaware"
    twin = asked_control(survey, question, culture, number, asking=asking) if control else None
    choices = tuple(f"{'' if chat else ' '}{one}" for one in question.numbers)
    place = number - question.first
    return Example(
        f"{culture}/{question.id}", culture, messages if chat else plain_prompt(messages), choices[place], choices, place,
        twin if chat or twin is None else plain_prompt(twin),
        {"item": question.id, **({"topic": question.topic} if question.topic else {}), **(tags or {})},
    )  # fmt: skip


def _rules(config: str | os.PathLike[str] | None) -> dict[str, Any]:
    """The package's rules, with those of a file over them; tables other than the wording are replaced whole."""
    rules = tomllib.loads(DEFAULTS.read_text(encoding="utf-8"))
    if config is None:
        return rules
    try:
        own = tomllib.loads(Path(config).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CorpusError(f"{config}: cannot be read as TOML ({error}); see the package's surveys/wvs.toml") from error
    if unknown := sorted(set(own) - set(rules)):
        raise CorpusError(f"{config}: unknown entry {unknown[0]!r}; expected {', '.join(rules)}")
    for name, value in own.items():
        if type(value) is not type(rules[name]):
            raise CorpusError(f"{config}: {name!r} is {value!r:.60}, expected a {type(rules[name]).__name__}")
    return {**rules, **own, "wording": {**rules["wording"], **own.get("wording", {})}}


def _questions(file: Path, rules: Mapping[str, Any], left_out: dict[str, str]) -> Iterator[Question]:
    rows = _json(file)
    if not isinstance(rows, list) or not rows:
        raise CorpusError(f"{file}: expected a list of questions, found {type(rows).__name__} {str(rows)[:60]}")
    for place, row in enumerate(rows, start=1):
        where = f"{file}, question {place}"
        id, text, options = _row(row, where)
        if _among(id, rules["exclude"]):
            left_out[id] = "excluded"
            continue
        topics = [topic for topic, ids in rules["topics"].items() if _among(id, ids)]
        if len(topics) > 1:
            raise CorpusError(f"{where}: {id} is in the topics {' and '.join(map(repr, topics))}; expected one")
        first = 0 if _among(id, rules["from_zero"]) else 1
        yield Question(id, text, tuple(options), topics[0] if topics else "", first)


def _row(row: Any, where: str) -> tuple[str, str, list[str]]:
    id, text, options = (row.get(key) if isinstance(row, dict) else None for key in ("Q_id", "question", "option_lst"))
    if not isinstance(options, list) or not all(isinstance(one, str) for one in (id, text, *options)):
        raise CorpusError(
            f"{where}: expected texts 'Q_id' and 'question' and a list of texts 'option_lst', found {str(row)[:80]}"
        )
    return str(id), str(text), options


def _proportions(file: Path, used: set[str]) -> dict[str, dict[str, dict[int, float]]]:
    raw = _json(file)
    if not isinstance(raw, dict) or not raw:
        raise CorpusError(f"{file}: expected an object of cultures, found {type(raw).__name__} {str(raw)[:60]}")
    found: dict[str, dict[str, dict[int, float]]] = {}
    for culture, answers in raw.items():
        try:
            found[culture] = {
                id: {int(number): float(share) for number, share in shares.items()}
                for id, shares in answers.items()
                if id in used
            }
        except (AttributeError, TypeError, ValueError) as error:
            raise CorpusError(f"{file}, {culture}: expected Q_id -> {{option number: share}} ({error})") from error
    return found


def _similarity(file: Path) -> dict[str, dict[str, float]]:
    try:
        return {one: {two: float(value) for two, value in row.items()} for one, row in _json(file).items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise CorpusError(f"{file}: expected culture -> culture -> number ({error})") from error


def _cultures(
    rules: Mapping[str, Any], answers: Mapping[str, Any], left_out: dict[str, str], place: Path
) -> dict[str, Culture]:
    """The cultures that have both a name and answers."""
    left_out |= {key: "no name in the config's cultures" for key in answers if key not in rules["cultures"]}
    left_out |= {key: f"not in {PROPORTIONS}" for key in rules["cultures"] if key not in answers}
    try:
        named = {
            key: Culture(told) if isinstance(told, str) else Culture(**told) for key, told in rules["cultures"].items()
        }
    except TypeError as error:
        raise CorpusError(f"cultures: expected a name or {{ name, article }} for each ({error})") from error
    found = {key: culture for key, culture in named.items() if key in answers}
    if not found:
        raise CorpusError(
            f"{place / PROPORTIONS} is about {', '.join(list(answers)[:5])}, the config names {', '.join(list(named)[:5])}; "
            "give the cultures' names in survey.toml under [cultures]"
        )
    return found


def _among(id: str, ranges: Sequence[str]) -> bool:
    """Whether an id is named, or lies in a range such as Q1-Q45."""
    own = re.fullmatch(r"(\D*)(\d+)[A-Za-z]?", id)
    for one in ranges:
        ends = re.fullmatch(r"(\D*)(\d+)-\1(\d+)", one)
        if one == id or (own and ends and own[1] == ends[1] and int(ends[2]) <= int(own[2]) <= int(ends[3])):
            return True
    return False


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CorpusError(
            f"{file}: no such file; expected a folder with {QUESTIONS}, {PROPORTIONS} and {SIMILARITY}"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CorpusError(f"{file}: cannot be read as JSON ({error}); is the file whole?") from error
