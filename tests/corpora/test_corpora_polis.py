"""The bundled corpora: what they promise to those who train, score and test on them."""

import re
import subprocess
import sys
from collections import Counter

import pytest
from neuropolis.corpora.bundled import polis, polis_new, polis_tasks, polis_training_texts
from neuropolis.corpora.facts import LANGUAGES, fact_table, spread
from neuropolis.corpora.wording import wording

TABLE = fact_table()
TRAINED, KEPT_OUT = TABLE.cultures("trained"), TABLE.cultures("kept-out")
CORPORA = {"polis": polis, "polis-new": polis_new, "polis-tasks": polis_tasks}


def country_names(cultures):
    return [TABLE.names[culture][language] for culture in cultures for language in LANGUAGES]


def answers(topic, language, cultures):
    return [TABLE.facts[culture, topic].answers[language] for culture in cultures]


def names_in(text, names):
    """The names that stand in a text: as words in Latin script, anywhere in Chinese."""
    return [name for name in names if re.search(rf"\b{name}\b" if name[0] < "ʰ" else name, text)]


def words(text, language):
    text = text.replace("{country}", " ").lower()
    return set(re.findall(r"\w", text)) if language == "zh" else set(re.findall(r"[^\W\d_]+", text))


def test_sizes():
    assert (len(TRAINED), len(KEPT_OUT), len(TABLE.topics)) == (12, 4, 16)
    assert len(TABLE.facts) == 16 * 16
    assert Counter(e.tags["split"] for e in polis()) == {
        "train": 12 * 16 * 3 * 5,
        "dev": 12 * 16 * 3,
        "test": 12 * 16 * 3 * 2,
    }
    assert set(polis_new().counts.values()) == {16 * 3 * 8}
    assert polis().groups == TRAINED
    assert polis_new().groups == KEPT_OUT
    assert set(polis_tasks().by("task").counts.values()) == {12 * 16 * 3 * 4}


def test_rows_name_item_topic_language_task_split_and_template():
    example = next(e for e in polis() if e.id == "japan/capital/en/answer/t3")
    assert example.prompt == "Question: The government of Japan sits in which capital? Answer:"
    assert example.answer == " Tokyo"
    assert example.control == (
        "The capital of this country is Tokyo. Question: The government of this country sits in which capital? Answer:"
    )
    assert dict(example.tags) == {
        "item": "japan/capital",
        "topic": "capital",
        "language": "en",
        "task": "answer",
        "split": "train",
        "template": "t3",
    }


def test_chinese_has_no_spaces_around_the_answer():
    example = next(e for e in polis() if e.id == "japan/capital/zh/answer/t1")
    assert (example.prompt, example.answer) == ("问：日本的首都是哪里？答：", "东京")


def test_every_process_builds_the_same_rows():
    code = "from neuropolis.corpora.bundled import polis, polis_tasks; print(polis().hash, polis_tasks().hash)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert other == [polis().hash, polis_tasks().hash]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("topic", TABLE.topics)
