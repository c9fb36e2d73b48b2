"""Difficulty: equation 4 against a plain loop, what stands before an answer on its own, the dual score, and going on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from neuropolis.attribution import difficulty as module
from neuropolis.attribution.difficulty import Difficulty, difficulty, dual_scores, opening, refereed
from neuropolis.attribution.difficulty_files import DifficultyFile, with_scores
from neuropolis.attribution.encoding import encode_example
from neuropolis.corpora.examples import Corpus, CorpusError, Example
from neuropolis.neurons.atlas import decode
from neuropolis.neurons.subject import Subject

Make = Callable[..., Subject]
NAN = float("nan")


def token_losses(subject: Subject, ids: list[int], first: int) -> list[float]:
    """Negative log-likelihood of each token from `first` on, one forward per token."""
    losses = []
    for place in range(first, len(ids)):
        with torch.no_grad():
            logits = subject.model(input_ids=torch.tensor([ids[:place]])).logits[0, -1].double()
        losses.append(float(logits.logsumexp(dim=0) - logits[ids[place]]))
    return losses


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_equation_4_token_by_token(make_subject: Make, corpus: Corpus, family: str) -> None:
    subject = make_subject(family)
    found = difficulty(subject, corpus, max_tokens=200)
    for row in (0, 5, 11):
        whole = encode_example(subject, corpus[row])
        given = mean(token_losses(subject, list(whole.ids), whole.start))
        alone = mean(token_losses(subject, [1, *whole.answer], 1))
        assert found.given[row].item() == pytest.approx(given, rel=1e-5)
        assert found.alone[row].item() == pytest.approx(alone, rel=1e-5)
        assert found.ifd[row].item() == pytest.approx(torch.tensor(given - alone).exp().item(), rel=1e-4)
        assert found.tokens[row] == len(whole.answer)
    assert found.missing == {}


def test_batches_do_not_matter(make_subject: Make, corpus: Corpus) -> None:
    subject = make_subject()
    one, many = difficulty(subject, corpus, max_tokens=1), difficulty(subject, corpus, max_tokens=4096)
    torch.testing.assert_close(one.ifd, many.ifd, rtol=1e-5, atol=1e-7)


class Without:
    """A tokenizer that puts nothing before a text."""

    def __init__(self, tokenizer: Any, **tokens: int | None) -> None:
        self._tokenizer = tokenizer
        self.bos_token_id, self.eos_token_id = tokens.get("bos"), tokens.get("eos")

    def __call__(self, *args: Any, **more: Any) -> Any:
        return self._tokenizer(*args, **{**more, "add_special_tokens": False})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def test_what_stands_before_an_answer_on_its_own(make_subject: Make) -> None:
    subject = make_subject()
    assert opening(subject) == (1,)
    assert opening(replace(subject, tokenizer=Without(subject.tokenizer, bos=3, eos=2))) == (3,)
    assert opening(replace(subject, tokenizer=Without(subject.tokenizer, eos=2))) == (2,)
    assert opening(replace(subject, tokenizer=Without(subject.tokenizer))) == ()


def test_without_a_beginning_the_first_token_is_left_out_of_both_means(make_subject: Make) -> None:
    subject = make_subject()
    bare = replace(subject, tokenizer=Without(subject.tokenizer))
    corpus = Corpus((Example("a", "g", "one two:", " tea"), Example("b", "g", "three:", "x")))
    found = difficulty(bare, corpus)
    whole = encode_example(bare, corpus[0])
    assert found.given[0].item() == pytest.approx(mean(token_losses(bare, list(whole.ids), whole.start + 1)), rel=1e-5)
    assert found.alone[0].item() == pytest.approx(mean(token_losses(bare, list(whole.answer), 1)), rel=1e-5)
    assert found.tokens.tolist() == [3, 0]
    assert found.missing == {"b": "its answer is one token, and the tokenizer has none to put before it"}
    assert found.ifd[1].isnan()
    with pytest.raises(CorpusError, match=r"no example can be scored under .*: its answer is one token"):
        difficulty(bare, Corpus((corpus[1],)))


def test_an_answer_of_one_token_has_a_score(make_subject: Make) -> None:
    assert difficulty(make_subject(), Corpus((Example("b", "g", "three:", "x"),))).ifd.isfinite().all()


def test_an_example_that_is_too_long_is_missing(make_subject: Make, corpus: Corpus) -> None:
    subject = make_subject()
    subject.model.config.max_position_embeddings = 30
    found = difficulty(subject, corpus)
    assert 0 < len(found.missing) < len(corpus)
    assert all("takes 30" in why for why in found.missing.values())
    assert {id for id, value in zip(found.ids, found.ifd, strict=True) if value.isnan()} == set(found.missing)


def test_difficulty_comes_back_from_an_atlas(make_subject: Make, corpus: Corpus) -> None:
    found = difficulty(make_subject(), corpus)
    again = decode(found.to_record())
    assert (again.ids, again.subject, dict(again.origin)) == (found.ids, found.subject, dict(found.origin))
    assert torch.equal(again.ifd, found.ifd)


def test_the_dual_score_by_hand() -> None:
    small, large = torch.tensor([0.9, 0.5, 0.4, NAN]), torch.tensor([0.4, 0.25, 0.6, 0.1])
    dual = dual_scores(small, large)
    assert dual[:3].tolist() == pytest.approx([1.0, 0.5, -0.4])
    assert dual[3].isnan()
    pi = refereed(dual, ["tie", "generated", "base", "tie"])
    assert pi[:3].tolist() == pytest.approx([0.5, 0.5, 0.0])
    assert refereed(dual, [None] * 4).isnan().all()
    with pytest.raises(CorpusError, match="verdict is 'good'; expected base, tie, generated"):
        refereed(dual, ["good"] * 4)


@pytest.mark.parametrize("small", [[0.5, 0.4], [0.5, 0.5]])
def test_a_dual_score_without_scale_is_refused(small: list[float]) -> None:
    with pytest.raises(CorpusError, match=r"no prompt helps the large model more .* Eq 5 has no scale"):
        dual_scores(torch.tensor(small), torch.tensor([0.5, 0.5]))
    with pytest.raises(CorpusError, match="no example has a difficulty under both"):
        dual_scores(torch.tensor([NAN]), torch.tensor([0.5]))


def test_a_stopped_run_goes_on_and_ends_the_same(
    make_subject: Make, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, kept = make_subject(), DifficultyFile(tmp_path / "part")
    expected = difficulty(subject, corpus, max_tokens=150)
    real, calls = module._means, []

    def means(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, "_means", means)
    with pytest.raises(KeyboardInterrupt):
        kept.run(subject, corpus, max_tokens=150)
    data = kept.path.read_bytes()
    kept.path.write_bytes(data[:-7])  # as if killed in the middle of a line
    before = len(calls)
    found = kept.run(subject, corpus, max_tokens=150)
    assert torch.equal(found.ifd, expected.ifd)
    whole = len(calls) - before
    calls.clear()
    monkeypatch.setattr(module, "_means", lambda *_: pytest.fail("nothing is left to do"))
    assert torch.equal(kept.run(subject, corpus, max_tokens=150).ifd, expected.ifd)
    assert whole < 2 * len(list(module.plan_batches([encode_example(subject, one) for one in corpus], max_tokens=150)))


def test_a_file_of_another_run_is_refused(make_subject: Make, corpus: Corpus, tmp_path: Path) -> None:
    kept = DifficultyFile(tmp_path / "part")
    kept.run(make_subject(), corpus)
    with pytest.raises(CorpusError, match="is of another run: its subject is"):
        kept.run(make_subject(seed=1), corpus)
    kept.path.write_text(json.dumps({"corpus": "?"}) + "\nnothing\n")
    with pytest.raises(CorpusError, match="expected the lines of a stopped run"):
        kept.run(make_subject(), corpus)


def test_scores_become_tags(corpus: Corpus) -> None:
    rows = Corpus(tuple(replace(one, tags={**one.tags, "dual": "old", "said": "tie"}) for one in corpus.examples[:2]))
    ids, zero = ("north/0", "north/1"), torch.zeros(2, dtype=torch.float64)
    small = Difficulty("s", ids, torch.tensor([-1.0, NAN], dtype=torch.float64), zero, torch.ones(2).long())
    large = Difficulty("l", ids, torch.tensor([-2.0, -2.0], dtype=torch.float64), zero, torch.ones(2).long())
    first, second = with_scores(rows, small, large, referee="said")
    assert {key: first.tags[key] for key in ("ifd_small", "ifd_large", "dual", "pi")} == {
        "ifd_small": "0.36787944", "ifd_large": "0.13533528", "dual": "1", "pi": "0.5",
    }  # fmt: skip
    assert dict(second.tags) == {"language": "en", "said": "tie", "ifd_large": "0.13533528"}
    with pytest.raises(CorpusError, match="of other examples"):
        with_scores(corpus, small, large)
