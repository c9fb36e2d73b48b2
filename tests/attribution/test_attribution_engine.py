"""The one-pass engine: values by hand on a toy model, and independence from batches, padding, order and grouping."""

from __future__ import annotations

import math
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from neuropolis.attribution.attribute import attribute
from neuropolis.corpora.examples import Corpus, CorpusError, Example
from neuropolis.neurons.errors import SiteError
from neuropolis.neurons.interventions import intervene
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.sites import Site, Tap
from neuropolis.neurons.subject import Subject

VOCABULARY = 64
A, B, C = 4, 5, 6  # token ids of the characters a, b, c under the tests' tokenizer


class Toy(torch.nn.Module):
    """logits = out @ relu(into @ onehot(token)): two neurons, integer weights, no attention."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_hidden_layers=1, get_text_config=lambda: self.config)
        self.into = torch.nn.Linear(VOCABULARY, 2, bias=False)
        self.out = torch.nn.Linear(2, VOCABULARY, bias=False)
        with torch.no_grad():
            self.into.weight.zero_()
            self.out.weight.zero_()
            self.into.weight[:, A] = torch.tensor([3.0, -1.0])  # 'a' drives neuron 0 to 3, silences neuron 1
            self.into.weight[:, B] = torch.tensor([2.0, 5.0])
            self.out.weight[B] = torch.tensor([4.0, -1.0])  # neuron 0 speaks for 'b', neuron 1 against it
            self.out.weight[C] = torch.tensor([1.0, 2.0])

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> Any:
        hidden = torch.relu(self.into(torch.nn.functional.one_hot(input_ids, VOCABULARY).to(self.into.weight.dtype)))
        return SimpleNamespace(logits=self.out(hidden))


@pytest.fixture
def toy(tokenizer: Any) -> Subject:
    model = Toy().double()
    site = Site("mlp", (Tap(model.out, "out", "in", 2),))
    return Subject(model, tokenizer, "toy", "toy", {"mlp": site})


def two(answer: str = "b", choices: tuple[str, ...] = ("b", "c")) -> Corpus:
    shared = {"choices": choices, "answer_index": choices.index(answer), "group": "g"}
    return Corpus(
        (Example(id="1", prompt="a", answer=answer, **shared), Example(id="2", prompt="ba", answer=answer, **shared))
    )


def test_logit_difference_by_hand(toy: Subject) -> None:
    # at 'a' the neurons are (3, 0); logit b - logit c has gradient (4-1, -1-2) = (3, -3)
    scores = attribute(toy, two(), objective="logit_difference")
    assert scores.signed[0, 0].tolist() == [9.0, 0.0]
    assert scores.values[0, 0].tolist() == [9.0, 0.0]
    assert scores.squares[0, 0].tolist() == [81.0, 0.0]
    assert scores.counts.tolist() == [2]


def test_loss_by_hand(toy: Subject) -> None:
    # at 'a' the logits are b: 12, c: 3, the other 62: 0; dL/dw0 = 4 p(b) + 1 p(c) - 4, and the score is -3 dL/dw0
    total = math.exp(12) + math.exp(3) + 62
    expected = -3 * ((4 * math.exp(12) + math.exp(3)) / total - 4)
    scores = attribute(toy, two())
    assert float(scores.signed[0, 0, 0]) == pytest.approx(expected, rel=1e-9)
    assert expected > 0  # silencing neuron 0 makes the loss worse


def test_probability_by_hand(toy: Subject) -> None:
    # dp/dw0 = p (4 - 4 p - p(c)); the score is w0 dp/dw0, positive because the neuron helps
    total = math.exp(12) + math.exp(3) + 62
    p, other = math.exp(12) / total, math.exp(3) / total
    scores = attribute(toy, two(), objective="probability")
    assert float(scores.signed[0, 0, 0]) == pytest.approx(3 * p * (4 - 4 * p - other), rel=1e-9)


def test_loss_of_all_tokens_by_hand(toy: Subject) -> None:
    # 'ba' then 'b': <s> drives nothing; at 'b' neurons are (2, 5) and the target is 'a', which no neuron speaks for
    corpus = Corpus(tuple(Example(id=str(i), group="g", prompt="ba", answer="b") for i in range(2)))
    at_b = {"b": 4 * 2 - 5, "c": 2 + 10}
    total = math.exp(at_b["b"]) + math.exp(at_b["c"]) + 62
    first = -2 * (4 * math.exp(at_b["b"]) + math.exp(at_b["c"])) / total
    end = math.exp(12) + math.exp(3) + 62
    second = -3 * ((4 * math.exp(12) + math.exp(3)) / end - 4)
    scores = attribute(toy, corpus, objective="loss_all")
    assert float(scores.signed[0, 0, 0]) == pytest.approx(first + second, rel=1e-9)


def test_taylor_is_exact_where_the_objective_is_linear(toy: Subject) -> None:
    scores = attribute(toy, two(), objective="logit_difference")
    ids = torch.tensor([[1, A]])

    def difference() -> float:
        logits = toy.model(ids).logits[0, -1].detach()
        return float(logits[B] - logits[C])

    before = difference()
    with intervene(toy, NeuronSet("mlp", "toy", torch.tensor([[True, False]]))):
        after = difference()
    assert before - after == float(scores.signed[0, 0, 0])


def test_token_reductions_by_hand(toy: Subject) -> None:
    # all tokens as targets: contributions of neuron 0 at the two scored places, signed as above
    corpus = Corpus(tuple(Example(id=str(i), group="g", prompt="ba", answer="b") for i in range(2)))
    total = float(attribute(toy, corpus, objective="loss_all").signed[0, 0, 0])
    most = float(attribute(toy, corpus, objective="loss_all", tokens="max").signed[0, 0, 0])
    absolute = float(attribute(toy, corpus, objective="loss_all", tokens="abs").signed[0, 0, 0])
    mean = float(attribute(toy, corpus, objective="loss_all", tokens="mean").signed[0, 0, 0])
    least = total - most
    assert least < 0 < most or most == pytest.approx(0, abs=1e-6)
    assert absolute == pytest.approx(abs(most) + abs(least), rel=1e-5)
    assert mean == pytest.approx(total / 3, rel=1e-5)  # <s>, b, a


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox", "bloom", "opt", "falcon"])
def test_batch_size_padding_side_and_order_change_nothing(make_subject: Any, corpus: Corpus, family: str) -> None:
    subject = make_subject(family)
    alone = attribute(subject, corpus, max_tokens=1)
    together = attribute(subject, corpus, max_tokens=10_000)
    left = attribute(subject, corpus, max_tokens=10_000, padding_side="left")
    backwards = attribute(subject, Corpus(corpus.examples[::-1]), max_tokens=100)
    order = [backwards.groups.index(g) for g in corpus.groups]
    assert alone.values.abs().max() > 1e-3
    for other in (together.values, left.values, backwards.values[order]):
        torch.testing.assert_close(other, alone.values, rtol=1e-5, atol=1e-6)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(12)), max_tokens=st.integers(1, 400))
def test_an_example_does_not_see_its_batch_mates(
    make_subject: Any, corpus: Corpus, order: list[int], max_tokens: int
) -> None:
    subject = make_subject("llama")
    shuffled = Corpus(tuple(corpus[i] for i in order))
    scores = attribute(subject, shuffled, tokens="max", max_tokens=max_tokens)
    plain = attribute(subject, corpus, tokens="max", max_tokens=1)
    rows = [scores.groups.index(g) for g in plain.groups]
    torch.testing.assert_close(scores.values[rows], plain.values, rtol=1e-5, atol=1e-6)


def test_one_pass_equals_a_pass_per_group(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama", torch.float64)
    scores = attribute(subject, corpus, controls=True)
    for row, group in enumerate(corpus.groups):
        single = attribute(subject, corpus.only(group), controls=True)
        torch.testing.assert_close(scores.values[row], single.values[0], rtol=0, atol=1e-12)
        assert scores.control_values is not None
        assert single.control_values is not None
        torch.testing.assert_close(scores.control_values[row], single.control_values[0], rtol=0, atol=1e-12)


def test_standard_error_by_hand(toy: Subject) -> None:
    corpus = Corpus((two()[0], Example(id="2", group="g", prompt="b", answer="b", choices=("b", "c"), answer_index=0)))
    scores = attribute(toy, corpus, objective="logit_difference")
    # neuron 0 scores 9 at 'a' and 2 * 3 = 6 at 'b': mean 7.5, standard deviation 3 / sqrt(2), error 1.5
    assert float(scores.values[0, 0, 0]) == 7.5
    assert float(scores.error[0, 0, 0]) == pytest.approx(1.5)


def test_the_module_is_left_as_it_was(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama")
    subject.model.train()
    subject.model.lm_head.weight.requires_grad_(False)
    before = [p.requires_grad for p in subject.model.parameters()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in subject.model.modules()]
    attribute(subject, corpus)
    assert subject.model.training
    assert [p.requires_grad for p in subject.model.parameters()] == before
    assert all(p.grad is None for p in subject.model.parameters())

    class Interrupted(Exception):
        pass

    def stop(_done: int, _total: int) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        attribute(subject, corpus, progress=stop, max_tokens=50)
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in subject.model.modules()] == hooks
    assert [p.requires_grad for p in subject.model.parameters()] == before


def test_scored_rows_are_the_training_split(make_subject: Any, corpus: Corpus) -> None:
    from dataclasses import replace

    split = Corpus(tuple(replace(e, tags={"split": "train" if i % 4 < 2 else "test"}) for i, e in enumerate(corpus)))
    scores = attribute(make_subject("llama"), split)
    assert scores.origin["examples"] == [e.id for i, e in enumerate(corpus) if i % 4 < 2]
    assert attribute(make_subject("llama"), split, split=None).counts.tolist() == [4, 4, 4]


def test_bad_input_is_named(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama")
    with pytest.raises(CorpusError, match="group 'north' has 1 example, expected at least 2"):
        attribute(subject, Corpus((*corpus.examples[:1], *corpus.examples[4:])))
    with pytest.raises(ValueError, match="unknown objective 'los'; objectives are loss, loss_all"):
        attribute(subject, corpus, objective="los")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="unknown method 'tailor'; methods are taylor, gradient"):
        attribute(subject, corpus, method="tailor")
    with pytest.raises(SiteError, match="unknown site 'ffn'; sites are mlp, gate"):
        attribute(subject, corpus, site="ffn")
    with pytest.raises(CorpusError, match="has no wrong choice"):
        attribute(subject, Corpus(tuple(Example(id=e.id, group=e.group, prompt="a", answer="b") for e in corpus)),
                  objective="logit_difference")  # fmt: skip


def test_nan_is_named_by_example(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama")
    special = Example(id="bad/1", group="north", prompt="Z?", answer=" b")
    with torch.no_grad():
        subject.model.model.embed_tokens.weight[subject.tokenizer.convert_tokens_to_ids("Z")] = torch.nan
    with pytest.raises(CorpusError, match=r"loss of 1 example\(s\) is not finite.*'bad/1'"):
        attribute(subject, Corpus((*corpus, special)))


def test_methods_and_sites_share_one_pass_and_change_nothing(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama")
    together = attribute(subject, corpus, methods=("taylor", "gradient"), site=("mlp", "q"))
    assert list(together) == ["taylor/mlp", "taylor/q", "gradient/mlp", "gradient/q"]
    for name, found in together.items():
        method, site = name.split("/")
        alone = attribute(subject, corpus, method=method, site=site)
        assert torch.equal(found.signed, alone.signed), name
        assert torch.equal(found.values, alone.values), name


def test_rows_are_the_examples_scores(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama")
    scores = attribute(subject, corpus, keep_rows=True)
    assert scores.rows is not None
    assert scores.row_groups is not None
    for number, group in enumerate(scores.groups):
        own = scores.rows[scores.row_groups == number]
        assert len(own) == corpus.counts[group]
        torch.testing.assert_close(own.abs().mean(dim=0), scores.values[number])


def test_a_batch_that_memory_does_not_hold_is_halved(
    make_subject: Any, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neuropolis.attribution import engine

    subject = make_subject("llama")
    expected = attribute(subject, corpus)
    plain = engine.forward
    sizes = []

    def hungry(subject: Any, batch: Any) -> torch.Tensor:
        sizes.append(len(batch.rows))
        logits = plain(subject, batch)
        if batch.input_ids.numel() > 106:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"
            )
        return logits

    monkeypatch.setattr(engine, "forward", hungry)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scores = attribute(subject, corpus, max_tokens=212)  # batches of 4 at first
    assert [str(one.message)[:48] for one in caught] == ["memory did not hold 4 examples of 53 tokens; bat"]
    assert "at most 106 tokens" in str(caught[0].message)
    assert sizes[:3] == [4, 2, 2]
    assert max(sizes[1:]) <= 3  # what did not fit once is not tried again
    assert scores.counts.tolist() == expected.counts.tolist()
    torch.testing.assert_close(scores.signed, expected.signed)


def test_an_example_that_memory_does_not_hold_is_named(
    make_subject: Any, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neuropolis.attribution import engine

    def hungry(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine, "forward", hungry)
    halved = pytest.warns(RuntimeWarning, match="did not hold")
    with halved, pytest.raises(MemoryError, match=r"example '.*' does not fit in memory alone; shorten it"):
        attribute(make_subject("llama"), corpus)


def test_examples_that_are_not_finite_are_skipped_when_asked(
    make_subject: Any, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neuropolis.attribution import engine

    subject = make_subject("llama")
    plain = engine.forward
    bad = 3

    def poisoned(subject: Any, batch: Any) -> torch.Tensor:
        logits = plain(subject, batch)
        hit = (batch.rows == bad).to(logits.dtype)[:, None, None]
        return logits + torch.where(hit > 0, torch.nan, 0.0)

    monkeypatch.setattr(engine, "forward", poisoned)
    with pytest.raises(CorpusError, match=repr(corpus[bad].id)):
        attribute(subject, corpus)
    scores = attribute(subject, corpus, on_not_finite="skip", min_examples=1)
    assert scores.origin["skipped"] == [corpus[bad].id]
    monkeypatch.setattr(engine, "forward", plain)
    rest = Corpus(tuple(e for e in corpus if e.id != corpus[bad].id))
    torch.testing.assert_close(scores.signed, attribute(subject, rest, min_examples=1).signed)


def poison(monkeypatch: pytest.MonkeyPatch, rows: set[int]) -> None:
    """NaN in the logits of these examples, control twins counted on."""
    from neuropolis.attribution import engine

    plain = engine.forward

    def poisoned(subject: Any, batch: Any) -> torch.Tensor:
        logits = plain(subject, batch)
        hit = torch.tensor([row in rows for row in batch.rows.tolist()])
        return torch.where(hit[:, None, None], torch.nan, logits)

    monkeypatch.setattr(engine, "forward", poisoned)


def test_a_skipped_twin_counts_as_the_mean_of_its_groups_others(
    make_subject: Any, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neuropolis.attribution.culnig import _weighed

    subject = make_subject("llama")
    asked: dict[str, Any] = {"method": "culnig", "site": "gate", "objective": "probability", "controls": True}
    rest = attribute(subject, Corpus(corpus.examples[1:]), **asked)
    poison(monkeypatch, {len(corpus)})  # the twin of the first example
    scores = attribute(subject, corpus, on_not_finite="skip", **asked)
    assert len(scores.origin["skipped"]) == 1
    assert scores.counts.tolist() == [4, 4, 4]
    assert scores.control_signed is not None
    torch.testing.assert_close(scores.control_signed, rest.control_signed)
    torch.testing.assert_close(_weighed(scores), (scores.signed - scores.control_signed) * 4 / 12)


def test_a_group_without_a_twin_left_is_named(
    make_subject: Any, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, set(range(12, 16)))
    with pytest.raises(CorpusError, match="no control twin of group 'north' is left"):
        attribute(make_subject("llama"), corpus, on_not_finite="skip", controls=True)


def test_a_registered_function_of_subject_and_corpus_is_a_method(make_subject: Any, corpus: Corpus) -> None:
    from neuropolis.attribution.methods import METHODS, register_method

    subject = make_subject("llama")
    site = subject.site("mlp")

    @register_method("mine")
    def mine(subject: Subject, corpus: Corpus) -> torch.Tensor:
        return -torch.ones(len(corpus.groups), site.num_layers, site.width)

    try:
        both = attribute(subject, corpus, methods=("mine", "taylor"))
        assert bool((both["mine"].signed == -1).all())
        assert bool((both["mine"].values == 1).all())
        METHODS["mine"] = METHODS["mine"].__class__("mine", "subject", lambda subject, corpus: torch.ones(2))
        with pytest.raises(ValueError, match="expected a tensor \\[group, layer, neuron\\]"):
            attribute(subject, corpus, method="mine")
        METHODS["mine"] = METHODS["mine"].__class__(
            "mine",
            "subject",
            lambda subject, corpus: torch.full((len(corpus.groups), site.num_layers, site.width), torch.nan),
        )
        with pytest.raises(
            ValueError, match="method 'mine' gave scores that are not finite; its function must give numbers"
        ):
            attribute(subject, corpus, method="mine")
    finally:
        del METHODS["mine"]


def test_a_gated_ffn_keeps_no_more_than_the_model_does(make_subject: Any, corpus: Corpus) -> None:
    """act(gate) * up is had again from its factors, which the backward keeps anyway."""
    subject, kept = make_subject("llama"), {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() == 3 and tensor.shape[-1] == 48:
            kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        attribute(subject, corpus, max_tokens=10_000)
    # the lowest layer's activation; of each of the two others gate, act(gate) and up
    assert len(kept) == 1 + 2 * 3


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"on_not_finite": "Stop"}, "unknown on_not_finite 'Stop'; it is stop or skip"),
        ({"padding_side": "foo"}, "unknown padding_side 'foo'; it is left or right"),
        ({"methods": "taylor"}, "methods is 'taylor'; expected several names"),
    ],
)
def test_words_that_are_not_there_are_refused(make_subject: Any, corpus: Corpus, asked: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        attribute(make_subject("llama"), corpus, **asked)


def test_twins_that_are_all_skipped_are_not_called_an_overflow(
    make_subject: Any, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neuropolis.attribution import engine

    plain = engine.forward

    def poisoned(subject: Subject, batch: Any) -> torch.Tensor:
        north = (batch.rows >= len(corpus)) & (batch.rows < len(corpus) + 4)
        return plain(subject, batch).masked_fill(north[:, None, None], torch.nan)

    monkeypatch.setattr(engine, "forward", poisoned)
    with pytest.raises(CorpusError, match="no control twin of group 'north' is left"):
        attribute(make_subject("llama"), corpus, controls=True, on_not_finite="skip")
