"""load_corpus: every kind of source, and what it says when a source is none of them."""

from pathlib import Path

import pytest
from neuropolis.corpora.bundled import polis
from neuropolis.corpora.examples import Corpus, CorpusError, Example
from neuropolis.corpora.jsonl import write_jsonl
from neuropolis.corpora.loading import load_corpus

ROW = {"group": "g", "prompt": "p", "answer": "a"}


def test_bundled_corpora():
    assert load_corpus("bundled:polis") is polis()
    assert load_corpus("bundled:polis-new").groups == ("ethiopia", "georgia", "thailand", "vietnam")
    assert load_corpus("bundled:polis-tasks", by="task").groups == ("answer", "choice", "yesno", "translate")


def test_unknown_bundled_name_lists_the_known_ones():
    with pytest.raises(CorpusError) as caught:
        load_corpus("bundled:metropolis")
    known = "bundled:polis, bundled:polis-new, bundled:polis-tasks, bundled:polis-new-translations"
    assert str(caught.value) == f"no bundled corpus 'metropolis'; there are {known}"


def test_files(tmp_path):
    path = tmp_path / "part.jsonl"
    write_jsonl(polis().only("kenya"), path)
    assert load_corpus(str(path)).examples == load_corpus(Path(path)).examples == polis().only("kenya").examples


def test_rows_and_corpora():
    example = Example(id="x", group="g", prompt="p", answer="a")
    assert load_corpus(Corpus((example,))).examples == (example,)
    mixed = load_corpus(row for row in (example, ROW))
    assert [e.id for e in mixed] == ["x", "row-2"]


def test_split_then_by_then_groups():
    corpus = load_corpus("bundled:polis-tasks", split="test", by="language", groups="zh")
    assert corpus.groups == ("zh",)
    assert corpus.splits == ("test",)
    assert {e.tags["language"] for e in corpus} == {"zh"}
    assert {e.tags["group"] for e in corpus} == set(polis().groups)
    with pytest.raises(CorpusError, match="no group 'japan'; it has en, es, zh"):
        load_corpus("bundled:polis", by="language", groups=["japan"])


@pytest.mark.parametrize("source", [5, None, b"x.jsonl", ROW, Example(id="x", group="g", prompt="p", answer="a")])
def test_other_sources_are_refused(source):
    with pytest.raises(CorpusError, match=f"expected a path, .* found {type(source).__name__}: "):
        load_corpus(source)


def test_bad_rows_say_which():
    with pytest.raises(CorpusError, match=r"^row 2: field 'prompt' is missing"):
        load_corpus([ROW, {"group": "g", "answer": "a"}])
    with pytest.raises(CorpusError, match=r"^row 1: expected an object .* found 3 \(int\)"):
        load_corpus([3])
