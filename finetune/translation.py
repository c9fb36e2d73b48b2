"""Translation: greedy generation in batches, and its quality by chrF and BLEU."""

from __future__ import annotations

from collections.abc import Sequence

from ..attribution.generation import generated
from ..corpora.examples import Corpus
from ..neurons.subject import Subject
from .errors import TuneError

METRICS = ("chrf", "bleu")
BY_CHARACTER = frozenset({"ja", "ko", "th", "lo", "km", "my"})


def translate(
    subject: Subject,
    corpus: Corpus,
    *,
    max_new_tokens: int = 64,
    batch_size: int = 64,
    stops: Sequence[str] = ("\n",),
) -> list[str]:
    """What the subject says after each prompt, in the corpus's order: greedy, up to its end-of-text token or a stop.

    A translation is cut before the first of `stops` in it (blanks before it aside), and stripped of blanks. Prompts of
    similar length go together, padded on the left and masked.
    """
    return generated(subject, corpus, max_new_tokens=max_new_tokens, batch_size=batch_size, stops=stops)


def translation_quality(
    translations: Sequence[str], references: Sequence[str], *, language: str
) -> tuple[float, float]:
    """(chrF, BLEU) of a corpus by sacrebleu, both from 0 to 100; one reference a sentence.

    chrF is chrF2 (Popovic 2015: characters up to order 6, no words, beta 2). BLEU takes the words of `13a`; Chinese (zh)
    is taken apart by sacrebleu's `zh`, languages without spaces or with long words between them by characters.

    Raises TuneError when sacrebleu is not installed.
    """
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise TuneError("chrF and BLEU need sacrebleu; pip install 'neuropolis[translation]'") from error
    tokens = "zh" if language.startswith("zh") else "char" if language[:2] in BY_CHARACTER else "13a"
    said, meant = [text.strip() for text in translations], [[text.strip() for text in references]]
    return CHRF().corpus_score(said, meant).score, BLEU(tokenize=tokens).corpus_score(said, meant).score


def pair_quality(subject: Subject, corpus: Corpus, *, max_new_tokens: int = 64) -> dict[str, tuple[float, float]]:
    """(chrF, BLEU) of every group of a corpus of translations; the target language is the tag `target`.

    Raises TuneError when an example of a group has no such tag, or another than the rest.
    """
    said = translate(subject, corpus, max_new_tokens=max_new_tokens)
    found = {}
    for group in corpus.groups:
        rows = [row for row, example in enumerate(corpus) if example.group == group]
        languages = {corpus[row].tags.get("target") for row in rows}
        if len(languages) != 1 or None in languages:
            raise TuneError(
                f"group {group!r} has the target languages {sorted(map(str, languages))}; expected one, as the tag "
                "'target' of every example (group the corpus with language_pairs)"
            )
        references = [corpus[row].answer for row in rows]
        found[group] = translation_quality([said[row] for row in rows], references, language=str(languages.pop()))
    return found
