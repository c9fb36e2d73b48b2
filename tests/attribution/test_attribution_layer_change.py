"""D_i by hand on a model whose blocks add a known vector, and what must not change it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from neuropolis.attribution.encoding import encode_corpus
from neuropolis.attribution.layer_change import _mean_states, relevant_layers
from neuropolis.corpora.examples import Corpus, Example
from neuropolis.neurons.errors import SetError
from neuropolis.neurons.subject import Subject
from torch import Tensor, nn


class Adding(nn.Module):
    """A block that adds one vector to every token, but twice as much to tokens of an id above 30."""

    def __init__(self, vector: list[float]) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.tensor(vector))

    def forward(self, hidden_states: Tensor, often: Tensor) -> tuple[Tensor]:
        return (hidden_states + often[..., None] * self.vector,)


class Toy(nn.Module):
    """Embeds every token as (1, 0), then three blocks; logits are of no interest."""

    def __init__(self) -> None:
        super().__init__()
        self.config: Any = SimpleNamespace(num_hidden_layers=3, max_position_embeddings=None)
        self.config.get_text_config = lambda: self.config
        self.blocks = nn.ModuleList([Adding([3.0, 4.0]), Adding([0.0, -1.0]), Adding([-6.0, 6.0])])

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Any:
        state = torch.tensor([1.0, 0.0]).expand(*input_ids.shape, 2)
        often = 1.0 + (input_ids > 30)
        for block in self.blocks:
            (state,) = block(hidden_states=state, often=often)
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 64))


@pytest.fixture
def toy(tokenizer: Any) -> Subject:
    model = Toy()
    subject = Subject(model, tokenizer, "toy", "0" * 16)
    adapter = SimpleNamespace(get_component=lambda m, path: m.blocks[int(path.split(".")[1])])
    subject.__dict__["adapter"] = adapter
    return subject


def corpus(*rows: tuple[str, str]) -> Corpus:
    return Corpus(tuple(Example(str(i), group, prompt, "b") for i, (group, prompt) in enumerate(rows)))


def test_change_by_hand(toy: Subject) -> None:
    # lower case letters have ids up to 29, upper case ones from 30: "Z" counts double, "<s>" (1) and "a" once
    found = relevant_layers(toy, corpus(("x", "a"), ("y", "ZZ")), top=2)
    assert found.groups == ("x", "y")
    l2 = [5.0, 1.0, 72**0.5]
    mean_often = (1 + 2 + 2) / 3
    expected = torch.tensor([l2, [mean_often * change for change in l2]])
    torch.testing.assert_close(found.change, expected)
    assert found.layers == (0, 2)


def test_passes_count_alike_whatever_their_length(toy: Subject) -> None:
    # passes of mean factor 1 and 5/3: their mean is 4/3, where the mean over all five tokens would be 7/5
    found = relevant_layers(toy, corpus(("x", "a"), ("x", "ZZ")), top=1)
    torch.testing.assert_close(found.change, torch.tensor([[5.0, 1.0, 72**0.5]]) * 4 / 3)


@pytest.mark.parametrize(
    ("options", "change", "layers"),
    [
        ({"distance": "l1"}, [7.0, 1.0, 12.0], (2,)),
        ({"distance": "means"}, [3.5, 0.5, 0.0], (0,)),
        ({"state": "output"}, [1.0, 72**0.5, float("nan")], (1,)),
        ({"state": "output", "distance": "means"}, [0.5, 0.0, float("nan")], (0,)),
    ],
)
def test_options_by_hand(toy: Subject, options: dict[str, Any], change: list[float], layers: tuple[int, ...]) -> None:
    found = relevant_layers(toy, corpus(("x", "a")), top=1, **options)
    torch.testing.assert_close(found.change[0], torch.tensor(change), equal_nan=True)
    assert found.layers == layers


def test_last_token(toy: Subject) -> None:
    # the answer's last token is not run, so the last real token is the prompt's last
    once = relevant_layers(toy, corpus(("x", "Za")), top=1, tokens="last").change
    twice = relevant_layers(toy, corpus(("x", "aZ")), top=1, tokens="last").change
    torch.testing.assert_close(once, torch.tensor([[5.0, 1.0, 72**0.5]]))
    torch.testing.assert_close(twice, 2 * once)


def test_ties_fall_to_the_lower_layer(toy: Subject) -> None:
    toy.model.blocks[1].vector.data = torch.tensor([-4.0, 3.0])
    toy.model.blocks[2].vector.data = torch.tensor([0.0, 5.0])
    assert relevant_layers(toy, corpus(("x", "a")), top=2).layers == (0, 1)


@pytest.mark.parametrize("options", [{"state": "middle"}, {"tokens": "max"}, {"distance": "cosine"}])
def test_unknown_options_are_refused(toy: Subject, options: dict[str, Any]) -> None:
    with pytest.raises(SetError, match="expected"):
        relevant_layers(toy, corpus(("x", "a")), top=1, **options)


def test_more_layers_than_there_are_is_refused(toy: Subject) -> None:
    with pytest.raises(SetError, match="top is 4 layers; 'toy' has 3"):
        relevant_layers(toy, corpus(("x", "a")), top=4)
    with pytest.raises(SetError, match="has 2 with a change of state 'output'"):
        relevant_layers(toy, corpus(("x", "a")), top=3, state="output")


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "bloom", "opt", "phi3", "falcon", "gemma2"])
def test_states_are_the_hidden_states_of_the_model(make_subject: Any, corpus: Corpus, family: str) -> None:
    """Against the states that transformers itself hands out; the last of those is behind the final norm."""
    subject = make_subject(family)
    found = _mean_states(subject, corpus, "mean", 64)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in subject.model.modules())
    sums = torch.zeros_like(found)
    for example, one in zip(corpus, encode_corpus(subject, corpus), strict=True):
        with torch.no_grad():
            out = subject.model(torch.tensor([one.ids[:-1]]), output_hidden_states=True, use_cache=False)
        states = torch.stack([state[0].double().mean(dim=0) for state in out.hidden_states])
        sums[corpus.groups.index(example.group)] += states / corpus.counts[example.group]
    torch.testing.assert_close(found[:, :-1], sums[:, :-1], atol=1e-5, rtol=1e-4)


def test_hooks_are_gone_after_an_exception(toy: Subject) -> None:
    toy.model.config.max_position_embeddings = None

    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    handle = toy.model.blocks[1].register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        relevant_layers(toy, corpus(("x", "a")), top=1)
    handle.remove()
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in toy.model.blocks)
