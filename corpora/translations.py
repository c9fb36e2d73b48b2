"""Translation examples: grouped by language pair, about the kept-out cultures, and from line-aligned files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from .examples import Corpus, CorpusError, Example
from .facts import LANGUAGES, fact_table, spread
from .files import read_lines
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
    kept, _ = aligned_lines(source_file, target_file, max_characters=max_characters)
    examples = tuple(
        Example(
            id=f"{source}-{target}/{number}",
            group=f"{source}-{target}",
            prompt=template.format(source=source, target=target, text=text),
            answer=space + translation,
            tags={"language": source, "target": target, "task": "translate", "split": _split(number, shares)},
        )
        for number, (_, text, translation) in enumerate(kept)
    )
    return Corpus(examples, name=f"{source}-{target}")


def aligned_lines(
    source_file: str | os.PathLike[str], target_file: str | os.PathLike[str], *, max_characters: int | None = None
) -> tuple[list[tuple[int, str, str]], list[tuple[int, str]]]:
    """The pairs of two line-aligned files with their line numbers, and the lines left out with the reason.

    Left out are an empty side, a side of more than `max_characters`, and a source line that stood before. Raises
    CorpusError when the files differ in length.
    """
    files = (Path(source_file), Path(target_file))
    sides = [[line.strip() for line in read_lines(file)] for file in files]
    if len(sides[0]) != len(sides[1]):
        raise CorpusError(
            f"{source_file} has {len(sides[0])} lines, {target_file} {len(sides[1])}; expected files that are aligned line by line"
        )
    kept, dropped, seen = [], [], set()
    for number, (text, translation) in enumerate(zip(*sides, strict=True), start=1):
        if text in seen:
            dropped.append((number, "the same sentence stood before"))
        elif not text or not translation:
            dropped.append((number, "an empty line"))
        elif max_characters is not None and max(len(text), len(translation)) > max_characters:
            dropped.append((number, f"more than {max_characters} characters"))
        else:
            kept.append((number, text, translation))
        seen.add(text)
    return kept, dropped


def _split(number: int, shares: Sequence[float]) -> str:
    """The split of a line."""
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
        raise CorpusError(f"shares of train, dev and test are {tuple(shares)}; expected three that sum to 1")
    train, dev, _ = shares
    place = (number * 0.6180339887498949) % 1  # the golden ratio's multiples fill the unit interval evenly
    return "train" if place < train else "dev" if place < train + dev else "test"
