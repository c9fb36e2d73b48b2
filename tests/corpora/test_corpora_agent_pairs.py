"""Pairs of generators: probabilities by hand, memory, base pairs, the loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from neuropolis.corpora.agent_pairs import AgentPairs, Made, Pair, evolve
from neuropolis.corpora.examples import CorpusError

NAMES = ("a", "b")
NAN = float("nan")


def test_pairs_begin_equal_and_base_pairs_are_always_called() -> None:
    pairs = AgentPairs(NAMES, NAMES, base=[("a", "b")], calls=2, remembered=0)
    assert pairs.probabilities == {Pair("a", "a"): 1 / 3, Pair("b", "a"): 1 / 3, Pair("b", "b"): 1 / 3}
    for _ in range(20):
        first, *others = pairs.choose("anything")
        assert first == ("a", "b")
        assert len(set(others)) == 2
        assert ("a", "b") not in others


def test_learning_is_equation_8() -> None:
    pairs = AgentPairs(NAMES, NAMES, calls=1, remembered=0, beta=0.5)
    pairs.learn(Made(Pair("a", "b"), "i", "r", 0.5))
    assert list(pairs.probabilities.values()) == pytest.approx([0.2, 0.4, 0.2, 0.2])  # 0.25 + 0.5 * 0.5 over 1.25
    pairs.learn(Made(Pair("a", "a"), "i", "r", -1.0))
    assert 0 < pairs.probabilities[Pair("a", "a")] < 2e-6
    assert sum(pairs.probabilities.values()) == pytest.approx(1)
    before = pairs.probabilities
    pairs.learn(Made(Pair("b", "b"), "i", "r", NAN))
    assert pairs.probabilities == before


def test_a_base_pair_learns_nothing() -> None:
    pairs = AgentPairs(NAMES, NAMES, base=[("a", "a")], calls=1, remembered=0)
    pairs.learn(Made(Pair("a", "a"), "i", "r", 1.0))
    assert set(pairs.probabilities.values()) == {1 / 3}


def test_pairs_are_sampled_by_their_probabilities() -> None:
    pairs = AgentPairs(NAMES, NAMES, calls=1, remembered=0, beta=3.0)
    pairs.learn(Made(Pair("b", "a"), "i", "r", 1.0))  # 3.25 of 4
    chosen = Counter(pairs.choose("x")[0] for _ in range(2000))
    assert chosen[Pair("b", "a")] / 2000 == pytest.approx(3.25 / 4, abs=0.03)


def test_owners_of_similar_instructions_are_called() -> None:
    names = ("a", "b", "c")
    pairs = AgentPairs(names, names, calls=3, remembered=1, similar=1)
    pairs.remember("write a poem about the sea in winter", Pair("b", "c"))
    pairs.remember("sum these four numbers for me", Pair("c", "a"))
    assert pairs.recalled("write a poem about the sea in autumn")[0][1] == ("b", "c")
    for _ in range(30):
        first, *rest = pairs.choose("write a poem about the sea in autumn")
        assert first == ("b", "c")
        assert ("b", "c") not in rest
        assert len(set(rest)) == 2


def test_memory_fills_up_where_the_rest_is_too_small() -> None:
    pairs = AgentPairs(("a",), NAMES, calls=2, remembered=1, similar=5)
    pairs.remember("x y z", Pair("a", "a"))
    pairs.remember("x y z", Pair("a", "b"))
    assert set(pairs.choose("x y z")) == {("a", "a"), ("a", "b")}


def test_the_same_seed_gives_the_same_choices() -> None:
    made = [[AgentPairs(NAMES, NAMES, calls=2, seed=seed).choose(f"{n}") for n in range(20)] for seed in (0, 0, 1)]
    same = [AgentPairs(NAMES, NAMES, calls=2, seed=3) for _ in range(2)]
    assert [same[0].choose(str(n)) for n in range(20)] == [same[1].choose(str(n)) for n in range(20)]
    assert made[0] == made[1]
    assert [AgentPairs(NAMES, NAMES, calls=2, seed=seed).choose("x") for seed in range(9)] != [made[0][0]] * 9


def agent(name: str) -> object:
    def give(prompts: Sequence[Sequence[dict[str, str]]]) -> list[str]:
        asked.append((name, len(prompts)))
        return [f"{name}<{prompt[-1]['content']}>" if name != "empty" else " " for prompt in prompts]

    return give


asked: list[tuple[str, int]] = []


def test_the_loop_finds_the_better_pair_and_remembers_it() -> None:
    asked.clear()
    names = ("a", "b", "good")
    pairs = AgentPairs(names, names, base=[("a", "a")], calls=3, remembered=1, beta=0.2)
    agents = {name: agent(name) for name in names}

    def score(seed: tuple[str, str], rows: Sequence[Made]) -> list[float]:
        assert seed[1] == "old"
        return [float(row.pair == ("good", "good")) for row in rows]

    seeds = [(f"instruction number {n}", "old") for n in range(60)]
    found = list(evolve(seeds, pairs, agents, agents, score, rewrite="{instruction}"))  # pyright: ignore[reportArgumentType]
    assert max(pairs.probabilities, key=pairs.probabilities.__getitem__) == ("good", "good")
    assert found[-1][0].pair == ("good", "good")
    assert found[-1][0].instruction == "good<instruction number 59>"
    assert found[-1][0].response == "good<good<instruction number 59>>"
    assert all(any(made.pair == ("a", "a") for made in one) for one in found)
    assert sum(pair == ("good", "good") for _, pair in pairs.memory) >= 20
    assert max(count for _, count in asked) <= 4


def test_the_seeds_response_is_shown_where_asked() -> None:
    pairs = AgentPairs(("a",), ("b",), calls=1, remembered=0)
    agents = {"a": agent("a"), "b": agent("b")}
    texts = {"rewrite": "{instruction}", "respond": "{instruction}/{response}"}
    (one,) = evolve([("i", "r")], pairs, agents, agents, lambda _, rows: [1.0] * len(rows), **texts)  # pyright: ignore[reportArgumentType]
    assert one[0].response == "b<a<i>/r>"


def test_what_comes_back_empty_has_no_score() -> None:
    pairs = AgentPairs(("a",), ("b", "empty"), calls=2, remembered=0)
    agents = {name: agent(name) for name in ("a", "b", "empty")}
    (one,) = evolve([("i", "r")], pairs, agents, agents, lambda _, rows: [0.5] * len(rows))  # pyright: ignore[reportArgumentType]
    assert [made.pair.response for made in one] == ["b", "empty"]
    assert one[1].score != one[1].score


def test_agents_and_scorers_that_miscount_are_refused() -> None:
    pairs = AgentPairs(("a",), ("b",), calls=1, remembered=0)
    agents = {"a": agent("a"), "b": agent("b")}
    with pytest.raises(CorpusError, match="0 scores for 1 rows"):
        list(evolve([("i", "r")], pairs, agents, agents, lambda *_: []))  # pyright: ignore[reportArgumentType]
    with pytest.raises(CorpusError, match="2 texts for 1 prompts"):
        list(evolve([("i", "r")], pairs, {"a": lambda _: ["x", "y"]}, agents, lambda *_: [1.0]))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"calls": 5}, "expected 1 to 4 calls"),
        ({"calls": 2, "remembered": 3}, "at most as many remembered"),
        ({"beta": -0.1}, "beta and similar of 0 or more"),
        ({"base": [("a", "z")]}, "has a name that is no generator's"),
    ],
)
def test_numbers_and_names_that_do_not_fit(options: dict, words: str) -> None:
    with pytest.raises(CorpusError, match=words):
        AgentPairs(NAMES, NAMES, **options)
    with pytest.raises(CorpusError, match="stands twice"):
        AgentPairs(("a", "a"), NAMES)
