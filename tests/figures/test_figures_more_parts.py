"""Parts about curves, the harness, relations of groups and neuron cards: words as their numbers are, tables and blocks."""

from __future__ import annotations

import dataclasses
import html as markup
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from figure_makers import SUBJECT, make_scores, make_sets, make_similarity
from neuropolis.analysis.cards import Cards
from neuropolis.analysis.curves import Axis, Curve
from neuropolis.analysis.effects import Effects
from neuropolis.analysis.evaluation import Cell, Evaluation
from neuropolis.analysis.movement import Movement
from neuropolis.analysis.overlap import overlap
from neuropolis.analysis.ranks import rank_agreement
from neuropolis.analysis.redundancy import Redundancy
from neuropolis.analysis.representations import Representations
from neuropolis.analysis.study import Study, load, save
from neuropolis.analysis.tables import Agreement
from neuropolis.analysis.transfer import Transfer
from neuropolis.analysis.trees import Mantel, tree
from neuropolis.figures import card_parts, effects_parts, parts, similarity_parts, state_parts, tree_parts
from neuropolis.figures.report import page

GROUPS = ("japan", "kenya", "peru")
HOSTILE = "</script><img src=x onerror=alert(1)>"


def curve(axis: Axis = "dose", *, controls: int = 2) -> Curve:
    """Two sets and two steps over two groups of 12 items; only the last step turns every own question wrong."""
    groups, items = GROUPS[:2], 12
    group_index = torch.arange(2).repeat_interleave(items)
    base = torch.ones(2 * items, dtype=torch.bool)
    ablated = torch.stack([base, group_index != 0, base, group_index != 1])
    effects = Effects(
        "mlp", SUBJECT, "zero", "accuracy", ("a", "b", "c", "d"), groups, group_index, torch.arange(2 * items), base,
        ablated, base.expand(4, controls, -1).clone(), torch.tensor([1, 9, 1, 9]),
        owners=("japan", "japan", "kenya", "kenya"),
    )  # fmt: skip
    return Curve(axis, groups, (0.01, 0.1) if axis == "dose" else (0, 3), effects)


def evaluation(controls: int = 2) -> Evaluation:
    """A set that gets all of 8 documents wrong; its controls none."""
    samples = torch.cat([torch.ones(1, 8), torch.zeros(1, 8), torch.ones(controls, 8)]).double()
    count = len(samples)
    return Evaluation(
        SUBJECT, ("intact", "japan", "c1", "c2")[:count], ("intact", "off", "control", "control")[:count],
        torch.tensor([-1, -1, 1, 1])[:count], (Cell("culture", "acc", "none", "1.0", 8, 0, True),),
        samples.mean(dim=1, keepdim=True), torch.full((count, 1), 0.1).double(), samples,
        torch.zeros(8, dtype=torch.long), torch.arange(8),
    )  # fmt: skip


def mantel(p: float = 0.01) -> Mantel:
    table = torch.tensor([[0.0, 0.2, 0.9], [0.2, 0, 0.8], [0.9, 0.8, 0]])
    return Mantel(
        SUBJECT, GROUPS, table, table * 2, Agreement(0.5, -0.25, 0.75, p, -0.3, 0.4),
        {"method": "spearman", "source": HOSTILE},
    )  # fmt: skip


def movement() -> Movement:
    change = torch.tensor([[0.4, 0.4], [0.1, 0.1]])
    random = torch.full((2, 4, 2), 0.2)
    return Movement("mlp", SUBJECT, GROUPS[:2], torch.ones(2, 2).long(), torch.ones(2, 2), change, random, random)


def transfer(p: float = 0.2) -> Transfer:
    row = torch.tensor([0.5, -0.1, 0.8, p, -0.6, 0.6]).double()
    similar = make_similarity(GROUPS).values_unshared.double()
    layers = row.repeat(2, similar.shape[2], 1)
    return Transfer(
        SUBJECT, GROUPS, torch.full((3, 3), 0.1).double(), similar, row.repeat(2, 1), layers, torch.zeros(2, 3)
    )


def representations(*, cka: bool = True) -> Representations:
    cosine = torch.tensor([0.2, 0.9, 0.5]).expand(3, 3, 3).clone()
    nothing = torch.full_like(cosine, torch.nan)
    return Representations(
        SUBJECT, GROUPS, torch.full((3,), 9), torch.full((3, 3), 9), cosine, cosine - 0.1, cosine + 0.1,
        cosine / 2 if cka else nothing, nothing + 0.1, nothing.clone().fill_(0.001) if cka else nothing, {"match": "item"},
    )  # fmt: skip


