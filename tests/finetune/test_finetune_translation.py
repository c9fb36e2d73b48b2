"""Generation in batches, quality by sacrebleu, and the comparison's table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from neuropolis.analysis.study import load, save
from neuropolis.attribution.language_pairs import PairNeurons
from neuropolis.corpora.examples import Corpus, Example
from neuropolis.finetune.compare_translation import RATES, TranslationTable, compare_translation
from neuropolis.finetune.errors import TuneError
from neuropolis.finetune.rivals import ffn_projections, lora_rank, tuned_layers, tuned_lora
from neuropolis.finetune.slices import slice_entries, slice_parts
from neuropolis.finetune.training import Recipe
from neuropolis.finetune.translation import pair_quality, translate, translation_quality
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject
from tiny_families import ANSWERS, build, same_bits, state

PAIRS = ("en-es", "en-zh")


@pytest.fixture
def corpus() -> Corpus:
    rows = [
        Example(
            f"{pair}/{g}/{k}",
            pair,
            f"{k} of {g} is" + " tea" * (4 * long),
            f" {a}",
            tags={"language": "en", "target": pair[-2:]},
        )
        for pair in PAIRS
        for long, (g, answers) in enumerate(ANSWERS.items())
        for k, a in zip(["capital", "food"], answers if pair == "en-es" else answers[::-1], strict=True)
    ]
    return Corpus(tuple(rows), "pairs")


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
def test_a_translation_does_not_depend_on_its_batch(family: str, corpus: Corpus) -> None:
    subject = build(family)
    alone = []
    for example in corpus:
        ids = torch.tensor([subject.tokenizer(str(example.prompt)).input_ids])
        with torch.no_grad():
            for _ in range(12):
                following = subject.model(ids).logits[:, -1].argmax(dim=-1, keepdim=True)
                if int(following) == 1:  # end of text, as the configuration says
                    break
                ids = torch.cat([ids, following], dim=1)
        start = len(subject.tokenizer(str(example.prompt)).input_ids)
        alone.append(subject.tokenizer.decode(ids[0, start:], skip_special_tokens=True).strip())
    subject.tokenizer.add_special_tokens({"eos_token": "<end>"})
    assert translate(subject, corpus, max_new_tokens=12, batch_size=12) == alone
    assert translate(subject, corpus, max_new_tokens=12, batch_size=1) == alone
    assert len(set(alone)) > 1


def test_translations_end_at_a_stop(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = build("llama")
    said = " \n arroz. \nen: next"
    monkeypatch.setattr(type(subject.tokenizer), "batch_decode", lambda *_, **__: [said] * 12)
    assert translate(subject, corpus, max_new_tokens=1) == ["arroz."] * 12
    assert translate(subject, corpus, max_new_tokens=1, stops=()) == ["arroz. \nen: next"] * 12
    assert translate(subject, corpus, max_new_tokens=1, stops=(".", "\n")) == ["arroz"] * 12


def test_quality_by_hand() -> None:
    assert translation_quality([" the tea is red ."], ["the tea is red ."], language="en") == pytest.approx(
        (100.0, 100.0)
    )
    # one word of five is wrong: 4/5 words, 2/4 pairs, 1/3 triples, 0/2 fours (smoothed to 1/4), no brevity penalty
    _, bleu = translation_quality(["the tea is blue ."], ["the tea is red ."], language="en")
    assert bleu == pytest.approx(100 * (4 / 5 * 2 / 4 * 1 / 3 * 1 / 4) ** 0.25)
    # characters of Chinese are words of their own: one of eight differs
    _, chinese = translation_quality(["日本的首都是东京"], ["日本的首都是东方"], language="zh")
    assert chinese == pytest.approx(100 * (7 / 8 * 6 / 7 * 5 / 6 * 4 / 5) ** 0.25)
    # by characters too
    assert translation_quality(["日本"], ["日本"], language="ja")[0] == pytest.approx(100.0)


def test_quality_by_pair(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    from neuropolis.finetune import translation

    right = [e.answer if e.group == "en-es" else " tea" for e in corpus]
    monkeypatch.setattr(translation, "translate", lambda *_, **__: right)
    found = pair_quality(build("llama"), corpus)
    assert found["en-es"][0] == pytest.approx(100.0)
    assert found["en-zh"][0] < 50
    mixed = Corpus(tuple(Example(e.id, "all", e.prompt, e.answer, tags=e.tags) for e in corpus))
    with pytest.raises(TuneError, match=r"group 'all' has the target languages \['es', 'zh'\]; expected one"):
        pair_quality(build("llama"), mixed)


def test_whole_layers_train_those_layers_alone(corpus: Corpus) -> None:
    subject = build("llama")
    before = state(subject)
    tuned, count = tuned_layers(subject, corpus, [1], Recipe(lr=0.01, steps=2, weight_decay=0.1))
    assert same_bits(state(subject), before)
    changed = {name for name, tensor in state(tuned).items() if not torch.equal(tensor, before[name])}
    # the attention's key biases and the like have no gradient of note, but every name is of layer 1
    assert changed
    assert all(name.startswith("model.layers.1.") for name in changed)
    assert count == sum(t.numel() for name, t in before.items() if name.startswith("model.layers.1."))


def test_lora_trains_adapters_alone(corpus: Corpus) -> None:
    pytest.importorskip("peft")
    subject = build("llama")
    before = state(subject)
    tuned, count = tuned_lora(subject, corpus, 2, Recipe(lr=0.01, steps=2, weight_decay=0.1))
    assert same_bits(state(subject), before)
    after = {name.replace(".base_layer", ""): tensor for name, tensor in tuned.model.state_dict().items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    adapters = {name for name in after if "lora_" in name}
    assert len(adapters) == 2 * 2 * 3
    assert all(bool(after[name].any()) for name in adapters)
    assert count == 2 * 2 * 3 * (16 + 24) == sum(after[name].numel() for name in adapters)
    assert (lora_rank(subject, count), lora_rank(subject, 1), lora_rank(subject, count * 3 // 2)) == (2, 1, 3)
    assert len(ffn_projections(build("gpt2"))) == 2 * 2
    torch.manual_seed(3)
    again, _ = tuned_lora(subject, corpus, 2, Recipe(lr=0.01, steps=2, weight_decay=0.1))
    assert same_bits(state(again), state(tuned))


def by_hand(subject: Subject) -> PairNeurons:
    general = NeuronSet.from_indices(subject, indices={0: [1, 5], 1: [0, 2]})
    specific = {"en-es": NeuronSet.from_indices(subject, indices={1: [3, 9]})}
    return PairNeurons(general, specific, torch.zeros(general.mask.shape), 0.0)


def compared(subject: Subject, corpus: Corpus, **changes: Any) -> TranslationTable:
    arguments: dict[str, Any] = {
        "new": corpus.only("en-es"), "known": corpus, "layers": [1], "rates": {**RATES, "landermt": 0.02}, "steps": 25,
        "seeds": (0, 1), "max_new_tokens": 3,
    }  # fmt: skip
    return compare_translation(subject, corpus.only("en-es"), by_hand(subject), **(arguments | changes))


def test_every_method_starts_from_the_untouched_subject(corpus: Corpus) -> None:
    pytest.importorskip("peft")
    subject = build("llama")
    subject.tokenizer.add_special_tokens({"eos_token": "<end>"})
    before, seen = state(subject), []
    table = compared(subject, corpus, steps=2, progress=lambda *done: seen.append(done))
    assert same_bits(state(subject), before)
    assert seen == [(done, 12) for done in range(1, 13)]
    assert table.methods == ("landermt", "slice", "random", "lora", "layers", "full")
    assert table.columns == (("new", "en-es"), ("known", "en-es"), ("known", "en-zh"))
    size = sum(e.read().numel() for e in slice_entries(slice_parts(subject, by_hand(subject).of("en-es"))))
    layer = sum(t.numel() for name, t in before.items() if name.startswith("model.layers.1."))
    lora = 2 * 3 * (16 + 24) * lora_rank(subject, size)
    assert table.trainable.tolist() == [size + 2 * 2 * 17, size, size, lora, layer, subject.num_parameters]


def test_what_is_learned_and_lost_is_in_the_table(corpus: Corpus, tmp_path: Path) -> None:
    subject = build("llama")
    subject.tokenizer.add_special_tokens({"eos_token": "<end>"})
    table = compared(subject, corpus, methods=("landermt",))
    assert float(table.gain().min()) > 20
    torch.testing.assert_close(table.gain(), table.after[:, :, 0, 0] - table.before[0, 0])
    torch.testing.assert_close(table.forgetting("bleu"), table.before[1, 2] - table.after[:, :, 1, 2])
    torch.testing.assert_close(table.change("known", own=True), table.after[:, :, 0, 1] - table.before[0, 1])
    loaded = load(save(tmp_path / "x.h5", en_es=table)).translations["en_es"]
    assert torch.equal(loaded.after, table.after)
    assert (loaded.columns, loaded.learned, loaded.seeds) == (table.columns, ("en-es",), (0, 1))


def test_what_cannot_be_compared_is_refused(corpus: Corpus) -> None:
    subject = build("llama")
    with pytest.raises(TuneError, match="unknown method 'adapter'"):
        compared(subject, corpus, methods=("adapter",))
    with pytest.raises(TuneError, match="no rate for it"):
        compared(subject, corpus, rates={"full": 1.0})
    with pytest.raises(TuneError, match="no seed"):
        compared(subject, corpus, seeds=())
    with pytest.raises(TuneError, match="the lesson is of 'en-es', but 'new' asks for en-zh only"):
        compared(subject, corpus, new=corpus.only("en-zh"))
