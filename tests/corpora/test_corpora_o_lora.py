from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from neuropolis.corpora.examples import CorpusError
from neuropolis.corpora.loading import load_corpus
from neuropolis.corpora.readers.o_lora import is_o_lora, read_o_lora

REAL = Path(__file__).parents[3] / "shared" / "data" / "o_lora_cl" / "CL_Benchmark"


def put(folder: Path, **files: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return folder


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    row = {"sentence": "Text: it was fine \n", "label": "Good"}
    put(tmp_path / "CL" / "SC" / "SST-2", labels=["Good", "Bad"], train=[row], test=[row | {"label": "Bad"}])
    rte = [{"sentence": "c", "label": "-"}, {"sentence": "sentence 1: a\nsentence 2: b", "label": "entailment"}]
    put(tmp_path / "CL" / "NLI" / "RTE", labels=["contradiction", "entailment"], train=rte)
    return tmp_path / "CL"


def test_tasks_become_groups_and_labels_choices(benchmark: Path) -> None:
    corpus = read_o_lora(benchmark)
    assert corpus.name == "CL"
    assert corpus.counts == {"RTE": 1, "SST-2": 2}
    last = corpus[2]
    assert (last.id, last.group, dict(last.tags)) == ("SST-2/test/1", "SST-2", {"split": "test", "task": "SST-2"})
    assert last.prompt == "Text: it was fine \nOptions: Good, Bad\nAnswer:"
    assert (last.answer, last.choices, last.answer_index) == (" Bad", (" Good", " Bad"), 1)
    assert read_o_lora(benchmark, template="{sentence} =>")[0].prompt == "sentence 1: a\nsentence 2: b =>"


def test_a_category_or_a_task_can_be_read_alone(benchmark: Path) -> None:
    assert read_o_lora(benchmark / "SC").groups == ("SST-2",)
    assert load_corpus(benchmark / "SC" / "SST-2").splits == ("train", "test")
    assert is_o_lora(benchmark)
    assert read_o_lora(benchmark.parent).counts == {"RTE": 1, "SST-2": 2}
    assert not is_o_lora(benchmark / "nothing")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"train": [{"sentence": "x", "label": "Fine"}]},
            r"train.json, row 1: label 'Fine' is none of those .*: Good, Bad",
        ),
        ({"train": [{"label": "Good"}]}, "train.json, row 1: expected a text under 'sentence'"),
        ({"train": "[{"}, "train.json: cannot be read as JSON"),
        ({"train": []}, "train.json: expected a list of rows"),
        ({"labels": ["Good"]}, "labels.json: expected a list of two or more labels"),
        ({}, "none of train.json, dev.json, test.json"),
    ],
)
def test_what_is_not_of_the_layout_is_named(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    put(tmp_path / "T", **({"labels": ["Good", "Bad"]} | files))
    with pytest.raises(CorpusError, match=message):
        read_o_lora(tmp_path)


def test_an_empty_folder_and_a_template_without_sentence(tmp_path: Path, benchmark: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match=r"no labels.json in it or up to three folders below"):
        read_o_lora(tmp_path / "empty")
    with pytest.raises(CorpusError, match=r"has no \{sentence\} in it"):
        read_o_lora(benchmark, template="?")


@pytest.mark.skipif(not REAL.is_dir(), reason="the benchmark's files are not here")
def test_the_benchmark_itself() -> None:
    agnews = read_o_lora(REAL / "TC" / "agnews")
    assert agnews.counts == {"agnews": 11600}
    assert len(agnews.only(split="test")) == 7600
    assert {len(example.choices) for example in agnews} == {4}
    assert read_o_lora(REAL / "NLI").groups == ("CB", "MNLI", "RTE")
