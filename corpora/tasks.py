"""The four tasks of the bundled corpus: answer, choice, yes or no, translate. Each turns a fact into an example."""

from __future__ import annotations

from collections.abc import Sequence

from .examples import Example
from .facts import Fact, fact_table
from .wording import Template, Wording, wording


def answer_row(fact: Fact, words: Wording, question: Template, *, place: int) -> Example:
    """A question with a free answer; the control twin says the answer of "this country" first."""
    id = row_id(fact, words, "answer", question.name)

    def ask(country: str) -> str:
        return words.ask.format(question=question.text.format(country=country))

    return Example(
        id=id,
        group=fact.culture,
        prompt=ask(fact_table().names[fact.culture][words.language]),
        control=words.space.join([words.statement(fact, place=words.here), ask(words.here)]),
        tags=_tags(fact, words, "answer", question),
        **_choices([words.space + text for text in _options(fact, words.language, id)], place),
    )


def choice_row(fact: Fact, words: Wording, question: Template, *, wrapper: Template, place: int) -> Example:
    """The same question with four options named in the prompt; the answer is the text of the right one."""
    id = row_id(fact, words, "choice", f"{question.name}.{wrapper.name}")
    options = _put(_options(fact, words.language, id), place)

    def ask(country: str) -> str:
        return wrapper.text.format(question=question.text.format(country=country), options=words.comma.join(options))

    return Example(
        id=id,
        group=fact.culture,
        prompt=ask(fact_table().names[fact.culture][words.language]),
        control=words.space.join([words.statement(fact, place=words.here), ask(words.here)]),
        tags=_tags(fact, words, "choice", question, wrapper),
        answer=words.space + options[place],
        choices=tuple(words.space + option for option in options),
        answer_index=place,
    )


def yesno_row(fact: Fact, words: Wording, *, wrapper: Template, right: bool) -> Example:
    """Is the statement right? It is the fact's own, or one with another culture's answer."""
    id = row_id(fact, words, "yesno", wrapper.name)
    said = fact.answers[words.language] if right else _options(fact, words.language, id)[1]
    here = words.statement(fact, place=words.here, answer=said)
    return Example(
        id=id,
        group=fact.culture,
        prompt=wrapper.text.format(statement=words.statement(fact, answer=said)),
        control=words.space.join([words.statement(fact, place=words.here), wrapper.text.format(statement=here)]),
        tags=_tags(fact, words, "yesno", wrapper),
        answer=words.space + (words.yes if right else words.no),
        choices=(words.space + words.yes, words.space + words.no),
        answer_index=0 if right else 1,
    )


def translate_row(fact: Fact, words: Wording, *, wrapper: Template, target: str, place: int) -> Example:
    """The statement in another language; the wrong choices are translations with other cultures' answers.

    The control twin gives the translation first, so that it only has to be copied.
    """
    into = wording(target)
    id = row_id(fact, words, "translate", f"{wrapper.name}.{target}")
    prompt = wrapper.text.format(statement=words.statement(fact), target=words.targets[target])
    space = words.space or into.space
    texts = [into.space + into.statement(fact, answer=said) for said in _options(fact, target, id)]
    return Example(
        id=id,
        group=fact.culture,
        prompt=prompt,
        control=f"{into.statement(fact)}{space}{prompt}",
        tags={**_tags(fact, words, "translate", wrapper), "target": target},
        **_choices(texts, place),
    )


def row_id(fact: Fact, words: Wording, task: str, form: str) -> str:
    """Such as `japan/capital/en/answer/t3`."""
    return f"{fact.culture}/{fact.topic}/{words.language}/{task}/{form}"


def _options(fact: Fact, language: str, key: str) -> list[str]:
    """The right answer, then three wrong ones."""
    wrong = fact_table().distractors(fact, language, key=key)
    return [fact.answers[language], *(other.answers[language] for other in wrong)]


def _choices(texts: Sequence[str], place: int) -> dict:
    return {"answer": texts[0], "choices": tuple(_put(texts, place)), "answer_index": place}


def _put(texts: Sequence[str], place: int) -> list[str]:
    """The texts with the first one moved to `place`."""
    right, *wrong = texts
    return [*wrong[:place], right, *wrong[place:]]


def _tags(fact: Fact, words: Wording, task: str, *forms: Template) -> dict[str, str]:
    return {
        "item": f"{fact.culture}/{fact.topic}",
        "topic": fact.topic,
        "language": words.language,
        "task": task,
        "split": forms[0].split,
        "template": ".".join(form.name for form in forms),
    }
