"""Curves: layers and doses of planted neurons, the same with and without the layers below reused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from neuropolis.analysis.ablate import ablate
from neuropolis.analysis.along import dose_response, layer_sweep
from neuropolis.analysis.curves import Curve
from neuropolis.analysis.study import load, save
from neuropolis.corpora.examples import Corpus
from neuropolis.neurons.errors import AtlasError, SetError
from neuropolis.neurons.scores import Scores
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject

Sets = dict[str, NeuronSet]


def planted_scores(subject: Subject) -> Scores:
    values = torch.rand((3, 2, 8), generator=torch.Generator().manual_seed(0)) / 2
    values[range(3), 1, range(3)] = torch.tensor([1.0, 2.0, 3.0])
    counts = torch.full((3,), 16)
    return Scores("mlp", subject.fingerprint, ("a", "b", "c"), values, values, values.square(), counts)


def test_the_layer_of_the_planted_neurons_is_found(
    planted: Subject, questions: Corpus, planted_sets: Sets, tmp_path: Any
) -> None:
    wide = {name: one | NeuronSet.from_indices(planted, indices={0: [4]}) for name, one in planted_sets.items()}
    steps: list[tuple[int, int]] = []
    curve = layer_sweep(planted, questions, wide, controls=2, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(n, 18) for n in range(1, 19)]
    assert (curve.axis, curve.names, curve.steps) == ("layer", ("a", "b", "c"), (0, 1))
    assert curve.sizes.tolist() == [[1, 1]] * 3
    own = curve.own()
    assert own["effect"].tolist() == [[0, -1]] * 3
    assert own["control"].tolist() == [[0, 0]] * 3
    assert own["others"].tolist() == [[0, 0]] * 3
    assert (own["low"][:, 1].tolist(), own["high"][:, 1].tolist()) == ([-1] * 3, [-1] * 3)
    assert own["p_controls"].tolist() == [[1, 6 * 2.0**-8]] * 3  # Holm over six cells, of which three are equal
    assert curve.averaged()["effect"].tolist() == [0, -1]
    path = save(tmp_path / "study.h5", curve)
    again = load(path).layer_sweep
    assert isinstance(again, Curve)
    assert again.summary() == curve.summary()
    with pytest.raises(AtlasError, match="no dose_response; make it with 'neuropolis dose'"):
        _ = load(path).dose_response


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "bloom"])
@pytest.mark.parametrize("metric", ["loss", "perplexity"])
def test_reused_layers_change_nothing(make_subject: Any, corpus: Corpus, family: str, metric: str) -> None:
    subject = make_subject(family)
    sets = {
        name: NeuronSet.from_indices(subject, indices={0: [1, 2], 2: range(i, 30)})
        for i, name in enumerate(corpus.groups)
    }
    ran: list[int] = []
    look = subject.site("mlp").taps[0].attached

    def sweep(reuse: bool) -> Curve:
        ran.clear()
        with look(lambda _x: ran.append(1)):
            return layer_sweep(subject, corpus, sets, controls=1, metric=metric, reuse=reuse, max_tokens=200)

    whole = sweep(False)
    count = len(ran)
    reused = sweep(True)
    # of the layers 0 and 2, one leaves the lowest out; bloom's blocks give more than hidden states and are run whole
    assert len(ran) < 0.7 * count if family != "bloom" else len(ran) == count + 1
    assert reused.effects.origin["reused"] == (family != "bloom")
    torch.testing.assert_close(reused.effects.ablated, whole.effects.ablated, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reused.effects.controls, whole.effects.controls, rtol=1e-5, atol=1e-5)
    assert torch.equal(
        reused.shaped(reused.effects.ablated)[:, 1], reused.effects.base.expand(3, -1)
    )  # no neuron in layer 1
    assert all(not module._forward_hooks and "forward" not in module.__dict__ for module in subject.model.modules())


def test_doses_ablate_more_and_more(planted: Subject, questions: Corpus) -> None:
    scores = planted_scores(planted)
    curve = dose_response(planted, questions, scores, doses=(1 / 16, 0.5, 1), contrast=None, controls=2)
    assert curve.sizes.tolist() == [[1, 8, 16]] * 3
    assert curve.own()["effect"].tolist() == [[-1, -1, -1]] * 3
    assert curve.own()["control"][:, 0].tolist() == [0, 0, 0]
    assert curve.own()["control"][:, 2].tolist() == [-1, -1, -1]  # of all neurons the control is the set
    at = ablate(planted, questions, {"a": NeuronSet.from_indices(planted, indices={1: [0]})}, controls=2)
    assert torch.equal(at.controls[0], curve.shaped(curve.effects.controls)[0, 0])  # the controls that ablate draws
    some = dose_response(planted, questions, scores, doses=(0.1,), groups=["c"], controls=1)
    assert some.names == ("c",)


def test_bad_curves_are_refused(planted: Subject, questions: Corpus, planted_sets: Sets) -> None:
    scores = planted_scores(planted)
    for doses in ((0.1, 0.01), (0.0, 0.1), (), (0.5, 1.5)):
        with pytest.raises(SetError, match="expected ascending shares"):
            dose_response(planted, questions, scores, doses=doses)
    with pytest.raises(SetError, match="no group 'd' in these scores"):
        dose_response(planted, questions, scores, groups=["d"])
    with pytest.raises(SetError, match="'keep' silences every layer"):
        layer_sweep(planted, questions, planted_sets, kind="keep")
    with pytest.raises(SetError, match="does not go along an axis"):
        layer_sweep(planted, questions, planted_sets, match="groups")
    curve = layer_sweep(planted, questions, planted_sets, controls=0)
    with pytest.raises(SetError, match="needs 9 effects, found 6"):
        Curve("layer", curve.names, (0, 1, 2), curve.effects)
