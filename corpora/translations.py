"""Translation examples: grouped by language pair, about the kept-out cultures, and from line-aligned files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from .examples import Corpus, CorpusError, Example
from .facts import LANGUAGES, fact_table, spread
from .tasks import row_id, translate_row
from .wording import wording

Shares = tuple[float, float, float]


def language_pairs(corpus: Corpus, *, source: str = "language", target: str = "target") -> Corpus:
    """The same examples grouped by language pair, such as `en-es`; the former group becomes the tag `group`.

    `source` and `target` name the tags that say from and into which language an example translates. Raises CorpusError
    for an example that lacks one.
    """
    examples = []
    for example in corpus:
        for tag in (source, target):
            if tag not in example.tags:
                raise CorpusError(
                    f"example {example.id!r} has no tag {tag!r}, so its language pair is not known; keep the "
                    "translations alone (only(task='translate')), or name the tag"
                )
        pair = f"{example.tags[source]}-{example.tags[target]}"
        examples.append(replace(example, group=pair, tags={**example.tags, "group": example.group}))
    return Corpus(tuple(examples), name=f"{corpus.name} by language pair")


@cache
def polis_new_translations() -> Corpus:
    """Every statement about the four kept-out cultures in all six directions and all wordings, grouped by language pair.

    The bundled model never saw these countries' names and answers, so there is something to learn here, where the
    translations of `polis_tasks()` are known to it.
    """
    table = fact_table()
    rows = {
        row_id(fact, words, "translate", f"{wrapper.name}.{target}"): (fact, words, wrapper, target)
        for culture in table.cultures("kept-out")
        for topic in table.topics
        for fact in (table.facts[culture, topic],)
        for words in map(wording, LANGUAGES)
        for target in words.targets
        for wrapper in words.wrappers["translate"]
    }
    cells = {id: (f.culture, w.language, target, form.split) for id, (f, w, form, target) in rows.items()}
    places = spread(cells, num=4)
    examples = tuple(
        translate_row(fact, words, wrapper=wrapper, target=target, place=places[id])
        for id, (fact, words, wrapper, target) in rows.items()
    )
    return replace(language_pairs(Corpus(examples)), name="polis-new-translations")


def parallel_corpus(
    source_file: str | os.PathLike[str],
    target_file: str | os.PathLike[str],
    *,
    source: str,
    target: str,
    template: str = "{source}: {text}\n{target}:",
    space: str = " ",
    shares: Shares = (0.8, 0.1, 0.1),
    max_characters: int | None = None,
) -> Corpus:
    """Translations from two files whose lines belong together, line by line (the layout of Moses, OPUS and Tatoeba).

    The prompt is `template` with the gaps source, target and text; the answer is `space` and the other file's line.
    Lines are dealt out to train, dev and test by `shares`, evenly over the file and alike in every pair. Pairs with a side
    of more than `max_characters` are left out, and so is an empty line. Of a source line that stands twice the first counts.

    Raises CorpusError when the files differ in length or hold no pair.
    """
    sides = [Path(file).read_text(encoding="utf-8").splitlines() for file in (source_file, target_file)]
    if len(sides[0]) != len(sides[1]):
        raise CorpusError(
            f"{source_file} has {len(sides[0])} lines, {target_file} {len(sides[1])}; expected files that are aligned line by line"
        )
    limit = max_characters or max(map(len, sides[0] + sides[1]), default=0)
    pairs: dict[str, str] = {}
    for text, translation in zip(*sides, strict=True):
        pairs.setdefault(text.strip(), translation.strip())
    kept = [(a, b) for a, b in pairs.items() if a and b and max(len(a), len(b)) <= limit]
    examples = tuple(
        Example(
            id=f"{source}-{target}/{number}",
            group=f"{source}-{target}",
            prompt=template.format(source=source, target=target, text=text),
            answer=space + translation,
            tags={"language": source, "target": target, "task": "translate", "split": _split(number, shares)},
        )
        for number, (text, translation) in enumerate(kept)
    )
    return Corpus(examples, name=f"{source}-{target}")


def _split(number: int, shares: Sequence[float]) -> str:
    """The split of a line."""
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
        raise CorpusError(f"shares of train, dev and test are {tuple(shares)}; expected three that sum to 1")
    train, dev, _ = shares
    place = (number * 0.6180339887498949) % 1  # the golden ratio's multiples fill the unit interval evenly
    return "train" if place < train else "dev" if place < train + dev else "test"
