"""Every kind of record has a section in the report, and a new one joins with one line."""

from __future__ import annotations

import dataclasses
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from figure_makers import SUBJECT, make_scores, make_study
from matplotlib.figure import Figure
from neuropolis.analysis.agreement import agreement
from neuropolis.analysis.study import MADE_BY, Study, load, save
from neuropolis.attribution.fidelity_result import Fidelity
from neuropolis.attribution.importance import Importance
from neuropolis.attribution.stability import Stability
from neuropolis.figures import parts, trust
from neuropolis.figures.report import page, save_figures
from neuropolis.figures.style import FigureError
from neuropolis.finetune.compare_translation import TranslationTable
from neuropolis.finetune.continual_result import Continual
from neuropolis.finetune.sweep import Sweep
from neuropolis.neurons.atlas import _REGISTRY, Record
from neuropolis.neurons.errors import AtlasError, SetError

GROUPS = ("japan", "kenya", "peru")


def fidelity() -> Fidelity:
    torch.manual_seed(0)
    return Fidelity(
        "mlp", SUBJECT, "loss", ("taylor", "ig"), ("japan", "kenya"), torch.tensor([0.01, 0.1, 1.0]),
        torch.tensor([[0, 1], [2, 3], [1, 5]]), exact=torch.randn(2, 3), scored=torch.randn(2, 2, 3),
        group_index=torch.tensor([0, 0, 1, 1]), item_index=torch.arange(4), base=torch.zeros(4),
        deletion=torch.rand(2, 3, 4) + 1, insertion=torch.rand(2, 3, 4), control_deletion=torch.rand(3, 3, 4),
        control_insertion=torch.rand(3, 3, 4) + 1,
    )  # fmt: skip


def stability() -> Stability:
    jaccard = torch.tensor([[0.5, 0.7, 0.6], [0.9, 0.8, 1.0]])
    return Stability(
        SUBJECT, "mlp", GROUPS, ("items", "dtype"), ("half 1", "bfloat16"), jaccard, torch.full((2, 3), 0.01)
    )


def continual(seeds: int = 3) -> Continual:
    orders = torch.arange(3).repeat(seeds, 1)
    matrix = torch.full((2, seeds, 3, 3), 0.25)
    matrix[0] = 0.9
    return Continual(
        SUBJECT, ("ncft", "full"), GROUPS, tuple(range(seeds)), orders, matrix, torch.full((3,), 0.25),
        torch.full((2, seeds, 3), 0.8), 0.9, torch.tensor([1000, 2000]),
    )  # fmt: skip


def sweep() -> Sweep:
    settings = tuple({"share": share, "overlap": "natural"} for share in (0.1, 0.5))
    accuracy = torch.tensor([[[0.5, 0.4, 0.3]] * 2, [[0.9, 0.8, 0.2]] * 2])
    return Sweep(
        SUBJECT, "proportion", settings, GROUPS, GROUPS[:2], GROUPS[2:], (0, 1), accuracy, torch.full((3,), 0.25),
        torch.full((2, 2), 40), torch.full((2, 2), 0.1), torch.full((2,), 0.05),
    )  # fmt: skip


def importance() -> Importance:
    values = torch.ones(3, 4, 2)
    values[:, 2] = 3.0
    return Importance(SUBJECT, GROUPS, ("mlp", "attn"), values, torch.tensor([64, 16]))


def translations() -> TranslationTable:
    columns = (("new", "en-es"), ("known", "en-es"), ("known", "en-zh"))
    before, after = torch.full((2, 3), 40.0), torch.full((2, 1, 2, 3), 40.0)
    after[0, :, :, 0], after[1, :, :, 2] = 55.0, 30.0
    return TranslationTable(
        SUBJECT, ("en-es",), ("slice", "full"), (0,), columns, before, after, torch.tensor([10, 99])
    )


SAYS = {
    "fidelity": (fidelity, "silencing the first neurons does more harm than random orders for 2 of 2 methods"),
    "stability": (stability, "items 0.60 (lowest 0.50, by chance 0.010); dtype 0.90 (lowest 0.80"),
    "continual": (continual, "After 3 tasks, ncft answers 90.0\u00a0% right (90.0 to 90.0)"),
    "sweep": (
        sweep,
        "Accuracy on the 2 groups trained on: 45.0\u00a0% (45.0 to 45.0) with 10\u00a0% of the neurons tuned",
    ),
    "importance": (importance, "layer 2 holds the most (50.0\u00a0% of 4 layers)"),
    "translations": (translations, "by slice raised chrF there by +15.0 and cost 0.0"),
}


