"""Figures of similarity, from artefacts made by hand: what is drawn is what they hold, for few groups and for many."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from figure_makers import LAYERS, SUBJECT, make_scores, make_sets, make_similarity, names
from matplotlib.figure import Figure
from neuropolis.analysis.movement import Movement
from neuropolis.analysis.overlap import overlap
from neuropolis.analysis.ranks import rank_agreement
from neuropolis.analysis.redundancy import Redundancy
from neuropolis.analysis.representations import Representations
from neuropolis.analysis.transfer import transfer
from neuropolis.analysis.trees import mantel, tree
from neuropolis.attribution.importance import Importance
from neuropolis.figures import similarity_plots, state_plots
from neuropolis.figures.style import FigureError

pytestmark = pytest.mark.filterwarnings("ignore::neuropolis.figures.style.GlyphWarning")


def drawn(figure: Figure) -> Any:
    """Draw it, so that what cannot be laid out fails; returns the first axes."""
    figure.canvas.draw()
    return figure.axes[0]


def texts(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_the_map_stands_in_the_order_of_the_tree() -> None:
    groups = names(8)
    shared = overlap(make_sets(groups))
    found = tree(shared)
    figure = similarity_plots.tree_beside_map(shared, found)
    left, right = drawn(figure), figure.axes[1]
    order = [groups[place] for place in found.order.tolist()]
    assert [label.get_text() for label in right.get_yticklabels()] == order
    first, second = found.order[:2].tolist()
    assert texts(right)[0] == f"{float(shared.jaccard[first, second]):.2f}"
    assert len(left.lines) == len(groups) - 1
    # leaf n of the tree stands at the middle of row n of the map
    leaves = sorted(
        {y for line in left.lines for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True) if x == 0}
    )
    assert leaves == [n + 0.5 for n in range(len(groups))]
    with pytest.raises(FigureError, match="give two of one study"):
        similarity_plots.tree_beside_map(overlap(make_sets(names(3))), found)


@pytest.mark.parametrize("count", [3, 30, 100])
def test_any_number_of_groups(count: int) -> None:
    groups = names(count)
    shared = overlap(make_sets(groups))
    drawn(similarity_plots.tree_beside_map(shared, tree(shared)))
    drawn(similarity_plots.rank_matrix(rank_agreement(make_scores(groups), draws=20)))


def test_dots_of_distances() -> None:
    shared = overlap(make_sets(names(5)))
    given = torch.arange(25.0).reshape(5, 5)
    found = mantel(shared, given + given.T, source="made up", draws=99)
    axes = drawn(similarity_plots.distances_against_overlap(found))
    assert len(axes.collections[0].get_offsets()) == 10
    assert f"{found.agreement.r:+.2f}".replace("-", "\u2212") in axes.get_title(loc="left")


def test_transfer_and_movement() -> None:
    groups = names(4)
    alike = make_similarity(groups)
    found = transfer(alike, torch.rand(4, 4, dtype=torch.float64), draws=50)
    figure = similarity_plots.similarity_and_transfer(found)
    dots = sum(len(part.get_offsets()) for part in drawn(figure).collections)
    assert dots == 12
    assert figure.axes[1].lines[0].get_ydata().tolist() == found.by_layer[0, :, 0].tolist()
    change = torch.tensor([[0.4, 0.1, float("nan")], [0.0, 0.1, 0.2]])
    cosine, random = torch.ones_like(change), torch.full((2, 5, 3), 0.1)
    moved = Movement("mlp", SUBJECT, groups[:2], torch.ones(2, 3).long(), cosine, change, random, random)
    axes = drawn(similarity_plots.movement_by_layer(moved))
    assert texts(axes)[:2] == ["0.400", "0.100"]
    shown = np.asarray(axes.collections[0].get_array()).ravel()
    assert shown[0] == pytest.approx(2)  # four times the random sets'


def make_representations(groups: tuple[str, ...], *, cka: bool) -> Representations:
    shape = (len(groups), len(groups), 4)
    cosine = torch.linspace(0.2, 0.8, 4).expand(shape).clone()
    nothing = torch.full(shape, torch.nan)
    count = torch.full(shape[:2], 9)
    return Representations(
        SUBJECT, groups, count[0], count, cosine, cosine - 0.1, cosine + 0.1, cosine / 2 if cka else nothing,
        nothing + 0.1, nothing,
    )  # fmt: skip


def test_states() -> None:
    groups = names(5)
    axes = drawn(state_plots.states_by_layer(make_representations(groups, cka=True)))
    assert axes.lines[0].get_ydata() == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert axes.lines[1].get_ydata() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["emb", "0", "1", "2"]
    bare = make_representations(groups, cka=False)
    assert len(drawn(state_plots.states_by_layer(bare)).lines) == 1
    axes = drawn(state_plots.state_matrix(bare, state=3))
    assert set(texts(axes)) == {"0.80"}
    assert axes.get_title(loc="left") == "layer 2"
    with pytest.raises(FigureError, match="expected 0"):
        state_plots.state_matrix(bare, state=4)


@pytest.mark.parametrize("count", [2, 12])
def test_importance(count: int) -> None:
    values = torch.rand((count, LAYERS, 2))
    found = Importance(SUBJECT, names(count), ("mlp", "attn"), values, torch.tensor([64, 16]))
    axes = drawn(state_plots.importance_by_layer(found))
    if count == 2:
        assert axes.lines[1].get_ydata() == pytest.approx(values[1].sum(dim=1).tolist())
    axes = drawn(state_plots.importance_by_component(found))
    share = 100 * values.mean(dim=0).T / values.mean(dim=0).sum()
    assert texts(axes)[LAYERS] == f"{float(share[1, 0]):.1f}"
    assert axes.get_yticklabels()[0].get_text() == "mlp (64)"


def test_redundancy() -> None:
    groups = names(3)
    r2 = torch.tensor([[0.95, 0.1, 0.2, 0.99]])
    found = Redundancy(
        "mlp", SUBJECT, groups, 0.9, r2, torch.zeros(1, 4).long(), r2, torch.zeros(1), torch.tensor([4, 4, 4]),
        torch.tensor([0.5, 0.25, 0.0]), torch.tensor([[0.4, 0.6]] * 3),
    )  # fmt: skip
    axes = drawn(state_plots.redundancy_by_set(found))
    assert [bar.get_width() for bar in axes.patches[:3]] == [50, 25, 0]
    bare = Redundancy(
        "mlp",
        SUBJECT,
        (),
        0.9,
        r2,
        torch.zeros(1, 4).long(),
        r2,
        torch.zeros(1),
        torch.zeros(0),
        torch.zeros(0),
        torch.zeros(0, 0),
    )
    with pytest.raises(FigureError, match="without sets"):
        state_plots.redundancy_by_set(bare)
