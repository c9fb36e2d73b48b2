"""Stability: frequencies on planted rows, and a table of what moves a selection."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from neuropolis.attribution.attribute import attribute
from neuropolis.attribution.selection import select
from neuropolis.attribution.stability import Stability, stability, stability_from_record, stable
from neuropolis.corpora.examples import Corpus, CorpusError, Example
from neuropolis.neurons.errors import SetError
from neuropolis.neurons.scores import Scores, scores_from_record


def planted() -> Scores:
    """Two groups of ten items; group a always drives neurons 0 to 3 of layer 0, everything else is noise."""
    rows = torch.randn(20, 2, 50, generator=torch.Generator().manual_seed(0))
    rows[:10, 0, :4] += 8
    groups = torch.tensor([0] * 10 + [1] * 10)
    values = torch.stack([rows[groups == g].abs().mean(dim=0) for g in range(2)])
    return Scores(
        "mlp", "s", ("a", "b"), values, values, values, torch.tensor([10, 10]), rows=rows, row_groups=groups,
        row_items=torch.arange(20),
    )  # fmt: skip


def test_planted_neurons_are_selected_every_time() -> None:
    found = stable(planted(), top=4, resamples=30)
    assert found.size == 4
    assert set(found.sets(0.9)["a"]) == {(0, n) for n in range(4)}
    assert bool((found.frequency.sum(dim=(1, 2)) - 4).abs().max() < 1e-5)  # every resample selects four
    assert len(found.sets(0.9)["b"]) < 4  # noise does not come back


def test_the_bound_on_false_ones_is_theirs() -> None:
    chosen = stable(planted(), top=4, resamples=5).sets(0.75)["a"]
    assert chosen.origin["false_at_most"] == pytest.approx(4**2 / (0.5 * 100))


@pytest.mark.parametrize("threshold", [0.5, 1.1])
def test_a_threshold_without_a_bound_is_refused(threshold: float) -> None:
    with pytest.raises(SetError, match="threshold is"):
        stable(planted(), top=4, resamples=2).sets(threshold)


def test_scores_without_rows_are_refused() -> None:
    scores = planted()
    with pytest.raises(SetError, match="keep_rows=True"):
        stable(Scores("mlp", "s", scores.groups, scores.values, scores.signed, scores.squares, scores.counts))


def with_templates(corpus: Corpus) -> Corpus:
    shown = [
        Example(e.id, e.group, e.prompt, e.answer, tags={"form": "one" if row % 2 else "two"})
        for row, e in enumerate(corpus)
    ]
    return Corpus(tuple(shown), name="with templates")


def test_the_table_compares_each_variant_with_the_reference(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama")
    table = stability(
        subject, with_templates(corpus), axes=("items", "template", "dtype", "threshold"), template="form", top=20,
        resamples=3, thresholds=(0.5,), min_examples=1,
    )  # fmt: skip
    assert table.axes == ("items",) * 3 + ("threshold",) + ("template",) * 2 + ("dtype",) * 2
    assert bool(((table.jaccard >= 0) & (table.jaccard <= 1)).all())
    assert table.of("threshold").tolist() == [0.5]  # half of a set is inside it: 10 of 20
    assert float(table.of("dtype")[1]) > 0.9  # float64 hardly moves it
    one = attribute(subject, with_templates(corpus).only(form="one"), min_examples=1)
    expected = select(one, top=20)[table.groups[0]]
    reference = select(attribute(subject, corpus, min_examples=1), top=20)[table.groups[0]]
    assert float(table.jaccard[4, 0]) == pytest.approx(len(expected & reference) / len(expected | reference))


def test_the_table_survives_the_atlas(make_subject: Any, corpus: Corpus) -> None:
    table = stability(make_subject("llama"), corpus, axes=("threshold",), top=10, min_examples=1)
    again = stability_from_record(table.to_record())
    assert isinstance(again, Stability)
    assert again.variants == table.variants
    assert torch.equal(again.jaccard, table.jaccard)


def test_bad_axes_and_templates_are_said(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama")
    with pytest.raises(SetError, match="unknown axis 'weather'; axes are items, seed"):
        stability(subject, corpus, axes=("weather",))
    with pytest.raises(CorpusError, match="template="):
        stability(subject, corpus, axes=("template",), min_examples=1)
    with pytest.raises(CorpusError, match="has 0 values"):
        stability(subject, corpus, axes=("template",), template="form", min_examples=1)


def test_the_contrast_with_twins_is_resampled_with_them(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama")
    scores = attribute(subject, corpus, controls=True, keep_rows=True)
    found = stable(scores, top=5, contrast="controls", resamples=4, share=0.99)
    assert bool((found.frequency.sum(dim=(1, 2)) - 5).abs().max() < 1e-5)
    # at a share of all items every resample is the whole
    expected = select(scores, top=5, contrast="controls")
    assert found.sets(1.0)["north"] == expected["north"]
    back = scores_from_record(scores.to_record())
    assert torch.equal(stable(back, top=5, contrast="controls", resamples=4, share=0.99).frequency, found.frequency)
    table = stability(subject, corpus, axes=("items", "threshold"), contrast="controls", top=5, resamples=2)
    assert table.axes == ("items", "items", "threshold", "threshold")
    with pytest.raises(SetError, match="these scores have no controls"):
        stable(attribute(subject, corpus, keep_rows=True), top=5, contrast="controls", resamples=2)


def test_no_resample_is_refused(make_subject: Any, corpus: Corpus) -> None:
    with pytest.raises(ValueError, match="resamples is 0; expected how many random parts to draw"):
        stable(planted(), top=4, resamples=0)
    with pytest.raises(ValueError, match="resamples is 0; expected how many halves and seeds"):
        stability(make_subject("llama"), corpus, resamples=0)
