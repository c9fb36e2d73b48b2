"""Scores: shapes that must agree, the standard error by hand, and back from an atlas unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from neuropolis.neurons.atlas import Atlas, write_atlas
from neuropolis.neurons.errors import SetError
from neuropolis.neurons.scores import Scores


def scores(**changed: Any) -> Scores:
    shape = (2, 3, 4)
    values = torch.arange(24.0).reshape(shape)
    given: dict[str, Any] = {
        "site": "mlp", "subject": "s", "groups": ["north", "south"], "values": values, "signed": -values,
        "squares": values.square() + 6, "counts": torch.tensor([4, 1]), "origin": {"corpus": "toy"},
    }  # fmt: skip
    return Scores(**{**given, **changed})


def test_the_standard_error_by_hand() -> None:
    # variance 6 of 4 examples is 6 * 4 / 3 = 8 unbiased: error sqrt(8 / 4); one example has none
    error = scores().error
    torch.testing.assert_close(error[0], torch.full((3, 4), 2.0**0.5), rtol=1e-5, atol=1e-5)
    assert error[1].isnan().all()


def test_a_group_is_found_by_name() -> None:
    one = scores()
    assert one.index("south") == 1
    assert torch.equal(one.of("south"), one.values[1])
    assert (one.num_layers, one.width) == (3, 4)
    with pytest.raises(SetError, match="no group 'east' in these scores; they have north, south"):
        one.of("east")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"signed": torch.zeros(2, 3, 5)}, r"signed has shape \[2, 3, 5\], values \[2, 3, 4\]"),
        ({"squares": torch.zeros(2, 3)}, r"squares has shape \[2, 3\]"),
        ({"groups": ("north",)}, r"\[group, layer, neuron\] for 1 groups, got \[2, 3, 4\] and 2 counts"),
        ({"counts": torch.tensor([4])}, "for 2 groups, .* and 1 counts"),
    ],
)
def test_shapes_must_agree(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(SetError, match=message):
        scores(**changed)


@pytest.mark.parametrize("controls", [False, True])
def test_scores_come_back_from_an_atlas(tmp_path: Path, controls: bool) -> None:
    twin = {"control_values": torch.rand(2, 3, 4), "control_signed": torch.rand(2, 3, 4)} if controls else {}
    one = scores(method="gradient", objective="probability", **twin)
    with Atlas(write_atlas(tmp_path / "a.h5", [one.to_record()])) as atlas:
        found = atlas.get("scores", "scores")
    for name in ("site", "subject", "groups", "method", "objective", "origin"):
        assert getattr(found, name) == getattr(one, name)
    for name in ("values", "signed", "squares", "counts", "control_values", "control_signed"):
        wanted = getattr(one, name)
        assert getattr(found, name) is None if wanted is None else torch.equal(getattr(found, name), wanted)