def redundancy() -> Redundancy:
    r2 = torch.tensor([[0.95, 0.1], [torch.nan, 0.99]])
    return Redundancy(
        "mlp", SUBJECT, GROUPS[:2], 0.9, r2, torch.zeros(2, 2).long(), r2, torch.tensor([0.01, 0.02]),
        torch.tensor([4, 4]), torch.tensor([0.5, 0.0]), torch.tensor([[0.25] * 3, [0.0] * 3]),
        {"tokens": [99, 1234], "predictors": 16},
    )  # fmt: skip


def cards() -> Cards:
    """One neuron, which writes a hostile token and is driven by a hostile text of japan."""
    nothing = torch.zeros(1, 1, 2)
    return Cards(
        "mlp", SUBJECT, GROUPS[:2], ("taylor",), torch.tensor([1]), torch.tensor([7]), torch.tensor([[3, 4]]),
        torch.tensor([[8.0, 4.0]]), torch.tensor([[5]]), torch.tensor([[-2.0]]), {3: HOSTILE, 4: " sushi", 5: "x"},
        torch.tensor([[0.5, 0.0]]), torch.tensor([[0.25, 0.0]]), torch.tensor([[4.0, 0.0]]), torch.tensor([[-5.0, 0.0]]),
        torch.tensor([[[0], [-1]]]), torch.tensor([[[[4.0, -5.0]], [[torch.nan, torch.nan]]]]),
        ({"id": HOSTILE, "group": "japan", "tokens": ["raw", HOSTILE]},), torch.tensor([[0, -1]]), torch.tensor([[2, -1]]),
        torch.tensor([[0.75, torch.nan]]), nothing + 0.5, (nothing + 3).long(),
    )  # fmt: skip


SAYS: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "dose_response": (curve, (
        "the own group changes most at 10 %: \u2212100.0 points (controls 0.0, other groups 0.0)",
        "the mean of 2 matched random sets does in 2 of 4 cells", "Holm over all cells, p < 0.05): japan (10 %), kenya (10 %).",
        "Each group has 12 items (12 questions)",
    )),
    "layer_sweep": (lambda: curve("layer"), ("japan (layer 3), kenya (layer 3).",)),
    "evaluation": (evaluation, (
        "japan: worse than 2 matched random sets on 1 of 1 number (p < 0.05, Holm): culture acc.",
        "With 1 test, no task of fewer than 5 documents could have shown anything.",
    )),
    "ranks": (lambda: rank_agreement(make_scores(GROUPS), draws=99), ("Of 3 pairs of groups, ",)),
    "mantel": (mantel, (
        "correlate by +0.50 (spearman; 95 % interval \u22120.25 to +0.75, bootstrap over groups; Mantel test p 0.010).",
        "By chance 95 % lie from \u22120.30 to +0.40: this is more than chance.", "3 groups have only 6 orders",
    )),
    "movement": (movement, (
        "by 25.00 % of their norm, mean over sets and layers; those of matched random sets by 20.00 %.",
        "1 of 2 sets moved farther than each of 4 random sets with the same counts by layer (japan), 1 moved less far; by "
        "chance a set does either with probability 1/5",
    )),
    "transfer": (transfer, (
        "It cannot be told from chance whether tasks with more similar parameters help each other more, over the 6 ordered",
        "Pearson: +0.50 (95 % interval \u22120.10 to +0.80",
        "0 of 12 correlations pass",
    )),
    "representations": (representations, (
        "0.200 behind the embedding and 0.500 behind the last layer, mean over 3 pairs", "highest behind layer 0 (0.900)",
        "in 9 of 9 pairs and layers",
    )),
    "redundancy": (redundancy, (
        "Of 4 neurons of site mlp, 50.0 % are redundant: 16 others of their layer predict 90 % of their variance or more on "
        "1,234 tokens of held-out items", "stay below 2.0 %. 1 neuron never varied",
        "1 of 2 sets hold a larger share than each of 3 random sets with the same counts by layer (japan), 0 a smaller one",
    )),
    "cards": (cards, ("1 neuron of site mlp has a card, over the texts of 2 groups (japan, kenya)",)),
}  # fmt: skip


@pytest.mark.parametrize("kind", SAYS)
def test_a_part_says_what_its_record_holds(kind: str, tmp_path: Path) -> None:
    make, sentences = SAYS[kind]
    study = load(save(tmp_path / "study.h5", make(), subject={"fingerprint": SUBJECT}))
    written = page(study)
    said = markup.unescape(written).replace("\u00a0%", " %")
    for sentence in sentences:
        assert sentence in said
    assert parts.KINDS[kind].title in written
    assert f'id="table-{kind}-0"' in written
    assert (f'id="figure-{kind}-0"' in written) == (kind != "cards")
    assert parts.part_of(kind, study.get(kind)).notes, "a part that makes no sense alone says so"
    assert HOSTILE not in written
    assert "<img" not in written


