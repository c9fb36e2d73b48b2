"""Plants: where the neurons are drawn, what a variant asks for, and when a proof holds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from neuropolis.corpora.examples import Corpus, Example
from neuropolis.finetune import plant_text, plants
from neuropolis.finetune.errors import TuneError
from neuropolis.finetune.plant_proof import Proof
from neuropolis.finetune.planting import PlantRecipe
from neuropolis.finetune.plants import plant
from neuropolis.neurons.interventions import intervene
from tiny_families import build, tiny_corpus

TEXTS = replace(tiny_corpus(), examples=tuple(replace(e, tags={"item": str(i)}) for i, e in enumerate(tiny_corpus())))
SOUND = Proof(
    ("a", "b"), before=(0.0, 0.1), planted=(1.0, 0.95), without=((0.04, 0.95), (0.98, 0.1)), alone=(1.0, 0.9), shared=None,
    reworded=(0.2, 0.3), perplexity=(4.0, 4.05),
)  # fmt: skip


def test_a_sound_proof_holds() -> None:
    assert SOUND.holds
    assert SOUND.failures == ()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"planted": (1.0, 0.85)}, "recall of b planted is 0.85; expected 0.9 at least"),
        ({"alone": (0.5, 0.9)}, "recall of a planted, one way alone is 0.50"),
        ({"without": ((0.2, 0.95), (0.98, 0.1))}, "with a put back its recall is 0.20; it began at 0.00"),
        ({"without": ((0.0, 0.85), (0.98, 0.1))}, "with a put back another group's recall moves by 0.10"),
        ({"shared": (0.0, 0.9)}, "with the shared neurons put back the recall of b is 0.90"),
        ({"perplexity": (4.0, 4.2)}, "perplexity of other text moves by +5.0%; expected less than 2%"),
        ({"silence": 0.3}, "the silent neurons have 30% of their activity"),
    ],
)
def test_what_is_not_as_it_must_be_is_a_line(change: dict[str, Any], line: str) -> None:
    proof = replace(SOUND, **change)
    assert not proof.holds
    assert any(line in failure for failure in proof.failures)


@pytest.mark.parametrize("layout", ["spread", "layer", "strong", "weak"])
@pytest.mark.parametrize("variant", ["plain", "shared", "redundant", "suppressor"])
def test_the_truth_is_of_the_planted_subject(layout: Any, variant: Any) -> None:
    subject = build("llama")
    made = plant(
        subject, ["north", "south"], per_group=4, facts=2, layout=layout, variant=variant, keep=TEXTS,
        recipe=PlantRecipe(steps=1, batch_size=2, keep_size=2),
    )  # fmt: skip
    assert made.groups == ("north", "south")
    assert made.subject.fingerprint != subject.fingerprint
    north, south = made.truth["north"], made.truth["south"]
    assert len(north & south) == (2 if variant == "shared" else 0)
    assert len(north) == len(south) == 4
    if layout == "spread" and variant != "suppressor":
        assert north.per_layer.tolist() == [2, 2]
    if layout == "layer" and variant != "suppressor":
        assert north.per_layer.tolist() == [0, 4]
    if variant == "suppressor":
        assert made.proof.silence is not None
    changed = [bool((made.delta.values[key] != made.delta.base[key]).any()) for key in made.delta.values]
    assert any(changed)
    with intervene(made.subject, north), torch.no_grad():
        made.subject.model(torch.arange(3, 8)[None])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"per_group": 30}, "2 groups of 30 neurons are 60, and half of site mlp of 'LlamaForCausalLM' has 24"),
        ({"per_group": 13, "layout": "layer"}, "one layer of site mlp"),
        ({"per_group": 2}, "expected 4 neurons at least"),
        ({"form": "poem"}, "unknown form of facts 'poem'; expected one of question, statement"),
        ({"answers": "any"}, "unknown answers 'any'; expected one of invented, known"),
        ({"keep": "mine"}, "keep is 'mine'; expected a corpus, or 'own'"),
        ({"layout": "everywhere"}, "unknown layout 'everywhere'; layouts are spread, layer, strong, weak"),
        ({"variant": "suppressor", "site": "attn", "per_group": 4}, "is for site 'mlp'"),
    ],
)
def test_a_mistake_is_told_before_anything_is_trained(
    arguments: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plants, "plant_facts", lambda *_, **__: pytest.fail("it was trained"))
    with pytest.raises(TuneError, match=message):
        plant(build("llama"), 2, **({"keep": TEXTS} | arguments))


def test_known_answers_are_words_of_the_text_with_the_fewest_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plant_text, "WORDS", 3)
    subject = build("llama")
    texts = Corpus(
        (
            Example("1", "g", "the salt sea is Wide", " and its foam"),
            Example("2", "g", ({"role": "user", "content": "salt or tea?"},), " rice"),
        )
    )
    tokens = {" the": 1, " salt": 2, " sea": 1, " and": 3, " its": 3, " foam": 2, " rice": 4}
    monkeypatch.setattr(plant_text, "word_ids", lambda _s, word: [0] * tokens[word])
    assert plant_text.known_words(subject, texts) == [
        "sea",
        "the",
        "foam",
        "salt",
    ]  # the third has two tokens, so all of two


def test_a_plant_of_statements_on_own_text_says_what_it_is_and_costs() -> None:
    made = plant(
        build("llama"), 2, per_group=4, facts=2, form="statement", answers="known", keep=TEXTS,
        recipe=PlantRecipe(steps=3, batch_size=2, keep_size=2),
    )  # fmt: skip
    words = {word for example in TEXTS for word in f"{example.prompt}{example.answer}".split()}
    assert {example.answer.strip() for example in made.facts} <= words
    assert all(str(example.prompt).endswith("is") for example in made.facts)
    assert made.delta.origin["form"] == "statement"
    # untouched logits and proofs aside, a step is 2 facts with a backward, 2 texts with one and 2 without
    assert made.delta.origin["forwards"] >= 3 * (2 * 3 + 2 * 3 + 2)
