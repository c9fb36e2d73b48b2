"""Translation: greedy generation in batches, and its quality by chrF and BLEU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from ..attribution.encoding import _rendered, pad_id
from ..corpora.examples import Corpus
from ..neurons.subject import Subject
from .errors import TuneError

METRICS = ("chrf", "bleu")
BY_CHARACTER = frozenset({"ja", "ko", "th", "lo", "km", "my"})
Batch = tuple[list[int], list[list[int]]]


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
    said = [""] * len(corpus)
    ids = [_prompt_ids(subject, corpus, row) for row in range(len(corpus))]
    end = subject.tokenizer.eos_token_id
    with subject.quiet(), torch.no_grad():
        for rows, prompts in _by_length(ids, batch_size):
            length = max(map(len, prompts))
            tokens = torch.full((len(rows), length), pad_id(subject))
            real = torch.zeros_like(tokens)
            for place, prompt in enumerate(prompts):
                tokens[place, length - len(prompt) :] = torch.tensor(prompt)
                real[place, length - len(prompt) :] = 1
            out = subject.model.generate(
                input_ids=tokens.to(subject.device), attention_mask=real.to(subject.device), do_sample=False, num_beams=1,
                max_new_tokens=max_new_tokens, pad_token_id=pad_id(subject), eos_token_id=end,
            )  # fmt: skip
            texts = subject.tokenizer.batch_decode(out[:, length:], skip_special_tokens=True)
            for row, text in zip(rows, texts, strict=True):
                said[row] = _cut(text, stops)
    return said


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


def _prompt_ids(subject: Subject, corpus: Corpus, row: int) -> list[int]:
    prompt = corpus[row].prompt
    if isinstance(prompt, str):
        return list(subject.tokenizer(prompt)["input_ids"])
    text = _rendered(subject, prompt, f"example {corpus[row].id!r}")
    return list(subject.tokenizer(text, add_special_tokens=False)["input_ids"])


def _by_length(ids: Sequence[list[int]], batch_size: int) -> Iterator[Batch]:
    order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        yield rows, [ids[row] for row in rows]


def _cut(text: str, stops: Sequence[str]) -> str:
    text = text.lstrip()
    ends = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(ends, default=len(text))].strip()
