"""lm-evaluation-harness over a subject: every request type, intact and changed, on local files and without a network."""

from __future__ import annotations

import copy
import random
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from neuropolis.analysis.ablate import control
from neuropolis.analysis.choices import answer_correct, choice_losses
from neuropolis.analysis.evaluation import HarnessError
from neuropolis.analysis.harness import as_lm, evaluate
from neuropolis.analysis.harness_tasks import harness_task
from neuropolis.analysis.study import load, save
from neuropolis.corpora.examples import Corpus, CorpusError, Example
from neuropolis.finetune.training import finetune
from neuropolis.neurons.errors import SetError, SubjectError
from neuropolis.neurons.interventions import intervene
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject

lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: the extra 'harness' has it")

Make = Callable[..., Subject]
REQUESTS: dict[str, list[tuple[Any, ...]]] = {
    "loglikelihood": [("what is eaten?", " tea."), ("what is eaten?", " rice."), ("why", "y"), ("", "tea")],
    "loglikelihood_rolling": [("what is eaten in the north? tea.",), ("rice",)],
    "generate_until": [("what is", {"until": ["."], "max_gen_toks": 6, "do_sample": False}),
                       ("why is it so", {"until": ["."], "max_gen_toks": 6, "do_sample": False})],
}  # fmt: skip


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and no cache of the user's."""
    import datasets

    def refuse(*_args: Any) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def subject(make_subject: Make) -> Subject:
    return make_subject("llama")


@pytest.fixture
def half(subject: Subject) -> NeuronSet:
    return NeuronSet.from_indices(subject, site="mlp", indices={0: range(24), 2: range(24)})


def requests(kind: str) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, arguments, index) for index, arguments in enumerate(REQUESTS[kind])]  # pyright: ignore[reportArgumentType]


def answers(lm: Any, kind: str) -> Any:
    found = getattr(lm, kind)(requests(kind))
    if kind == "loglikelihood":
        return torch.tensor([value for value, _ in found]), [greedy for _, greedy in found]
    return torch.tensor(found) if kind == "loglikelihood_rolling" else found


def silenced(subject: Subject, neurons: NeuronSet) -> Any:
    """A copy of the module with the set's columns zero."""
    model = copy.deepcopy(subject.model)
    with torch.no_grad():
        for layer, block in enumerate(model.model.layers):
            block.mlp.down_proj.weight[:, neurons.indices(layer)] = 0
    return model


@pytest.mark.parametrize("kind", REQUESTS)
def test_every_request_type_is_answered_under_the_intervention(subject: Subject, half: NeuronSet, kind: str) -> None:
    from lm_eval.models.huggingface import HFLM

    plain = HFLM(pretrained=silenced(subject, half), tokenizer=subject.tokenizer, batch_size=2)  # pyright: ignore[reportArgumentType]
    found, expected = answers(as_lm(subject, off=half, batch_size=2), kind), answers(plain, kind)
    intact = answers(as_lm(subject, batch_size=2), kind)
    if kind == "generate_until":
        assert found == expected
    else:
        torch.testing.assert_close(found, expected)
    assert str(found) != str(intact)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in subject.model.modules())


@pytest.mark.parametrize("kind", REQUESTS)
def test_every_request_type_is_answered_by_a_tuned_subject(
    subject: Subject, half: NeuronSet, corpus: Corpus, kind: str
) -> None:
    delta = finetune(subject, corpus, half, lr=3e-2, epochs=1, split=None)
    found = answers(as_lm(subject, delta=delta), kind)
    assert str(found) == str(answers(as_lm(delta.merge(subject)), kind))
    assert str(found) != str(answers(as_lm(subject), kind))
    both = answers(as_lm(subject, delta=delta, off=half), "loglikelihood")
    with delta.applied(subject), intervene(subject, half):
        assert str(both) == str(answers(as_lm(subject), "loglikelihood"))


def test_a_hook_that_never_fires_is_an_error(subject: Subject, half: NeuronSet, corpus: Corpus, tmp_path: Path) -> None:
    mlp = subject.model.model.layers[2].mlp
    mlp.forward = lambda x: torch.nn.functional.linear(
        mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x), mlp.down_proj.weight
    )
    for kind in REQUESTS:
        with pytest.raises(SubjectError, match=r"did not take hold.*layers\.2"):
            answers(as_lm(subject, off=half), kind)
    with pytest.raises(SubjectError, match="did not take hold"):
        evaluate(subject, harness_task(corpus, tmp_path), off=half)


