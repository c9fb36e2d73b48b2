"""CultureSPA's loop on a tiny survey over the bundled model's facts: are culture neurons enough to tune?

The survey: for every topic of polis, which of four cultures' things is "this country's"; a culture's majority answer is its own.
The subject: polis, taught to answer such questions by number on half of the topics (all parameters, with its own rows mixed
in). It then answers questions about all topics in the training wordings, culture-unaware and culture-aware; where the two
differ, the culture-aware answer is learned: by one LoRA for all cultures, by one LoRA each, by each culture's neurons (located on
the same instances), and by as many random neurons. Alignment is measured on the survey's questions in the test wordings;
general ability on polis's own test questions (English, all twelve cultures). No step sees a right answer but the first.

What this leaves out: polis cannot write questions, so its training wordings stand in for generated ones, and nothing here is
a value that people hold.

    python benchmarks/culture_spa_polis.py --out polis-spa
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import neuropolis as npl
from neuropolis.attribution.generators import LocalGenerator, Sampling
from neuropolis.corpora.facts import fact_table, stable_hash
from neuropolis.corpora.survey import Culture, Question, Survey
from neuropolis.corpora.wording import wording
from neuropolis.finetune.compare_translation import ended
from neuropolis.finetune.culture_spa.answers import (
    answer_questions,
    answers_by_culture,
    collect_instances,
    read_answers,
)
from neuropolis.finetune.culture_spa.tuning import answer_tuned, tune_cultures
from neuropolis.finetune.recipe import Recipe
from neuropolis.finetune.trainable import trainable_slice

CULTURES = ("japan", "india", "france", "mexico")
GREEDY = Sampling(temperature=0, max_new_tokens=3)
WORDS = {
    "unaware": "Somewhere.", "aware": "{culture}.", "thinking": "", "writer": "", "write": "",
    "question": "Question: {question} Options: {options}.",
    "control": "The answer is {option}. Question: {question} Options: {options}.",
}  # fmt: skip


def say(text: str) -> None:
    print(text, flush=True)


def survey_of(split: str) -> Survey:
    """The survey whose questions are a split's templates in English; options stand in an order of the question's own."""
    table, words = fact_table(), wording("en")
    questions, shares = [], {culture: {} for culture in CULTURES}
    for topic in table.topics:
        answers = {culture: table.facts[culture, topic].answers["en"] for culture in CULTURES}
        for template in (one for one in words.topics[topic].questions if one.split == split):
            id = f"{topic}/{template.name}"
            options = sorted(set(answers.values()), key=lambda text: stable_hash(id, text))
            questions.append(Question(id, template.text.format(country=words.here), tuple(options), topic))
            for culture in CULTURES:
                shares[culture][id] = {options.index(answers[culture]) + 1: 1.0}
    cultures = {culture: Culture(table.names[culture]["en"]) for culture in CULTURES}
    return Survey("Polis Survey", tuple(questions), cultures, shares, WORDS)


def taught(subject: npl.Subject, survey: Survey, steps: int) -> npl.Subject:
    """Polis that answers by number, learned on every other topic, with its own questions and choices mixed in."""
    shown = [e for e in npl.survey_corpus(survey, chat=False) if survey.topics.index(e.tags["topic"]) % 2 == 0]
    own = npl.load_corpus("bundled:polis-tasks", split="train")
    kept = [e for e in own if e.tags["language"] == "en" and e.tags["task"] in ("answer", "choice")]
    mixed = npl.Corpus(
        (*ended(subject, npl.Corpus(tuple(shown))), *kept[:: max(1, len(kept) // (2 * len(shown)))]), name="numbers"
    )
    return npl.finetune_full(subject, mixed, lr=1e-3, steps=steps, batch_size=16, split=None).merge(subject)


def scores(survey: Survey, answers: Path) -> tuple[npl.Alignment, float]:
    """Alignment, and the mean over cultures for the topics that were not shown with right answers."""
    said = answers_by_culture(survey, read_answers(answers))
    new = {question.id for question in survey.questions if survey.topics.index(question.topic) % 2}
    part = {culture: {id: text for id, text in one.items() if id in new} for culture, one in said.items()}
    return npl.alignment(survey, said), npl.alignment(survey, part).mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the stages' files")
    parser.add_argument("--steps", type=int, default=400, help="steps in which polis learns to answer by number")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--top", type=float, default=0.02, help="share of the neurons of each culture")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(exist_ok=True)
    asked, survey = survey_of("train"), survey_of("test")
    subject = taught(npl.load_model("bundled:polis"), asked, arguments.steps)
    general = npl.load_corpus("bundled:polis", by="language", split="test", groups="en")
    before = float(npl.answer_correct(subject, general).float().mean())
    answer_questions(survey, survey.questions, LocalGenerator(subject, 64), out / "before.jsonl", sampling=GREEDY)
    answer_questions(asked, asked.questions, LocalGenerator(subject, 64), out / "answers.jsonl", sampling=GREEDY)
    counts = collect_instances(asked, asked.questions, out / "answers.jsonl", out / "instances.jsonl", chat=False)
    instances = npl.load_corpus(out / "instances.jsonl")
    right = [e.answer == f" {asked.majority(e.group)[e.item]}" for e in instances]
    table, new = scores(survey, out / "before.jsonl")
    unaware = npl.alignment(survey, answers_by_culture(survey, read_answers(out / "before.jsonl"), asking="unaware"))
    say(
        f"{len(instances)} instances of {sum(c.compared for c in counts.values())}, {statistics.mean(right):.1%} of them right"
    )
    say(f"{'':<22}{'numbers':>9}{'aware':>8}{'new topics':>12}{'valid':>7}{'general':>9}")
    say(f"{'random answers':<22}{'':>9}{float(table.chance.mean()):>8.2f}")
    say(f"{'the middle option':<22}{'':>9}{float(table.middle.mean()):>8.2f}")
    say(f"{'unaware, untuned':<22}{'':>9}{unaware.mean:>8.2f}")
    say(f"{'untuned':<22}{'':>9}{table.mean:>8.2f}{new:>12.2f}{int(table.valid.sum()):>7}{before:>9.1%}")
    found = npl.attribute(subject, instances, split=None)
    sets = npl.select(found, top=arguments.top, contrast="others")
    with trainable_slice(subject, next(iter(sets.values()))) as one:
        rank = max(1, round(one.num_parameters / _of_rank_one(subject)))
    for way, each, lr in (("lora", False, 1e-3), ("lora", True, 1e-3), ("neurons", True, 1e-3), ("random", True, 1e-3)):
        rows: list[tuple[float, float, float, float]] = []
        numbers: list[int] = []
        for seed in range(arguments.seeds):
            chosen = {g: npl.NeuronSet.random(s, seed=seed) for g, s in sets.items()} if way == "random" else sets
            name = f"{way}-{'each' if each else 'joint'}-{seed}"
            tuned = tune_cultures(
                subject, instances, out / name, way="neurons" if way == "random" else way, each=each, sets=chosen, rank=rank,  # pyright: ignore[reportArgumentType]
                recipe=Recipe(lr, epochs=arguments.epochs, seed=seed), tell=lambda _, count, numbers=numbers: numbers.append(count),
            )  # fmt: skip
            answer_tuned(subject, tuned, survey, out / f"{name}.jsonl", rows=64, sampling=GREEDY)
            table, new = scores(survey, out / f"{name}.jsonl")
            after = []
            for member in tuned.members:
                with tuned.applied(subject, member):
                    after.append(float(npl.answer_correct(subject, general).float().mean()))
            rows.append((table.mean, new, int(table.valid.sum()), statistics.mean(after)))
        means: list[Any] = [statistics.mean(column) for column in zip(*rows, strict=True)]
        spread = max(row[0] for row in rows) - min(row[0] for row in rows)
        label = f"{way}, {'each' if each else 'joint'}"
        say(
            f"{label:<22}{numbers[0] if numbers else 0:>9}{means[0]:>8.2f}{means[1]:>12.2f}{means[2]:>7.0f}{means[3]:>9.1%}"
            f"   range over seeds {spread:.2f}"
        )


def _of_rank_one(subject: npl.Subject) -> int:
    from neuropolis.finetune.culture_spa.adapters import projections

    return sum(sum(subject.model.get_submodule(path).weight.shape) for path in projections(subject))


if __name__ == "__main__":
    main()
