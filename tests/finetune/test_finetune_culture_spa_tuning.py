"""Tuning on collected instances in every way, kept in files, applied and taken off again."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from neuropolis.corpora.examples import Corpus
from neuropolis.corpora.journal import read_journal
from neuropolis.corpora.survey import WORDINGS, Culture, Question, Survey
from neuropolis.corpora.wvs import survey_corpus
from neuropolis.finetune.culture_spa.adapters import projections
from neuropolis.finetune.culture_spa.tuning import answer_tuned, default_recipe, load_tuned, tune_cultures
from neuropolis.finetune.errors import DeltaError, TuneError
from neuropolis.finetune.recipe import Recipe
from neuropolis.neurons.sets import NeuronSet
from neuropolis.neurons.subject import Subject
from torch import Tensor

RECIPE = Recipe(lr=1e-2, epochs=2, batch_size=4)


@pytest.fixture
def survey() -> Survey:
    questions = tuple(Question(f"Q{i}", f"is {i} good", ("Yes", "No")) for i in range(4))
    cultures = {"north": Culture("Northern"), "south": Culture("Southern")}
    shares = {key: {f"Q{i}": {1 + (i + n) % 2: 1.0} for i in range(4)} for n, key in enumerate(cultures)}
    words = dict.fromkeys(WORDINGS, "x") | {"aware": "be {culture}.", "question": "{question} {options}"}
    return Survey("toy", questions, cultures, shares, words)


@pytest.fixture
def instances(survey: Survey) -> Corpus:
    return survey_corpus(survey, chat=False)


def logits(subject: Subject) -> Tensor:
    with torch.no_grad():
        return subject.model(input_ids=torch.arange(3, 23)[None]).logits


def sets_of(subject: Subject) -> dict[str, NeuronSet]:
    return {
        name: NeuronSet.from_indices(subject, site="mlp", indices={1: [place, place + 1]})
        for name, place in (("north", 3), ("south", 4))
    }


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("way", ["lora", "full", "neurons"])
def test_every_way_is_kept_applied_and_taken_off(
    make_subject: Any, instances: Corpus, tmp_path: Path, way: Any, each: bool
) -> None:
    subject = make_subject("llama")
    before, weights = logits(subject), copy.deepcopy(subject.model.state_dict())
    told: list[tuple[str, int]] = []
    sets = sets_of(subject) if way == "neurons" else None
    tune_cultures(
        subject, instances, tmp_path / "t", way=way, each=each, sets=sets, rank=2, recipe=RECIPE,
        tell=lambda *one: told.append(one),
    )  # fmt: skip
    tuned = load_tuned(tmp_path / "t")
    assert tuned.members == (("north", "south") if each else ("joint",)) == tuple(name for name, _ in told)
    assert tuned.member("south") == ("south" if each else "joint")
    found = []
    for member in tuned.members:
        with tuned.applied(subject, member):
            found.append(logits(subject))
        assert not torch.equal(found[-1], before)
    assert torch.equal(logits(subject), before)
    assert all(torch.equal(value, subject.model.state_dict()[key]) for key, value in weights.items())
    if each:
        assert not torch.equal(found[0], found[1])
    width = 3 * 32 * (2 if each else 3)  # gate, up and down, of two neurons, or of the three in either set
    shapes = [subject.model.get_submodule(path).weight.shape for path in projections(subject)]
    counts = {"neurons": width, "lora": 2 * sum(map(sum, shapes)), "full": subject.num_parameters}
    assert {count for _, count in told} == {counts[way]}


def test_parts_that_are_there_are_kept_and_other_settings_refused(
    make_subject: Any, instances: Corpus, tmp_path: Path
) -> None:
    subject = make_subject("llama")

    def tune(**changed: Any) -> list[str]:
        told: list[str] = []
        given = {"way": "lora", "each": True, "rank": 2, "recipe": RECIPE, "tell": lambda name, _: told.append(name)}
        tune_cultures(subject, instances, tmp_path / "t", **{**given, **changed})
        return told

    assert tune() == ["north", "south"]
    (tmp_path / "t" / "south").rename(tmp_path / "gone")
    with pytest.raises(TuneError, match="'south' is not tuned yet; give the tune command again"):
        load_tuned(tmp_path / "t")
    assert tune() == ["south"]
    again = (tmp_path / "t" / "south" / "adapter_model.safetensors").read_bytes()
    assert again == (tmp_path / "gone" / "adapter_model.safetensors").read_bytes()
    with pytest.raises(TuneError, match=r"begun with another rank \(2, now 3\)"):
        tune(rank=3)
    with pytest.raises(TuneError, match="unknown way of tuning 'prefix'; expected lora, full, neurons"):
        tune(way="prefix")
    with pytest.raises(TuneError, match="no neurons for 'south'; sets are for north"):
        tune(way="neurons", sets={"north": sets_of(subject)["north"]})
    with (
        pytest.raises(TuneError, match=r"was tuned from subject .*, '.*' is"),
        load_tuned(tmp_path / "t").applied(make_subject("llama", seed=1), "north"),
    ):
        pass
    with pytest.raises(TuneError, match="has nothing tuned for 'east'; it has north, south"):
        load_tuned(tmp_path / "t").member("east")
    with pytest.raises(TuneError, match=r"no tuned.json that can be read"):
        load_tuned(tmp_path / "gone")


def test_a_folder_whose_description_was_cut_off_is_begun_again_and_never_over_tuned_parts(
    make_subject: Any, instances: Corpus, tmp_path: Path
) -> None:
    subject, folder = make_subject("llama"), tmp_path / "t"
    tune_cultures(subject, instances, folder, rank=2, recipe=RECIPE)
    about = (folder / "tuned.json").read_bytes()
    assert {path.name for path in folder.iterdir()} == {"tuned.json", "joint"}
    for half in (about[:40], b"", b"[1]"):
        (folder / "tuned.json").write_bytes(half)
        with pytest.raises(TuneError, match=r"t.tuned\.json: cannot be read .*there are tuned parts; give another"):
            tune_cultures(subject, instances, folder, rank=2, recipe=RECIPE)
        assert (folder / "tuned.json").read_bytes() == half
    shutil.rmtree(folder / "joint")
    (folder / ".tuned.json.1.tmp").touch()  # of a run that was killed
    (folder / "tuned.json").write_bytes(about[:40])
    assert tune_cultures(subject, instances, folder, rank=2, recipe=RECIPE).members == ("joint",)
    assert (folder / "tuned.json").read_bytes() == about


def test_a_description_is_written_at_once_or_not_at_all(
    make_subject: Any, instances: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        tune_cultures(make_subject("llama"), instances, tmp_path / "t", rank=2, recipe=RECIPE)
    assert not list((tmp_path / "t").iterdir())


def test_chat_messages_for_a_subject_without_a_template_are_said_before_a_folder_is_begun(
    make_subject: Any, survey: Survey, tmp_path: Path
) -> None:
    with pytest.raises(TuneError, match=r"messages, but .* has no chat template; .*culture-spa collect --plain"):
        tune_cultures(make_subject("llama"), survey_corpus(survey), tmp_path / "t", recipe=RECIPE)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_adapters_are_what_peft_loads(make_subject: Any, instances: Corpus, tmp_path: Path) -> None:
    from peft import PeftModel

    subject = make_subject("gpt2")
    tuned = tune_cultures(subject, instances, tmp_path / "t", rank=2, recipe=RECIPE)
    with tuned.applied(subject, "joint"):
        ours = logits(subject)
    loaded = PeftModel.from_pretrained(copy.deepcopy(subject.model), str(tmp_path / "t" / "joint"))
    with torch.no_grad():
        theirs = loaded(input_ids=torch.arange(3, 23)[None]).logits
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not torch.allclose(ours, logits(subject), atol=1e-3)
    (tmp_path / "t" / "joint" / "adapter_model.safetensors").unlink()
    with pytest.raises(DeltaError, match="no adapter at"), tuned.applied(subject, "joint"):
        pass


def test_each_culture_is_asked_of_its_own_part(
    make_subject: Any, survey: Survey, instances: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neuropolis.attribution.generators import LocalGenerator, Reply

    subject = make_subject("llama")
    tuned = tune_cultures(subject, instances, tmp_path / "t", each=True, rank=2, recipe=RECIPE)
    seen: dict[str, float] = {}

    def reply(_: LocalGenerator, prompts: Any, **__: Any) -> list[Reply]:
        seen[prompts[0][0]["content"]] = float(logits(subject).sum())
        return [Reply("1")] * len(prompts)

    monkeypatch.setattr(LocalGenerator, "__call__", reply)
    rows = read_journal(answer_tuned(subject, tuned, survey, tmp_path / "a.jsonl"), stage="answer")
    assert {row["culture"] for row in rows} == {"north", "south"}
    for culture, prompt in (("north", "be Northern."), ("south", "be Southern.")):
        with tuned.applied(subject, culture):
            assert seen[prompt] == float(logits(subject).sum())
    with pytest.raises(TuneError, match="asking 'unaware' is of no culture"):
        answer_tuned(subject, tuned, survey, tmp_path / "b.jsonl", asking="unaware")


def test_chat_messages_without_a_template_are_told_before_there_is_a_folder(
    make_subject: Any, survey: Survey, tmp_path: Path
) -> None:
    with pytest.raises(
        TuneError, match=r"has no chat template; collect the instances as plain texts \(culture-spa collect"
    ):
        tune_cultures(make_subject("llama"), survey_corpus(survey), tmp_path / "t", recipe=RECIPE)
    assert not (tmp_path / "t").exists()


def test_the_authors_recipe_is_the_default() -> None:
    recipe = default_recipe("lora")
    assert (recipe.lr, recipe.epochs, recipe.batch_size, recipe.warmup, recipe.schedule) == (
        1e-4,
        1,
        128,
        0.1,
        "cosine",
    )
