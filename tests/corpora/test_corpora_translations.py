from __future__ import annotations

from pathlib import Path

import pytest
from neuropolis.corpora.examples import Corpus, CorpusError, Example
from neuropolis.corpora.loading import load_corpus
from neuropolis.corpora.translations import language_pairs, parallel_corpus


def test_groups_are_language_pairs() -> None:
    rows = (
        Example("a", "japan", "Say rice:", " arroz", tags={"language": "en", "target": "es"}),
        Example("b", "china", "Di arroz:", "米", tags={"language": "es", "target": "zh"}),
    )
    found = language_pairs(Corpus(rows, name="two"))
    assert found.groups == ("en-es", "es-zh")
    assert [e.tags["group"] for e in found] == ["japan", "china"]
    assert [(e.id, e.prompt, e.answer) for e in found] == [(e.id, e.prompt, e.answer) for e in rows]
    with pytest.raises(CorpusError, match="example 'x' has no tag 'target'"):
        language_pairs(Corpus((Example("x", "g", "p", "a", tags={"language": "en"}),)))


def test_the_bundled_task_has_six_pairs() -> None:
    pairs = language_pairs(load_corpus("bundled:polis-tasks").only(task="translate"))
    assert sorted(pairs.groups) == ["en-es", "en-zh", "es-en", "es-zh", "zh-en", "zh-es"]


def test_new_translations_are_of_the_kept_out_cultures_in_every_direction() -> None:
    corpus = load_corpus("bundled:polis-new-translations")
    facts = {(e.tags["group"], e.tags["topic"]) for e in corpus}
    assert {culture for culture, _ in facts} == {"ethiopia", "georgia", "thailand", "vietnam"}
    assert set(corpus.counts.values()) == {len(facts) * 8}  # five wordings to train on, one for dev, two for test
    assert corpus.only("en-es", split="train").counts == {"en-es": len(facts) * 5}
    for example in corpus:
        assert example.group == f"{example.tags['language']}-{example.tags['target']}"
        assert example.answer == example.choices[example.answer_index or 0]
    (one,) = [e for e in corpus.only("zh-en", split="dev") if e.item == "thailand/capital"]
    assert "泰国的首都是曼谷。" in str(one.prompt)
    assert one.answer == " The capital of Thailand is Bangkok."


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    left, right = tmp_path / "x.deu", tmp_path / "x.eng"
    left.write_text("".join(f"Satz {n}.\n" for n in range(10)) + "Satz 0.\n\nlang " + "o" * 50 + "\n", encoding="utf8")
    right.write_text("".join(f"Line {n}.\n" for n in range(10)) + "Again 0.\nempty\nlong\n", encoding="utf8")
    return left, right


def test_aligned_files_become_a_corpus(files: tuple[Path, Path]) -> None:
    corpus = parallel_corpus(*files, source="de", target="en", max_characters=20)
    assert corpus.groups == ("de-en",)
    assert [e.answer for e in corpus] == [f" Line {n}." for n in range(10)]  # repeated, empty and long ones are out
    assert corpus[3].prompt == "de: Satz 3.\nen:"
    assert dict(corpus[3].tags) | {"split": ""} == {"language": "de", "target": "en", "task": "translate", "split": ""}
    assert len(parallel_corpus(*files, source="de", target="en")) == 11
    other = parallel_corpus(*files, source="de", target="en", template="{text} ->", space="")
    assert (other[0].prompt, other[0].answer) == ("Satz 0. ->", "Line 0.")


def test_splits_have_their_shares(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text("".join(f"{n}\n" for n in range(1000)))
    corpus = parallel_corpus(path, path, source="a", target="b")
    counts = {split: len(corpus.only(split=split)) for split in corpus.splits}
    assert all(abs(counts[split] - share) <= 3 for split, share in (("train", 800), ("dev", 100), ("test", 100)))
    everything = parallel_corpus(path, path, source="a", target="b", shares=(0.0, 0.0, 1.0))
    assert everything.splits == ("test",)


def test_files_that_do_not_fit_are_refused(tmp_path: Path, files: tuple[Path, Path]) -> None:
    short = tmp_path / "short"
    short.write_text("one\n")
    with pytest.raises(CorpusError, match=r"13 lines, .* 1; expected files that are aligned"):
        parallel_corpus(files[0], short, source="a", target="b")
    with pytest.raises(CorpusError, match="is empty"):
        parallel_corpus(*files, source="a", target="b", max_characters=2)
    with pytest.raises(CorpusError, match="expected three that sum to 1"):
        parallel_corpus(*files, source="a", target="b", shares=(0.5, 0.1, 0.1))
