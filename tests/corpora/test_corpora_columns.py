"""Tables with columns of the user's own names: texts with gaps, blanks, lists, letters, splits by file."""

from __future__ import annotations

from pathlib import Path

import neuropolis as npl
import pytest
from neuropolis.corpora.columns import Columns


def table(tmp_path: Path, text: str, name: str = "t.csv") -> Path:
    (tmp_path / name).write_text(text, "utf-8")
    return tmp_path / name


def test_prompt_and_control_may_be_texts_with_columns_in_them(tmp_path: Path) -> None:
    file = table(tmp_path, "group,where,ask,answer\nx,Rome,Who?,Ann\n")
    corpus = npl.load_corpus(file, format="csv", prompt="In {where}: {ask}\nA:", control="{ask}\nA:", space=" ")
    assert (corpus[0].prompt, corpus[0].control, corpus[0].answer) == ("In Rome: Who?\nA:", "Who?\nA:", " Ann")
    with pytest.raises(npl.CorpusError, match="no column 'there'; the columns are group, where, ask, answer"):
        npl.load_corpus(file, format="csv", prompt="{there}: {ask}")


def test_the_blank_goes_before_answers_and_choices_and_its_lack_is_noted(tmp_path: Path) -> None:
    file = table(tmp_path, "group,prompt,answer,wrong\nx,Who?,Ann,Bob\n")
    reading = npl.read_format(file, "csv", choices="answer, wrong", space=" ")
    assert (reading.corpus[0].choices, reading.corpus[0].answer, reading.notes) == ((" Ann", " Bob"), " Ann", ())
    (note,) = npl.read_format(file, "csv").notes
    assert note.startswith("prompt and answer meet without a blank, as in 'Who?Ann'")
    assert npl.read_format(table(tmp_path, 'group,prompt,answer\nx,"Who? ",Ann\n'), "csv").notes == ()


def test_the_right_choice_may_be_a_letter(tmp_path: Path) -> None:
    file = table(tmp_path, "group,prompt,a,b,key\nx,p, 1, 2,B\n")
    assert npl.load_corpus(file, format="csv", choices="a,b", answer_index="key")[0].answer == " 2"
    with pytest.raises(npl.CorpusError, match="expected a whole number from 0 or a letter from A"):
        npl.load_corpus(
            table(tmp_path, "group,prompt,a,b,key\nx,p,1,2,both\n"), format="csv", choices="a,b", answer_index="key"
        )


def test_files_called_after_splits_give_the_tag(tmp_path: Path) -> None:
    for name in ("train.csv", "validation.csv", "test.csv"):
        table(tmp_path, f"group,prompt,answer\nx,{name},y\n", name)
    corpus = npl.load_corpus(tmp_path, format="csv")
    assert {row.prompt: row.tags["split"] for row in corpus} == {
        "train.csv": "train",
        "validation.csv": "dev",
        "test.csv": "test",
    }


def test_another_delimiter_is_told_and_taken(tmp_path: Path) -> None:
    file = table(tmp_path, "group;prompt;answer\nx;p;y\n")
    with pytest.raises(npl.CorpusError, match="seem to be parted by ';'; give delimiter=';'"):
        npl.read_format(file, "csv")
    assert npl.load_corpus(file, format="csv", delimiter=";")[0].answer == "y"


def test_names_with_dots_reach_into_objects_and_numbers_become_texts() -> None:
    row = {"kind": 3, "q": "p", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "key": "A", "n": None}
    columns = Columns(
        group="kind", prompt="q", choices="choices.text", answer_index="key", tags="n,label=key", space=" "
    )
    (example,) = columns.examples([("row 1", row)])
    assert (example.group, example.choices, example.answer, dict(example.tags)) == (
        "3",
        (" a", " b"),
        " a",
        {"label": "A"},
    )
    with pytest.raises(
        npl.CorpusError, match=r"row 1: no column 'choices.texts'; the columns are kind, q, choices, key, n"
    ):
        list(Columns(group="kind", prompt="q", choices="choices.texts", answer_index="key").examples([("row 1", row)]))


def test_every_reader_of_tables_has_the_same_options_beside_its_own() -> None:
    formats = npl.formats()
    shared = set(Columns.__dataclass_fields__)
    assert {name: set(formats[name].options) - shared for name in ("csv", "parquet", "hub")} == {
        "csv": {"delimiter"}, "parquet": set(), "hub": {"subset", "part", "most"},
    }  # fmt: skip
    assert all(shared <= set(formats[name].options) for name in ("csv", "parquet", "hub"))


def test_labels_of_a_dataset_are_read_as_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["good", "bad"])}
    )
    rows = datasets.Dataset.from_list([{"text": f"t{n}", "label": n % 2} for n in range(6)], features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, subset: datasets.DatasetDict({"train": rows}))
    corpus = npl.load_corpus(
        "any/name", format="hub", all_in="mood", prompt="{text}\nMood:", answer="label", space=" ", most=2
    )
    assert [(row.prompt, row.answer, row.tags["split"]) for row in corpus] == [
        ("t0\nMood:", " good", "train"), ("t3\nMood:", " bad", "train"),
    ]  # fmt: skip


def test_plain_text_in_files_called_after_splits_and_paragraphs_parted_by_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "de").mkdir()
    (tmp_path / "de" / "train.txt").write_text("Guten Tag\nalle\n \nBis bald\n")
    reading = npl.read_format(tmp_path, "text", unit="paragraph")
    assert [(row.group, row.prompt + row.answer, row.tags["split"]) for row in reading.corpus] == [
        ("de", "Guten Tag\nalle", "train"), ("de", "Bis bald", "train"),
    ]  # fmt: skip
