"""Many sets at once: going on from the shared lower layers gives, bit for bit, what running every layer gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from neuropolis.analysis.choices import choice_losses, encode_choices
from neuropolis.analysis.many_sets import choice_losses_off
from neuropolis.attribution.activations import reference
from neuropolis.corpora.examples import Corpus, Example
from neuropolis.neurons.errors import SetError
from neuropolis.neurons.interventions import intervene
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject

Make = Callable[..., Subject]


def several(subject: Subject, site: str = "mlp") -> list[NeuronSet | None]:
    """Sets that begin at every layer, twice at one of them, the empty set and nothing."""
    places = [{2: [1, 5]}, {0: [3], 2: [1]}, {1: [0, 7]}, {2: range(20)}]
    sets = [NeuronSet.from_indices(subject, site=site, indices=indices) for indices in places]
    return [*sets, sets[0] & ~sets[0], None]


def one_by_one(subject: Subject, plan: Any, sets: list[NeuronSet | None], **how: Any) -> torch.Tensor:
    found = []
    for neurons in sets:
        if neurons is None:
            found.append(choice_losses(subject, plan))
        else:
            with intervene(subject, neurons, **how):
                found.append(choice_losses(subject, plan))
    return torch.stack(found)


def passes(subject: Subject) -> Counter[int]:
    """Counts the passes of the FFNs from now on, by layer."""
    counted: Counter[int] = Counter()
    for layer, tap in enumerate(subject.site("mlp").taps):
        tap.module.register_forward_pre_hook(lambda _m, _a, layer=layer: counted.update((layer,)))
    return counted


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gemma2", "opt", "gpt_neox", "phi3"])
def test_resumed_passes_equal_whole_ones(make_subject: Make, corpus: Corpus, family: str, share: bool) -> None:
    subject = make_subject(family)
    plan = encode_choices(subject, corpus, share=share, max_tokens=300)
    assert len(plan.parts) + len(plan.plain) > 1
    sets = several(subject)
    expected = one_by_one(subject, plan, sets)
    assert torch.equal(choice_losses_off(subject, plan, sets=sets, reuse=True), expected)
    counted = passes(subject)
    assert torch.equal(choice_losses_off(subject, plan, sets=sets), expected)
    assert counted[0] < counted[1] < counted[2]  # the trial found that it may be done, and it was
    assert not any("forward" in vars(block) for block in subject.blocks)
    assert torch.equal(choice_losses(subject, plan), expected[-1])


@pytest.mark.parametrize("site", ["attn", "q", "k"])
def test_sets_of_attention_sites_too(make_subject: Make, corpus: Corpus, site: str) -> None:
    subject = make_subject("llama", torch.float64)
    sets = [n if n is None else NeuronSet.from_indices(subject, site=site, indices={
        layer: [i for i in members if i < 8] for layer, members in n.to_indices().items()
    }) for n in several(subject)]  # fmt: skip
    assert torch.equal(choice_losses_off(subject, corpus, sets=sets, reuse=True), one_by_one(subject, corpus, sets))


def test_work_below_a_set_is_done_once(make_subject: Make, corpus: Corpus) -> None:
    subject = make_subject("llama")
    plan = encode_choices(subject, corpus)
    pieces = len(plan.parts)
    tops = [NeuronSet.from_indices(subject, site="mlp", indices={2: [i]}) for i in range(5)]
    counted = passes(subject)
    choice_losses_off(subject, plan, sets=tops, reuse=True)
    assert counted == {0: 2 * pieces, 1: 2 * pieces, 2: 2 * pieces * 6}  # a pass for prompts, a pass for tails
    counted.clear()
    choice_losses_off(subject, plan, sets=tops, reuse=False)
    assert counted == dict.fromkeys(range(3), 2 * pieces * 5)
    counted.clear()
    choice_losses_off(subject, plan, sets=[NeuronSet.from_indices(subject, site="mlp", indices={0: [1]})])
    assert counted == dict.fromkeys(range(3), 2 * pieces)  # nothing to save, so no recording pass


def test_other_kinds_and_means(make_subject: Make, corpus: Corpus) -> None:
    subject = make_subject("llama")
    sets = several(subject)
    known = reference(subject, corpus, site="mlp")
    plan = encode_choices(subject, corpus)
    for kind in ("mean", "scale", "resample", "noise"):
        how = {"kind": kind, "reference": known, "seed": 5}
        ticks: list[tuple[int, int]] = []
        found = choice_losses_off(
            subject, plan, sets=sets, reuse=True, progress=lambda *tick, ticks=ticks: ticks.append(tick), **how
        )
        assert torch.equal(found, one_by_one(subject, plan, sets, **how))
        assert ticks[-1][0] == ticks[-1][1]
    means = choice_losses_off(subject, plan, sets=sets[:2], normalise=True)
    assert torch.equal(means, one_by_one(subject, plan, sets[:2]) / plan.lengths)


def test_a_family_that_cannot_be_resumed_runs_whole(make_subject: Make, corpus: Corpus) -> None:
    """A later block here reads what an earlier one left behind, which a block that stands aside does not leave."""
    subject = make_subject("llama")
    plan = encode_choices(subject, corpus)
    first, last = subject.blocks[0], subject.blocks[2]
    left: list[torch.Tensor] = []

    def leave(_module: Any, _args: Any, output: Any) -> None:
        left[:] = [output]

    def take(_module: Any, _args: Any, output: Any) -> Any:
        return output + left.pop()

    first.register_forward_hook(leave)
    last.register_forward_hook(take)
    sets = several(subject)
    expected = one_by_one(subject, plan, sets)
    assert not torch.equal(choice_losses_off(subject, plan, sets=sets, reuse=True), expected)
    assert torch.equal(choice_losses_off(subject, plan, sets=sets), expected)


def test_a_set_of_another_subject_is_refused(make_subject: Make, corpus: Corpus) -> None:
    foreign = NeuronSet.from_indices(make_subject("llama", seed=1), site="mlp", indices={1: [0]})
    with pytest.raises(SetError, match="belongs to subject"):
        choice_losses_off(make_subject("llama"), corpus, sets=[foreign])
    empty = Example(id="one", group="g", prompt="why", answer="a", choices=("a", "b"), answer_index=0)
    subject = make_subject("llama")
    assert choice_losses_off(subject, Corpus((empty,)), sets=[None]).shape == (1, 1, 2)
