"""Tiny files in the layouts of public benchmarks, written for the tests: the words are ours, the layout is theirs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

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
        text.write("\n".join("\t".join(str(field) for field in row) for row in [rows[0], *(r.values() for r in rows)]))
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
