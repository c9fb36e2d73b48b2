"""Reader of Tatoeba's test pairs: sentences and their English translations, line by line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from ..examples import CorpusError, Example
from ..files import files_in
from ..formats import Dropped, Reading, gather, register_format
from ..parts import only, parted, space_before, with_choices, with_others_prompts
from ..translations import aligned_lines

NAME = re.compile(r"tatoeba\.([a-z]{2,})-eng\.([a-z]{2,})")
TEMPLATE = "{source}: {text}\n{target}:"


def _looks(path: Path) -> bool:
    return path.is_dir() and any(NAME.fullmatch(file.name) for file in path.glob("tatoeba.*-eng.eng"))


@register_format(
    "tatoeba",
    title="Tatoeba's test pairs with English in LASER's layout (tatoeba.LANG-eng.LANG, tatoeba.LANG-eng.eng)",
    source="https://github.com/facebookresearch/LASER/tree/main/data/tatoeba/v1",
    licence="CC BY 2.0 FR",
    looks=_looks,
)
def read_tatoeba(
    path: Path,
    *,
    direction: Annotated[str, "Translate into English, from English, or both (each a group of its own)."] = "into",
    languages: Annotated[str | None, "Only these languages, joined by commas, such as deu,jpn."] = None,
    template: Annotated[str, "Prompt, with {source}, {target} and {text} in it."] = TEMPLATE,
    longest: Annotated[int | None, "Leave out pairs with a side of more characters than this."] = None,
) -> Reading:
    """The pairs that LASER (Artetxe and Schwenk 2019, arXiv 1812.10464) took from Tatoeba; the path is their folder.

    The pair, such as `deu-eng`, is the group; the wrong choices are translations of three others of about that length.
    The item is the English sentence itself, as it stands in many pairs, so that a split by item keeps them on one side. The
    control asks with another sentence: it controls for the two languages and the form, not for the meaning carried.
    The files are a test set and make no split. Dropped: empty lines, a sentence that stood before, what is too long.
    """
    if direction not in ("into", "from", "both"):
        raise CorpusError(f"expected the direction into, from or both, found {direction!r}")
    if not path.is_dir():
        raise CorpusError(
            f"{path}: expected the folder that holds the pairs tatoeba.LANG-eng.LANG and tatoeba.LANG-eng.eng"
        )
    found = files_in(path, "tatoeba.*-eng.eng")
    codes = {match[1]: file for file in found if (match := NAME.fullmatch(file.name))}
    wanted = only(codes, languages, path=path, what="file tatoeba.LANG-eng.eng of")
    ways = {"into": (False,), "from": (True,), "both": (False, True)}[direction]
    rows = (row for code in wanted for away in ways for row in _pairs(path, code, away, template, longest))
    examples, dropped = parted(rows)
    pairs = with_others_prompts(with_choices(examples))
    return gather(pairs, name="tatoeba", dropped=dropped)


def _pairs(path: Path, code: str, away: bool, template: str, longest: int | None) -> Iterator[Example | Dropped]:
    """The examples of one language, out of English (`away`) or into it."""
    source, target = ("eng", code) if away else (code, "eng")
    stem = f"tatoeba.{code}-eng"
    kept, dropped = aligned_lines(path / f"{stem}.{source}", path / f"{stem}.{target}", max_characters=longest)
    group = f"{source}-{target}"
    for number, text, translation in kept:
        tags = {"item": text if away else translation, "language": source, "target": target, "task": "translate"}
        prompt = template.format(source=source, target=target, text=text)
        yield Example(f"{group}/{number}", group, prompt, space_before(target) + translation, tags=tags)
    for number, why in dropped:
        yield Dropped(f"{stem}.{source}, line {number}", why)
