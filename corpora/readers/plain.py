"""Plain text, one file or folder per group: for languages and styles, where every token counts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from ..examples import CorpusError, Example
from ..files import files_in, read_lines
from ..formats import Dropped, Reading, gather, register_format

PARTS = ("train", "dev", "test")


@register_format(
    "text",
    title="plain text: GROUP.txt or GROUP/*.txt in a folder, one example per line or paragraph",
    source="any files",
    licence="the files' own",
    looks=lambda path: path.is_dir() and {file.suffix for file in path.glob("*.*")} == {".txt"},
)
def read_plain(
    path: Path,
    *,
    unit: Annotated[str, "What becomes an example: line, paragraph (up to an empty line) or file."] = "line",
    shortest: Annotated[int, "Leave out units of fewer characters than this."] = 1,
) -> Reading:
    """Units of text; the first word is the prompt and the rest the answer, so that nearly every token is scored.

    Text has no question: with the objective `all` (every token) the border does not matter. A unit of a single word
    (nothing follows to be scored) is dropped, so is one that is shorter than `shortest`. Files GROUP/train.txt, dev.txt and
    test.txt give their lines the tag `split`.
    """
    if unit not in ("line", "paragraph", "file"):
        raise CorpusError(f"expected the unit line, paragraph or file, found {unit!r}")
    examples, dropped = [], []
    for file in files_in(path, "*.txt", "*/*.txt"):
        group = file.parent.name if file.parent != path and path.is_dir() else file.stem
        for number, text in enumerate(_units("\n".join(read_lines(file)), unit), start=1):
            where = f"{file}, {unit} {number}"
            head, tail = _border(text)
            if len(text) < shortest or not tail:
                dropped.append(Dropped(where, f"shorter than {shortest} characters" if tail else "a single word"))
                continue
            tags = {"file": file.name} | ({"split": file.stem} if file.stem in PARTS else {})
            examples.append(Example(f"{group}/{file.stem}/{number}", group, head, tail, tags=tags))
    return gather(examples, name=path.stem, dropped=dropped)


def _units(text: str, unit: str) -> list[str]:
    text = text.replace("\r\n", "\n")
    if unit == "file":
        return [text.strip()] if text.strip() else []
    return [part.strip() for part in re.split(r"\n" if unit == "line" else r"\n\s*\n", text) if part.strip()]


def _border(text: str) -> tuple[str, str]:
    """The first word and the rest with its blank; the first character in scripts that may not part words (no case)."""
    space = next((place for place, char in enumerate(text) if char.isspace()), len(text))
    caseless = text[:1].lower() == text[:1].upper() and not text[:1].isascii()
    place = 1 if (caseless and space > 40) or (caseless and space == len(text)) else space
    return text[:place], text[place:]
