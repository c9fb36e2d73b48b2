"""Figures draw what the artefacts hold, for few groups and many, and leave the user's settings alone."""

from __future__ import annotations

import dataclasses

import matplotlib
import numpy as np
import pytest
import torch
from figure_makers import (
    LAYERS,
    SUBJECT,
    make_effects,
    make_overlap,
    make_retention,
    make_sets,
    make_similarity,
    names,
)
from neuropolis.figures import plots
from neuropolis.figures.forgetting import combine
from neuropolis.figures.saving import inline_svg, save_figure
from neuropolis.figures.style import FigureError
from neuropolis.neurons.sets import NeuronSet


@pytest.fixture(params=[2, 30], ids=["2 groups", "30 groups"])
def groups(request):
    return names(request.param)


def mesh(figure, place: int = 0) -> np.ndarray:
    """The numbers of the place-th heat map."""
    maps = [axes for axes in figure.axes if axes.collections and hasattr(axes.collections[0], "get_coordinates")]
    return np.ma.filled(maps[place].collections[0].get_array(), np.nan)


def written(figure) -> set[str]:
    return {text.get_text() for text in figure.findobj(matplotlib.text.Text)}


def test_neurons_by_layer_shows_shares_that_sum_to_one_hundred(groups):
    sets = make_sets(groups)
    shares = mesh(plots.neurons_by_layer(sets))
    expected = torch.stack([100 * s.per_layer / len(s) for s in sets.values()])
    np.testing.assert_allclose(shares, expected, rtol=1e-6)
    np.testing.assert_allclose(shares.sum(axis=1), 100)


def test_neurons_by_layer_leaves_the_row_of_an_empty_set_empty():
    sets = make_sets(("a", "b"))
    sets["b"] = sets["b"] - sets["b"]
    shares = mesh(plots.neurons_by_layer(sets))
    assert np.isnan(shares[1]).all()
    assert np.isfinite(shares[0]).all()


def test_neurons_by_layer_refuses_sets_of_different_depth():
    deeper = NeuronSet("mlp", SUBJECT, torch.ones((LAYERS + 1, 4), dtype=torch.bool))
    with pytest.raises(FigureError, match=r"found 2 sets with \[6, 7\] layers"):
        plots.neurons_by_layer({**make_sets(("a",)), "b": deeper})


def test_neurons_by_layer_refuses_sets_of_different_subjects():
    (one,) = make_sets(("a",)).values()
    other = NeuronSet("mlp", "x", one.mask)
    with pytest.raises(FigureError, match=r"expected sets of one subject, found sets of \w+ \(a\), x \(b\); draw"):
        plots.neurons_by_layer({"a": one, "b": other})


def test_effect_matrix_shows_changes_in_points_and_summaries_beside(groups):
    effects = make_effects(groups, items=12, controls=4)
    figure = plots.effect_matrix(effects)
    change, control = 100 * effects.effect.numpy(), 100 * effects.control_effect.numpy()
    np.testing.assert_allclose(mesh(figure), change)
    beside = mesh(figure, 1)
    np.testing.assert_allclose(beside[:, 0], np.diag(change))
    np.testing.assert_allclose(beside[:, 1], (change.sum(axis=1) - np.diag(change)) / (len(groups) - 1))
    np.testing.assert_allclose(beside[:, 2], np.diag(control))


def test_effect_matrix_stars_what_is_worse_than_controls_and_nothing_else():
    effects = make_effects(("a", "b"), hurt=1.0)
    notes = [text for text in written(plots.effect_matrix(effects)) if " to " in text]
    starred = [note for note in notes if "*" in note]
    assert len(starred) == 2
    assert all(note.startswith(("\u221295.", "\u2212100.", "\u221291.", "\u221287.")) for note in starred)


def test_effect_matrix_of_sets_that_are_no_groups_shows_means_over_all_groups():
    effects = dataclasses.replace(make_effects(("a", "b", "c")), sets=("x", "y", "z"))
    beside = mesh(plots.effect_matrix(effects), 1)
    np.testing.assert_allclose(beside[:, 0], 100 * effects.effect.mean(dim=1))
    np.testing.assert_allclose(beside[:, 1], 100 * effects.control_effect.mean(dim=1))


def test_overlap_matrix_shows_log_ratio_to_chance_and_sizes(groups):
    overlap = make_overlap(groups)
    figure = plots.overlap_matrix(overlap)
    expected = torch.log2(overlap.jaccard / overlap.expected).fill_diagonal_(torch.nan)
    np.testing.assert_allclose(mesh(figure), expected, rtol=1e-6)
    assert "27" in written(figure)


def test_overlap_matrix_of_few_groups_writes_jaccard_and_ratio():
    overlap = make_overlap(("a", "b"))
    value = float(overlap.jaccard[0, 1])
    assert any(text.startswith(f"{value:.3f}\n×{value / 0.05:.1f}") for text in written(plots.overlap_matrix(overlap)))


