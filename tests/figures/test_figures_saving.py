"""Figures reach files whole, pages with their own ids, and letters find their fonts."""

from __future__ import annotations

import re
import warnings

import pytest
from figure_makers import make_retention, make_sets, make_study
from neuropolis.figures import plots, style
from neuropolis.figures.report import page
from neuropolis.figures.saving import inline_svg, save_figure, write_whole
from neuropolis.figures.style import FigureError, GlyphWarning, fonts_for, palette

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def figure():
    return plots.neurons_by_layer(make_sets((HOSTILE, "b--><i>")))


@pytest.mark.parametrize(("suffix", "start"), [(".svg", b"<?xml"), (".png", b"\x89PNG"), (".PDF", b"%PDF")])
def test_the_suffix_says_the_format(figure, tmp_path, suffix, start):
    path = save_figure(figure, tmp_path / f"figure{suffix}")
    assert path.read_bytes().startswith(start)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_an_unknown_suffix_lists_the_known_ones(figure, tmp_path):
    with pytest.raises(FigureError, match=r"unknown suffix '.bmp'; known are .svg, .png, .pdf"):
        save_figure(figure, tmp_path / "figure.bmp")


def test_the_same_figure_gives_the_same_bytes(tmp_path):
    first, second = (
        save_figure(plots.forgetting(make_retention(("a", "b"))), tmp_path / f"{n}.svg").read_bytes() for n in (1, 2)
    )
    assert first == second


@pytest.mark.parametrize("step", ["os.fsync", "os.chmod", "os.replace"])
def test_writing_that_fails_leaves_what_stood_there(tmp_path, monkeypatch, step):
    path = write_whole(tmp_path / "page.html", b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(step, full)
    with pytest.raises(FigureError, match=r"could not write .*No space left.*untouched"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FigureError, match=r"there is no folder .*nowhere"):
        write_whole(tmp_path / "nowhere" / "page.html", b"")


def test_inline_ids_belong_to_their_figure_and_are_all_defined(figure):
    first, second = (inline_svg(figure, prefix=p, title="t", description="d") for p in ("one", "two"))
    ids = [set(re.findall(r'\bid="([^"]*)"', svg)) for svg in (first, second)]
    assert not ids[0] & ids[1]
    used = set(re.findall(r'href="#([^"]*)"', first)) | set(re.findall(r"url\(#([^)]*)\)", first))
    assert used
    assert used <= ids[0]


def test_inline_figures_name_themselves_and_follow_the_page(figure):
    svg = inline_svg(figure, prefix="one", title="A title", description="What it shows & more")
    assert 'role="img"' in svg
    assert '<title id="one-title">A title</title>' in svg
    assert "What it shows &amp; more" in svg
    assert "var(--ink)" in svg
    assert "http" not in svg
    assert style.INK not in svg


def test_names_stay_text_in_svg(figure, tmp_path):
    for svg in (
        inline_svg(figure, prefix="one", title=HOSTILE, description="d"),
        save_figure(figure, tmp_path / "a.svg").read_text(),
    ):
        assert "<script" not in svg
        assert "<i>" not in svg
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in svg


@pytest.mark.parametrize("count", [1, 2, 10, 11, 100])
def test_every_group_has_a_colour_of_its_own(count):
    assert len(set(palette(count))) == count


def test_letters_that_a_font_has_are_not_warned_of(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(plots.neurons_by_layer(make_sets(("Ελλάδα", "Україна", "Đông"))), tmp_path / "a.png")


def test_letters_without_a_font_are_warned_of_once(tmp_path, monkeypatch):
    monkeypatch.setattr(style, "_warned", set())
    nowhere = "\U0001057f"  # an unassigned place of the Vithkuqi block
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page(make_study((f"name {nowhere}", "b")))  # the browser's own fonts will draw it
    with pytest.warns(GlyphWarning, match="no installed font has 1 of the letters"):
        figure = plots.neurons_by_layer(make_sets((f"name {nowhere}", "b")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(figure, tmp_path / "a.png")
        plots.neurons_by_layer(make_sets((f"name {nowhere}", "b")))


def test_fonts_begin_with_the_one_that_travels_along():
    assert fonts_for(["plain"]) == ("DejaVu Sans",)
