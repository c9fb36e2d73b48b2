"""Own text: what a subject writes from nothing, as a sample of the text that it knows."""

from __future__ import annotations

import torch

from ..corpora.examples import Corpus, CorpusError, Example
from ..neurons.subject import Subject
from .encoding import tokenised
from .generation import continued
from .generators import RowSampler, Sampling, row_seed

LEAST = 8  # characters of a text


def own_text(subject: Subject, *, texts: int = 300, tokens: int = 64, seed: int = 0, batch_size: int = 64) -> Corpus:
    """Texts of at most `tokens` tokens that the subject samples from its own distribution, each an item of one group.

    They begin with the token that its tokenizer begins a text with, or else ends one with; without either, each with a token at
    random. The first half of a text is the prompt, the rest the answer. Texts of less than eight characters are left out.

    Raises CorpusError where the subject writes fewer than a quarter of them.
    """
    first = tokenised(subject, "", name="nothing")["input_ids"]
    first = first or [
        one for one in (subject.tokenizer.bos_token_id, subject.tokenizer.eos_token_id) if one is not None
    ]
    drawn = torch.randint(len(subject.tokenizer), (texts,), generator=torch.Generator().manual_seed(seed)).tolist()
    starts = [list(first[:1]) or [token] for token in drawn]
    sampling = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=tokens)
    seeds = [row_seed("own text", seed, row) for row in range(texts)]
    said = continued(
        subject, starts, max_new_tokens=tokens, batch_size=batch_size,
        choose=lambda rows, length: RowSampler(sampling, [seeds[row] for row in rows], length),
    )  # fmt: skip
    examples = []
    for number, text in enumerate(said):
        whole = text.strip()
        if len(whole) >= LEAST:
            half = whole.find(" ", len(whole) // 2)
            half = half if half > 0 else len(whole) // 2
            examples.append(Example(str(number), "own", whole[:half], whole[half:], tags={"item": str(number)}))
    if len(examples) < texts / 4:
        raise CorpusError(
            f"{subject.name!r} wrote {len(examples)} texts of {LEAST} characters or more in {texts} tries; give text of your own"
        )
    return Corpus(tuple(examples), name=f"own text of {subject.name}")
