"""What a file looks like: every format knows its own files and claims no other's; readers share their manners."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import neuropolis as npl
import pytest
from benchmark_files import TINY
from neuropolis.corpora.formats import guess_formats
from tiny_language_files import BUILDERS

EVERY = {**TINY, **BUILDERS}
DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("formats-culture.md", "formats-language.md")
OWN = {"csv", "parquet", "hub", "text"}  # the reader's own tables and texts: one section for all of them


def put_o_lora(folder: Path) -> Path:
    rows = {"labels": ["Good", "Bad"], "train": [{"sentence": "Text: it was fine\n", "label": "Good"}]}
    return put_json(folder / "CL_Benchmark" / "SC" / "SST-2", rows)


def put_wvs(folder: Path) -> Path:
    question = {"Q_id": "Q1", "question": "How important is family?", "option_lst": ["Very", "Rather", "Not at all"]}
    shares = {"USA": {"Q1": {"1": 0.7, "3": 0.3}}}
    put_json(folder / "data", {"wvs_questions": [question], "proportions_group_by_country": shares})
    return folder


def put_json(folder: Path, values: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    for name, value in values.items():
        (folder / f"{name}.json").write_text(json.dumps(value), "utf-8")
    return folder


SHOWN = {
    **{name: ("formats-culture.md", build) for name, build in TINY.items()},
    "o-lora": ("formats-language.md", put_o_lora),
    "wvs": ("formats-culture.md", put_wvs),
}


@pytest.mark.parametrize("format", EVERY)
def test_tiny_files_are_guessed_as_their_own_format_only(tmp_path: Path, format: str) -> None:
    assert guess_formats(EVERY[format](tmp_path)) == (format,)


@pytest.mark.parametrize("format", EVERY)
def test_nothing_looks_like_a_format_by_chance_and_looking_never_raises(tmp_path: Path, format: str) -> None:
    looks = npl.formats()[format].looks
    (tmp_path / "data").mkdir()
    for name in ("x.csv", "x.json", "x.tsv", "mc_questions.csv", "fork.csv", "A_data.json", "data/data.json"):
        (tmp_path / name).write_bytes(b"\xff\x00[{" if name != "x.json" else b"")
        assert not looks(tmp_path / name)
    assert not looks(tmp_path)


@pytest.mark.parametrize("format", TINY)
def test_every_reader_gives_twins_choices_items_and_where_it_is_from(tmp_path: Path, format: str) -> None:
    known = npl.formats()[format]
    reading = npl.read_format(TINY[format](tmp_path), format)
    with_twin = [example for example in reading.corpus if example.control is not None]
    assert len(with_twin) >= len(reading.corpus) - 2
    assert {example.control == example.prompt for example in with_twin} == {False}
    assert all(example.choices and "item" in example.tags for example in reading.corpus)
    assert known.source.startswith("https://")
    assert known.licence
    written = tmp_path / "out.jsonl"
    npl.write_jsonl(reading.corpus, written)
    assert npl.load_corpus(written).hash == reading.corpus.hash


@pytest.mark.parametrize("format", TINY)
def test_an_option_that_is_none_of_the_known_ones_and_a_missing_path_are_told(tmp_path: Path, format: str) -> None:
    path = TINY[format](tmp_path)
    with pytest.raises(npl.CorpusError, match=r"the option twin is 'sister'; expected one of .*none"):
        npl.read_format(path, format, twin="sister")
    with pytest.raises(npl.CorpusError, match=r"nowhere: no such file or folder"):
        npl.read_format(tmp_path / "nowhere", format)


@pytest.mark.parametrize("format", sorted(npl.formats().keys() - OWN))
def test_every_format_stands_in_a_page_s_table_with_a_section_and_a_command(format: str) -> None:
    (page,) = [text for page in PAGES if f"| [`{format}`](#" in (text := (DOCS / page).read_text("utf-8"))]
    (anchor,) = re.findall(rf"^\| \[`{format}`\]\(#([\w-]+)\)", page, flags=re.MULTILINE)
    sections = _sections(page)
    assert f"$ neuropolis corpus {format} " in sections[anchor]
    assert npl.formats()[format].source.removesuffix("/") in sections[anchor]


@pytest.mark.parametrize("format", SHOWN)
def test_the_row_that_the_page_shows_is_what_the_reader_makes(tmp_path: Path, format: str) -> None:
    page, build = SHOWN[format]
    section = _sections((DOCS / page).read_text("utf-8"))[format]
    (row,) = re.findall(r"^```json\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    assert json.loads(row) == npl.load_corpus(build(tmp_path), format=format)[0].to_json()


def _sections(page: str) -> dict[str, str]:
    """The sections of a page by the anchor of their heading."""
    parts = page.split("\n## ")[1:]
    return {re.sub(r"[^\w -]", "", one.split("\n")[0]).lower().replace(" ", "-"): one for one in parts}
