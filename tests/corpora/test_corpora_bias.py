"""Readers of benchmarks of social bias: KoBBQ and CrowS-Pairs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import neuropolis as npl
import pytest
from benchmark_files import crows_pairs, kobbq

SHARED = Path(__file__).parents[3] / "shared" / "data"


def test_kobbq_questions_have_the_other_context_as_their_twin(tmp_path: Path) -> None:
    reading = npl.read_format(kobbq(tmp_path), "kobbq")
    unclear, clear = reading.corpus
    assert (unclear.id, unclear.group, unclear.item) == ("age-001a-002-amb-bsd", "age", "age-001")
    assert unclear.prompt.startswith("둘이 왔다.\n누가 늦었습니까?\nA. ")
    assert unclear.prompt.endswith("\n답:")
    assert (unclear.control, clear.control) == (clear.prompt, unclear.prompt)
    for example, answer in ((unclear, "알 수 없음"), (clear, "철수")):
        assert f"\n{example.answer.strip()}. {answer}\n" in example.prompt
        assert f"\n{example.tags['biased']}. 영희\n" in example.prompt
    assert reading.reasons == {"the answer does not stand once among the options": 1}


def test_kobbq_options(tmp_path: Path) -> None:
    path = kobbq(tmp_path)
    biased = npl.load_corpus(path, format="kobbq", answer="biased", context="amb")
    assert {example.answer.strip() for example in biased} == {example.tags["biased"] for example in biased}
    assert len(biased) == 2
    alone = npl.load_corpus(path, format="kobbq", twin="options")[0]
    assert alone.control == alone.prompt.split("\n", 2)[2]
    lonely = npl.read_format(path, "kobbq", answer="biased")
    assert lonely.notes == ("no twin for 1 of 3 examples: their other context is not in the file",)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("age-001a-002-dis-bsd", "age-1", "line 3: expected a sample_id such as .*found 'age-1'"),
        ("['철수', '영희', '알 수 없음']", "['철수', ", "line 2: expected a list of three texts under 'choices'"),
        ("sample_id", "id", "no column 'sample_id'"),
        ("둘이 왔다.\t", "\t", "line 2: expected a text under 'context'"),
    ],
)
def test_kobbq_rows_that_are_not_right_are_told(tmp_path: Path, old: str, new: str, said: str) -> None:
    file = kobbq(tmp_path) / "KoBBQ_test_samples.tsv"
    file.write_text(file.read_text("utf-8").replace(old, new), "utf-8")
    with pytest.raises(npl.CorpusError, match=said):
        npl.read_format(file, "kobbq")


def test_crows_pairs_go_on_from_the_first_word_that_differs(tmp_path: Path) -> None:
    reading = npl.read_format(crows_pairs(tmp_path), "crows-pairs")
    first, second = reading.corpus
    assert (first.prompt, first.answer) == ("Sentence: The", " young man, they say, forgot.")
    assert set(first.choices) == {" young man, they say, forgot.", " old man, they say, forgot."}
    assert first.control == "Sentence: The young man, they say, forgot.\nSentence: The"
    assert (second.prompt, second.answer, second.group) == ("Sentence:", " Kids nap.", "age")
    assert reading.reasons == {
        "the same pair as in an earlier row": 1,
        "one sentence begins with the whole other one": 1,
    }
    more = npl.load_corpus(tmp_path, format="crows-pairs", answer="more")
    assert (more[0].answer, more[0].choices) == (" old man, they say, forgot.", first.choices[::-1])


def test_crows_pairs_without_a_direction_are_told(tmp_path: Path) -> None:
    file = crows_pairs(tmp_path) / "data" / "crows_pairs_anonymized.csv"
    file.write_text(file.read_text().replace("left,antistereo", "left,contra"))
    with pytest.raises(npl.CorpusError, match="line 5: expected stereo or antistereo, found 'contra'"):
        npl.read_format(file, "crows-pairs")


@pytest.mark.skipif(not (SHARED / "kobbq").is_dir(), reason="the benchmark's files are not here")
def test_kobbqs_own_file() -> None:
    """2,280 samples in 12 categories (its README); "unknown" stands last in all, and nowhere after turning."""
    reading = npl.read_format(SHARED / "kobbq", "kobbq")
    assert (reading.rows, len(reading.corpus.groups), reading.dropped) == (2280, 12, ())
    assert not any(example.control is None for example in reading.corpus)
    unclear = Counter(example.answer for example in reading.corpus.only(context="amb"))
    assert sum(unclear.values()) == 1140
    assert min(unclear.values()) > 1140 * 0.28


@pytest.mark.skipif(not (SHARED / "crows_pairs").is_dir(), reason="the benchmark's files are not here")
def test_crows_pairs_own_file() -> None:
    """1,508 pairs of nine kinds (its README), one of them twice (counted in the file)."""
    reading = npl.read_format(SHARED / "crows_pairs", "crows-pairs")
    assert (reading.rows, len(reading.corpus), len(reading.corpus.groups)) == (1508, 1507, 9)
    assert Counter(example.tags["direction"] for example in reading.corpus)["antistereo"] == 218
    texts = {example.prompt + choice for example in reading.corpus for choice in example.choices}
    assert all(text.startswith("Sentence: ") and "  " not in text for text in texts)
