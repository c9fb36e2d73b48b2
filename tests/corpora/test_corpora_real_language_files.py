"""The benchmarks' own files, where they lie beside the repository (`../shared/data`): rows counted apart from the readers."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import neuropolis as npl
import pytest

DATA = Path(__file__).parents[3] / "shared" / "data"


def files(folder: str, pattern: str) -> list[Path]:
    found = sorted((DATA / folder).glob(pattern))
    if not found:
        pytest.skip(f"no {folder} in ../shared/data")
    return found


def lines(file: Path) -> list[bytes]:
    return [line for line in file.read_bytes().split(b"\n") if line.strip()]


def one_item_per(corpus: npl.Corpus, tag: str) -> dict[str, int]:
    """How many items stand in how many different values of a tag."""
    values: dict[str, set[str]] = {}
    for example in corpus:
        values.setdefault(example.item, set()).add(example.tags[tag])
    return dict(Counter(len(found) for found in values.values()))


def test_xcopa() -> None:
    num = sum(len(lines(file)) for file in files("xcopa", "data/*/*.jsonl"))
    reading = npl.read_format(DATA / "xcopa", "xcopa")
    assert (reading.rows, len(reading.corpus), num) == (6600, 6600, 6600)
    assert set(reading.corpus.counts.values()) == {600}
    assert one_item_per(reading.corpus, "language") == {11: 600}
    assert all(example.control not in (None, example.prompt) for example in reading.corpus)


def test_sib200() -> None:
    num = sum(len(lines(file)) - 1 for file in files("sib200", "data/annotated/*/*.tsv"))
    reading = npl.read_format(DATA / "sib200", "sib200", ask="topic")
    assert (reading.rows, len(reading.corpus), num) == (39156, 39156, 39156)
    parts = Counter((example.group, example.tags["split"]) for example in reading.corpus)
    assert Counter(parts.values()) == {701: 39, 99: 39, 204: 39}
    assert one_item_per(reading.corpus, "language") == {39: 1004}
    assert one_item_per(reading.corpus, "topic") == one_item_per(reading.corpus, "split") == {1: 1004}
    halves = npl.read_format(DATA / "sib200", "sib200", languages="tha_Thai,zho_Hant,amh_Ethi")
    assert len(halves.corpus) == 3 * 1004
    assert all(len(example.choices) == 4 for example in halves.corpus)


def test_xquad() -> None:
    found = files("xquad", "xquad.*.json")
    num = sum(file.read_bytes().count(b'"question":') for file in found)
    reading = npl.read_format(DATA / "xquad", "xquad")
    assert (reading.rows, len(reading.corpus), num) == (5950, 5950, 5950)
    assert one_item_per(reading.corpus, "language") == {len(found): 1190}
    assert all(example.answer.strip() in example.prompt for example in reading.corpus)
    assert Counter(len(example.choices) for example in reading.corpus)[4] > 5900


def test_mgsm() -> None:
    num = sum(len(lines(file)) for file in files("mgsm", "mgsm/*.tsv"))
    reading = npl.read_format(DATA / "mgsm", "mgsm")
    assert (reading.rows, len(reading.corpus), num) == (2750, 2750, 2750)
    assert one_item_per(reading.corpus, "language") == {11: 250}
    answers: dict[str, set[str]] = {}
    for example in reading.corpus:
        answers.setdefault(example.item, set()).add(example.answer.strip())
    assert {len(found) for found in answers.values()} == {1}  # every translation has the same number


def test_tatoeba() -> None:
    num = sum(len(lines(file)) for file in files("tatoeba", "tatoeba.*-eng.eng"))
    reading = npl.read_format(DATA / "tatoeba", "tatoeba")
    assert (reading.rows, len(reading.corpus), num) == (14390, 14390, 14390)
    assert reading.corpus.counts["swh-eng"] == 390
    assert len(reading.corpus.groups) == 15


def test_superni() -> None:
    found = files("superni_sapt", "CL_Benchmark/SuperNI/*/*.json")
    num = sum(len(json.loads(file.read_text("utf-8"))["Instances"]) for file in found)
    reading = npl.read_format(DATA / "superni_sapt", "superni")
    assert (reading.rows, len(reading.corpus), num) == (9638, 9638, 9638)
    assert len(reading.corpus.groups) == 12
    chosen = {group: len(reading.corpus.only(group)[0].choices) for group in reading.corpus.groups}
    assert {group.split("_")[0]: count for group, count in chosen.items() if count} == {
        "task073": 5, "task363": 2, "task875": 6, "task1687": 2,
    }  # fmt: skip


def test_function_vectors() -> None:
    found = files("function_vectors_icl", "dataset_files/*/*.json")
    num = sum(file.read_bytes().count(b'"input":') for file in found)
    reading = npl.read_format(DATA / "function_vectors_icl", "function-vectors", shots=0)
    assert (reading.rows, num) == (57519, 57519)
    assert (len(reading.corpus), len(reading.corpus.groups)) == (57499, 51)
    assert reading.reasons == {"the pair stands twice": 20}
    shown = npl.read_format(found[0].parent, "function-vectors", shots=5)
    assert len(shown.corpus.groups) == 27
    assert shown.reasons["set aside for demonstrations"] >= 27 * 20
    assert all(example.control is not None for example in shown.corpus)


def test_pararel() -> None:
    facts = sum(len(lines(file)) for file in files("pararel", "data/trex_lms_vocab/*.jsonl"))
    wordings = sum(len(lines(file)) for file in files("pararel", "data/pattern_data/graphs_json/*.jsonl"))
    assert (facts, wordings) == (29411, 329)
    reading = npl.read_format(DATA / "pararel", "pararel", wordings=1)
    assert len(reading.corpus.groups) == 39
    assert len(reading.corpus) == 29411 - 879 - 922 - 17  # P31 and P527 have no wordings; 17 facts stand twice
    assert reading.reasons["the wording does not end with the object"] == 329 - 214


def test_names() -> None:
    num = sum(len(lines(file)) for file in files("names_18lang", "data/names/*.txt"))
    reading = npl.read_format(DATA / "names_18lang", "names")
    assert (reading.rows, num) == (20050, 20050)
    assert len({example.item for example in reading.corpus}) == len(reading.corpus) == 16973
