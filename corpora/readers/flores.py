"""Reader of FLORES: parallel sentences in 200 languages, as text by language or as translations by language pair."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from ..examples import CorpusError, Example
from ..files import read_lines, read_table
from ..formats import Dropped, Reading, gather, register_format
from ..parts import halves, only, parted, space_before, with_choices, with_others_prompts

SPLITS = {"dev": "dev", "devtest": "test"}
TEMPLATE = "{source}: {text}\n{target}:"
Lines = dict[tuple[str, str], list[str]]


def _looks(path: Path) -> bool:
    return path.is_dir() and any(path.glob("dev/*.dev")) | any(path.glob("devtest/*.devtest")) | any(
        path.glob("*.devtest")
    )


@register_format(
    "flores",
    title="FLORES-200 and FLORES-101: parallel sentences (dev/LANG.dev, devtest/LANG.devtest)",
    source="https://github.com/facebookresearch/flores",
    licence="CC BY-SA 4.0",
    looks=_looks,
)
def read_flores(
    path: Path,
    *,
    pairs: Annotated[
        str | None, "Translations: pairs joined by commas, such as eng_Latn>deu_Latn; none: the text."
    ] = None,
    languages: Annotated[str | None, "Only these languages, joined by commas, such as deu_Latn,zho_Hans."] = None,
    template: Annotated[str, "Prompt of a translation, with {source}, {target} and {text} in it."] = TEMPLATE,
) -> Reading:
    """FLORES (NLLB Team 2022, arXiv 2207.04672) in its layout: `dev/LANG.dev` and `devtest/LANG.devtest`, a sentence a line.

    As text the group is the language: the prompt is the first half of a sentence, the answer the second, the wrong
    choices are others' second halves of about that length; there is no control. As translations the group is the pair;
    the control asks with another sentence: it controls for the two languages and the form, not for the meaning carried.
    A sentence's translations share the item `flores/SPLIT/LINE`; `devtest` becomes the split `test`. The topic comes from
    `metadata_dev.tsv` where it is there. Dropped: empty lines. Raises CorpusError when files of a part differ in length.
    """
    lines = _lines(path, languages)
    topics = {part: _topics(path, part) for part in SPLITS}
    made = _texts(lines, topics) if pairs is None else _translations(lines, pairs.split(","), template, topics)
    kept, dropped = parted(made)
    examples = with_choices(kept)
    twinned = examples if pairs is None else with_others_prompts(examples)
    return gather(twinned, name="flores", dropped=dropped)


def _lines(path: Path, languages: str | None) -> Lines:
    """The lines of every part and language, checked to be aligned."""
    files: dict[str, list[tuple[str, Path]]] = {}
    for part in SPLITS:
        for file in sorted((*path.glob(f"*.{part}"), *path.glob(f"{part}/*.{part}"))):
            files.setdefault(file.stem, []).append((part, file))
    chosen = only(files, languages, path=path, what="file LANG.dev or LANG.devtest (here, in dev/ or devtest/)")
    lines = {(part, language): read_lines(file) for language, found in chosen.items() for part, file in found}
    for part in SPLITS:
        lengths = {language: len(texts) for (other, language), texts in lines.items() if other == part}
        if len(set(lengths.values())) > 1:
            shortest, longest = min(lengths, key=lengths.__getitem__), max(lengths, key=lengths.__getitem__)
            raise CorpusError(
                f"{path}: {shortest}.{part} has {lengths[shortest]} lines, {longest}.{part} {lengths[longest]}; "
                "expected files that are aligned line by line"
            )
    return lines


def _topics(path: Path, part: str) -> list[str]:
    file = path / f"metadata_{part}.tsv"
    return [row["topic"].strip() for _, row in read_table(file, columns=("topic",))] if file.is_file() else []


def _tags(part: str, place: int, language: str, topics: dict[str, list[str]]) -> dict[str, str]:
    tags = {"item": f"flores/{part}/{place + 1}", "language": language, "split": SPLITS[part]}
    topic = next(iter(topics[part][place : place + 1]), "")
    return tags | ({"topic": topic} if topic else {})


def _texts(lines: Lines, topics: dict[str, list[str]]) -> Iterator[Example | Dropped]:
    for (part, language), texts in lines.items():
        for place, text in enumerate(texts):
            head, tail = halves(text)
            if not head:
                yield Dropped(f"{language}.{part}, line {place + 1}", "an empty line or a single character")
                continue
            yield Example(
                f"{language}/{part}/{place + 1}", language, head, tail, tags=_tags(part, place, language, topics)
            )


def _translations(
    lines: Lines, pairs: list[str], template: str, topics: dict[str, list[str]]
) -> Iterator[Example | Dropped]:
    known = {language for _, language in lines}
    for pair in pairs:
        source, arrow, target = pair.strip().partition(">")
        if not arrow or source not in known or target not in known:
            raise CorpusError(
                f"expected pairs such as eng_Latn>deu_Latn of the languages {', '.join(sorted(known))}, found {pair!r}"
            )
        for part in SPLITS:
            both = zip(lines.get((part, source), []), lines.get((part, target), []), strict=True)
            for place, (text, translation) in enumerate((a.strip(), b.strip()) for a, b in both):
                id = f"{source}-{target}/{part}/{place + 1}"
                if not text or not translation:
                    yield Dropped(id, "an empty line")
                    continue
                prompt = template.format(source=source, target=target, text=text)
                tags = _tags(part, place, source, topics) | {"target": target, "task": "translate"}
                yield Example(id, f"{source}-{target}", prompt, space_before(target) + translation, tags=tags)
