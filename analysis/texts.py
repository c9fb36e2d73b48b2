"""How alike a generated answer and the right one are: exact match, ROUGE-L, chrF; each from 0 to 1 a text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

from ..neurons.errors import SubjectError

# scripts written without blanks between words: every letter is a word of its own
_ALONE = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_WORD = re.compile(rf"{_ALONE.pattern}|[^\W_]+")


class Words:
    """A tokenizer for rouge-score, whose own drops every letter that is not a to z."""

    def tokenize(self, text: str) -> list[str]:
        """Lower-case words; of scripts without blanks between words, letters."""
        spaced = _ALONE.sub(lambda letter: f" {letter[0]} ", unicodedata.normalize("NFKC", text).casefold())
        return _WORD.findall(spaced)


def exact_match(said: Sequence[str], meant: Sequence[str]) -> list[float]:
    """1 where the texts are equal but for blanks around them, else 0."""
    return [float(a.strip() == b.strip()) for a, b in zip(said, meant, strict=True)]


def rouge_l(said: Sequence[str], meant: Sequence[str]) -> list[float]:
    """F-measure of the longest common subsequence of words (Lin 2004), by rouge-score; 0 where either has no word.

    Raises SubjectError when rouge-score is not installed.
    """
    score = rouge_scorer()
    return [score(a, b) for a, b in zip(said, meant, strict=True)]


def chrf(said: Sequence[str], meant: Sequence[str]) -> list[float]:
    """chrF2 of each text (Popovic 2015: characters up to order 6, beta 2), by sacrebleu, divided by 100.

    Raises SubjectError when sacrebleu is not installed.
    """
    score = chrf_scorer()
    return [score(a, b) for a, b in zip(said, meant, strict=True)]


def rouge_scorer() -> Callable[[str, str], float]:
    """ROUGE-L of a text and its reference."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise SubjectError("metric 'rouge_l' needs rouge-score; pip install 'neuropolis[texts]'") from error
    scorer = RougeScorer(["rougeL"], tokenizer=Words())
    return lambda said, meant: float(scorer.score(meant, said)["rougeL"].fmeasure)


def chrf_scorer() -> Callable[[str, str], float]:
    """chrF2 of a text and its reference."""
    try:
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise SubjectError("metric 'chrf' needs sacrebleu; pip install 'neuropolis[texts]'") from error
    scorer = CHRF()
    return lambda said, meant: scorer.sentence_score(said.strip(), [meant.strip()]).score / 100
