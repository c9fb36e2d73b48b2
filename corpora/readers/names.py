"""Reader of surnames by language: a file per language, a name on every line."""

from __future__ import annotations

import zlib
from collections import defaultdict
from pathlib import Path
from typing import Annotated

from ..examples import CorpusError, Example
from ..files import files_in, read_lines
from ..formats import Dropped, Reading, gather, register_format
from ..parts import evenly, placed

TEMPLATE = "The surname {name} comes from the language"
BARE = "The surname comes from the language"


def _looks(path: Path) -> bool:
    return any((path / below / "Russian.txt").is_file() for below in ("", "names", "data/names"))


@register_format(
    "names",
    title="surnames in 18 languages (data/names/LANGUAGE.txt)",
    source="https://github.com/spro/practical-pytorch/tree/master/data/names",
    licence="MIT",
    looks=_looks,
)
def read_names(
    path: Path,
    *,
    num: Annotated[int, "Choices of languages, with the right one, where there are as many."] = 4,
    most: Annotated[int | None, "Names to take from a language, evenly spread; all by default."] = None,
    template: Annotated[str, "Prompt, with {name} in it; what is left without it is the control."] = TEMPLATE,
) -> Reading:
    """Surnames by language in the layout of PyTorch's tutorial on names; the path is the repository or its folder of files.

    The language is the group and the answer; the wrong choices are other languages, others for every name. The control
    leaves the name out: it controls for the frame and for how likely the language's word is anyway. The item is the name.
    Dropped: a name that stands twice in its language, and one that stands in several (it would mark neurons of neither).
    """
    if "{name}" not in template or num < 2:
        raise CorpusError(f"expected {{name}} in the template and two or more choices, found {template!r} and {num}")
    files = [file for file in files_in(path, "*.txt", "names/*.txt", "data/names/*.txt") if file.stem[:1].isupper()]
    if len(files) < 2:
        raise CorpusError(f"{path}: {len(files)} file LANGUAGE.txt, expected two or more to choose between")
    owners: dict[str, set[str]] = defaultdict(set)
    listed = {file.stem: [name.strip() for name in read_lines(file)] for file in files}
    for language, names in listed.items():
        for name in names:
            owners[name.casefold()].add(language)
    control = " ".join(template.replace("{name}", " ").split())
    examples: list[Example] = []
    dropped: list[Dropped] = []
    for language, names in listed.items():
        kept, left = _own(language, names, owners)
        dropped += left
        chosen = evenly(kept, most)
        examples += [_example(name, language, list(listed), num, template, control) for name in chosen]
    return gather(examples, name="names", dropped=dropped)


def _own(language: str, names: list[str], owners: dict[str, set[str]]) -> tuple[list[str], list[Dropped]]:
    """The names that stand in this language alone, each once."""
    kept: dict[str, str] = {}
    dropped = []
    for line, name in enumerate(names, start=1):
        where, key = f"{language}.txt, line {line}", name.casefold()
        if name and len(owners[key]) > 1:
            dropped.append(Dropped(where, "the name stands under several languages"))
        elif key in kept:
            dropped.append(Dropped(where, "the name stands twice"))
        elif name:
            kept[key] = name
    return list(kept.values()), dropped


def _example(name: str, language: str, known: list[str], num: int, template: str, control: str) -> Example:
    others = sorted(set(known) - {language}, key=lambda other: zlib.crc32(f"{name}/{other}".encode()))
    choices, place = placed(f" {language}", [f" {other}" for other in others[: num - 1]], key=name)
    tags = {"item": name, "language": language, "task": "origin"}
    return Example(
        f"{language}/{name}", language, template.replace("{name}", name), choices[place], choices, place, control, tags
    )
