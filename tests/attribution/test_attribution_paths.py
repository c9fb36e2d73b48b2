"""Path methods: values by hand on a toy model, captum in float64 as the oracle, completeness, and bad input."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from captum.attr import IntegratedGradients, LayerConductance
from neuropolis.attribution.attribute import attribute
from neuropolis.attribution.encoding import collate, encode_corpus
from neuropolis.attribution.objectives import loss
from neuropolis.attribution.paths import embedding, mean_embedding
from neuropolis.corpora.examples import Corpus, CorpusError, Example
from neuropolis.neurons.errors import SiteError
from neuropolis.neurons.interventions import intervene
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.sites import Site, Tap
from neuropolis.neurons.subject import Subject

VOCABULARY = 64
QUARTERS = {"steps": 4, "rule": "riemann_middle"}
A, B, C = 4, 5, 6  # token ids of the characters a, b, c under the tests' tokenizer


class Curved(torch.nn.Module):
    """logit of b = 2 * relu(3 * e)^2 with the embedding e of 'a' one: one neuron, active at 3, and a square behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_hidden_layers=1, get_text_config=lambda: self.config)
        self.table = torch.nn.Embedding(VOCABULARY, 1)
        self.out = torch.nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            self.table.weight.zero_()
            self.table.weight[A] = 1.0
            self.out.weight.fill_(1.0)

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.table

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> Any:
        neuron = torch.relu(3 * self.table(input_ids))
        one = torch.nn.functional.one_hot(torch.tensor(B), VOCABULARY).to(neuron)
        return SimpleNamespace(logits=2 * self.out(neuron) ** 2 * one)


@pytest.fixture
def curved(tokenizer: Any) -> Subject:
    model = Curved().double()
    return Subject(model, tokenizer, "curved", "curved", {"mlp": Site("mlp", (Tap(model.out, "out", "in", 1),))})


def asked(group: str = "g") -> Corpus:
    row = {"group": group, "prompt": "a", "answer": "b", "choices": ("b", "c"), "answer_index": 0}
    return Corpus(tuple(Example(id=f"{group}/{i}", **row) for i in range(2)))


def test_integrated_gradients_by_hand(curved: Subject) -> None:
    # the logit is 2 w^2 at w = 3: its gradient 4 w has mean 6 from 0 to 3, times 3 is 18, all that silencing takes away
    for path in ("joint", "layer"):
        scores = attribute(curved, asked(), method="ig", objective="logit_difference", options={"path": path})
        assert float(scores.signed[0, 0, 0]) == pytest.approx(18, abs=1e-12)
        assert scores.origin["completeness_gap"] == pytest.approx(0, abs=1e-12)
        assert scores.origin["completeness_change"] == pytest.approx(18, abs=1e-12)
        assert scores.origin["options"] == {"path": path}
    assert float(attribute(curved, asked(), objective="logit_difference").signed[0, 0, 0]) == 36  # Taylor: 12 * 3


def test_a_coarse_path_reports_its_gap(curved: Subject) -> None:
    # one step takes the gradient in the middle: exact for the logit 2 w^2, not for the loss
    coarse = attribute(curved, asked(), method="ig", options={"steps": 1})
    fine = attribute(curved, asked(), method="ig", options={"steps": 24})
    assert coarse.origin["completeness_gap"] > 1e-2
    assert fine.origin["completeness_gap"] < 1e-4 * coarse.origin["completeness_gap"]


def test_conductance_by_hand(curved: Subject) -> None:
    # w = 3 a along the path, dF/dw = 4 w = 12 a: the integral of 12 a * 3 is 18; from the left with two steps 0 + 6 * 1.5 = 9
    scores = attribute(
        curved, asked(), method="conductance", objective="logit_difference", options={"steps": 2, "baseline": "zero"}
    )
    assert float(scores.signed[0, 0, 0]) == pytest.approx(18, abs=1e-12)
    assert scores.origin["completeness_gap"] == pytest.approx(0, abs=1e-12)
    left = attribute(
        curved, asked(), method="conductance", objective="logit_difference",
        options={"steps": 2, "rule": "left", "baseline": "zero"},
    )  # fmt: skip
    assert float(left.signed[0, 0, 0]) == pytest.approx(9, abs=1e-12)
    assert left.origin["completeness_gap"] == pytest.approx(9, abs=1e-12)


