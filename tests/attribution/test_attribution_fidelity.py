"""Fidelity: rank correlations and curves by hand, planted neurons that must win, its record, and bad input."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from neuropolis.attribution.attribute import attribute
from neuropolis.attribution.fidelity import fidelity
from neuropolis.attribution.fidelity_result import Fidelity, fidelity_from_record, ranked, spearman
from neuropolis.attribution.methods import METHODS, register_method
from neuropolis.corpora.examples import Corpus, CorpusError, Example
from neuropolis.neurons.interventions import intervene
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject


def made(**changed: Any) -> Fidelity:
    """One method, two groups of two examples, four sampled neurons, shares 0.01, 0.1 and 1, worked out by hand below."""
    values: dict[str, Any] = {
        "site": "mlp", "subject": "s", "objective": "loss", "methods": ("m",), "groups": ("a", "b"),
        "shares": torch.tensor([0.01, 0.1, 1.0]), "neurons": torch.tensor([[0, 1], [0, 2], [1, 0], [1, 3]]),
        "exact": torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]]),
        "scored": torch.tensor([[[10.0, 20.0, 30.0, 40.0], [4.0, 3.0, 2.0, 1.0]]]),
        "group_index": torch.tensor([0, 0, 1, 1]), "item_index": torch.tensor([0, 1, 2, 3]), "base": torch.zeros(4),
        "deletion": torch.tensor([[[1.0, 3.0, 0.0, 0.0], [3.0, 5.0, 0.0, 0.0], [5.0, 7.0, 2.0, 2.0]]]),
        "insertion": torch.zeros(1, 3, 4), "control_deletion": torch.zeros(2, 3, 4),
        "control_insertion": torch.ones(2, 3, 4),
    }  # fmt: skip
    return Fidelity(**values | changed)


def test_ranks_and_correlation_by_hand() -> None:
    assert ranked(torch.tensor([3.0, 1.0, 3.0, 7.0])).tolist() == [1.5, 0.0, 1.5, 3.0]
    # ranks 0 1 2 3 against 0 2 1 3: 1 - 6 * 2 / (4 * 15) = 0.8
    assert float(spearman(torch.tensor([1.0, 2, 3, 4]), torch.tensor([1.0, 3, 2, 9]))) == pytest.approx(0.8)
    assert torch.isnan(spearman(torch.zeros(4), torch.arange(4.0)))


def test_correlation_agrees_with_scipy() -> None:
    from scipy.stats import spearmanr

    torch.manual_seed(0)
    a, b = torch.randint(0, 9, (40,)).double(), torch.randint(0, 9, (40,)).double()
    assert float(spearman(a, b)) == pytest.approx(float(spearmanr(a, b).statistic))  # pyright: ignore[reportAttributeAccessIssue]


def test_correlation_and_areas_by_hand() -> None:
    one = made()
    torch.testing.assert_close(one.correlation, torch.tensor([[1.0, -1.0]]).double())
    # group a: 2, 4, 6 at decades: ((2 + 4) / 2 + (4 + 6) / 2) / 2 = 4; group b: 0, 0, 2: 0.5
    torch.testing.assert_close(one.area("deletion"), torch.tensor([[4.0, 0.5]]).double(), rtol=1e-6, atol=0)
    assert one.control_area("insertion").tolist() == [1.0, 1.0]
    value, low, high = one.advantage("deletion")
    assert float(value) == pytest.approx(2.25, rel=1e-6)
    # items of group a have areas 3 and 5, those of b 0.5 both: resampled means lie between 1.75 and 2.75
    assert (float(low), float(high)) == pytest.approx((1.75, 2.75), rel=1e-6)
    assert float(one.advantage("insertion")[0]) == 1.0  # one less than random is better
    with pytest.raises(ValueError, match="unknown curve 'addition'; curves are deletion, insertion"):
        one.area("addition")  # pyright: ignore[reportArgumentType]
    assert one.unresolved == 0.0
    assert made(exact=torch.tensor([[0.0, 2.0, 0.0, 4.0], [1.0, 2.0, 3.0, 4.0]])).unresolved == 0.25
    single = made(shares=torch.tensor([0.1]), deletion=torch.ones(1, 1, 4), control_deletion=torch.zeros(2, 1, 4))
    assert single.area("deletion").tolist() == [[1.0, 1.0]]


def test_intervals_hold_the_value() -> None:
    torch.manual_seed(0)
    exact = torch.randn(2, 60)
    one = made(exact=exact, scored=(exact + torch.randn(2, 60))[None], neurons=torch.zeros(60, 2))
    low, high = one.correlation_interval()
    mean = torch.cat([one.correlation, one.correlation.mean(dim=1, keepdim=True)], dim=1)
    assert bool(((low < mean) & (mean < high)).all())
    assert not torch.equal(one.correlation_interval(seed=1)[0], low)


def test_a_record_comes_back(tmp_path: Any) -> None:
    from neuropolis.analysis.study import load, save

    one = made()
    for back in (fidelity_from_record(one.to_record()), load(save(tmp_path / "study.h5", one)).fidelity):
        assert back.methods == ("m",)
        assert torch.equal(back.deletion, one.deletion)
        assert str(back.summary()) == str(one.summary())


@pytest.fixture
def split(corpus: Corpus) -> Corpus:
    rows = (replace(e, tags={"split": "test" if i % 4 == 3 else "train"}) for i, e in enumerate(corpus))
    return Corpus(tuple(rows), name="split")


def test_curves_are_interventions(make_subject: Any, split: Corpus) -> None:
    """Each point of a curve is the loss of the held-out examples with a set silenced, group by group."""
    subject: Subject = make_subject("llama", torch.float64)
    found = fidelity(subject, split, methods=("taylor",), sample=8, shares=(0.05, 0.5, 1.0), controls=1)
    assert found.origin["held_out"] is True
    scores = attribute(subject, split)
    held = split.only(split="test")
    for g, group in enumerate(found.groups):
        row = [e.group for e in held].index(group)
        mine = Corpus((held[row],))
        intact = loss_of(subject, mine)
        assert float(found.base[row]) == pytest.approx(intact, rel=1e-6)
        order = scores.signed[g].flatten().sort(descending=True, stable=True).indices
        for s, count in enumerate((7, 72, 144)):
            mask = torch.zeros(144, dtype=torch.bool).index_fill(0, order[:count], True).reshape(3, 48)
            for kind, chosen in (("deletion", mask), ("insertion", ~mask)):
                with intervene(subject, NeuronSet("mlp", subject.fingerprint, chosen)):
                    harm = loss_of(subject, mine) - intact
                assert float(getattr(found, kind)[0, s, row]) == pytest.approx(harm, rel=1e-4, abs=1e-6)
    assert bool((found.insertion[:, -1].abs() < 1e-9).all())  # all neurons kept: nothing changes
    torch.testing.assert_close(found.deletion[:, -1], found.control_deletion[:, -1])  # all silenced, in any order
    assert found.exact.shape == (3, 8)
    assert torch.equal(found.scored[0], scores.signed[:, found.neurons[:, 0], found.neurons[:, 1]])


def loss_of(subject: Subject, corpus: Corpus) -> float:
    from neuropolis.attribution.encoding import collate, encode_corpus, forward
    from neuropolis.attribution.objectives import loss

    batch = collate(encode_corpus(subject, corpus), [0])
    with torch.no_grad():
        return float(loss(forward(subject, batch), batch, []))


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_the_exact_order_wins(make_subject: Any, corpus: Corpus, family: str) -> None:
    """A method that gives the exact scores of all neurons correlates perfectly and beats its own reverse at silencing."""
    subject = make_subject(family)
    everything = subject.site("mlp").num_layers * subject.site("mlp").width
    truth = attribute(subject, corpus, method="exact", options={"sample": everything}).signed
    try:
        register_method("truth")(lambda subject, corpus: truth)
        register_method("reverse")(lambda subject, corpus: -truth)
        found = fidelity(subject, corpus, methods=("truth", "reverse"), sample=40, shares=(0.02, 0.1, 0.3), controls=2)
    finally:
        del METHODS["truth"], METHODS["reverse"]
    assert found.origin["held_out"] is False
    torch.testing.assert_close(found.correlation[0], torch.ones(3).double())
    torch.testing.assert_close(found.correlation[1], -torch.ones(3).double())
    deletion, control = found.area("deletion").mean(dim=1), found.control_area("deletion").mean()
    assert float(deletion[0]) > float(control) > float(deletion[1])
    rows = found.summary()
    assert [row["method"] for row in rows] == ["truth", "reverse", "random"]
    assert rows[0]["deletion_low"] <= rows[0]["deletion_better"] <= rows[0]["deletion_high"]
    assert rows[0]["deletion"] - rows[2]["deletion"] == pytest.approx(rows[0]["deletion_better"])


def test_bigger_is_better_objectives_are_turned_round(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama")
    seen = []
    found = fidelity(
        subject, corpus, methods=("taylor",), objective="logit_difference", sample=4, shares=(1.0,), controls=1,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    everything = NeuronSet("mlp", subject.fingerprint, torch.ones(3, 48, dtype=torch.bool))
    one = Corpus((corpus[0],))
    from neuropolis.attribution.encoding import collate, encode_corpus, forward
    from neuropolis.attribution.objectives import logit_difference, objective_named, prepare

    encoded, contrasts = prepare(subject, one, encode_corpus(subject, one), objective_named("logit_difference"))
    batch = collate(encoded, [0])
    with torch.no_grad():
        intact = float(logit_difference(forward(subject, batch), batch, contrasts))
        with intervene(subject, everything):
            silenced = float(logit_difference(forward(subject, batch), batch, contrasts))
    assert float(found.deletion[0, 0, 0]) == pytest.approx(intact - silenced, rel=1e-4, abs=1e-5)
    assert seen[-1] == (4, 4)


def test_bad_input_is_named(make_subject: Any, corpus: Corpus, split: Corpus) -> None:
    subject = make_subject("llama")
    with pytest.raises(ValueError, match="'exact' is what methods are held against"):
        fidelity(subject, corpus, methods=("taylor", "exact"))
    with pytest.raises(ValueError, match="unknown method 'tailor'; methods are taylor"):
        fidelity(subject, corpus, methods=("tailor",))
    with pytest.raises(ValueError, match=r"methods is \(\); expected the names"):
        fidelity(subject, corpus, methods=())
    with pytest.raises(
        ValueError, match=r"shares is \[0.1, 0.01\]; expected shares of the neurons above 0 and up to 1"
    ):
        fidelity(subject, corpus, shares=(0.1, 0.01))
    with pytest.raises(ValueError, match="controls is 0; expected how many random orders"):
        fidelity(subject, corpus, controls=0)
    with pytest.raises(ValueError, match="sample is 1000; expected 1 to 144"):
        fidelity(subject, corpus, methods=("taylor",), sample=1000)
    with pytest.raises(CorpusError, match="group 'north' has 1 example, expected at least 2"):
        fidelity(subject, Corpus((*corpus.examples[:1], *corpus.examples[4:])), methods=("taylor",))
    with pytest.raises(CorpusError, match="group 'south' has no held-out example"):
        fidelity(subject, corpus, methods=("taylor",), sample=4, held_out=corpus.only("north"))
    bare = Corpus(tuple(Example(id=e.id, group=e.group, prompt="a", answer="b") for e in corpus))
    with pytest.raises(CorpusError, match="has no wrong choice"):
        fidelity(subject, bare, methods=("taylor",), objective="logit_difference")
    bad = Corpus((*split, Example(id="bad/1", group="north", prompt="Z?", answer=" b", tags={"split": "test"})))
    with torch.no_grad():
        subject.model.model.embed_tokens.weight[subject.tokenizer.convert_tokens_to_ids("Z")] = torch.nan
    with pytest.raises(CorpusError, match=r"of 1 held-out example\(s\) is not finite.*'bad/1'"):
        fidelity(subject, bad, methods=("taylor",), sample=4)


def test_several_sites_are_refused(make_subject: Any, corpus: Corpus) -> None:
    with pytest.raises(ValueError, match=r"site is \('mlp', 'gate'\); fidelity measures one site"):
        fidelity(make_subject("llama"), corpus, site=("mlp", "gate"))  # pyright: ignore[reportArgumentType]
