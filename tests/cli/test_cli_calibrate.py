"""`neuropolis calibrate`: on plants that stand ready, the tables, the sentence and the atlas; one line for each mistake."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from neuropolis.analysis.study import load
from neuropolis.corpora.examples import Corpus
from neuropolis.finetune.plant_files import save_plant
from neuropolis.finetune.plant_proof import Proof
from neuropolis.finetune.planting import PlantRecipe
from neuropolis.finetune.plants import plant
from neuropolis.neurons.subject import load_model

Run = Callable[..., str]
SMALL = ("--groups", "3", "--per-group", "4", "--facts", "4", "--seeds", "1", "--out", "c.h5", "--data", "my.jsonl")


def keep(folder: Path, corpus: Corpus, *, holds: bool) -> None:
    """A plant of two steps in the folder of plants."""
    (folder / "plants").mkdir(exist_ok=True)
    made = plant(
        load_model(str(folder / "model")), 3, per_group=4, facts=4, keep=corpus,
        recipe=PlantRecipe(steps=2, batch_size=2, keep_size=2),
    )  # fmt: skip
    without = tuple(tuple(float(row != column) for column in range(3)) for row in range(3))
    sound = Proof(made.groups, (0.0,) * 3, (1.0,) * 3, without, (1.0,) * 3, None, (0.5,) * 3, (4.0, 4.02))
    save_plant(replace(made, proof=sound) if holds else made, folder / "plants" / "plain-0")


def test_a_ready_plant_is_scored_and_reported(run: Run, folder: Path, corpus: Corpus) -> None:
    keep(folder, corpus, holds=True)
    printed = run("calibrate", "model", "--methods", "taylor,lape,random", "--plants", "plants", "--deletion", *SMALL)
    for line in (
        "plain, seed 0", "+0.5%", "holds", "recall@K", "(one seed: no interval)", "layer 2", "false positives",
        "agreement with deletion curves on my: Spearman", "3 methods", "wrote c.h5",
    ):  # fmt: skip
        assert line in printed
    found = load(folder / "c.h5").calibration
    assert found.methods == ("taylor", "lape", "random")
    assert found.verdict() in printed
    assert found.best is not None
    method, (by, _, contrast) = found.best[0], found.best[1].partition("/")
    assert f"next: neuropolis locate model --data my.jsonl --method {method}" in printed
    assert f"neuropolis select c.h5 --by {by} --contrast {contrast or 'none'}" in printed
    run("report", "c.h5", "--out", "page.html")
    page = (folder / "page.html").read_text()
    assert "Calibration on planted neurons" in page
    assert 'id="figure-calibration-0"' in page


def test_a_plant_that_fails_says_so_and_is_not_scored(run: Run, folder: Path, corpus: Corpus) -> None:
    keep(folder, corpus, holds=False)
    printed = run("calibrate", "model", "--methods", "taylor", "--plants", "plants", "--no-false-positives", *SMALL)
    assert "not scored: plain, seed 0: recall of" in printed
    assert "No plant stood its proof (1 tried)" in printed
    line = next(line for line in printed.splitlines() if line.startswith("next: "))
    for asked in (
        "neuropolis calibrate model ",
        " --methods taylor ",
        " --plants plants ",
        " --no-false-positives",
        " --out c.h5",
    ):
        assert asked in line  # what was asked for stays
    assert " --form statement --answers known --own-text --steps 800 --recipe lr=0.005 --recipe keep=50" in line
    run("report", "c.h5", "--out", "page.html")
    assert "No plant stood its proof" in (folder / "page.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--methods", "tailor"), "unknown method 'tailor'"),
        (("--recipe", "lr=0"), "lr of planting is 0; expected a number above 0"),
        (("--recipe", "speed=2"), "recipes have no 'speed'; they have steps, lr, batch_size"),
        (("--steps", "0"), "steps of planting is 0; expected a whole number of 1 or more"),
        (("--form", "poem"), "unknown form of facts 'poem'; expected one of question, statement"),
        (("--answers", "any"), "unknown answers 'any'; expected one of invented, known"),
        (("--variants", "plane"), "unknown variant 'plane'; variants are plain, shared"),
        (("--seeds", "0"), "seeds is 0; expected 1 or more plants of each variant"),
        (("--per-group", "64"), "3 groups of 64 neurons are 192, and half of site mlp"),
        (("--plants", "no/where"), "there is no folder no for the plants; make it first"),
    ],
)
def test_a_mistake_is_one_line(run: Run, arguments: tuple[str, ...], line: Any) -> None:
    assert line in run("calibrate", "model", *SMALL, *arguments, fails=True)
