"""The figure of fidelity draws the curves that the artefact holds."""

from __future__ import annotations

import numpy as np
import torch
from neuropolis.attribution.fidelity_result import Fidelity
from neuropolis.figures.fidelity import fidelity_curves
from neuropolis.figures.saving import save_figure


def test_lines_are_means_over_groups(tmp_path) -> None:
    torch.manual_seed(0)
    found = Fidelity(
        "mlp", "s", "loss", ("taylor", "ig"), ("a", "b"), torch.tensor([0.01, 0.1, 1.0]), torch.zeros(5, 2),
        exact=torch.randn(2, 5), scored=torch.randn(2, 2, 5), group_index=torch.tensor([0, 0, 0, 1]),
        item_index=torch.arange(4), base=torch.zeros(4), deletion=torch.rand(2, 3, 4), insertion=torch.rand(2, 3, 4),
        control_deletion=torch.rand(3, 3, 4), control_insertion=torch.rand(3, 3, 4),
    )  # fmt: skip
    figure = fidelity_curves(found)
    left, right = figure.axes[:2]
    for axes, curves in ((left, found.deletion), (right, found.insertion)):
        drawn = {line.get_label(): line.get_ydata() for line in axes.lines}
        assert set(drawn) == {"random", "taylor", "ig"}
        expected = (curves[1, :, :3].mean(dim=1) + curves[1, :, 3]) / 2  # groups count the same, whatever their size
        np.testing.assert_allclose(np.asarray(drawn["ig"]), expected.numpy(), rtol=1e-6)
        assert axes.get_xscale() == "log"
    assert save_figure(figure, tmp_path / "fidelity.svg")
