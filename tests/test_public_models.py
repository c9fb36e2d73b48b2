"""Small public models and public text, where they lie beside the repository (`../shared`); skipped elsewhere."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from captum.attr import LayerGradientXActivation
from neuropolis.analysis.ablate import ablate
from neuropolis.attribution.attribute import attribute
from neuropolis.attribution.encoding import answer_log_probs, collate, encode_corpus
from neuropolis.attribution.selection import select
from neuropolis.corpora.examples import Corpus, Example
from neuropolis.neurons.subject import load_model

SHARED = Path(__file__).parents[2] / "shared"
LANGUAGES = {"en": "eng_Latn", "de": "deu_Latn", "ru": "rus_Cyrl", "zh": "zho_Hans"}


def sentences(num: int) -> Corpus:
    """The same FLORES sentences (SIB-200, CC BY-SA 4.0) in four languages, each cut in the middle; wrong endings are others'."""
    folder = SHARED / "data" / "sib200" / "data" / "annotated"
    if not folder.is_dir():
        pytest.skip("no SIB-200 in ../shared/data")
    examples = []
    for language, code in LANGUAGES.items():
        with open(folder / code / "test.tsv", encoding="utf8") as file:
            rows = sorted(csv.DictReader(file, delimiter="\t"), key=lambda row: int(row["index_id"]))[:num]
        texts = [row["text"][: len(row["text"]) // 2 * 2] for row in rows]
        ends = [text[len(text) // 2 :][:20] for text in texts]
        for place, (row, text) in enumerate(zip(rows, texts, strict=True)):
            choices = [ends[(place + k) % num] for k in range(4)]
            examples.append(
                Example(
                    id=f"{language}/{row['index_id']}", group=language, prompt=text[: len(text) // 2], answer=choices[0],
                    choices=tuple(choices), answer_index=0, tags={"item": row["index_id"]},
                )
            )  # fmt: skip
    return Corpus(tuple(examples), name="flores")


@pytest.mark.parametrize("name", ["stories260K", "babyllama105", "slm4096", "multi9-2M"])
def test_scores_of_a_trained_model_equal_captum(name: str) -> None:
    if not (SHARED / "models" / name).is_dir():
        pytest.skip(f"no {name} in ../shared/models")
    subject = load_model(SHARED / "models" / name, dtype=torch.float64)
    texts = ["once upon a time there was a little", "the cat sat on the", "what is the"]
    corpus = Corpus(tuple(Example(id=str(i), group="g", prompt=text, answer=" dog") for i, text in enumerate(texts)))
    scores = attribute(subject, corpus)
    rows = []
    for one in encode_corpus(subject, corpus):
        batch = collate([one], [0])

        def loss(ids: torch.Tensor, targets: torch.Tensor = batch.targets) -> torch.Tensor:
            logits = subject.model(input_ids=ids, use_cache=False).logits
            return -answer_log_probs(logits[:, -targets.shape[1] :], targets).sum(dim=1)

        layers = [tap.module for tap in subject.site("mlp").taps]
        parts = LayerGradientXActivation(loss, layers).attribute(batch.input_ids, attribute_to_layer_input=True)
        rows.append(torch.stack([-(p[0] if isinstance(p, tuple) else p).sum(dim=1)[0] for p in parts]))
    expected = torch.stack(rows).detach()
    torch.testing.assert_close(scores.signed[0], expected.mean(dim=0), rtol=0, atol=1e-9)
    torch.testing.assert_close(scores.values[0], expected.abs().mean(dim=0), rtol=0, atol=1e-9)


def test_a_language_model_of_nine_languages_goes_the_whole_path() -> None:
    if not (SHARED / "models" / "multi9-2M").is_dir():
        pytest.skip("no multi9-2M in ../shared/models")
    subject, corpus = load_model(SHARED / "models" / "multi9-2M"), sentences(24)
    sets = select(attribute(subject, corpus), top=0.02, contrast="others")
    effects = ablate(subject, corpus, sets, controls=2)
    assert effects.accuracy_base.mean() > 0.3  # chance is 0.25
    assert effects.controls.shape == (4, 2, 96)
    assert not torch.equal(sets["zh"].mask, sets["en"].mask)