def test_conductance_from_the_mean_embedding_by_hand(curved: Subject) -> None:
    # the mean of the table is 1/64: from w = 3/64 to 3, F goes from 2 (3/64)^2 to 18
    scores = attribute(curved, asked(), method="conductance", objective="logit_difference")
    assert float(scores.signed[0, 0, 0]) == pytest.approx(18 - 2 * (3 / 64) ** 2, abs=1e-12)


def test_smoothgrad_by_hand(curved: Subject) -> None:
    # without noise it is Taylor: 12 * 3. The embeddings of <s>, a are 0, 1: their deviation is sqrt(1/2)
    plain = attribute(curved, asked(), method="smoothgrad", objective="logit_difference", options={"noise": 0.0})
    assert float(plain.signed[0, 0, 0]) == pytest.approx(36, abs=1e-12)
    ids = encode_corpus(curved, asked())[0].ids
    from neuropolis.attribution.paths import generator_of

    drawn = torch.randn((2, 1), generator=generator_of(ids, 5)) * 0.5**0.5
    e = 1 + 0.1 * float(drawn[1, 0])
    noisy = attribute(
        curved, asked(), method="smoothgrad", objective="logit_difference", options={"samples": 1, "seed": 5}
    )
    assert float(noisy.signed[0, 0, 0]) == pytest.approx(4 * (3 * e) ** 2, rel=1e-6)


def oracle_batches(subject: Subject, corpus: Corpus) -> list[Any]:
    return [collate([one], [0]) for one in encode_corpus(subject, corpus)]


def by_group(scores: torch.Tensor, corpus: Corpus) -> torch.Tensor:
    return torch.stack([scores[[e.group == g for e in corpus]].mean(dim=0) for g in corpus.groups])


def activations(subject: Subject, site: Site, ids: torch.Tensor) -> list[torch.Tensor]:
    """Every layer's neurons, by plain hooks."""
    read: list[torch.Tensor] = []
    handles = []
    for tap in site.taps:
        if tap.side == "in":
            handles.append(tap.module.register_forward_pre_hook(lambda _m, args: read.append(args[0].detach())))
        else:
            handles.append(tap.module.register_forward_hook(lambda _m, _a, out: read.append(out.detach().clone())))
    with torch.no_grad():
        subject.model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return [x if t.channels is None else x[..., t.channels] for x, t in zip(read, site.taps, strict=True)]


def captum_ig(subject: Subject, corpus: Corpus, name: str, layers: list[list[int]]) -> torch.Tensor:
    """Signed scores [example, layer, neuron] of captum's integrated gradients whose inputs are the layers' activations.

    Four steps of a quarter each: captum keeps its weights in float32. One step at a time: families that compute norms or softmax
    in float32 round by the shape of a batch.
    """
    site, rows = subject.site(name), []
    for batch in oracle_batches(subject, corpus):
        full = activations(subject, site, batch.input_ids)
        scores = torch.zeros(site.num_layers, site.width, dtype=torch.float64)
        for part in layers:

            def objective(*given: torch.Tensor, part: list[int] = part, batch: Any = batch) -> torch.Tensor:
                handles = []
                for layer, put in zip(part, given, strict=True):
                    tap = site.taps[layer]

                    def replaced(old: torch.Tensor, tap: Tap = tap, put: torch.Tensor = put) -> torch.Tensor:
                        put = put.reshape(*old.shape[:-1], -1)
                        return put.clone() if tap.channels is None else old.index_copy(-1, tap.channels, put)

                    if tap.side == "in":
                        handles.append(tap.module.register_forward_pre_hook(lambda _m, a, r=replaced: (r(a[0]),)))
                    else:
                        handles.append(tap.module.register_forward_hook(lambda _m, _a, out, r=replaced: r(out)))
                ids = batch.input_ids.expand(len(given[0]), -1)
                logits = subject.model(input_ids=ids, use_cache=False).logits[:, -batch.targets.shape[1] :]
                for handle in handles:
                    handle.remove()
                many = SimpleNamespace(targets=batch.targets.expand(len(ids), -1))
                return loss(logits, many, [])  # pyright: ignore[reportArgumentType]

            length = batch.input_ids.shape[1]
            inputs = tuple(full[layer].reshape(1, length, -1) for layer in part)
            found = IntegratedGradients(objective).attribute(
                inputs, baselines=tuple(torch.zeros_like(x) for x in inputs), n_steps=4, method="riemann_middle",
                internal_batch_size=1,
            )  # fmt: skip
            for layer, one in zip(part, found, strict=True):
                scores[layer] = -one.sum(dim=(0, 1))
        rows.append(scores)
    return torch.stack(rows).detach()


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox", "bloom", "opt", "phi3", "falcon"])
def test_joint_path_equals_captum_in_float64(make_subject: Any, corpus: Corpus, family: str) -> None:
    subject = make_subject(family, torch.float64)
    oracle = captum_ig(subject, corpus, "mlp", [list(range(subject.num_layers))])
    scores = attribute(subject, corpus, method="ig", max_tokens=1, options=QUARTERS)
    assert oracle.abs().max() > 1e-3
    torch.testing.assert_close(scores.signed, by_group(oracle, corpus), rtol=0, atol=1e-9)
    torch.testing.assert_close(scores.values, by_group(oracle.abs(), corpus), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("family", "site"), [("llama", "q"), ("phi3", "gate"), ("phi3", "v"), ("falcon", "mlp_out")])