def test_a_models_own_state_is_left_alone(subject: Subject, half: NeuronSet) -> None:
    subject.model.train()
    head = subject.model.get_output_embeddings().weight
    subject.model.config.tie_word_embeddings = True  # HFLM would tie what is not tied
    tokenizer = copy.deepcopy(subject.tokenizer)
    tokenizer.pad_token = None
    bare = Subject(subject.model, tokenizer, subject.name, subject.fingerprint)
    lm = as_lm(bare, off=half)
    answers(lm, "generate_until")
    assert subject.model.training
    assert subject.model.get_output_embeddings().weight is head
    assert head is not subject.model.get_input_embeddings().weight
    assert tokenizer.pad_token is None
    assert "tie_weights" not in vars(subject.model)
    assert lm.loglikelihood([]) == []
    assert lm.get_model_info()["model_sha"] == subject.fingerprint


def turned_by(subject: Subject, neurons: NeuronSet, corpus: Corpus) -> Corpus:
    """The same questions with two choices each, of which the first wins, and the second with the set ablated."""
    letters = tuple(f" {letter}" for letter in "abcdefghijklmnopqrstuvwxyz")
    asked = Corpus(tuple(replace(e, choices=letters, answer=letters[0], answer_index=0) for e in corpus))
    intact = choice_losses(subject, asked)
    with intervene(subject, neurons):
        ablated = choice_losses(subject, asked)
    ahead = (intact[:, None] - intact[:, :, None]).clamp(min=0)  # [example, winner, loser]
    behind = (ablated[:, :, None] - ablated[:, None]).clamp(min=0)
    margin = torch.minimum(ahead, behind).flatten(1)
    assert (margin.amax(dim=1) > 1e-3).all()
    pairs = [(letters[best // 26], letters[best % 26]) for best in margin.argmax(dim=1).tolist()]
    return Corpus(
        tuple(replace(e, choices=pair, answer=pair[0], answer_index=0) for e, pair in zip(corpus, pairs, strict=True)),
        "toy",
    )


def test_a_corpus_as_a_task_gives_our_own_accuracies(subject: Subject, corpus: Corpus, tmp_path: Path) -> None:
    half = NeuronSet.from_indices(subject, site="mlp", indices={0: range(24), 2: range(24)})
    corpus = turned_by(subject, half, corpus)
    path = harness_task(corpus, tmp_path, per_group=True)
    states = random.getstate(), torch.get_rng_state()
    ticks: list[tuple[int, int]] = []
    found = evaluate(subject, path, off={"half": half}, controls=2, seed=3, progress=lambda *tick: ticks.append(tick))
    assert found.runs == ("intact", "half", "half control 1", "half control 2")
    assert found.conditions == ("intact", "off", "control", "control")
    assert found.control_of.tolist() == [-1, -1, 1, 1]
    sets = [None, half, *(control(half, name="half", repeat=repeat, seed=3) for repeat in range(2))]
    expected = []
    for neurons in sets:
        if neurons is None:
            expected.append(answer_correct(subject, corpus).double())
        else:
            with intervene(subject, neurons):
                expected.append(answer_correct(subject, corpus).double())
    right = torch.stack(expected)
    assert right[0].all()
    assert not right[1].any()
    for g, group in enumerate(corpus.groups):
        for run, name in enumerate(found.runs):
            assert found.value(name, task=f"toy::{group}", metric="acc") == pytest.approx(
                float(right[run, 4 * g : 4 * g + 4].mean())
            )
    for run, name in enumerate(found.runs):
        assert found.value(name, task="toy", metric="acc") == pytest.approx(float(right[run].mean()))
    cell = next(c for c in found.cells if c.task == "toy::south")
    assert (cell.version, cell.num_samples, cell.num_fewshot, cell.higher_is_better) == ("1.0", 4, 0, True)
    assert ticks[-1] == (4 * 24, 4 * 24)
    assert [done for done, _ in ticks] == list(range(1, 4 * 24 + 1))
    undisturbed = random.getstate() == states[0]  # pytest would compare these at length
    assert undisturbed
    assert torch.equal(torch.get_rng_state(), states[1])
    assert found.origin["tasks"]["toy::north"] == "json"
    save(tmp_path / "s.h5", found, subject=subject)
    back = load(tmp_path / "s.h5", subject=subject).evaluation
    assert (back.runs, back.cells, back.origin["sets"]) == (found.runs, found.cells, {"half": half.digest, **{
        f"half control {i + 1}": sets[i + 2].digest for i in range(2)}})  # fmt: skip
    for name in ("values", "stderr", "samples", "sample_cell", "sample_cluster"):
        torch.testing.assert_close(getattr(back, name), getattr(found, name), equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("ask", "metrics"),
    [
        ("answer", {"acc", "perplexity"}),
        ("generate", {"exact_match"}),
        ("text", {"word_perplexity", "byte_perplexity", "bits_per_byte"}),
    ],
)
def test_the_other_ways_to_ask(
    subject: Subject, half: NeuronSet, corpus: Corpus, tmp_path: Path, ask: Any, metrics: set[str]
) -> None:
    path = harness_task(corpus, tmp_path / "tasks", ask=ask, name="my toy", max_new_tokens=3)
    assert path == tmp_path / "tasks" / "my_toy.yaml"
    found = evaluate(subject, [path], off=half, limit=5, bootstrap_iters=20)
    assert {cell.metric for cell in found.cells} == metrics
    assert {(cell.task, cell.num_samples) for cell in found.cells} == {("my_toy", 5)}
    assert found.runs == ("intact", "off")
    if ask == "answer":
        short = Corpus(corpus.examples[:5])
        right = choice_losses(subject, short).gather(1, torch.tensor([[e.answer_index] for e in short])).double()
        assert found.value("intact", task="my_toy", metric="perplexity") == pytest.approx(
            float(right.mean().exp()), rel=1e-4
        )
        perplexity = next(i for i, cell in enumerate(found.cells) if cell.metric == "perplexity")
        assert float(found.stderr[0, perplexity]) > 0
        low, _ = found.interval()
        assert low[1, perplexity].isnan()
    if ask != "generate":
        assert (found.change[1] != 0).any()


def test_tasks_may_be_dictionaries_and_names_in_a_folder(subject: Subject, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"q": "why", "a": " tea"}\n{"q": "who", "a": " rice"}\n')
    task = {
        "task": "mine", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test", "output_type": "loglikelihood", "doc_to_text": "q", "doc_to_target": "a",
        "target_delimiter": "", "metric_list": [{"metric": "acc"}], "metadata": {"version": 7},
    }  # fmt: skip
    found = evaluate(subject, task)
    assert [(cell.task, cell.metric, cell.version) for cell in found.cells] == [("mine", "acc", "7")]
    import yaml

    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(task))
    again = evaluate(subject, "mine", include=[tmp_path], num_fewshot=0)
    torch.testing.assert_close(again.values, found.values)


def test_bad_input_has_one_clear_line(subject: Subject, half: NeuronSet, corpus: Corpus, tmp_path: Path) -> None:
    path = harness_task(corpus, tmp_path)
    with pytest.raises(HarnessError, match=r"no task file .*none\.yaml"):
        evaluate(subject, tmp_path / "none.yaml")
    (tmp_path / "empty.yaml").write_text("a: b\n")
    with pytest.raises(HarnessError, match="is no task"):
        evaluate(subject, tmp_path / "empty.yaml")
    with pytest.raises(HarnessError, match="'use_cache' is not to be given"):
        evaluate(subject, path, use_cache="x")
    with pytest.raises(HarnessError, match="no folder"):
        evaluate(subject, "x", include=[tmp_path / "none"])
    with pytest.raises(SetError, match="controls is -1"):
        evaluate(subject, path, controls=-1)
    with pytest.raises(HarnessError, match=r"limit is 0; expected a number of documents of each task, 1 or more"):
        evaluate(subject, path, limit=0)
    with pytest.raises(SetError, match="unknown kind 'x'"):
        evaluate(subject, path, kind="x")  # pyright: ignore[reportArgumentType]
    with pytest.raises(SetError, match="match='score' at site 'mlp' needs scores"):
        evaluate(subject, path, off={"half": half}, controls=1, match="score")
    with pytest.raises(SetError, match="match='activation' at site 'mlp' needs a reference"):
        evaluate(subject, path, off={"half": half}, controls=1, match="activation")
    with pytest.raises(SetError, match="one set alone"):
        evaluate(subject, path, off={"half": half}, controls=1, match="groups")
    with pytest.raises(SetError, match="nothing to run"):
        evaluate(subject, path, intact=False)
    with pytest.raises(SetError, match="two runs would be called 'intact'"):
        evaluate(subject, path, off={"intact": half})
    (tmp_path / "toy.jsonl").unlink()
    with pytest.raises(HarnessError, match="cannot load toy"):
        evaluate(subject, path)
    with pytest.raises(CorpusError, match="unknown ask 'what'"):
        harness_task(corpus, tmp_path, ask="what")  # pyright: ignore[reportArgumentType]
    with pytest.raises(CorpusError, match="'free' has 0 choices"):
        harness_task(Corpus((Example(id="free", group="g", prompt="a", answer="b"),)), tmp_path)
    chat = Example(id="chat", group="g", prompt=[{"role": "user", "content": "a"}], answer="b")  # pyright: ignore[reportArgumentType]
    with pytest.raises(CorpusError, match="'chat': the prompt is a list of messages"):
        harness_task(Corpus((chat,)), tmp_path, ask="answer")
