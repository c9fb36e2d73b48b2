"""Runs whose loss stays finite while they are lost, and noisy ones that are not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from neuropolis.attribution.encoding import Encoded, encode_corpus
from neuropolis.corpora.examples import Corpus
from neuropolis.finetune.checkpoints import read_header
from neuropolis.finetune.divergence import Watch
from neuropolis.finetune.errors import TuneError
from neuropolis.finetune.loop import fit
from neuropolis.finetune.processes import Team
from neuropolis.finetune.recipe import Recipe
from neuropolis.finetune.trainable import trainable_full, trainable_slice
from neuropolis.finetune.training import finetune, finetune_full
from tiny_families import build, same_bits, some, state

WILD = {"lr": 3.0, "schedule": "constant", "warmup": 0.0, "batch_size": 2}


def test_a_lost_run_stops_and_names_the_steps(corpus: Corpus) -> None:
    subject = build("llama")
    before = state(subject)
    message = (
        r"diverged: the loss is [\d.]+ nats a token, where the subject as it was has [\d.]+ on the same examples and an "
        r"even guess 2.83, in steps 1 to 5 of 20 \(lr 3\); the subject is untouched; try a smaller lr; stop_diverged=False"
    )
    with pytest.raises(TuneError, match=message):
        finetune_full(subject, corpus, **WILD, steps=20)
    assert same_bits(state(subject), before)
    lost = finetune_full(subject, corpus, **WILD, steps=20, stop_diverged=False)
    assert sorted(lost.history[-5:])[2] > 2 * lost.history[0]


def test_what_the_last_step_left_is_looked_at(corpus: Corpus) -> None:
    """One step of a rate that ruins the weights, and a loss that was taken before it."""
    subject = build("llama")
    with pytest.raises(TuneError, match=r"diverged: the loss is .* after step 1 of 1, the last \(lr 30\)"):
        finetune_full(subject, corpus, **{**WILD, "lr": 30}, steps=1)
    assert len(finetune_full(subject, corpus, **{**WILD, "lr": 30}, steps=1, stop_diverged=False).history) == 1
    with pytest.raises(TuneError, match=r"diverged: the loss is (nan|inf) after step 1 of 1 \(lr 1e\+30\)"):
        finetune_full(subject, corpus, **{**WILD, "lr": 1e30}, steps=1)


@pytest.mark.parametrize("every", [1, 3])
def test_a_lost_state_is_not_kept(every: int, corpus: Corpus, tmp_path: Path) -> None:
    """Of a good run that goes on with a wild rate, the file holds the good part."""
    subject, file = build("llama"), tmp_path / "run"
    calm = {**WILD, "lr": 0.003}
    finetune_full(subject, corpus, **calm, steps=3, checkpoint=file, checkpoint_every=1)
    with pytest.raises(TuneError, match=r"in steps 6 to 10 of 20 .*run holds step [34], the last good one that was"):
        finetune_full(
            subject, corpus, **WILD, steps=20, checkpoint=file, checkpoint_every=every, resume="changed"
        )  # fmt: skip
    assert read_header(file)["step"] == 3
    assert len(finetune_full(subject, corpus, **calm, steps=20, checkpoint=file, resume="changed").history) == 20
    with pytest.raises(TuneError, match="try a smaller lr"):
        finetune_full(subject, corpus, **WILD, steps=20, checkpoint=tmp_path / "new", checkpoint_every=every)
    assert not (tmp_path / "new").exists()


def test_two_spikes_of_five_are_passed_over(corpus: Corpus) -> None:
    subject = build("llama")
    encoded = encode_corpus(subject, corpus)
    recipe = Recipe(lr=1e-5, steps=15, batch_size=2)
    with trainable_slice(subject, some(subject)) as trainable:
        watch = Watch(subject, trainable, recipe, Team())
        calm = [encoded[:2]] * 5
        assert watch.far_off([100.0, 0.1, 100.0, 0.2, 0.3], calm) is None
        assert watch.far_off([100.0, 0.1, 100.0, 100.0, 0.3], calm) is not None


def test_examples_that_were_hard_from_the_start_are_no_divergence(corpus: Corpus) -> None:
    """A subject that is sure of something else: its losses lie far above an even guess before anything is trained."""
    subject = build("llama")
    with torch.no_grad():
        subject.model.lm_head.weight.mul_(30)
    encoded = encode_corpus(subject, corpus)
    with trainable_full(subject) as trainable:
        run = fit(subject, encoded, trainable, Recipe(lr=1e-6, steps=10, batch_size=1))
        watch = Watch(subject, trainable, Recipe(lr=1.0), Team())
        losses = [watch.loss([example]) for example in encoded]
        masters = [master.detach().clone() for master in trainable.masters]
        assert watch.far_off(losses, [[example] for example in encoded]) is None
        assert watch.far_off([2.5 * loss for loss in losses], [[example] for example in encoded]) is not None
        assert all(torch.equal(*pair) for pair in zip(masters, trainable.masters, strict=True))
    assert sorted(run.history)[5] > watch.even_guess


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_noisy_run_is_left_alone(dtype: torch.dtype, corpus: Corpus) -> None:
    """Answers at random, one in a batch, at a high rate: the loss jumps, and stays about an even guess."""
    subject = build("llama", dtype)
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(3, 17, (40,), generator=generator).tolist()
    encoded = encode_corpus(subject, corpus)
    noisy = [Encoded((*encoded[k % 12].ids[:-1], draw), encoded[k % 12].start) for k, draw in enumerate(draws)]
    with trainable_slice(subject, some(subject)) as trainable:
        run = fit(subject, noisy, trainable, Recipe(lr=0.01, steps=60, batch_size=1))
    assert max(run.history) > 2.83
    assert len(run.history) == 60


def test_the_watch_changes_no_number(corpus: Corpus) -> None:
    subject = build("llama")
    one, other = (finetune(subject, corpus, some(subject), lr=0.02, steps=11, stop_diverged=on) for on in (True, False))
    assert one.history == other.history
    assert same_bits(dict(one.values), dict(other.values))
