"""`ablate`, `sweep` and `dose` on the command line: kinds, metrics, controls, twins, several sites, and clear refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from neuropolis.analysis.study import load

Run = Callable[..., str]
ABLATE = ("ablate", "model", "--data", "my.jsonl", "--study", "study.h5", "--controls", "2")


@pytest.fixture
def study(run: Run, folder: Path) -> Path:
    run("locate", "model", "--data", "my.jsonl", "--out", "study.h5")
    run("select", "study.h5", "--top", "5%")
    return folder / "study.h5"


def test_ablate_with_every_choice_named(run: Run, study: Path) -> None:
    printed = run(*ABLATE, "--metric", "loss", "--match", "activation", "--twins", "--name", "by loss")
    assert "loss (nats a token): on the set's own group" in printed
    assert "each group has 4 questions about 4 items; 2 controls a set" in printed
    assert "of 3 sets none could be shown, for want of items" in printed
    assert "sets on groups" in printed
    assert "controls' mean activation over the sets'" in printed
    assert "questions beside their knowledge-free twins" in printed
    effects = load(study).get("effects", "by loss")
    assert (effects.metric, effects.origin["match"], effects.origin["on"]) == ("loss", "activation", "both")
    assert effects.twins is not None
    printed = run(*ABLATE, "--kind", "resample", "--reference-group", "north", "--on", "prompt", "--match", "groups")
    assert "(matched by groups)" in printed
    effects = load(study).get("effects", "effects")
    assert (effects.kind, effects.origin["on"], effects.controls.shape[1]) == ("resample", "prompt", 2)
    assert "they spare their own group more" in run(*ABLATE, "--kind", "keep", "--match", "score")
    assert "exact_match in %" in run(*ABLATE, "--metric", "exact_match", "--max-new-tokens", "3", "--group", "north")


def test_a_group_alone_has_the_controls_of_all_groups(run: Run, study: Path) -> None:
    run(*ABLATE, "--match", "groups", "--metric", "loss")
    whole = load(study).effects
    run(*ABLATE, "--match", "groups", "--metric", "loss", "--group", "south")
    alone = load(study).effects
    assert alone.sets == ("south",)
    assert alone.controls.equal(whole.controls[[whole.sets.index("south")]])


def test_a_wrong_kind_is_refused_before_anything_is_asked(
    run: Run, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import neuropolis.analysis.ablate as home

    monkeypatch.setattr(home.Bench, "values", lambda *_: pytest.fail("asked"))
    assert "unknown kind 'x'" in run(*ABLATE, "--kind", "x", fails=True)
    assert "unknown on='x'" in run(*ABLATE, "--on", "x", fails=True)


def test_one_group_alone_has_no_others(run: Run, study: Path) -> None:
    rows = (study.parent / "my.jsonl").read_text().splitlines()
    (study.parent / "one.jsonl").write_text("\n".join(row for row in rows if '"north"' in row))
    printed = run(
        "ablate", "model", "--data", "one.jsonl", "--study", "study.h5", "--controls", "2", "--group", "north"
    )
    assert "hurt their own group more than their controls" in printed
    assert "there is no other group" in printed


def test_sets_of_several_sites_just_work(run: Run, folder: Path) -> None:
    run(
        "locate", "model", "--data", "my.jsonl", "--out", "study.h5", "--preset", "tsn", "--option", 'site=["mlp", "v"]',
        "--option", "top=20%",
    )  # fmt: skip
    printed = run(*ABLATE)
    assert "the sets are of sites mlp, v; those of one group are silenced together" in printed
    effects = load(folder / "study.h5").effects
    assert (effects.sets, effects.site) == (("north", "south", "east"), "mlp+v")
    assert effects.own_group == (0, 1, 2)
    assert load(folder / "study.h5").get("effects").sizes.sum() == 3 * round(0.2 * 3 * (48 + 16))
    run(*ABLATE, "--group", "south", "--kind", "mean", "--reference", "my.jsonl")
    assert load(folder / "study.h5").effects.sets == ("south",)
    run(*ABLATE, "--group", "south/v")
    assert load(folder / "study.h5").effects.site == "v"


def test_sweep_and_dose(run: Run, study: Path) -> None:
    common = ("model", "--data", "my.jsonl", "--study", "study.h5", "--controls", "1")
    printed = run("sweep", *common, "--metric", "loss", "--group", "north")
    assert "mean over 1 sets: most at layer" in printed
    assert load(study).layer_sweep.names == ("north",)
    printed = run("dose", *common, "--shares", "1%,10%", "--twins")
    assert "twins" in printed
    assert "10%" in printed
    assert load(study).dose_response.steps == (0.01, 0.1)
    assert "layer_sweep" in run("info", "study.h5")


def test_mistakes_are_one_clear_line(run: Run, study: Path) -> None:
    for arguments, line in (
        ((*ABLATE, "--group", "west"), "has no set 'west'; it has north, south, east"),
        ((*ABLATE, "--kind", "mean"), "--kind mean needs a reference: --reference FILE.jsonl"),
        ((*ABLATE, "--reference", "my.jsonl"), "--kind zero draws from no reference"),
        ((*ABLATE, "--kind", "silence"), "unknown kind 'silence'"),
        ((*ABLATE, "--metric", "bleu"), "unknown metric 'bleu'; metrics are accuracy"),
        ((*ABLATE, "--match", "size"), "unknown match 'size'"),
        ((*ABLATE, "--on", "question"), "unknown on='question'"),
        (("dose", *ABLATE[1:], "--shares", "5,10"), "expected shares such as 0.1%"),
        (("sweep", *ABLATE[1:], "--kind", "keep"), "'keep' silences every layer"),
    ):
        assert line in run(*arguments, fails=True)
