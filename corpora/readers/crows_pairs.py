"""Reader of CrowS-Pairs: two sentences that differ in the group of people they are about."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ..examples import CorpusError, Example
from ..files import files_in, header_of, holds, read_table, text_at
from ..formats import Dropped, Reading, check_option, gather, register_format
from ..lettered import place_by

COLUMNS = ("sent_more", "sent_less", "stereo_antistereo", "bias_type")
PATTERNS = ("crows_pairs_anonymized.csv", "data/crows_pairs_anonymized.csv")
LEAD = "Sentence:"


@register_format(
    "crows-pairs",
    title="CrowS-Pairs: a more and a less stereotyped sentence, by kind of bias",
    source="https://github.com/nyu-mll/crows-pairs",
    licence="CC BY-SA 4.0",
    looks=lambda path: holds(path, *PATTERNS, of=lambda file: set(COLUMNS) <= set(header_of(file))),
)
def read_crows_pairs(
    path: Path,
    *,
    answer: Annotated[str, "Which sentence is scored: less (stereotyped), or more."] = "less",
    twin: Annotated[str, "The control: copy (the sentence stands before, to be repeated), none."] = "copy",
) -> Reading:
    """`data/crows_pairs_anonymized.csv` of the authors' repository (Nangia et al. 2020, EMNLP).

    The group is the kind of bias. The prompt is "Sentence:" and the words with which both sentences begin, the choices are
    how each goes on from the first word that differs: a model of language, not a test taker, decides which is likelier.
    (The authors score masked models by the words that both share; for these use their own program.) A sentence that
    begins differently has no shared words, hence the word before it. The twin says the wanted sentence first, so that the
    same continuation only has to be copied. `antistereo` pairs have the tag `direction`. Dropped: a pair
    that stood before, and pairs of which one sentence begins with the whole other one, which has no continuation.
    """
    check_option(answer, option="answer", known=("less", "more"))
    check_option(twin, option="twin", known=("copy", "none"))
    examples, dropped, seen = [], [], set()
    for number, (where, row) in enumerate(read_table(files_in(path, *PATTERNS)[0], columns=COLUMNS), start=1):
        sentences = {name: " ".join(text_at(row, f"sent_{name}", where).split()) for name in ("less", "more")}
        if row["stereo_antistereo"] not in ("stereo", "antistereo"):
            raise CorpusError(f"{where}: expected stereo or antistereo, found {row['stereo_antistereo'][:40]!r}")
        if (*sentences.values(),) in seen:
            dropped.append(Dropped(where, "the same pair as in an earlier row"))
            continue
        seen.add((*sentences.values(),))
        shared = _shared_words(*sentences.values())
        prompt = " ".join((LEAD, *shared))
        rest = {name: f"{LEAD} {sentence}".removeprefix(prompt) for name, sentence in sentences.items()}
        if not all(rest.values()):
            dropped.append(Dropped(where, "one sentence begins with the whole other one"))
            continue
        place = place_by(f"crows-pairs/{number}", 2)
        other = rest["more" if answer == "less" else "less"]
        choices = (rest[answer], other) if place == 0 else (other, rest[answer])
        tags = {"item": str(number), "direction": row["stereo_antistereo"], "language": "en"}
        control = f"{LEAD} {sentences[answer]}\n{prompt}" if twin == "copy" else None
        examples.append(
            Example(
                f"crows-pairs/{number}",
                text_at(row, "bias_type", where),
                prompt,
                rest[answer],
                choices,
                place,
                control,
                tags,
            )
        )
    return gather(examples, name="crows-pairs", dropped=dropped)


def _shared_words(one: str, other: str) -> list[str]:
    """The words with which both begin."""
    words = []
    for left, right in zip(one.split(), other.split(), strict=False):
        if left != right:
            break
        words.append(left)
    return words
