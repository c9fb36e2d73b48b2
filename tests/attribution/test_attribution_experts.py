"""Routed experts in the attribution room: scores and references count routed tokens, and those only."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from neuropolis.attribution.activations import reference
from neuropolis.attribution.attribute import attribute
from neuropolis.attribution.encoding import encode_corpus
from neuropolis.attribution.fidelity import fidelity
from neuropolis.attribution.presets import preset
from neuropolis.corpora.examples import Corpus
from neuropolis.neurons.errors import SiteError
from neuropolis.neurons.experts import attached_dense
from neuropolis.neurons.interventions import intervene
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.sites import Edit, Site, Tap
from neuropolis.neurons.subject import Subject, load_model
from torch import Tensor

EXPERTS, UNITS = 6, 16


@pytest.fixture
def subject(tokenizer: Any) -> Subject:
    config = transformers.MixtralConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=64,
        intermediate_size=UNITS, num_local_experts=EXPERTS, num_experts_per_tok=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.MixtralForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)
    return load_model((model, tokenizer))


def units_of(subject: Subject, ids: Tensor) -> list[dict[int, Tensor]]:
    """For each layer, {expert: the units of its tokens} of one text."""
    found: list[dict[int, Tensor]] = [{}, {}]
    with ExitStack() as stack, torch.no_grad():
        for layer, tap in enumerate(subject.site("expert").taps):

            def note(x: Tensor, expert: int, tokens: Tensor, layer: int = layer) -> None:
                found[layer][expert] = x.clone()

            stack.enter_context(tap.attached_routed(note))
        subject.model(ids[None], use_cache=False)
    return found


@pytest.fixture
def texts(subject: Subject, corpus: Corpus) -> list[list[dict[int, Tensor]]]:
    return [units_of(subject, torch.tensor(one.ids[:-1])) for one in encode_corpus(subject, corpus)]


def test_a_reference_is_over_the_routed_real_tokens(
    subject: Subject, corpus: Corpus, texts: list[list[dict[int, Tensor]]]
) -> None:
    found = reference(subject, corpus, site="expert", pool=10_000)
    assert found.sampled is not None
    for layer in range(2):
        for expert in range(EXPERTS):
            own = [text[layer][expert] for text in texts if expert in text[layer]]
            columns = slice(expert * UNITS, (expert + 1) * UNITS)
            count = sum(map(len, own))
            assert int(found.sampled[layer, expert]) == count
            if count:
                rows = torch.cat(own)
                torch.testing.assert_close(found.mean[layer, columns], rows.mean(dim=0), rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(
                    found.std[layer, columns], rows.std(dim=0, correction=0), rtol=1e-3, atol=1e-4
                )
                pool = found.pool[layer, :count, columns]
                torch.testing.assert_close(pool.sort(dim=0).values, rows.sort(dim=0).values, rtol=1e-4, atol=1e-5)
            else:
                assert found.mean[layer, columns].isnan().all()


def test_a_small_pool_holds_tokens_of_the_expert_alone_and_the_seed_says_which(
    subject: Subject, corpus: Corpus, texts: list[list[dict[int, Tensor]]]
) -> None:
    found = reference(subject, corpus, site="expert", pool=4)
    assert found.pool.shape == (2, 4, EXPERTS * UNITS)
    assert found.sampled is not None
    for layer in range(2):
        for expert in range(EXPERTS):
            own = [text[layer][expert] for text in texts if expert in text[layer]]
            for row in found.pool[layer, : int(found.sampled[layer, expert]), expert * UNITS : (expert + 1) * UNITS]:
                assert (torch.cat(own) - row).abs().amax(dim=1).min() < 1e-4
    assert torch.equal(found.pool, reference(subject, corpus, site="expert", pool=4).pool)
    assert not torch.equal(found.pool, reference(subject, corpus, site="expert", pool=4, seed=1).pool)


@pytest.mark.parametrize("kind", ["mean", "resample", "noise"])
def test_its_reference_serves_an_intervention(subject: Subject, corpus: Corpus, kind: Any) -> None:
    found = reference(subject, corpus, site="expert", pool=8)
    assert found.sampled is not None
    reached = int(found.sampled[0].argmax())
    neurons = NeuronSet.from_experts(subject, indices={0: {reached: range(UNITS)}})
    ids = torch.tensor([encode_corpus(subject, corpus)[0].ids])
    with torch.no_grad():
        plain = subject.model(ids).logits
        with intervene(subject, neurons, kind=kind, reference=found):
            moved = subject.model(ids).logits
    assert bool(moved.isfinite().all())
    assert not torch.allclose(moved, plain, atol=1e-4)


def test_scores_of_experts_are_the_change_of_the_loss_with_their_scale(
    subject: Subject, corpus: Corpus, make_loss: Callable[[Subject, Corpus, str], Tensor]
) -> None:
    scores = attribute(subject, corpus, site="expert", method="taylor")
    assert scores.values.shape == (3, 2, EXPERTS * UNITS)
    for g, group in enumerate(scores.groups):
        flat = int(scores.signed[g, 1].abs().argmax())
        neurons = NeuronSet.from_indices(subject, site="expert", indices={1: [flat]})
        losses = []
        for factor in (1.02, 0.98):
            with intervene(subject, neurons, kind="scale", factor=factor):
                losses.append(make_loss(subject, corpus, group))
        slope = float((losses[0] - losses[1]) / 0.04)
        assert float(scores.signed[g, 1, flat]) == pytest.approx(-slope, rel=0.02)


@pytest.fixture
def make_loss() -> Callable[[Subject, Corpus, str], Tensor]:
    """The mean over a group's examples of the answer's summed negative log-likelihood."""

    def loss(subject: Subject, corpus: Corpus, group: str) -> Tensor:
        total = []
        for example, one in zip(corpus.examples, encode_corpus(subject, corpus), strict=True):
            if example.group == group:
                ids = torch.tensor([one.ids])
                with torch.no_grad():
                    logs = subject.model(ids, use_cache=False).logits.log_softmax(dim=-1)[0]
                total.append(-sum(logs[t - 1, one.ids[t]].double() for t in range(one.start, len(one.ids))))
        return torch.stack(total).mean()

    return loss


def dense(subject: Subject) -> Subject:
    """The same model, whose site is read as a whole: [token, expert * unit], zero where a token is not routed."""
    site = subject.site("expert")
    taps = tuple(DenseTap(t.module, t.path, t.side, t.width) for t in site.taps)
    return Subject(
        subject.model, subject.tokenizer, subject.name, subject.fingerprint, {"expert": Site("expert", taps)}
    )


class DenseTap(Tap):
    """A tap that shows all experts at once."""

    def attached(self, edit: Edit):
        return attached_dense(self.module, edit)


@pytest.mark.parametrize("method", ["taylor", "gradient"])
@pytest.mark.parametrize("tokens", ["sum", "abs"])
def test_routed_scores_are_those_of_the_whole_view(subject: Subject, corpus: Corpus, method: str, tokens: Any) -> None:
    routed = attribute(subject, corpus, method=method, site="expert", tokens=tokens)
    whole = attribute(dense(subject), corpus, method=method, site="expert", tokens=tokens)
    if method == "gradient":  # an unrouted unit has no gradient in either view
        assert float((whole.signed != 0).float().mean()) > 0.1
    torch.testing.assert_close(routed.signed, whole.signed)
    torch.testing.assert_close(routed.values, whole.values)


def test_the_largest_is_taken_over_routed_tokens_only(subject: Subject, corpus: Corpus) -> None:
    scores = attribute(subject, corpus, method="taylor", site="expert", tokens="max")
    # where every routed token's part is below zero, a padded or unrouted zero would be the largest
    assert bool((scores.signed < 0).any())


def test_padding_that_is_routed_does_not_count(subject: Subject, corpus: Corpus) -> None:
    together = attribute(subject, corpus, methods=("taylor", "mean", "max"), site="expert")
    alone = attribute(subject, corpus, methods=("taylor", "mean", "max"), site="expert", max_tokens=1)
    for name, scores in together.items():
        torch.testing.assert_close(scores.signed, alone[name].signed, rtol=1e-4, atol=1e-5)


def gates_by_hand(subject: Subject, ids: Tensor) -> list[dict[int, Tensor]]:
    """For each layer, {expert: what its activation function is given for its tokens} of one text."""
    seen: list[tuple[Any, Tensor, Tensor]] = []
    handles = [
        tap.module.register_forward_pre_hook(lambda module, args: seen.append((module, args[0], args[1])))
        for tap in subject.site("expert").taps
    ]
    with torch.no_grad():
        subject.model(ids[None], use_cache=False)
    for handle in handles:
        handle.remove()
    found = []
    for module, hidden, chosen in seen:
        rows = {e: hidden[(chosen == e).any(dim=1)] for e in range(EXPERTS)}
        found.append({e: x @ module.gate_up_proj[e, :UNITS].T for e, x in rows.items() if len(x)})
    return found


def test_lape_reads_the_sign_of_the_gate_and_counts_unrouted_tokens_as_inactive(
    subject: Subject, corpus: Corpus
) -> None:
    from neuropolis.attribution.entropy import activity_bar, lape_scores

    counts = torch.zeros(len(corpus.groups), 2, EXPERTS, UNITS)
    tokens = torch.zeros(len(corpus.groups))
    for example, one in zip(corpus, encode_corpus(subject, corpus), strict=True):
        group = corpus.groups.index(example.group)
        tokens[group] += len(one.ids) - 1
        for layer, experts in enumerate(gates_by_hand(subject, torch.tensor(one.ids[:-1]))):
            for expert, gate in experts.items():
                counts[group, layer, expert] += (gate > 0).sum(dim=0)
    p = counts.flatten(2) / tokens[:, None, None]
    both = attribute(subject, corpus, methods=("lape", "active"), site="expert")
    assert both["lape"].site == "expert"
    torch.testing.assert_close(both["lape"].signed, lape_scores(p))
    assert float(activity_bar(p)) > 0
    # the unit's own sign, which `active` reads, is another: up is multiplied in
    assert not torch.allclose(both["active"].signed, p, atol=1e-3)


def test_an_edit_of_the_gates_changes_what_follows_and_leaves_nothing_behind(subject: Subject) -> None:
    from dataclasses import replace

    tap = replace(subject.site("expert").taps[0], gate=True)
    ids = torch.arange(4, 12)[None]
    with torch.no_grad():
        plain = subject.model(ids).logits
        with tap.attached_routed(lambda x, *_: None):
            torch.testing.assert_close(subject.model(ids).logits, plain, rtol=1e-4, atol=1e-4)
        units: list[Tensor] = []
        with (
            tap.attached_routed(lambda x, *_: torch.zeros_like(x)),
            subject.site("expert").taps[0].attached_routed(lambda x, *_: units.append(x.clone())),
        ):
            subject.model(ids)
        assert units
        assert all(bool((x == 0).all()) for x in units)
        assert torch.equal(subject.model(ids).logits, plain)
    assert not tap.module._forward_pre_hooks


@pytest.mark.parametrize("method", ["mean", "active"])
@pytest.mark.parametrize("max_tokens", [60, 4096])
def test_means_over_tokens_are_over_those_that_reach_the_expert(
    subject: Subject, corpus: Corpus, texts: list[list[dict[int, Tensor]]], method: str, max_tokens: int
) -> None:
    scores = attribute(subject, corpus, method=method, site="expert", max_tokens=max_tokens)
    reached = 0
    for g, group in enumerate(scores.groups):
        own = [text for text, example in zip(texts, corpus, strict=True) if example.group == group]
        for layer in range(2):
            for expert in range(EXPERTS):
                rows = [text[layer][expert] for text in own if expert in text[layer]]
                found = scores.signed[g, layer, expert * UNITS : (expert + 1) * UNITS]
                if not rows:
                    assert not bool(found.any())
                    continue
                reached += 1
                units = torch.cat(rows)
                expected = (units > 0).float().mean(dim=0) if method == "active" else units.mean(dim=0)
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert reached > 6


def test_a_mean_of_all_groups_is_the_reference(subject: Subject, corpus: Corpus) -> None:
    alone = Corpus(tuple(replace(e, group="all") for e in corpus))
    found, expected = attribute(subject, alone, method="mean", site="expert"), reference(subject, alone, site="expert")
    known = ~expected.mean.isnan()
    torch.testing.assert_close(found.signed[0][known], expected.mean[known], rtol=1e-4, atol=1e-5)


def test_the_mean_over_an_examples_tokens_is_over_those_that_reach_the_expert(
    subject: Subject, corpus: Corpus, texts: list[list[dict[int, Tensor]]]
) -> None:
    whole, mean = (
        attribute(subject, corpus, site="expert", tokens=tokens, keep_rows=True).rows for tokens in ("sum", "mean")
    )
    assert whole is not None
    assert mean is not None
    for row, text in enumerate(texts):
        for expert, units in text[1].items():
            columns = slice(expert * UNITS, (expert + 1) * UNITS)
            torch.testing.assert_close(mean[row, 1, columns], whole[row, 1, columns] / len(units), rtol=1e-4, atol=1e-6)


def test_counts_of_routed_tokens_survive_an_interruption(subject: Subject, corpus: Corpus, tmp_path: Any) -> None:
    def stop(done: int, _total: int) -> None:
        if done > 4:
            raise KeyboardInterrupt

    work: Any = {"method": "active", "site": "expert", "max_tokens": 60, "checkpoint_every": 0}
    with pytest.raises(KeyboardInterrupt):
        attribute(subject, corpus, checkpoint=tmp_path / "run", progress=stop, **work)
    found = attribute(subject, corpus, checkpoint=tmp_path / "run", **work)
    assert torch.equal(found.signed, attribute(subject, corpus, **work).signed)


def test_exact_and_fidelity_in_float64(subject: Subject, corpus: Corpus) -> None:
    before = subject.model.config._experts_implementation
    subject.model.double()
    exact = attribute(subject, corpus, method="exact", site="expert", options={"sample": 40})
    assert bool((exact.signed != 0).any())
    assert fidelity(subject, corpus, methods=("taylor",), site="expert", sample=4, shares=(0.1, 1.0), controls=1)
    assert attribute(subject, corpus, site="q").signed.isfinite().all()  # whatever the site
    assert subject.model.config._experts_implementation == before


def test_the_preset_of_lape_takes_experts(subject: Subject, corpus: Corpus) -> None:
    found = preset("lape", subject, corpus, site="expert", top=0.02)
    assert set(found.scores) == {"rate", "lape"}
    assert found.sites == ("expert",)
    assert found.scores["lape"].site == "expert"
    assert len(found.sets["north"] | found.sets["south"] | found.sets["east"]) == round(0.02 * 2 * EXPERTS * UNITS)
    torch.testing.assert_close(
        found.scores["lape"].signed, attribute(subject, corpus, method="lape", site="expert").signed
    )


def test_presets_and_relevance_on_a_mixture(subject: Subject, corpus: Corpus) -> None:
    """What docs/methods.md says of them."""
    with pytest.raises(SiteError, match="relevance has no rule for the routed experts of this MixtralForCausalLM"):
        attribute(subject, corpus, method="relp", site="q")
    own = {group: group for group in corpus.groups}
    for name in ("lape", "cape", "culnig", "fuxitranyu"):
        with pytest.raises(SiteError, match="is a mixture of experts; use site 'expert'"):
            preset(name, subject, corpus, **({"languages": corpus, "language_of": own} if name == "cape" else {}))
    found = preset("cape", subject, corpus, site="expert", languages=corpus, language_of=own, top=0.02)
    assert found.sites == ("expert",)
    assert preset("culnig", subject, corpus, mlp="expert").sites == ("expert", "q", "k", "v")
    assert preset("tsn", subject, corpus, site="expert").sites == ("expert",)
    table = preset("fuxitranyu", subject, corpus, components=["q", "expert"]).importance
    assert table is not None
    assert table.components == ("q", "expert")
