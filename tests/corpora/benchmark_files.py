"""Tiny files in the layouts of public benchmarks, written for the tests: the words are ours, the layout is theirs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile

Build = Callable[[Path], Path]
TINY: dict[str, Build] = {}  # format -> writes its files into a folder, returns the path to give to the reader


def tiny(format: str) -> Callable[[Build], Build]:
    def register(build: Build) -> Build:
        TINY[format] = build
        return build

    return register


def table(path: Path, rows: Iterable[Mapping[str, Any]], *, delimiter: str = ",") -> Path:
    """A table with a header; without quotes when it is parted by tabs."""
    rows, text = list(rows), io.StringIO()
    if delimiter == "\t":
        text.write(
            "\n".join("\t".join(str(field) for field in row) for row in [rows[0], *(r.values() for r in rows)]) + "\n"
        )
    else:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.getvalue(), "utf-8")
    return path


def json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def moral_row(index: int, category: list[str], *, ask: str, scene: str, right: str = "A", wrong: str = "B") -> dict:
    options = ["A.归还", "B.藏起来", "C.今天天气很好"]
    return {
        "index": index, "category": category, "question": f"{ask}\n{scene}", "choices": options,
        "correct_answer": right, "wrong_answer": wrong,
    }  # fmt: skip


def workbook(path: Path, rows: list[list[str]]) -> Path:
    """An .xlsx of one sheet: first rows of shared strings, the last one written in place; no cell for an empty text."""
    strings = list(dict.fromkeys(text for row in rows[:-1] for text in row if text))

    def cell(column: int, line: int, text: str) -> str:
        place = f'r="{"ABCD"[column]}{line}"'
        if line < len(rows):
            return f'<c {place} t="s"><v>{strings.index(text)}</v></c>'
        return f'<c {place} t="inlineStr"><is><r><t>{text[:1]}</t></r><r><t>{text[1:]}</t></r></is></c>'

    lines = "".join(
        f'<row r="{line}">{"".join(cell(column, line, text) for column, text in enumerate(row) if text)}</row>'
        for line, row in enumerate(rows, start=1)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    space = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    with ZipFile(path, "w") as book:
        shared = "".join(f"<si><t>{text}</t><rPh><t>said so</t></rPh></si>" for text in strings)
        book.writestr("xl/sharedStrings.xml", f"<sst {space}>{shared}</sst>")
        book.writestr("xl/worksheets/sheet1.xml", f"<worksheet {space}><sheetData>{lines}</sheetData></worksheet>")
    return path


@tiny("camel")
def camel(folder: Path) -> Path:
    """Foods of which one is both cultures' and one nobody's; prompts with and without words after the mask."""
    foods = [["كسكس", "Arab"], ["فول", "Arab"], ["برغر", "Western"], ["خبز", "Arab"], ["خبز", "Western"], ["ماء", ""]]
    workbook(folder / "entities" / "food.xlsx", [["Entity", "Culture"], *foods, ["بيتزا", "Western"]])
    prompts = [
        ["Food", "أكلت اليوم [MASK]"],
        ["Food", "أكلت [MASK] اليوم"],
        ["Food", "مع ال[MASK]"],
        ["Cars", "قدت [MASK]"],
    ]
    name = folder / "prompts" / "camel-ag" / "camelag-prompts-causal-lms.xlsx"
    workbook(name, [["Entity Type", "Prompt"], *prompts])
    return folder


@tiny("cmoraleval")
def cmoraleval(folder: Path) -> Path:
    """One variant with both polarities: two good rows, one with a code for a label; d1 repeats a scene."""
    test = folder / "data" / "test_data"
    labels = [["职业道德", "社会道德"], ["家庭道德"], ["2,5"]]
    for polarity, ask, (right, wrong) in (("moral", "该怎么做？", "AB"), ("unmoral", "不该怎么做？", "BA")):
        rows = [
            moral_row(n, label, ask=ask, scene=f"拾到钱包{n}", right=right, wrong=wrong)
            for n, label in enumerate(labels, start=1)
        ]
        json_lines(test / f"cmoraleval_c1_standby_{polarity}_test_data", rows)
    json_lines(
        test / "cmoraleval_d1_party_moral_test_data",
        [moral_row(9, ["个人品德"], ask="你该怎么做？", scene="拾到钱包1")],
    )
    return folder


@tiny("fork")
def fork(folder: Path) -> Path:
    shared = {"Type": "Explicit", "Dimension": "Soup"}
    ask = {"Question": "How is soup eaten in Japan?", "Option A": "sipped", "Option B": "spooned", "Answer Key": "A"}
    table(
        folder / "fork.csv",
        [
            {"ID": "1", **ask, "Country": "Japan", **shared},
            {
                "ID": "2",
                **ask,
                "Option A": "spooned",
                "Option B": "sipped",
                "Country": "USA",
                **shared,
                "Type": "Implicit",
            },
            {"ID": "3", **ask, "Option B": "sipped", "Country": "USA", **shared},
        ],
    )
    return folder


@tiny("countryrc")
def countryrc(folder: Path) -> Path:
    passages = [
        {"id": "0", "context": "Ann went to {country}. She liked {country}.", "question": "Where did Ann go?"},
        {"id": "1", "context": "Bo left {country_dummy} for {country}.", "question": "Where is Bo now?"},
    ]
    path = folder / "data" / "CountryRC" / "data.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(passages), "utf-8")
    return folder


@tiny("kobbq")
def kobbq(folder: Path) -> Path:
    shared = {"question": "누가 늦었습니까?", "choices": "['철수', '영희', '알 수 없음']", "biased_answer": "영희"}
    rest = {"bbq_id": "", "bbq_category": "", "prediction": ""}
    rows = [
        {
            "sample_id": f"age-001a-002-{context}-bsd",
            "label_annotation": "NC",
            "context": text,
            **shared,
            "answer": answer,
            **rest,
        }
        for context, text, answer in (("amb", "둘이 왔다.", "알 수 없음"), ("dis", "둘이 왔다. 철수가 늦었다.", "철수"))
    ]
    rows.append({**rows[0], "sample_id": "ses-003b-001-amb-cnt", "answer": "민수"})
    table(folder / "KoBBQ_test_samples.tsv", rows, delimiter="\t")
    return folder


@tiny("normad")
def normad(folder: Path) -> Path:
    def row(id: str, country: str, label: str, rule: str = "Guests take off their shoes.") -> dict[str, str]:
        return {
            "ID": id, "Country": country, "Background": "long text", "Axis": "visiting", "Subaxis": "home",
            "Value": "Respect for the home.", "Rule-of-Thumb": rule, "Story": f"Kim, at the door ({id}), kept shoes on.",
            "Explanation": "so", "Gold Label": label,
        }  # fmt: skip

    rows = [
        row("1", "south_korea", "no"),
        row("2", "south_korea", "yes"),
        row("3", "united_states_of_america", "neutral"),
    ]
    table(
        folder / "normad_etiquette_final_data.csv", [*rows, row("4", "japan", "perhaps"), row("5", "japan", "no", "")]
    )
    return folder


@tiny("culturalbench")
def culturalbench(folder: Path) -> Path:
    ask = {"question_idx": "7", "prompt_question": "What is drunk, mostly, in the UK?"}
    options = dict(zip((f"prompt_option_{letter}" for letter in "abcd"), ("tea", "mud", "ink", "oil"), strict=True))
    end = {"country": "United Kingdom"}
    easy = {"data_idx": "0", **ask, **options, "answer": "A", **end}
    same = easy | {"data_idx": "1", "prompt_option_d": "tea"}
    hard = [
        {"data_idx": str(number), **ask, "prompt_option": option, "answer": answer, **end}
        for number, (option, answer) in enumerate((("tea", "TRUE"), ("mud", "FALSE"), ("", "FALSE")))
    ]
    table(folder / "CulturalBench-Easy.csv", [easy, same])
    table(folder / "CulturalBench-Hard.csv", hard)
    return folder


@tiny("crows-pairs")
def crows_pairs(folder: Path) -> Path:
    def row(more: str, less: str, direction: str = "stereo") -> dict[str, str]:
        said = {"": "0", "sent_more": more, "sent_less": less, "stereo_antistereo": direction, "bias_type": "age"}
        return {**said, "annotations": "[['age'], []]", "anon_writer": "a0", "anon_annotators": "['a1']"}

    rows = [row("The old man, they say, forgot.", "The young man, they say, forgot."), row("Old men nap.", "Kids nap.")]
    rows += [rows[0], row("She left early", "She left", "antistereo")]
    table(folder / "data" / "crows_pairs_anonymized.csv", rows)
    return folder


@tiny("blend")
def blend(folder: Path) -> Path:
    """Published questions, six of one country and id, and one without the order; the topics beside them."""
    order = 'Without any explanation, choose only one. Provide as JSON format: {"answer_choice":""}'
    options = {"A": "rice", "B": "snow", "C": "tea", "D": "wool"}

    def row(number: int, *, country: str = "UK", text: str = order) -> dict[str, str]:
        listed = "".join(f"{letter}. {option}\n" for letter, option in options.items())
        return {
            "MCQID": f"Al-en-02_{number}", "ID": "Al-en-02", "country": country,
            "prompt": f"What is drunk in the {country}? {text}\n\n{listed}\nAnswer:",
            "choices": json.dumps(options, indent=4), "choice_countries": "{}", "answer_idx": "C",
        }  # fmt: skip

    rows = [*(row(number) for number in range(6)), row(6, country="US"), row(7, country="US", text="Choose.")]
    table(folder / "evaluation" / "mc_data" / "mc_questions_file.csv", rows)
    asked = {"": "0", "ID": "Al-en-02", "Topic": "Food", "Source": "English (US)", "Question": "q", "Translation": "q"}
    table(folder / "data" / "questions" / "US_questions.csv", [asked])
    return folder


def blend_annotations(folder: Path, *, listed: bool = False) -> Path:
    """Six countries that agree on an answer of their own; as the repository (by id) or the dataset (a list) has them."""
    answers = {
        "UK": "tea",
        "US": "Coffee",
        "China": "soy milk",
        "Iran": "sour tea",
        "South_Korea": "7",
        "Spain": "wine",
    }
    for country, answer in answers.items():
        said = [{"answers": ["x"], "en_answers": [answer, f"{answer} cup"], "count": 4}]
        said.append({"answers": ["y"], "en_answers": [f"{country}ade"], "count": 1})
        said += [{"answers": ["z"], "en_answers": ["9"], "count": 2}] if country == "South_Korea" else []
        row = {"question": "?", "en_question": "What is drunk in your country?", "annotations": said}
        idks = {"idk": 0, "no-answer": 0, "not-applicable": int(country == "Spain")}
        rows: Any = [{"ID": "Al-en-02", **row, "idks": idks}] if listed else {"Al-en-02": row | {"idks": idks}}
        path = folder / "data" / "annotations" / f"{country}_data.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows), "utf-8")
    return folder


@tiny("worldvaluesbench")
def worldvaluesbench(folder: Path) -> Path:
    """Five times three people of one country and two of another; replies of 9 are off the scale."""
    question = {"category": "Values", "use_case": "value", "answer_scale_min": 1, "answer_scale_max": 3}
    metadata = {
        "B_COUNTRY": {"question": "Where?", "use_case": "demographic", "answer_scale_min": ""},
        "Q1": {"question": "How important is rest, 1 to 3?", **question},
        "Q2": {"question": "How important is work, 1 to 3?", **question},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "question_metadata.json").write_text(json.dumps(metadata), "utf-8")
    people = [("1", "Great Britain", "2", "1"), ("2", "Great Britain", "2.0", "3"), ("3", "Great Britain", "1", "")]
    people += [("4", "Chile", "3", "9"), ("5", "Chile", "3", "")]
    people = [(f"{copy}{id}", *rest) for copy in range(5) for id, *rest in people]
    demographic = [{"D_INTERVIEW": id, "A_YEAR": "2018", "B_COUNTRY": country} for id, country, *_ in people]
    table(folder / "full" / "full_demographic_qa.tsv", demographic, delimiter="\t")
    values = [{"D_INTERVIEW": id, "Q1": one, "Q2": two} for id, _, one, two in people]
    table(folder / "full" / "full_value_qa.tsv", values, delimiter="\t")
    return folder