def test_a_tree_stands_beside_its_own_overlap(tmp_path: Path) -> None:
    shared = overlap(make_sets(GROUPS))
    found = tree(shared)
    study = load(save(tmp_path / "study.h5", shared, found))
    part = tree_parts.trees(study)
    nearest = min(float(found.distance[a, b]) for a in range(3) for b in range(a))
    assert f"(distance {nearest:.3f})" in part.words[0]
    assert len(part.pictures) == 1
    assert part.tables[0].columns[3].values.tolist() == pytest.approx(found.linkage[:, 2].tolist())
    other = overlap(make_sets(GROUPS, seed=5))
    alone = tree_parts.trees(load(save(tmp_path / "other.h5", other, found)))
    assert not alone.pictures
    assert "in numbers alone" in alone.notes[-1]
    assert "is no test" in alone.notes[0]


def test_without_controls_nothing_is_said_of_them() -> None:
    part = effects_parts.curve(curve(controls=0))
    assert "There are no controls" in part.words[1]
    assert part.headline is None
    said = effects_parts.evaluation(evaluation(controls=0)).words
    assert said[1] == (
        "japan: the 95 % interval of the change excludes zero on 1 of 1 number (not corrected; no controls): culture acc "
        "\u22121.000."
    )


def test_what_chance_explains_is_said_to_be_chance() -> None:
    assert "this cannot be told from chance" in tree_parts.mantel(mantel(p=0.3)).words[1]
    assert similarity_parts.transfer(transfer(p=0.001)).words[0].startswith("Tasks with more similar parameters help")
    assert state_parts.representations(representations(cka=False)).words[1] == (
        "CKA could not be measured: fewer than four examples of two groups have one item."
    )


def test_performance_as_it_was_given_is_not_called_points_of_accuracy() -> None:
    given = dataclasses.replace(transfer(), gains=torch.full((3, 3), 71.3).double(), origin={"given": True})
    part = similarity_parts.transfer(given)
    assert part.pictures[0].figure.axes[0].get_ylabel() == "performance, as given"
    assert part.tables[0].columns[3].name == "performance"
    assert part.tables[0].columns[3].values.tolist() == pytest.approx([71.3] * 6)
    assert "the performance given" in part.pictures[0].caption
    gained = similarity_parts.transfer(transfer())
    assert gained.tables[0].columns[3].values.tolist() == pytest.approx([10] * 6)


def test_redundancy_without_sets_has_its_layers() -> None:
    nothing = torch.zeros(0)
    bare = dataclasses.replace(redundancy(), groups=(), sizes=nothing, shares=nothing, control_shares=torch.zeros(0, 0))
    part = state_parts.redundancy(bare)
    assert not part.pictures
    assert part.tables[0].columns[1].values.tolist() == [50, 50]


def test_a_card_becomes_pieces_of_its_neuron_s_page() -> None:
    part = card_parts.cards(cards())
    assert part.blocks is not None
    blocks = {block.title: block for block in part.blocks[("mlp", 1, 7)]}
    assert blocks["Tokens that it promotes"].tokens == [(HOSTILE, 1.0), (" sushi", 0.5)]
    assert blocks["Tokens that it suppresses"].tokens == [("x", -0.25)]
    text = blocks["A text that drives it: japan"]
    assert text.tokens == [("raw", pytest.approx(0.8)), (HOSTILE, -1.0)]
    assert "\u22125.00 at its farthest" in text.text
    assert blocks["Nearest by weights"].neurons == [("mlp", 0, 2, "cosine 0.750")]
    assert blocks["Scores on its card"].pairs == [("japan", "taylor 0.5 (rank 3)"), ("kenya", "taylor 0.5 (rank 3)")]
    assert "A text that drives it: kenya" not in blocks
    columns = {column.name: column.values for column in part.tables[0].columns}
    assert columns["neuron"] == ["mlp/1/7"]
    assert columns["driven farthest by"] == ["japan"]
    assert columns["to"].tolist() == [-5.0]


def test_many_cards_carry_few_texts_each() -> None:
    many, one = 2000, cards()
    repeated = {
        name: value.repeat(many, *[1] * (value.ndim - 1))
        for name, value in vars(one).items()
        if isinstance(value, torch.Tensor)
    }
    repeated["indices"] = torch.arange(many)
    blocks = card_parts.cards(dataclasses.replace(one, **repeated)).blocks
    assert blocks is not None
    assert len(blocks) == many
    assert sum(block.title.startswith("A text") for block in blocks[("mlp", 1, 3)]) == 1
    assert math.isfinite(blocks[("mlp", 1, 3)][0].tokens[0][1])


def test_kinds_that_are_missing_are_named_with_commands_that_fit(tmp_path: Path) -> None:
    study: Study = load(save(tmp_path / "study.h5", redundancy(), subject={"fingerprint": SUBJECT, "name": "m"}))
    written = markup.unescape(page(study))
    assert f"<code>neuropolis neuron {study.path} --group all</code>" in written
    assert f"<code>neuropolis dose m --data FILE.jsonl --study {study.path}</code>" in written