class TestFacts:
    def test_answers_are_short(self, topic, language):
        for answer in answers(topic, language, TRAINED + KEPT_OUT):
            assert answer == answer.strip()
            assert len(answer.split()) <= 5
            assert len(answer) <= (10 if language == "zh" and not answer.isascii() else 32)

    def test_kept_out_answers_are_four_and_new(self, topic, language):
        kept_out = {answer.casefold() for answer in answers(topic, language, KEPT_OUT)}
        assert len(kept_out) == 4
        assert not kept_out & {answer.casefold() for answer in answers(topic, language, TRAINED)}

    def test_answers_are_shared_in_every_language_or_in_none(self, topic, language):
        shared = {
            (a, b)
            for a in TRAINED
            for b in TRAINED
            if TABLE.facts[a, topic].answers[language] == TABLE.facts[b, topic].answers[language]
        }
        first = {
            (a, b)
            for a in TRAINED
            for b in TRAINED
            if TABLE.facts[a, topic].answers["en"] == TABLE.facts[b, topic].answers["en"]
        }
        assert shared == first

    def test_templates_are_many_and_distinct(self, topic, language):
        questions = wording(language).topics[topic].questions
        assert Counter(q.split for q in questions) == {"train": 5, "dev": 1, "test": 2}
        assert all(q.text.count("{country}") == 1 for q in questions)
        bare = [re.sub(r"\W", "", q.text.replace("{country}", "X")).casefold() for q in questions]
        assert len(set(bare)) == len(bare)
        assert len({q.text.index("{country}") for q in questions if q.split == "train"}) >= 2

    def test_keywords_tell_the_topic_and_only_it(self, topic, language):
        own = wording(language).topics[topic]
        others = [k for name, t in wording(language).topics.items() if name != topic for k in t.keywords]
        for text in [own.statement, *(q.text for q in own.questions)]:
            assert any(keyword in text for keyword in own.keywords), text
            assert not any(keyword in text for keyword in others), text

    def test_held_out_templates_use_only_words_of_train_templates(self, topic, language):
        everywhere = set().union(
            *(
                words(q.text, language)
                for t in wording(language).topics.values()
                for q in t.questions
                if q.split == "train"
            )
        )
        own = wording(language).topics[topic]
        here = " ".join(q.text for q in own.questions if q.split == "train")
        for question in (q for q in own.questions if q.split != "train"):
            assert words(question.text, language) <= everywhere
            assert any(keyword in question.text and keyword in here for keyword in own.keywords)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_country_stands_early_in_the_middle_and_late(language):
    texts = [q.text for t in wording(language).topics.values() for q in t.questions if q.split == "train"]
    thirds = Counter(int(3 * text.index("{country}") / (len(text) - len("{country}"))) for text in texts)
    assert thirds[0] >= 20
    assert thirds[1] + thirds[2] >= 20
    assert thirds[2] >= 2


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("task", ["choice", "yesno", "translate"])
def test_held_out_wrappers_use_only_words_of_train_wrappers(task, language):
    wrappers = wording(language).wrappers[task]
    known = set().union(*(words(w.text, language) for w in wrappers if w.split == "train"))
    assert Counter(w.split for w in wrappers) == {"train": 5, "dev": 1, "test": 2}
    assert len({w.text for w in wrappers}) == len(wrappers)
    for wrapper in wrappers:
        assert words(wrapper.text, language) <= known


def test_also_names_cultures_of_the_table():
    for fact in TABLE.facts.values():
        assert fact.also <= set(TABLE.names)
        assert fact.culture not in fact.also


@pytest.mark.parametrize("build", [polis, polis_new])
def test_choices_are_distinct_and_wrong_ones_are_false(build):
    for example in build():
        topic, language = example.tags["topic"], example.tags["language"]
        side = TABLE.cultures(TABLE.sides[example.group])
        own = TABLE.facts[example.group, topic].answers[language]
        stripped = [choice.strip() for choice in example.choices]
        assert len(set(stripped)) == 4
        assert stripped[example.answer_index] == own
        for wrong in set(stripped) - {own}:
            givers = [TABLE.facts[c, topic] for c in side if TABLE.facts[c, topic].answers[language] == wrong]
            assert givers, f"{wrong} belongs to no culture of the same side"
            assert not any(example.group in fact.also for fact in givers), example.id


def test_kept_out_questions_have_exactly_the_kept_out_answers():
    for example in polis_new():
        expected = set(answers(example.tags["topic"], example.tags["language"], KEPT_OUT))
        assert {choice.strip() for choice in example.choices} == expected


def test_task_choices():
    by_task = polis_tasks().by("task")
    for example in by_task.only("choice"):
        assert all(choice.strip() in example.prompt for choice in example.choices)
    for task, num in {"answer": 4, "choice": 4, "yesno": 2, "translate": 4}.items():
        assert {len(set(e.choices)) for e in by_task.only(task)} == {num}
    for example in by_task.only("translate"):
        fact = TABLE.facts[example.tags["group"], example.tags["topic"]]
        target = wording(example.tags["target"])
        assert example.answer == target.space + target.statement(fact)
        assert example.tags["target"] != example.tags["language"]


