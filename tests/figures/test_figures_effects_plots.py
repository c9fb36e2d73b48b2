"""Figures of curves: one panel a set, with the values that they show."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from figure_makers import make_effects, names
from neuropolis.analysis.curves import Axis, Curve
from neuropolis.analysis.effects import Effects
from neuropolis.figures.effects_plots import dose_response, layer_sweep
from neuropolis.figures.style import FigureError


def make_curve(count: int, *, axis: Axis = "dose", controls: int = 3, twins: bool = False) -> Curve:
    groups, steps = names(count), (0.001, 0.01, 0.1) if axis == "dose" else (0, 1, 2)
    found = [
        make_effects(groups, hurt=hurt, items=12, controls=controls, seed=s) for s, hurt in enumerate((0.1, 0.4, 0.9))
    ]
    first = found[0]

    def flat(name: str) -> torch.Tensor:
        return torch.stack([getattr(one, name) for one in found], dim=1).flatten(0, 1)

    effects = Effects(
        "mlp", first.subject, "zero", "accuracy", tuple(f"{g} {axis} {s:g}" for g in groups for s in steps), groups,
        first.group_index, first.item_index, first.base, flat("ablated"), flat("controls"), flat("sizes"),
        owners=tuple(g for g in groups for _ in steps),
    )  # fmt: skip
    if twins:
        values = {key: getattr(effects, key) for key in Effects.__dataclass_fields__}
        still = effects.base.expand_as(effects.ablated)
        effects = Effects(**{**values, "twins": Effects(**{**values, "ablated": still})})
    return Curve(axis, groups, steps, effects)


@pytest.mark.parametrize("count", [1, 2, 12])
def test_a_panel_a_set(count: int) -> None:
    curve = make_curve(count, twins=True)
    figure = dose_response(curve)
    assert [axes.get_title("left") for axes in figure.axes] == list(names(count))
    own = curve.own()
    for row, axes in enumerate(figure.axes):
        lines = {line.get_label(): line for line in axes.lines}
        np.testing.assert_allclose(lines["own group"].get_ydata(), 100 * own["effect"][row].numpy())
        np.testing.assert_allclose(lines["own group"].get_xdata(), [0.1, 1, 10])
        np.testing.assert_allclose(lines["controls, mean"].get_ydata(), 100 * own["control"][row].numpy())
        assert not np.any(lines["own group's twins"].get_ydata())
        assert axes.get_xscale() == "log"
    figure.canvas.draw()


def test_without_controls_and_with_chosen_sets() -> None:
    figure = layer_sweep(make_curve(5, axis="layer", controls=0), sets=["中国", "japan"])
    assert [axes.get_title("left") for axes in figure.axes] == ["中国", "japan"]
    assert "controls, mean" not in [line.get_label() for line in figure.axes[0].lines]
    figure.canvas.draw()


def test_what_cannot_be_drawn_says_why() -> None:
    curve = make_curve(2)
    with pytest.raises(FigureError, match="found one along doses; draw it with dose_response"):
        layer_sweep(curve)
    with pytest.raises(FigureError, match="no set 'atlantis'; it has japan, mexico"):
        dose_response(curve, sets=["atlantis"])
