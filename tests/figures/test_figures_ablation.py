"""What the report says of effects: in the metric's unit, in the direction that was asked, with twins and what could be seen."""

from __future__ import annotations

import dataclasses

import matplotlib
import numpy as np
import pytest
import torch
from figure_makers import make_effects, make_scores, make_sets
from neuropolis.analysis.effects import Effects
from neuropolis.analysis.study import load, save
from neuropolis.figures import plots
from neuropolis.figures.parts import Part, part_of
from neuropolis.figures.report import save_figures

GROUPS = ("a", "b", "c")


def losses(scale: float = 1.9) -> Effects:
    """Losses that rise where the answers of `make_effects` turn wrong."""
    plain = make_effects(GROUPS, hurt=1.0, controls=4)
    return dataclasses.replace(
        plain, metric="loss", base=torch.zeros(len(plain.base)), ablated=scale * (~plain.ablated).float(),
        controls=0.01 * (~plain.controls).float(), origin={**plain.origin, "unit": "nats", "higher_is_better": False},
    )  # fmt: skip


def with_twins(effects: Effects, *, hurt: bool) -> Effects:
    """With twins that are hurt as much as the questions, or not at all."""
    twin = dataclasses.replace(effects, ablated=effects.ablated if hurt else effects.base.expand_as(effects.ablated))
    return dataclasses.replace(effects, twins=twin)


def kept(effects: Effects) -> Effects:
    """With every set kept alone: the own group stays, all else falls."""
    return dataclasses.replace(
        effects, kind="keep", ablated=~effects.ablated & effects.base, controls=effects.controls & False,
        origin={**effects.origin, "expect": "better"},
    )  # fmt: skip


def said(part: Part) -> str:
    return " ".join(part.words)


def column(part: Part, table: int, name: str) -> np.ndarray:
    return next(one.values for one in part.tables[table].columns if one.name == name)


@pytest.mark.parametrize("hurt", [False, True])
def test_the_negative_control_is_said_in_words_tile_and_tables(hurt: bool) -> None:
    plain = make_effects(GROUPS, hurt=1.0)
    part = part_of("effects", with_twins(plain, hurt=hurt))
    count = 0 if hurt else 3
    assert f"{count} of 3 sets hurt their group's questions more than the questions' knowledge-free twins" in said(part)
    assert ("may carry the wording" in said(part)) == hurt
    assert part.headline is not None
    assert part.headline[0] == "3 of 3"
    assert f"{count} of 3 more than the questions' knowledge-free twins" in part.headline[1]
    expected = plain.own(plain.effect) if hurt else torch.zeros(3)
    np.testing.assert_allclose(column(part, 0, "twins' change (points)"), 100 * expected)
    assert (column(part, 0, "p against twins") < 0.05).sum() == count
    assert "change of twins (points)" in [one.name for one in part.tables[1].columns]


def test_without_twins_nothing_is_said_of_them() -> None:
    part = part_of("effects", make_effects(GROUPS))
    assert "twin" not in said(part) + str(part.headline)


def test_kept_sets_are_said_to_spare_their_group() -> None:
    part = part_of("effects", kept(make_effects(GROUPS, hurt=1.0)))
    assert "Keeping a set alone and silencing all else of its site (kind keep) spares the own group" in said(part)
    assert "hurt" not in said(part)
    assert part.headline is not None
    assert part.headline[0] == "3 of 3"
    assert part.headline[1].startswith("sets spare their own group more than the others")
    assert part.pictures[0].title == "Change of choice when a set alone is kept"
    assert "that are better than" in part.pictures[0].caption