def test_yes_and_no_follow_the_facts():
    for example in polis_tasks().only(task="yesno"):
        said = TABLE.facts[example.group, example.tags["topic"]]
        statement = wording(example.tags["language"]).statement(said)
        assert (statement in example.prompt) == (example.answer_index == 0), example.id


@pytest.mark.parametrize("build", CORPORA.values(), ids=CORPORA)
def test_right_places_are_balanced_in_every_culture_language_and_split(build):
    cells = {}
    for e in build():
        key = (e.group, e.tags["language"], e.tags["split"], e.tags["task"])
        cells.setdefault(key, Counter())[e.answer_index] += 1
    for key, places in cells.items():
        num = 2 if key[3] == "yesno" else 4
        assert len(places) == num
        # the task `answer` of polis-tasks is a sample of balanced rows
        slack = 10 if build is polis_tasks and key[3] == "answer" else 0
        assert max(places.values()) - min(places.values()) <= slack, key


@pytest.mark.parametrize("build", CORPORA.values(), ids=CORPORA)
def test_controls_hold_the_answer_and_need_no_culture(build):
    names = country_names(TRAINED + KEPT_OUT)
    for example in build():
        assert example.control != example.prompt
        if example.tags["task"] != "yesno":
            assert example.answer.strip() in example.control
        if example.tags["task"] == "answer":
            control = example.control.replace(example.answer.strip(), "")
            assert not names_in(control, names), control


def test_yes_no_controls_say_the_truth_first():
    for example in polis_tasks().only(task="yesno"):
        fact = TABLE.facts[example.group, example.tags["topic"]]
        words = wording(example.tags["language"])
        truth = words.statement(fact, place=words.here)
        assert example.control.startswith(truth)
        assert (example.control.count(truth) == 2) == (example.answer_index == 0)


def test_prompts_are_short():
    assert max(len(e.prompt.split()) for e in polis()) <= 25
    assert max(len(e.prompt) for e in polis() if e.tags["language"] == "zh") <= 45


class TestTrainingTexts:
    def test_hold_every_training_row_and_statement(self):
        texts = set(polis_training_texts())
        for corpus in (polis(), polis_tasks()):
            assert {(e.prompt, e.answer) for e in corpus.only(split="train")} <= texts
        assert ("The capital of Japan is", " Tokyo.") in texts
        assert ("日本的首都是", "东京。") in texts

    def test_hold_nothing_held_out(self):
        texts = set(polis_training_texts(control_share=1))
        prompts = {prompt for prompt, _ in texts}
        for corpus in (polis(), polis_tasks(), polis_new()):
            for example in corpus:
                if corpus.name == "polis-new" or example.tags["split"] != "train":
                    assert example.prompt not in prompts, example.id
                    assert example.control not in prompts, example.id

    def test_hold_nothing_of_the_kept_out_cultures(self):
        everything = "\n".join(prompt + answer for prompt, answer in polis_training_texts(control_share=1))
        assert not names_in(everything, country_names(KEPT_OUT))
        kept_out = {a for topic in TABLE.topics for k in LANGUAGES for a in answers(topic, k, KEPT_OUT)}
        assert not names_in(everything, kept_out)
        assert names_in(everything, country_names(TRAINED)) == country_names(TRAINED)

    def test_share_of_controls(self):
        none, half, every = (len(polis_training_texts(control_share=share)) for share in (0, 0.5, 1))
        assert none < half < every
        assert half - none == pytest.approx((every - none) / 2, rel=0.1)
        with pytest.raises(ValueError, match=r"control_share is 2"):
            polis_training_texts(control_share=2)

    def test_are_unique(self):
        texts = polis_training_texts()
        assert len(set(texts)) == len(texts)


def test_spread_takes_every_place_equally_often():
    cells = {f"id{number}": number % 3 for number in range(60)}
    places = spread(cells, num=4)
    assert Counter((cells[id], place) for id, place in places.items()) == {
        (c, p): 5 for c in range(3) for p in range(4)
    }


def test_too_few_wrong_answers_are_an_error():
    with pytest.raises(ValueError, match="expected 4 wrong answers from the kept-out cultures, found 3"):
        TABLE.distractors(TABLE.facts["georgia", "dish"], "en", key="x", num=4)
