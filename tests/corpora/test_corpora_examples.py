"""Examples and corpora: what they refuse, how they are filtered, regrouped and copied."""

import copy
import pickle

import pytest
from neuropolis.corpora.examples import Corpus, CorpusError, Example

ROWS = (
    Example(id="1", group="japan", prompt="p1", answer="a", tags={"task": "x", "split": "train", "item": "i"}),
    Example(id="2", group="china", prompt="p2", answer="b", tags={"task": "y", "split": "test"}, control="c2"),
    Example(id="3", group="japan", prompt="p3", answer="c", tags={"task": "y", "split": "test"}, control="c3"),
)
CORPUS = Corpus(ROWS, name="small")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": ""}, "'id' is empty; give a name"),
        ({"group": ""}, "'group' is empty; give the culture"),
        ({"prompt": ()}, "'prompt' is empty; give the text that stands before"),
        ({"answer": ""}, "'answer' is empty; give the text whose tokens"),
        ({"control": ""}, "a choice or 'control' is empty"),
        ({"choices": ("a", ""), "answer_index": 0}, "a choice or 'control' is empty"),
        ({"choices": ("a", "b")}, "has 'choices' but no 'answer_index'"),
        ({"choices": ("a", "b"), "answer_index": 2}, r"'answer_index' is 2, expected 0 to 1 \(2 choices\)"),
        ({"choices": ("a", "b"), "answer_index": 1}, "choice 1 is 'b' but 'answer' is 'a'"),
    ],
)
def test_examples_refuse(change, message):
    with pytest.raises(CorpusError, match=message):
        Example(**{"id": "1", "group": "g", "prompt": "p", "answer": "a", **change})


def test_corpora_refuse_no_examples_and_repeated_ids():
    with pytest.raises(CorpusError, match="corpus 'empty' is empty"):
        Corpus((), name="empty")
    with pytest.raises(CorpusError, match="id '3' stands 3 times; ids must be unique"):
        Corpus((*ROWS, ROWS[2], ROWS[2]))


def test_groups_counts_splits_items():
    assert CORPUS.groups == ("japan", "china")
    assert CORPUS.counts == {"japan": 2, "china": 1}
    assert CORPUS.splits == ("train", "test")
    assert [e.item for e in CORPUS] == ["i", "2", "3"]


def test_only():
    assert [e.id for e in CORPUS.only("japan")] == ["1", "3"]
    assert [e.id for e in CORPUS.only(["china", "japan"], split="test")] == ["2", "3"]
    with pytest.raises(CorpusError, match="no group 'peru'; it has japan, china"):
        CORPUS.only("peru")
    with pytest.raises(CorpusError, match="no example with split='dev'; values are test, train"):
        CORPUS.only(split="dev")
    with pytest.raises(CorpusError, match="no example has the tag 'colour'"):
        CORPUS.only(colour="red")


def test_by_keeps_the_former_group_as_a_tag():
    tasks = CORPUS.by("task")
    assert tasks.groups == ("x", "y")
    assert tasks.by("group").groups == CORPUS.groups
    with pytest.raises(CorpusError, match=r"'2' has no tag 'item' to group by; its tags are split, task"):
        CORPUS.by("item")


def test_controls_take_the_place_of_prompts():
    twins = CORPUS.only(split="test").controls()
    assert [(e.id, e.group, e.prompt, e.answer) for e in twins] == [
        ("2#control", "china", "c2", "b"),
        ("3#control", "japan", "c3", "c"),
    ]
    with pytest.raises(CorpusError, match="example '1' has no 'control'"):
        CORPUS.controls()


def test_hash_follows_content_and_order_but_not_the_name():
    assert CORPUS.hash == Corpus(ROWS, name="other").hash
    assert CORPUS.hash != Corpus(ROWS[::-1]).hash
    assert CORPUS.hash != Corpus((*ROWS[:2], Example(id="3", group="japan", prompt="p3", answer="d"))).hash


def test_tags_are_read_only_and_copies_are_equal():
    with pytest.raises(TypeError):
        ROWS[0].tags["task"] = "z"
    for again in (pickle.loads(pickle.dumps(CORPUS)), copy.deepcopy(CORPUS)):
        assert again == CORPUS
        assert again.hash == CORPUS.hash


def test_messages_may_be_a_list():
    chat = [{"role": "user", "content": "hi"}]
    example = Example(id="1", group="g", prompt=chat, answer="a", control=chat)
    assert example.prompt == example.control == tuple(chat)
    assert example.to_json()["prompt"] == chat


def test_rows_without_a_split_beside_rows_with_one_are_refused() -> None:
    rows = [
        Example(id=str(i), group="g", prompt="p", answer="a", tags={"split": "train"} if i else {}) for i in range(3)
    ]
    corpus = Corpus(tuple(rows))
    with pytest.raises(CorpusError, match="1 of 3 examples have no tag 'split'"):
        corpus.part("auto", auto="train")
    assert len(corpus.part(None, auto="train")) == 3
