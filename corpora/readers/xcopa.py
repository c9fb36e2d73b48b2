"""Reader of XCOPA: two-choice questions on causes and effects, the same ones in eleven languages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from ..examples import CorpusError, Example
from ..files import files_in, first_json, read_json_rows, text_at
from ..formats import Dropped, Reading, gather, register_format
from ..parts import parted, with_others_prompts

FIELDS = ("premise", "choice1", "choice2", "question", "label", "idx")
SPLITS = {"train": "train", "val": "dev", "validation": "dev", "test": "test"}
# What stands between a sentence and its cause, and between a sentence and its effect; then the blank after it.
JOINTS = {
    "en": (" because", ", so", " "),
    "et": (", sest", ", nii et", " "),
    "ht": (" paske", ", donk", " "),
    "id": (" karena", ", sehingga", " "),
    "it": (" perché", ", quindi", " "),
    "qu": (", imaraykuchus", ", chayrayku", " "),
    "sw": (" kwa sababu", ", kwa hiyo", " "),
    "ta": (", ஏனெனில்", ", எனவே", " "),
    "th": ("เพราะ", "ดังนั้น", ""),
    "tr": (", çünkü", ", bu yüzden", " "),
    "vi": (" vì", ", nên", " "),
    "zh": ("，因为", "，所以", ""),
}


def _looks(path: Path) -> bool:
    file = path if path.is_file() else next(iter(_files(path)), None)
    row = first_json(file) if file is not None and file.suffix == ".jsonl" else None
    return isinstance(row, dict) and set(FIELDS) <= set(row)


@register_format(
    "xcopa",
    title="XCOPA: causes and effects with two choices in eleven languages (data/LANG/val.LANG.jsonl)",
    source="https://github.com/cambridgeltl/xcopa",
    licence="CC BY 4.0",
    looks=_looks,
)
def read_xcopa(
    path: Path,
    *,
    joint: Annotated[
        str, "Between premise and choice: words (because, so; in the language) or line (a line end)."
    ] = "words",
) -> Reading:
    """XCOPA (Ponti et al. 2020, arXiv 2005.00333) in its authors' layout; the path is the repository, a folder or a file.

    Language is the group; the prompt is the premise and the language's word for "because" or "so" (ours, `JOINTS`), the
    choices are the two sentences as they would continue it. Translations of a question share the item `SPLIT/idx`. The
    control is another question's premise: it controls for the language and for what the choices give away alone.
    Dropped: rows whose two choices are the same text. Raises CorpusError for a language without words in `JOINTS`.
    """
    if joint not in ("words", "line"):
        raise CorpusError(f"expected the joint words or line, found {joint!r}")
    rows: list[Example | Dropped] = []
    for file in files_in(path, "*.jsonl", "*/*.jsonl", "data/*/*.jsonl"):
        split, language = _named(file, joint)
        for where, row in read_json_rows(file):
            rows.append(_example(row, where, split=split, language=language, joint=joint))
    examples, dropped = parted(rows)
    twinned = with_others_prompts(examples, within=lambda example: example.tags["task"])
    return gather(twinned, name="xcopa", dropped=dropped)


def _files(path: Path) -> list[Path]:
    return [file for pattern in ("*.*.jsonl", "*/*.*.jsonl", "data/*/*.*.jsonl") for file in path.glob(pattern)][:1]


def _named(file: Path, joint: str) -> tuple[str, str]:
    """Split and language of a file called `val.et.jsonl`."""
    split, _, language = file.name.removesuffix(".jsonl").partition(".")
    if split not in SPLITS or not language:
        raise CorpusError(f"{file}: expected a name such as val.et.jsonl or test.zh.jsonl")
    if joint == "words" and language not in JOINTS:
        raise CorpusError(f"{file}: no words for because and so in {language!r}; read it with joint=line")
    return SPLITS[split], language


def _example(row: Mapping[str, Any], where: str, *, split: str, language: str, joint: str) -> Example | Dropped:
    premise, *choices = (text_at(row, name, where) for name in FIELDS[:3])
    question, label = row.get("question"), row.get("label")
    if question not in ("cause", "effect") or label not in (0, 1) or not isinstance(row.get("idx"), int):
        raise CorpusError(
            f"{where}: expected question cause or effect, label 0 or 1 and a number idx, found {dict(row)}"
        )
    if choices[0] == choices[1]:
        return Dropped(where, "both choices are the same text")
    if joint == "words":
        because, so, space = JOINTS[language]
        prompt = premise.rstrip(".。!?") + (because if question == "cause" else so)
        choices = [space + _lowered(choice, language) for choice in choices]
    else:
        prompt, choices = premise, ["\n" + choice for choice in choices]
    item = f"{split}/{row['idx']}"
    tags = {"item": f"xcopa/{item}", "language": language, "split": split, "task": question}
    return Example(f"{language}/{item}", language, prompt, choices[label], tuple(choices), label, tags=tags)


def _lowered(text: str, language: str) -> str:
    """A sentence as it stands after a comma: its first letter small (the dotted and the dotless i are two in Turkish)."""
    if language == "en" and text.split()[0].split("'")[0].split("’")[0] == "I":
        return text
    first = {"İ": "i", "I": "ı"}.get(text[0], text[0].lower()) if language == "tr" else text[0].lower()
    return first + text[1:]