@pytest.mark.parametrize("kind", SAYS)
def test_a_part_says_what_its_record_holds(kind: str, tmp_path: Path) -> None:
    make, sentence = SAYS[kind]
    study = load(save(tmp_path / "study.h5", make(), subject={"fingerprint": SUBJECT}))
    html = page(study)
    assert sentence in html
    assert parts.KINDS[kind].title in html
    assert f'id="figure-{kind}-0"' in html
    assert f'id="table-{kind}-0"' in html


def test_every_kind_of_record_that_an_atlas_holds_has_a_section() -> None:
    assert {kind for kind in _REGISTRY if not kind.startswith(("thing", "test"))} <= set(parts.KINDS)


def test_a_kind_that_is_no_part_of_the_study_is_named_with_its_command(tmp_path: Path) -> None:
    html = page(make_study(("a", "b")))
    assert "Not in this study" in html
    assert f"<code>{MADE_BY['stability']} " in html
    with pytest.raises(AtlasError, match="has no stability; make it with 'neuropolis stability'"):
        page(make_study(("a", "b")), only=["stability"])
    with pytest.raises(FigureError, match="unknown part 'pictures' of a report; parts are set, effects"):
        page(make_study(("a", "b")), only=["pictures"])


def test_only_some_parts(tmp_path: Path) -> None:
    html = page(make_study(("a", "b")), only=["overlap"])
    assert 'id="figure-overlap-0"' in html
    assert 'id="figure-set-0"' not in html


def test_a_new_kind_joins_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    home = types.ModuleType("neuropolis.figures.dose_parts")
    home.dose = lambda found: parts.Part((f"Drawn from {found}.",))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, home.__name__, home)
    monkeypatch.setitem(parts.KINDS, "dose", parts.Kind("Dose and response", "dose_parts.dose"))
    study = make_study(("a", "b"), without=("scores", "set", "effects", "overlap", "similarity", "retention"))
    study = dataclasses.replace(study, keys=(("dose", "dose"),), _read={("dose", "dose"): Dose()})
    html = page(study)
    assert ">Dose and response</h2>" in html
    assert "Drawn from a dose." in html


class Dose:
    """An artefact of a kind that the report did not know."""

    def to_record(self, name: str) -> Record:
        return Record("dose", name)

    def __str__(self) -> str:
        return "a dose"


def test_figures_become_files(tmp_path: Path) -> None:
    written = save_figures(make_study(("a", "b")), tmp_path / "new", only=["set", "overlap"], formats=[".svg"])
    assert [path.name for path in written] == ["set.svg", "overlap.svg"]
    assert all(path.stat().st_size > 1000 for path in written)
    with pytest.raises(FigureError, match=r"set\.svg is a file; expected the name of a folder"):
        save_figures(make_study(("a", "b")), tmp_path / "new" / "set.svg")
    with pytest.raises(FigureError, match="scores of this study have no figure; the report page has"):
        save_figures(make_study(("a", "b")), tmp_path, only=["scores"])
    with pytest.raises(FigureError, match=r"unknown format '.gif'; formats are"):
        save_figures(make_study(("a", "b")), tmp_path, formats=[".gif"])


def two_methods(tmp_path: Path) -> Study:
    taylor = make_scores(GROUPS)
    reverse = dataclasses.replace(taylor, values=-taylor.values, method="ig")
    return load(save(tmp_path / "two.h5", subject={"fingerprint": SUBJECT}, taylor=taylor, ig=reverse))


def test_methods_agree_as_their_ranks_and_their_tops_do(tmp_path: Path) -> None:
    found = agreement(two_methods(tmp_path), ["taylor", "ig"])
    assert found.methods == ("taylor", "ig")
    np.testing.assert_allclose(found.correlation, np.broadcast_to([[1, -1], [-1, 1]], (3, 2, 2)))
    np.testing.assert_allclose(found.jaccard, np.broadcast_to(np.eye(2), (3, 2, 2)))
    figure = trust.method_agreement(found)
    assert isinstance(figure, Figure)
    assert "-1.00" in {text.get_text() for text in figure.axes[0].texts}
    assert "rank correlation of two methods&#39; scores -1.00" in page(two_methods(tmp_path))


def test_agreement_needs_one_shape_and_a_group_in_common(tmp_path: Path) -> None:
    first = two_methods(tmp_path)
    scores = make_scores(("elsewhere",))
    other = load(save(tmp_path / "b.h5", scores))
    with pytest.raises(SetError, match="expected scores with groups in common, found japan, kenya, peru; elsewhere"):
        agreement(first, ["taylor"], second=other, others=["scores"])
    half = {name: getattr(scores, name)[:, :3] for name in ("values", "signed", "squares")}
    short = load(save(tmp_path / "c.h5", dataclasses.replace(scores, **half)))
    with pytest.raises(SetError, match="one site and shape"):
        agreement(first, ["taylor"], second=short, others=["scores"])