def test_overlap_matrix_takes_pairs_with_nothing_in_common():
    overlap = make_overlap(("a", "b", "c"))
    overlap.jaccard[0, 1] = overlap.jaccard[1, 0] = 0.0
    figure = plots.overlap_matrix(overlap)
    assert np.isfinite(mesh(figure)[0, 1])
    assert "0.000\n×0.00*" in written(figure) or "0.000\n×0.00" in written(figure)


def test_a_pair_with_nothing_in_common_is_as_dark_as_half_a_shared_neuron():
    """So that a pair of which chance expects few is not the darkest of all."""
    overlap = make_overlap(("a", "b", "c"))
    overlap.jaccard[0, 1] = overlap.jaccard[1, 0] = 0.0
    for expected in (0.01, 0.2):  # two sets of 27: half a neuron of 53.5
        overlap.expected[0, 1] = overlap.expected[1, 0] = expected
        colour = mesh(plots.overlap_matrix(overlap))[0, 1]
        assert colour == pytest.approx(np.log2(0.5 / 53.5 / expected))


def test_similarity_lines_are_means_over_pairs(groups):
    similarity = make_similarity(groups)
    lines = {line.get_label(): line.get_ydata() for line in plots.similarity_by_layer(similarity).axes[0].lines}
    first, second = np.triu_indices(len(groups), 1)
    for label, values in (
        ("all neurons of both sets", similarity.values),
        ("without shared neurons", similarity.values_unshared),
        ("chance, mean", similarity.chance),
    ):
        np.testing.assert_allclose(lines[label], values[first, second].mean(dim=0), rtol=1e-6)


def test_similarity_leaves_out_layers_without_neurons():
    similarity = make_similarity(("a", "b"))
    similarity.values_unshared[:, :, 2] = torch.nan
    lines = {line.get_label(): line.get_ydata() for line in plots.similarity_by_layer(similarity).axes[0].lines}
    assert np.isnan(lines["without shared neurons"]).tolist() == [layer == 2 for layer in range(LAYERS)]


def test_similarity_of_one_group_says_what_it_needs():
    with pytest.raises(FigureError, match="at least two groups, found 1: a"):
        plots.similarity_by_layer(make_similarity(("a",)))


def test_forgetting_shows_the_new_group_and_the_mean_of_the_trained_ones(groups):
    retention = make_retention(groups)
    left, right = plots.forgetting(retention).axes
    after = 100 * retention.after
    assert [bar.lines[0].get_xdata()[0] for bar in left.containers[:3]] == pytest.approx(after[:, -1].tolist())
    assert [bar.lines[0].get_xdata()[0] for bar in right.containers[:3]] == pytest.approx(
        after[:, :-1].mean(dim=1).tolist()
    )
    assert left.lines[0].get_xdata() == pytest.approx([25, 25])
    assert right.lines[0].get_xdata() == pytest.approx([95, 95])


def test_the_interval_of_a_mean_adds_half_widths_in_squares():
    means, low = np.array([50.0, 60.0]), np.array([47.0, 56.0])
    assert combine(low, means, -1) == pytest.approx(55 - 5 / 2)  # sqrt(3^2 + 4^2) = 5


def test_drawing_leaves_settings_and_pyplot_as_they_were(tmp_path):
    from matplotlib import pyplot

    matplotlib.rcParams["font.size"] = 17.0
    try:
        before = dict(matplotlib.rcParams)
        save_figure(plots.effect_matrix(make_effects(("a", "b"), controls=3)), tmp_path / "a.png")
        save_figure(plots.similarity_by_layer(make_similarity(("a", "b"))), tmp_path / "a.svg")
        assert dict(matplotlib.rcParams) == before
        assert pyplot.get_fignums() == []
    finally:
        matplotlib.rcParams["font.size"] = matplotlib.rcParamsDefault["font.size"]


def test_names_are_not_cut(groups):
    long = tuple(f"a group with quite a long name, number {place}" for place in range(len(groups)))
    figure = plots.neurons_by_layer(make_sets(long))
    figure.draw_without_rendering()
    box = figure.bbox
    for label in figure.axes[0].get_yticklabels():
        extent = label.get_window_extent()
        assert extent.x0 >= box.x0
        assert extent.y1 <= box.y1


@pytest.mark.parametrize("name", ["x" * 65, "W" * 65, "\u540d" * 65])
def test_very_long_names_leave_room_for_the_picture(name):
    """Warnings are errors here, and matplotlib warns where names leave no room."""
    both = (name, "b")
    for figure in (
        plots.neurons_by_layer(make_sets(both)), plots.effect_matrix(make_effects(both, items=6, controls=2)),
        plots.overlap_matrix(make_overlap(both)),
    ):  # fmt: skip
        figure.draw_without_rendering()
        assert name in {
            text.get_text().removesuffix(" (23)").split(" (")[0] for text in figure.axes[0].get_yticklabels()
        }
        assert figure.axes[0].get_window_extent().width > 40


def test_a_name_with_dollars_is_no_formula():
    figure = plots.neurons_by_layer(make_sets(("$\\alpha", "$a_b$")))
    assert all(not label.get_parse_math() for label in figure.axes[0].get_yticklabels())
    assert inline_svg(figure, prefix="one", title="", description="").count(">$a_b$ (") == 1
