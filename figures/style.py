"""The look of every figure: one theme, colours for any number of groups, fonts that have the letters, sizes that grow.

Figures are made with matplotlib's object interface inside `themed()`; pyplot's state and the user's rcParams stay as
they are. Ink, grid and paper have colours of their own that nothing else uses, so that the report page can exchange
them for its light and dark ones.
"""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from matplotlib.colors import Colormap
from matplotlib.figure import Figure

INK, GRID, PAPER = "#1e2329", "#d2d6db", "#fefefd"
BASE_FONT = "DejaVu Sans"  # travels with matplotlib
TEXT_POINTS = 9.0
_EM_INCHES = TEXT_POINTS / 72
_warned: set[str] = set()


class FigureError(ValueError):
    """A figure or a report cannot be made from what was given."""


class GlyphWarning(UserWarning):
    """No installed font has some of the letters."""


@contextmanager
def themed(texts: Iterable[str] = ()) -> Iterator[None]:
    """The theme, for as long as the block lasts; `texts` are the names that will be written, so that fonts are found.

    Warns once (GlyphWarning) of letters that no installed font has.
    """
    import matplotlib
    import seaborn

    untouched = {"backend", "backend_fallback", "interactive", "toolbar", "timezone", "figure.hooks", "webagg.port"}
    plain: dict[Any, Any] = {key: value for key, value in matplotlib.rcParamsDefault.items() if key not in untouched}
    theme: dict[Any, Any] = {
        **seaborn.axes_style("ticks"), **seaborn.plotting_context("notebook", font_scale=0.8),
        "font.family": list(fonts_for(texts)), "font.size": TEXT_POINTS, "axes.titlesize": 10, "axes.labelsize": 9,
        "xtick.labelsize": TEXT_POINTS, "ytick.labelsize": TEXT_POINTS, "legend.fontsize": 8.5,
        "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "axes.titlecolor": INK,
        "xtick.color": INK, "ytick.color": INK, "grid.color": GRID, "figure.facecolor": PAPER, "axes.facecolor": PAPER,
        "savefig.facecolor": PAPER, "legend.facecolor": PAPER, "legend.edgecolor": GRID,
        "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left", "axes.linewidth": 0.8,
        "lines.linewidth": 1.8, "lines.markersize": 4, "xtick.major.width": 0.8, "ytick.major.width": 0.8,
        "text.parse_math": False,  # a group may be called "$a$"
        "svg.hashsalt": "neuropolis", "pdf.fonttype": 42,
    }  # fmt: skip
    # matplotlib warns of a missing letter at every draw; fonts_for has said it once, with what to do
    with matplotlib.rc_context({**plain, **theme}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        warnings.filterwarnings("ignore", message=r"Matplotlib currently does not support .* natively")
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches, drawn by Agg, laid out so that labels fit. Call it inside `themed()`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # the bare canvas cannot draw, and seaborn would then turn to pyplot's current figure
    return figure


def palette(count: int) -> list[tuple[float, float, float]]:
    """Colours that people with colour blindness can tell apart: seaborn's ten, or steps of cividis when there are more.

    More than ten lines in one picture cannot be told apart by colour alone, whatever the colours: pair them with
    `dashes`.
    """
    import seaborn

    return list(seaborn.color_palette("colorblind" if count <= 10 else "cividis", count))


def sequential() -> Colormap:
    """Light to dark, monotonic in grey."""
    import seaborn

    return seaborn.color_palette("mako_r", as_cmap=True)


def diverging() -> Colormap:
    """Red below, blue above, pale between; the cells have signs too, since grey print cannot tell the arms apart."""
    import seaborn

    return seaborn.color_palette("vlag_r", as_cmap=True)


def text_inches(texts: Iterable[str], *, points: float = TEXT_POINTS) -> float:
    """About how long the longest of these names is on paper; East Asian letters count double."""
    lengths = [sum(map(_ems, text)) for text in texts]
    return max(lengths, default=0.0) * _EM_INCHES * points / TEXT_POINTS


@lru_cache(maxsize=4096)
def _ems(letter: str) -> float:
    """How wide a letter is, at least 0.62 of the type's size."""
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    if unicodedata.east_asian_width(letter) in "WF":
        return 1.0
    font = FT2Font(font_manager.findfont(BASE_FONT))
    if not font.get_char_index(ord(letter)):  # some other font draws it, or none does
        return 1.0
    font.set_size(TEXT_POINTS, 72)
    return max(0.62, font.load_char(ord(letter)).linearHoriAdvance / 65536 / TEXT_POINTS)


@lru_cache(maxsize=64)
def _fonts(letters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    from matplotlib import font_manager

    families, missing = [BASE_FONT], set(letters)
    missing -= _letters_of(font_manager.findfont(BASE_FONT)) & missing
    if missing:
        _learn_new_fonts()
    for family, path in _candidates() if missing else ():
        found = missing & _letters_of(path)
        if found:
            families.append(family)
            missing -= found
        if not missing:
            break
    return tuple(families), frozenset(missing)


def fonts_for(texts: Iterable[str]) -> tuple[str, ...]:
    """Font families, in order of preference, that together have every letter of the texts, as far as they are
    installed.

    Warns once per letter (GlyphWarning) where none has it.
    """
    letters = frozenset(
        c for text in texts for c in text if not c.isspace() and unicodedata.category(c) not in ("Cf", "Cc")
    )
    families, missing = _fonts(letters)
    if missing - _warned:
        _warned.update(missing)
        shown = "".join(sorted(missing)[:12])
        warnings.warn(
            f"no installed font has {len(missing)} of the letters in the names ({shown}): they are drawn as boxes in "
            "PNG and PDF (the report page uses the browser's fonts); install a font that has them, such as Noto Sans "
            "(Debian: apt install fonts-noto-core fonts-noto-cjk)",
            GlyphWarning,
            stacklevel=4,
        )
    return families


@contextmanager
def letters_left_to_the_reader() -> Iterator[None]:
    """No GlyphWarning inside: what is drawn is text that the reader's own fonts will show."""
    before = set(_warned)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GlyphWarning)
        yield
    _warned.intersection_update(before)


def _candidates() -> Iterator[tuple[str, str]]:
    """Upright fonts of regular weight, the likely ones first, one file a family."""
    from matplotlib import font_manager

    seen: dict[str, str] = {}
    for entry in font_manager.fontManager.ttflist:
        # fonts of last resort have every letter, as a box
        if (
            "resort" not in entry.name.lower()
            and entry.style == "normal"
            and entry.weight in (400, "normal", "regular", "book")
        ):
            seen.setdefault(entry.name, entry.fname)

    def rank(item: tuple[str, str]) -> tuple[int, str]:
        name = item[0]
        likely: Sequence[str] = ("Noto Sans CJK", "Noto Sans", "Noto", "Source Han", "Arial Unicode")
        return next((place for place, start in enumerate(likely) if name.startswith(start)), len(likely)), name

    yield from sorted(seen.items(), key=rank)


@lru_cache(maxsize=512)
def _letters_of(path: str) -> frozenset[str]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(chr(code) for code in FT2Font(path).get_charmap())
    except (RuntimeError, OSError):  # a bitmap or broken font
        return frozenset()


def _learn_new_fonts() -> None:
    """Fonts installed since matplotlib last wrote its cache."""
    from matplotlib import font_manager

    known = {entry.fname for entry in font_manager.fontManager.ttflist}
    for path in font_manager.findSystemFonts():
        if path not in known:
            _add_font(font_manager.fontManager, path)


def _add_font(manager: Any, path: str) -> None:
    try:
        manager.addfont(path)
    except (RuntimeError, OSError, ValueError, UnicodeError):  # a bitmap or broken font
        return