def test_layer_by_layer_and_other_sites_equal_captum(make_subject: Any, corpus: Corpus, family: str, site: str) -> None:
    subject = make_subject(family, torch.float64)
    small = Corpus(tuple(e for i, e in enumerate(corpus) if i % 4 < 2))
    each = [[layer] for layer in range(subject.num_layers)]
    oracle = captum_ig(subject, small, site, each)
    scores = attribute(subject, small, method="ig", site=site, max_tokens=1, options=QUARTERS | {"path": "layer"})
    torch.testing.assert_close(scores.signed, by_group(oracle, small), rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon"])
def test_conductance_equals_captum_in_float64(make_subject: Any, corpus: Corpus, family: str) -> None:
    subject = make_subject(family, torch.float64)
    small = Corpus(tuple(e for i, e in enumerate(corpus) if i % 4 < 2))
    site, rows = subject.site("mlp"), []
    for batch in oracle_batches(subject, small):

        def objective(embedded: torch.Tensor, batch: Any = batch) -> torch.Tensor:
            logits = subject.model(inputs_embeds=embedded, use_cache=False).logits[:, -batch.targets.shape[1] :]
            many = SimpleNamespace(targets=batch.targets.expand(len(embedded), -1))
            return loss(logits, many, [])  # pyright: ignore[reportArgumentType]

        embedded = subject.model.get_input_embeddings()(batch.input_ids).detach()
        rows.append(
            torch.stack(
                [
                    -LayerConductance(objective, tap.module)
                    .attribute(embedded, n_steps=4, method="riemann_trapezoid", attribute_to_layer_input=True)
                    .reshape(-1, site.width)
                    .sum(dim=0)
                    for tap in site.taps
                ]
            )
        )
    scores = attribute(subject, small, method="conductance", options={"steps": 4, "rule": "left", "baseline": "zero"})
    oracle = by_group(torch.stack(rows).detach(), small)
    assert oracle.abs().max() > 1e-3
    torch.testing.assert_close(scores.signed, oracle, rtol=0, atol=1e-9)


def test_joint_scores_sum_to_what_silencing_the_site_costs(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("gpt2", torch.float64)
    scores = attribute(subject, corpus, method="ig", options={"steps": 48}, keep_rows=True)
    assert scores.rows is not None
    everything = NeuronSet("mlp", subject.fingerprint, torch.ones(scores.values.shape[1:], dtype=torch.bool))
    losses = []
    for within in (False, True):
        mask = everything if within else everything - everything
        with intervene(subject, mask), torch.no_grad():
            one = []
            for batch in oracle_batches(subject, corpus):
                logits = subject.model(input_ids=batch.input_ids).logits[:, -batch.targets.shape[1] :]
                one.append(float(loss(logits, batch, [])))
        losses.append(torch.tensor(one))
    change = losses[1] - losses[0]
    gap = (scores.rows.sum(dim=(1, 2)) - change).abs()
    assert float(gap.mean()) == pytest.approx(scores.origin["completeness_gap"], abs=1e-4)
    assert float(gap.max()) < 0.02 * float(change.abs().max())


@pytest.mark.parametrize("method", ["ig", "conductance", "smoothgrad"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_batch_size_padding_side_and_order_change_nothing(
    make_subject: Any, corpus: Corpus, method: str, family: str
) -> None:
    subject = make_subject(family)
    options = {"samples": 2} if method == "smoothgrad" else {"steps": 2}
    alone = attribute(subject, corpus, method=method, max_tokens=1, options=options)
    assert alone.values.abs().max() > 1e-3
    for how in ({"max_tokens": 10_000}, {"max_tokens": 10_000, "padding_side": "left"}, {"tokens": "sum"}):
        other = attribute(subject, corpus, method=method, options=options, **how)
        torch.testing.assert_close(other.values, alone.values, rtol=1e-4, atol=1e-5)
    backwards = attribute(subject, Corpus(corpus.examples[::-1]), method=method, options=options)
    order = [backwards.groups.index(g) for g in alone.groups]
    torch.testing.assert_close(backwards.values[order], alone.values, rtol=1e-4, atol=1e-5)


def test_token_reductions_and_rows(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama", torch.float64)
    kept = {t: attribute(subject, corpus, method="ig", tokens=t, options={"steps": 2}) for t in ("sum", "abs", "max")}
    assert bool((kept["abs"].values >= kept["sum"].values - 1e-12).all())
    assert bool((kept["max"].signed <= kept["abs"].signed + 1e-12).all())
    assert not torch.equal(kept["abs"].signed, kept["sum"].signed)


def test_many_methods_in_one_call_keep_their_own_scores(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama")
    both = attribute(subject, corpus, methods=("taylor", "ig"), site=("mlp", "v"), options={"steps": 2})
    alone = attribute(subject, corpus, method="ig", site="v", options={"steps": 2})
    assert torch.equal(both["ig/v"].signed, alone.signed)
    assert "completeness_gap" not in both["taylor/v"].origin


def test_the_module_is_left_as_it_was(make_subject: Any, corpus: Corpus) -> None:
    subject = make_subject("llama")
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in subject.model.modules()]
    grads = [p.requires_grad for p in subject.model.parameters()]

    class Interrupted(Exception):
        pass

    def stop(_done: int, _total: int) -> None:
        raise Interrupted

    for method in ("ig", "conductance", "smoothgrad"):
        with pytest.raises(Interrupted):
            attribute(subject, corpus, method=method, progress=stop, max_tokens=50)
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in subject.model.modules()] == hooks
    assert [p.requires_grad for p in subject.model.parameters()] == grads
    assert all(p.grad is None for p in subject.model.parameters())


def test_bad_input_is_named(make_subject: Any, curved: Subject, corpus: Corpus) -> None:
    subject = make_subject("llama")
    with pytest.raises(ValueError, match="'samples' is no option of ig; options are path, rule, steps"):
        attribute(subject, corpus, method="ig", options={"samples": 3})
    with pytest.raises(ValueError, match="steps is 0; expected how many points"):
        attribute(subject, corpus, method="ig", options={"steps": 0})
    with pytest.raises(ValueError, match="cannot use rule 'simpson' with 16 steps; rules are gausslegendre"):
        attribute(subject, corpus, method="ig", options={"rule": "simpson"})
    with pytest.raises(ValueError, match="unknown path 'both'; paths are joint, layer"):
        attribute(subject, corpus, method="ig", options={"path": "both"})
    with pytest.raises(ValueError, match="unknown baseline 'pad'; baselines of conductance are zero, mean"):
        attribute(subject, corpus, method="conductance", options={"baseline": "pad"})
    with pytest.raises(ValueError, match="samples is 0; expected how many draws"):
        attribute(subject, corpus, method="smoothgrad", options={"samples": 0})
    with pytest.raises(CorpusError, match="group 'north' has 1 example, expected at least 2"):
        attribute(subject, Corpus((*corpus.examples[:1], *corpus.examples[4:])), method="ig")
    bare = Corpus(tuple(Example(id=e.id, group=e.group, prompt="a", answer="b") for e in corpus))
    with pytest.raises(CorpusError, match="has no wrong choice"):
        attribute(subject, bare, method="conductance", objective="logit_difference")
    del Curved.get_input_embeddings
    try:
        with pytest.raises(SiteError, match=r"curved .* has no input embeddings to put on a path"):
            attribute(curved, asked(), method="smoothgrad")
    finally:
        Curved.get_input_embeddings = lambda self: self.table  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("method", ["ig", "conductance", "smoothgrad"])
def test_nan_is_named_by_example_or_skipped(make_subject: Any, corpus: Corpus, method: str) -> None:
    subject = make_subject("llama")
    bad = Corpus((*corpus, Example(id="bad/1", group="north", prompt="Z?", answer=" b")))
    with torch.no_grad():
        subject.model.model.embed_tokens.weight[subject.tokenizer.convert_tokens_to_ids("Z")] = torch.nan
    with pytest.raises(CorpusError, match=r"of 1 example\(s\) is not finite.*'bad/1'"):
        attribute(subject, bad, method=method)
    left = attribute(subject, bad, method=method, on_not_finite="skip")
    assert left.origin["skipped"] == ["bad/1"]
    torch.testing.assert_close(left.signed, attribute(subject, corpus, method=method).signed, rtol=1e-4, atol=1e-5)


def test_quadrature_by_hand() -> None:
    from neuropolis.attribution.paths import quadrature

    # three Gauss-Legendre nodes integrate polynomials up to degree five exactly
    assert sum(w * a**5 for a, w in quadrature("gausslegendre", 3)) == pytest.approx(1 / 6, abs=1e-15)
    assert quadrature("riemann_middle", 2) == [(0.25, 0.5), (0.75, 0.5)]
    assert quadrature("riemann_trapezoid", 3) == [(0.0, 0.25), (0.5, 0.5), (1.0, 0.25)]


@pytest.mark.parametrize("method", ["ig", "conductance", "smoothgrad", "relp"])
def test_blocks_computed_again_change_nothing(make_subject: Any, corpus: Corpus, method: str) -> None:
    subject = make_subject("llama")
    plain = attribute(subject, corpus, method=method)
    again = attribute(subject, corpus, method=method, recompute=True)
    torch.testing.assert_close(again.signed, plain.signed, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["ig", "conductance", "smoothgrad", "relp", "exact"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_close(make_subject: Any, corpus: Corpus, method: str, dtype: torch.dtype) -> None:
    half, whole = make_subject("llama", dtype), make_subject("llama")
    whole.model.load_state_dict(half.model.state_dict())
    options = {"samples": 2, "noise": 0.01} if method == "smoothgrad" else {"sample": 20} if method == "exact" else None
    found, expected = (attribute(s, corpus, method=method, options=options) for s in (half, whole))
    assert found.values.dtype == torch.float32
    error = (found.signed - expected.signed).norm() / expected.signed.norm()
    assert float(error) < (0.05 if dtype == torch.float16 else 0.3)


def test_what_several_processes_tell_comes_together() -> None:
    """Each process knows the gaps of its own examples only."""
    from neuropolis.attribution.sums import empty_sums

    mine, other = (empty_sums((1, 1, 1), 3, dtype=torch.float32, device=torch.device("cpu")) for _ in range(2))
    mine.scored[0], other.scored[1] = True, True
    mine.extra["gap"] = torch.tensor([2.0, torch.nan, torch.nan])
    other.extra["gap"] = torch.tensor([0.0, 4.0, 0.0])
    theirs = iter([other.scored.int(), *[torch.zeros(1, 1, 1)] * 3, *[torch.zeros(1)] * 2, other.extra["gap"]])
    mine.gather(lambda tensor: tensor.add_(next(theirs).to(tensor.dtype)))
    assert mine.told() == {"gap": 3.0}


def test_the_mean_baseline_is_of_what_the_embedding_module_gives(make_subject: Any) -> None:
    subject = make_subject("gemma2")  # its embeddings are scaled by the root of their width
    found = mean_embedding(subject, embedding(subject))
    table = subject.model.get_input_embeddings().weight.detach()
    torch.testing.assert_close(found, 32**0.5 * table.mean(dim=0))
    with torch.no_grad():
        table[3, 0] = torch.inf
    assert bool(torch.isfinite(mean_embedding(subject, embedding(subject))).all())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"samples": 2.5}, "samples is 2.5; expected how many draws"),
        ({"samples": "abc"}, "samples is 'abc'; expected how many draws"),
        ({"noise": "abc"}, "noise is 'abc'; expected a finite number"),
        ({"noise": torch.inf}, "noise is inf; expected a finite number"),
        ({"seed": "x"}, "seed is 'x'; expected a whole number"),
    ],
)
def test_options_of_smoothgrad_of_another_type_are_named(
    make_subject: Any, corpus: Corpus, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        attribute(make_subject("llama"), corpus, method="smoothgrad", options=options)
