"""The report is one page that says what the study holds, no more, and keeps every name as text."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
import torch
from figure_makers import SUBJECT, make_effects, make_study, names
from neuropolis.analysis.study import MADE_BY, load, save
from neuropolis.figures import words
from neuropolis.figures.effects_words import effects_words
from neuropolis.figures.report import page, report

HOSTILE = "<script>alert(1)</script>"
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Every tag with its attributes; fails when tags do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" not in self.open and "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts).replace("\u00a0", " "))


@pytest.fixture(scope="module", params=[2, 30], ids=["2 groups", "30 groups"])
def groups(request):
    return names(request.param)


@pytest.fixture(scope="module")
def html(groups):
    return page(make_study(groups))


def test_the_page_is_balanced_and_needs_nothing_else(html):
    read = Page(html)
    for tag, attributes in read.tags:
        assert tag not in ("link", "iframe", "object", "embed")
        for name in ("src", "href", "xlink:href", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert "http:" not in html
    assert "https:" not in html
    assert "@import" not in html


def test_ids_are_unique_and_links_lead_somewhere(html):
    tags = Page(html).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {attributes["href"][1:] for tag, attributes in tags if tag == "a"}
    targets = {link for link in links if not link.startswith("neuron/")}
    assert links - targets
    labels = {one for _, attributes in tags for one in (attributes.get("aria-labelledby") or "").split()}
    assert targets | labels <= set(ids)


def test_the_page_can_be_read_without_seeing_it(html):
    tags = Page(html).tags
    tables = [attributes for tag, attributes in tags if tag == "table"]
    assert len(tables) == sum(tag == "caption" for tag, _ in tags)
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in tags if tag == "th")
    svgs = [attributes for tag, attributes in tags if tag == "svg"]
    assert len(svgs) == 5
    assert all(attributes["role"] == "img" for attributes in svgs)
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_the_page_has_the_numbers_of_the_artefacts(html, groups):
    study, text = make_study(groups), Page(html).text
    effects, overlap, scores = study.effects, study.overlap, study.scores
    row = effects.summary()[0]
    assert f"{100 * row['base']:.1f}" in text
    assert f"{100 * row['effect']:.1f}".replace("-", "\u2212") in text
    assert f"{float(overlap.jaccard[0, 1]):.4f}" in text
    assert f"{float(scores.values[0].max()):.3g}" in text
    assert f"{len(study.sets[groups[0]])}" in text
    assert study.subject["fingerprint"] in text
    assert scores.origin["corpus_hash"] in text


def test_names_stay_text_everywhere():
    text = page(
        make_study(
            (HOSTILE, 'b" onload="alert(2)'), new=f"new {HOSTILE}", subject={"name": HOSTILE, "fingerprint": HOSTILE}
        )
    )
    read = Page(text)
    assert [a.get("type") for tag, a in read.tags if tag == "script"] == ["application/json", None]
    assert not any(name.startswith("on") for _, attributes in read.tags for name in attributes)
    assert HOSTILE in read.text


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        ("scores", "neuropolis locate 'toy model' --data FILE.jsonl --out 'my study.h5'"),
        ("set", "neuropolis select 'my study.h5' --top 1%"),
        ("effects", "neuropolis ablate 'toy model' --data FILE.jsonl --study 'my study.h5' --controls 20"),
        ("overlap", "neuropolis compare 'my study.h5'"),
        ("similarity", "neuropolis compare 'my study.h5'"),
        ("retention", f"{MADE_BY['retention']} 'toy model' --data FILE.jsonl --study 'my study.h5' --group GROUP"),
    ],
)
def test_a_missing_part_is_named_with_what_makes_it(kind, command):
    read = Page(page(make_study(("a", "b"), without=(kind,), path="my study.h5")))
    assert command in read.text
    assert "The study does not hold yet" in read.text


def test_an_empty_study_has_a_page():
    everything = ("scores", "set", "effects", "overlap", "similarity", "retention")
    read = Page(page(make_study(("a", "b"), without=everything)))
    assert read.text.count("The study does not hold this yet") == 6


def test_a_study_of_one_group_has_a_page():
    text = Page(page(make_study(("alone",)))).text
    assert "There is one set only" in text
    assert "nan" not in text.lower().split()


def test_report_writes_the_page_and_says_where(tmp_path):
    study = make_study(("a", "b"))
    out = report(study, tmp_path / "report.html")
    assert out.read_text(encoding="utf-8") == page(study)


def test_report_reads_an_atlas(tmp_path):
    study = make_study(("a", "b"), subject={"fingerprint": SUBJECT})
    parts = (study.scores, study.sets, study.effects, study.overlap, study.similarity, study.retention)
    path = save(tmp_path / "study.h5", *parts)
    out = report(path, tmp_path / "report.html")
    text = Page(out.read_text(encoding="utf-8")).text
    assert text == Page(page(load(path))).text
    assert "an unnamed subject" in text
    assert "does not hold" not in text


def test_several_artefacts_of_a_kind_each_have_their_part(tmp_path):
    study = make_study(("a", "b"))
    path = save(tmp_path / "study.h5", study.sets, first=study.retention, second=study.retention)
    html = page(load(path))
    read = Page(html)
    assert "Tuning: learned and forgotten (first)" in read.text
    assert "Tuning: learned and forgotten (second)" in read.text
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_words_count_the_sets_whose_effect_is_specific():
    groups = ("a", "b", "c")
    effects = make_effects(groups, hurt=1.0)
    strong = effects_words(effects, effects.summary())
    assert "for 3 of 3 sets" in strong[1]
    effects = make_effects(groups, hurt=0.06)
    weak = effects_words(effects, effects.summary())
    assert "for 0 of 3 sets" in weak[1]
    assert weak[2] == "Not shown for a, b, c."


def test_words_do_not_claim_without_controls():
    effects = make_effects(("a", "b"), hurt=1.0, controls=0)
    assert "cannot be said whether random neurons would do the same" in effects_words(effects, effects.summary())[1]


def test_words_count_pairs_beyond_chance():
    study = make_study(("a", "b", "c"))
    overlap = study.overlap
    overlap.jaccard[0, 1], overlap.jaccard[0, 2], overlap.jaccard[1, 2] = 0.2, 0.01, 0.05
    overlap.p_corrected[0, 1], overlap.p_corrected[0, 2], overlap.p_corrected[1, 2] = 0.001, 0.001, 1.0
    said = words.overlap_words(overlap)
    assert "Of 3 pairs of sets, 1 share more" in said
    assert "and 1 fewer" in said
    assert "the other 1 cannot" in said


def test_words_on_tuning_give_before_after_and_interval():
    retention = make_study(("a", "b")).retention
    said = words.retention_words(retention)
    assert len(said) == len(retention.methods)
    assert "from 25.0 % to 90.0 % (95 % interval 84.0 to 95.0)" in said[0]
    lost = 100 * float(retention.after[0, :2].mean() - retention.before[:2].mean())
    assert f"{lost:.1f} points".replace("-", "\u2212") in said[0]


def test_words_on_tuning_leave_out_trained_groups_that_are_not_there():
    retention = dataclasses.replace(make_study(("a", "b")).retention, trained_groups=())
    assert all("trained group" not in sentence for sentence in words.retention_words(retention))
    assert torch.isfinite(retention.after).all()