def test_another_metric_has_matrix_tests_and_power_in_its_unit() -> None:
    effects = losses()
    part = part_of("effects", effects)
    text = said(part)
    assert "With nothing silenced, loss is 0.000 nats" in text
    assert "hurts the own group more than the mean of the others" in text
    assert "for 3 of 3 sets" in text
    assert "the smallest change beyond the controls' that would be found 4 times in 5 is" in text
    assert "points" not in text
    assert "accuracy" not in text
    assert len(part.pictures) == 1
    assert "in nats" in part.pictures[0].caption
    np.testing.assert_allclose(column(part, 0, "change (nats)"), effects.own(effects.effect))
    np.testing.assert_allclose(column(part, 0, "smallest detectable (nats)"), effects.smallest_detectable)
    assert len(part.tables[1]) == 9


def test_the_matrix_of_a_loss_is_in_nats_and_its_rise_is_red() -> None:
    effects = losses()
    figure = plots.effect_matrix(effects)
    mesh = figure.axes[0].collections[0]
    np.testing.assert_allclose(np.ma.filled(mesh.get_array(), np.nan), effects.effect)
    red, _, blue, _ = mesh.to_rgba(np.array([float(effects.effect.max())]))[0]
    assert red > blue
    texts = {text.get_text() for text in figure.findobj(matplotlib.text.Text)}
    assert "change of loss (nats)" in texts
    largest = float(effects.effect.max())
    assert any(text.startswith(f"+{largest:.2f}*\n") for text in texts)


def test_the_matrix_of_accuracy_has_its_fall_in_red() -> None:
    effects = make_effects(GROUPS, hurt=1.0)
    figure = plots.effect_matrix(effects)
    red, _, blue, _ = figure.axes[0].collections[0].to_rgba(np.array([100 * float(effects.effect.min())]))[0]
    assert red > blue


def test_small_and_large_units_are_written_with_three_digits() -> None:
    for scale, form in ((0.019, ".4f"), (1900.0, ".0f")):
        effects = losses(scale)
        largest = format(float(effects.effect.max()), "+" + form)
        texts = {text.get_text() for text in plots.effect_matrix(effects).findobj(matplotlib.text.Text)}
        assert any(text.startswith(f"{largest}*\n") for text in texts), (largest, texts)


def test_figures_of_another_metric_alone_are_written(tmp_path) -> None:
    path = save(tmp_path / "study.h5", make_scores(GROUPS), make_sets(GROUPS), losses())
    assert [one.name for one in save_figures(load(path), tmp_path / "d", only=["effects"], formats=[".svg"])] == [
        "effects.svg"
    ]


def test_one_group_has_no_others_to_be_hurt_less() -> None:
    part = part_of("effects", make_effects(("a",), hurt=1.0))
    assert part.headline == ("1 of 1", "sets hurt their own group more than matched controls (p < 0.05, Holm)")
    assert "There is no other group" in said(part)
    assert "mean of the others" not in said(part)


def test_twins_are_said_also_without_controls() -> None:
    part = part_of("effects", with_twins(make_effects(GROUPS, hurt=1.0, controls=0), hurt=True))
    assert "cannot be said whether random neurons" in said(part)
    assert "Negative control: 0 of 3" in said(part)


def test_cells_are_written_in_the_ink_of_the_higher_contrast() -> None:
    """Of white and the dark ink, by the formula of WCAG 2.1."""
    figure = plots.effect_matrix(make_effects(GROUPS, hurt=0.7))
    mesh, seen = figure.axes[0].collections[0], set()
    for text in figure.axes[0].texts:
        column, row = (int(place) for place in text.get_position())
        cell = luminance(mesh.to_rgba(mesh.get_array())[row, column, :3])
        inks = {ink: luminance(matplotlib.colors.to_rgb(ink)) for ink in ("w", ".15")}
        best = max(inks, key=lambda ink: contrast(inks[ink], cell))
        assert text.get_color() == best
        seen.add(best)
    assert contrast(0.22, 1.0) == pytest.approx(contrast(0.22, luminance((0.15,) * 3)), rel=0.05)
    assert seen


def luminance(colour) -> float:
    channels = np.asarray(colour, dtype=float)
    linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)
