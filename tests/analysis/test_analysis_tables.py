"""Tables of groups, trees and the Mantel test: by hand, against scipy, and one line for each bad file."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from neuropolis.analysis.distances import load_distances, load_performance
from neuropolis.analysis.overlap import overlap
from neuropolis.analysis.tables import correlate
from neuropolis.analysis.trees import mantel, mantel_from_record, overlap_distance, tree, tree_from_record
from neuropolis.neurons.errors import SetError
from neuropolis.neurons.sets import NeuronSet

GROUPS = ("japan", "China", "kenya")


def symmetric(num: int, seed: int) -> torch.Tensor:
    values = torch.rand((num, num), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (values + values.T).fill_diagonal_(0)


def written(tmp_path: Path, text: str, name: str = "table.csv") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf8")
    return path


def test_coordinates(tmp_path: Path) -> None:
    path = written(tmp_path, "country;x;y\nKenya;0;0\nJapan;3;4\nPeru;9;9\nchina;0;8\n")
    found = load_distances(path, GROUPS)
    assert found.tolist() == [[0, 5, 5], [5, 0, 8], [5, 8, 0]]
    assert load_distances(path, GROUPS, columns=["x"]).tolist() == [[0, 3, 3], [3, 0, 0], [3, 0, 0]]
    # deviations over the three groups: x 0, 0, 3 has sqrt(3), y 0, 4, 8 has 4
    scaled = load_distances(path, GROUPS, standardise=True)
    assert scaled[0, 1].item() == pytest.approx((9 / 3 + 16 / 16) ** 0.5)


def test_tables_of_pairs(tmp_path: Path) -> None:
    path = written(tmp_path, "\ufeff,kenya,japan,china\nkenya,0,1,2\njapan,1,0,3\nchina,2,3,0\n")
    assert load_distances(path, GROUPS).tolist() == [[0, 3, 1], [3, 0, 2], [1, 2, 0]]
    countries = '{"JPN": {"CHN": 60.5, "KEN": 50}, "CHN": {"JPN": 60.5, "KEN": 40}, "KEN": {"JPN": 50, "CHN": 40}}'
    like = written(tmp_path, countries, "similar.json")
    names = {"japan": "JPN", "China": "CHN", "kenya": "KEN"}
    found = load_distances(like, GROUPS, kind="similarity", names=names)
    assert found.tolist() == [[0, 0, 10.5], [0, 0, 20.5], [10.5, 20.5, 0]]
    with pytest.raises(SetError, match="does not say whether it holds distances or similarities"):
        load_distances(like, GROUPS, names=names)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("c,x\njapan,1\n", {}, r"no row for China, kenya; it has japan \(add the rows"),
        ("c,x\njapan,1\nchina,two\nkenya,3\n", {}, "row 'china', column 'x': expected a number, found 'two'"),
        ("c,x\njapan,1\nchina,2,3\nkenya,3\n", {}, "row 3: expected 2 cells as in the header, found 3"),
        ("c,x\njapan,1\nchina,2\nkenya,3\n", {"columns": ["z"]}, "no column 'z'; it has x"),
        ("c,x\njapan,1\nchina,2\nkenya,3\n", {"kind": "distance"}, "no column for japan, china, kenya"),
        ("c,x\njapan,1\nchina,2\nkenya,3\n", {"kind": "near"}, "unknown kind 'near'"),
        ("", {}, "holds no table"),
        (",japan,china,kenya\njapan,0,1,2\nchina,9,0,3\nkenya,2,3,0\n", {}, "not symmetric"),
        (
            ",japan,china,kenya\njapan,0,1,2\nchina,1,0,\nkenya,2,3,0\n",
            {},
            "row 'china', column 'kenya': expected a number",
        ),
    ],
)
def test_a_bad_table_is_one_line(tmp_path: Path, text: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(SetError, match=message) as raised:
        load_distances(written(tmp_path, text), GROUPS, **options)  # pyright: ignore[reportArgumentType]
    assert "\n" not in str(raised.value)
    with pytest.raises(SetError, match="cannot read"):
        load_distances(tmp_path / "nothing.csv", GROUPS)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "t.csv",
            "c,x\njapan,1\nchina,2\nkenya,3\nJAPAN,9\n",
            r"has 2 rows for japan \('japan', 'JAPAN'; capitals do not",
        ),
        ("t.csv", "c,x\njapan,1\nchina,2\nkenya,3\nkenya,3\n", "has 2 rows for kenya"),
        ("t.csv", ",japan,china,kenya,China\njapan,0,1,2,1\nchina,1,0,3,0\nkenya,2,3,0,3\n", "has 2 columns for china"),
        ("t.json", '{"japan": {}, "china": {}, "kenya": {}, "Japan": {}}', "has 2 rows for japan"),
        ("t.json", '{"japan": {}, "japan": {}}', "has 'japan' twice in one object"),
        ("t.json", "3", "holds the value 3 alone; expected an object of groups"),
        ("t.json", "[[0, 1], [1, 0]]", "holds a list; expected an object"),
        ("t.json", '{"japan": 3, "china": 4, "kenya": 5}', "holds the value 3 alone under 'japan'; expected its pairs"),
        ("t.json", '{"japan": "near"}', "holds a text, 'near' under 'japan'"),
        ("t.json", "{", "cannot read .*t.json"),
    ],
)
def test_names_that_stand_twice_and_json_of_another_form(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(SetError, match=message) as raised:
        load_distances(written(tmp_path, text, name), GROUPS)
    assert "\n" not in str(raised.value)


def test_rows_that_nobody_asks_for_may_stand_twice(tmp_path: Path) -> None:
    path = written(tmp_path, "c,x\nperu,1\njapan,1\nchina,2\nkenya,3\nPeru,4\n")
    assert load_distances(path, GROUPS)[0].tolist() == [0, 1, 2]


def test_performance_has_learned_tasks_in_rows(tmp_path: Path) -> None:
    path = written(tmp_path, "learned,china,kenya,japan\nkenya,1,,2\nJapan,3,4,5\nchina,6,7,8\n")
    found = load_performance(path, GROUPS)
    assert found[:2].tolist() == [[5, 3, 4], [8, 6, 7]]
    assert found[2, :2].tolist() == [2, 1]
    assert bool(found[2, 2].isnan())
    with pytest.raises(SetError, match="has no column for peru; expected both for every task"):
        load_performance(written(tmp_path, "l,japan\njapan,1\nperu,2\n"), ("japan", "peru"))
    with pytest.raises(SetError, match="row 'japan', column 'China': expected a number, found ''"):
        load_performance(written(tmp_path, "l,japan,china\njapan,1,\nchina,2,1\n"), ("japan", "China"))


def test_the_mantel_test_goes_through_every_permutation() -> None:
    x, y = symmetric(4, 0), symmetric(4, 1)
    upper = np.triu_indices(4, 1)

    def r(order: tuple[int, ...]) -> float:
        return float(np.corrcoef(x.numpy()[upper], y.numpy()[list(order)][:, list(order)][upper])[0, 1])

    null = [r(order) for order in permutations(range(4))]
    found = correlate(x, y)
    assert found.r == pytest.approx(null[0])
    assert found.p == pytest.approx(np.mean([abs(one) >= abs(null[0]) - 1e-12 for one in null]))
    assert (found.null_low, found.null_high) == pytest.approx(tuple(np.quantile(null, [0.025, 0.975])))
    assert found.low <= found.r <= found.high


def test_correlations_of_tables() -> None:
    x = symmetric(9, 2)
    same = correlate(x, x.exp(), method="spearman", draws=199)
    assert same.r == pytest.approx(1)
    assert same.p == 1 / 200  # no permutation of nine groups does as well
    assert same.low > 0.9
    assert correlate(x, symmetric(9, 3), draws=199).p > 0.05
    flat = correlate(x, torch.ones(9, 9))
    assert all(np.isnan(value) for value in vars(flat).values())
    with pytest.raises(SetError, match="same three groups or more"):
        correlate(x[:2, :2], x[:2, :2])


def sets(*members: list[int]) -> dict[str, NeuronSet]:
    made = {}
    for name, chosen in zip("abcd", members, strict=False):
        mask = torch.zeros((2, 20), dtype=torch.bool)
        mask[0, chosen] = True
        made[name] = NeuronSet("mlp", "s", mask)
    return made


def test_a_tree_joins_the_nearest_first() -> None:
    shared = overlap(sets([0, 1, 2, 3], [10, 11], [0, 1, 2, 4], [10, 11, 12, 13]))
    found = tree(shared)
    assert found.distance[0, 2].item() == pytest.approx(1 - 3 / 5)
    assert {frozenset(row[:2]) for row in found.linkage[:2].tolist()} == {frozenset((0.0, 2.0)), frozenset((1.0, 3.0))}
    assert found.linkage[:, 2].tolist() == pytest.approx([0.4, 0.5, 1.0])
    neighbours = found.order.tolist()
    assert abs(neighbours.index(0) - neighbours.index(2)) == abs(neighbours.index(1) - neighbours.index(3)) == 1
    assert found.cophenetic == pytest.approx(1.0)
    assert overlap_distance(shared, index="coefficient")[1, 3].item() == 0
    above = overlap_distance(shared, index="above chance")
    expected = shared.expected[0, 2].item()
    assert above[0, 2].item() == pytest.approx(1 - (3 / 5 - expected) / (1 - expected))
    back = tree_from_record(found.to_record())
    assert back.groups == found.groups
    assert torch.equal(back.linkage, found.linkage)


def test_a_mantel_test_of_sets_comes_back_from_its_record() -> None:
    shared = overlap(sets([0, 1, 2, 3], [10, 11], [0, 1, 2, 4], [10, 11, 12, 13]))
    found = mantel(shared, overlap_distance(shared).square(), source="made up")
    assert found.agreement.r == pytest.approx(1)
    back = mantel_from_record(found.to_record())
    assert back.agreement == found.agreement
    assert back.origin["source"] == "made up"


def test_what_cannot_be_joined_is_refused() -> None:
    with pytest.raises(SetError, match="the set of b is empty"):
        tree(overlap(sets([0], [], [2])))
    with pytest.raises(SetError, match="two groups or more, the overlap has a alone"):
        tree(overlap(sets([0])))
    pair = overlap(sets([0], [1]))
    with pytest.raises(SetError, match="three groups or more, the overlap has a, b"):
        mantel(pair, torch.zeros(2, 2))
    with pytest.raises(SetError, match="read them with npl"):
        mantel(pair, torch.zeros(3, 3))
    with pytest.raises(SetError, match="unknown linkage 'ward'"):
        tree(pair, linkage="ward")  # pyright: ignore[reportArgumentType]


def test_distances_that_do_not_vary_say_nothing() -> None:
    shared = overlap(sets([0, 1, 2, 3], [10, 11], [0, 1, 2, 4]))
    with pytest.raises(
        SetError, match=r"given distances \(flat.csv\) do not vary: they are 0.1 for every pair of groups"
    ):
        mantel(shared, torch.full((3, 3), 0.1).fill_diagonal_(0), source="flat.csv")
    with pytest.raises(SetError, match="the given distances lack a number for some pair"):
        mantel(shared, torch.full((3, 3), torch.nan))
    apart = overlap(sets([0], [1], [2]))
    with pytest.raises(SetError, match="the distances of the sets do not vary: they are 1 for every pair"):
        mantel(apart, symmetric(3, 0))
