"""What a corpus's texts are made of: counts, lengths, writing systems, damage, and what they cost in tokens."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import mean, median
from typing import Any

from .examples import Corpus, Example
from .near import plain_text

UNSPACED = frozenset({"Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan"})
_KNOWN = {"CJK": "Han", "IDEOGRAPHIC": "Han", "KATAKANA-HIRAGANA": "Katakana", "COMBINING": None, "MODIFIER": None}
_MINOR = 0.05  # a writing system with less than this share of a cell's letters is not one of the cell's own


@dataclass(frozen=True)
class Count:
    """Rows and items of a group in a split (None: rows without the tag), and how many rows lack a control twin."""

    group: str
    split: str | None
    rows: int
    items: int
    without_control: int


@dataclass(frozen=True)
class Writing:
    """The texts of one language (or group): medians of characters, shares of letters by writing system, and rows in another one.

    A writing system is the first word of the letters' Unicode names ("Latin", "Han", "Arabic"). It is no language: Latin letters
    may be of any of hundreds. `strays` are ids of rows that are mostly in a writing system that the others hardly use.
    """

    cell: str
    rows: int
    prompt: float
    answer: float
    scripts: Mapping[str, float]
    strays: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fertility:
    """What a tokenizer makes of one language's (or group's) texts, prompts with answers and without special tokens.

    `per_word` is over words with white space between them (Rust et al. 2021), NaN where the writing has none. `premium` is the
    number of tokens for the items that all cells have, relative to the cheapest cell (Petrov et al. 2023), NaN where there are
    none. `unknown` is the share of tokens that the vocabulary does not have.
    """

    cell: str
    per_row: float
    per_word: float
    per_character: float
    per_byte: float
    unknown: float
    premium: float = float("nan")


def cell_names(corpus: Corpus) -> tuple[str, list[str]]:
    """What texts are told apart by, "language" where every row has that tag, else "group", and each row's."""
    if all("language" in one.tags for one in corpus):
        return "language", [one.tags["language"] for one in corpus]
    return "group", [one.group for one in corpus]


def counted(corpus: Corpus) -> tuple[Count, ...]:
    """Rows of every group and split."""
    found = []
    for (group, split), rows in _by(corpus, [(one.group, one.tags.get("split")) for one in corpus]).items():
        missing = sum(one.control is None for one in rows)
        found.append(Count(group, split, len(rows), len({one.item for one in rows}), missing))
    return tuple(found)


def written(corpus: Corpus) -> tuple[Writing, ...]:
    """Lengths and writing systems of every language (or group)."""
    found = []
    for cell, rows in _by(corpus, cell_names(corpus)[1]).items():
        own = [scripts_of(whole_text(one)) for one in rows]
        letters: Counter[str] = sum(own, Counter())
        total = max(1, letters.total())
        shares = {name: count / total for name, count in letters.most_common()}
        strays = [e.id for e, mine in zip(rows, own, strict=True) if _strays(mine, letters)]
        lengths = [len(plain_text(one.prompt)) for one in rows], [len(one.answer) for one in rows]
        found.append(Writing(cell, len(rows), median(lengths[0]), median(lengths[1]), shares, tuple(strays)))
    return tuple(found)


def damaged(corpus: Corpus) -> dict[str, list[str]]:
    """Ids of rows whose text was spoilt by an earlier conversion, by what is seen in them."""
    signs = {
        "the replacement character U+FFFD, which stands where a byte could not be read": lambda text: "�" in text,
        "UTF-8 that was read as a Western code page (such as 'Ã©' for 'é')": _misread,
        "control characters": lambda text: any(unicodedata.category(c) == "Cc" and c not in "\t\n\r" for c in text),
    }
    found: dict[str, list[str]] = {sign: [] for sign in signs}
    for example in corpus:
        text = whole_text(example)
        for sign, seen in signs.items():
            if not text.isprintable() or not text.isascii():
                found[sign] += [example.id] if seen(text) else []
    return {sign: ids for sign, ids in found.items() if ids}


def fertility(corpus: Corpus, tokenizer: Any) -> tuple[Fertility, ...]:
    """Tokens per row, word, character and UTF-8 byte under a Hugging Face tokenizer, for every language (or group)."""
    texts = [whole_text(one) for one in corpus]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    tokens = {one.id: len(own) for one, own in zip(corpus, ids, strict=True)}
    unknown = {one.id: own.count(tokenizer.unk_token_id) for one, own in zip(corpus, ids, strict=True)}
    cells = _by(corpus, cell_names(corpus)[1])
    premiums = _premiums(cells, tokens)
    found = []
    for cell, rows in cells.items():
        own = [whole_text(one) for one in rows]
        count, characters = sum(tokens[one.id] for one in rows), max(1, sum(map(len, own)))
        letters: Counter[str] = sum(map(scripts_of, own), Counter())
        unspaced = sum(letters[name] for name in UNSPACED) > letters.total() / 2
        words = max(1, sum(len(text.split()) for text in own))
        found.append(
            Fertility(
                cell, count / len(rows), float("nan") if unspaced else count / words, count / characters,
                count / max(1, sum(len(text.encode("utf-8", "surrogatepass")) for text in own)),
                sum(unknown[one.id] for one in rows) / max(1, count), premiums.get(cell, float("nan")),
            )
        )  # fmt: skip
    return tuple(found)


def scripts_of(text: str) -> Counter[str]:
    """Letters of a text by writing system."""
    found: Counter[str] = Counter()
    for character, count in Counter(unicodedata.normalize("NFKC", text)).items():
        if (script := _script(character)) is not None:
            found[script] += count
    return found


def whole_text(example: Example) -> str:
    """Prompt and answer."""
    return plain_text(example.prompt) + example.answer


@cache
def _script(character: str) -> str | None:
    if unicodedata.category(character)[0] not in "LM":
        return None
    word = unicodedata.name(character, "other").split()[0]
    return _KNOWN.get(word, word.capitalize())


def _strays(mine: Counter[str], letters: Counter[str]) -> bool:
    """Whether a text is mostly in a writing system that the other texts, of all these `letters`, hardly use."""
    others = letters.total() - mine.total()
    if not mine or not others:
        return False
    main = mine.most_common(1)[0][0]
    return (letters[main] - mine[main]) / others < _MINOR


def _misread(text: str) -> bool:
    if text.isascii():
        return False
    try:
        return text.encode("cp1252").decode("utf-8") != text
    except UnicodeError:
        return False


def _premiums(cells: Mapping[str, Sequence[Example]], tokens: Mapping[str, int]) -> dict[str, float]:
    """Mean tokens of the items that every cell has, relative to the cheapest cell; empty where they share none."""
    shared = set.intersection(*({one.item for one in rows} for rows in cells.values()))
    if len(cells) < 2 or not shared:
        return {}
    costs = {}
    for cell, rows in cells.items():
        by_item: dict[str, list[int]] = {}
        for one in rows:
            if one.item in shared:
                by_item.setdefault(one.item, []).append(tokens[one.id])
        costs[cell] = mean(mean(own) for own in by_item.values())
    return {cell: cost / max(1e-9, min(costs.values())) for cell, cost in costs.items()}


def _by(corpus: Iterable[Example], keys: Sequence[Any]) -> dict[Any, list[Example]]:
    """Rows by key, in order of first appearance."""
    found: dict[Any, list[Example]] = {}
    for example, key in zip(corpus, keys, strict=True):
        found.setdefault(key, []).append(example)
    return found
