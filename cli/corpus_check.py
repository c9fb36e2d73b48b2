"""`neuropolis corpus check` and `corpus split`: what about a corpus would mislead, and how to part it by item."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import (
    By,
    Force,
    Source,
    check_out,
    fail,
    key_values,
    open_corpus,
    p_value,
    percent,
    say,
    table,
    wrote,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..corpora.hygiene import Hygiene
    from ..corpora.hygiene_texts import Count

Near = Annotated[
    float,
    typer.Option("--near", help="Jaccard coefficient of character 4-grams from which prompts are near-duplicates."),
]
WIDEST = 6  # splits whose counts fit on a line
MOST = 12  # bad lines that are shown


def add(app: typer.Typer) -> None:
    """Register on the sub-application `corpus`."""
    app.command(
        name="check", help="Counts, writing systems, duplicates, answer places, length leaks, twins, token cost."
    )(check)
    app.command(name="split", help="Tag rows with a split, by item and never by row, evenly in every group.")(split)


def check(
    data: Source,
    model: Annotated[
        str | None, typer.Option("--model", help="Measure what this model's tokenizer makes of it.")
    ] = None,
    near: Near = 0.8,
    out: Annotated[Path | None, typer.Option("--out", help="Write all of it as JSON.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with status 1 when there are problems.")] = False,
    by: By = None,
    force: Force = False,
) -> None:
    from ..corpora.hygiene import check_corpus
    from ..corpora.jsonl import replacing

    if out is not None:
        check_out(out, force=force, source=data)
    corpus = _opened(data, by)
    found = check_corpus(
        corpus, near=near, tokenizer=None if model is None else _tokenizer(model), tokenizer_name=model
    )
    show(found)
    if out is not None:
        with replacing(out) as file:
            file.write(json.dumps(found.to_json(), ensure_ascii=False, indent=1) + "\n")
        wrote(out)
    if found.problems and strict:
        fail(f"{data}: problems found: {len(found.problems)} (--strict)")


def split(
    data: Source,
    out: Annotated[Path, typer.Option("--out", help="JSON Lines file to write.")],
    shares: Annotated[
        list[str] | None, typer.Option("--share", help="Such as train=0.8; repeat it. By default train=0.8, test=0.2.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed puts other items on each side.")] = 0,
    unit: Annotated[str, typer.Option(help="What stays together: item, or a tag.")] = "item",
    keep: Annotated[bool, typer.Option("--keep", help="Leave rows that have a split where they are.")] = False,
    merge_near: Annotated[
        bool, typer.Option("--merge-near", help="Make items with near-duplicate prompts one item.")
    ] = False,
    near: Near = 0.8,
    by: By = None,
    force: Force = False,
) -> None:
    from ..corpora.hygiene_copies import copies
    from ..corpora.hygiene_texts import counted
    from ..corpora.jsonl import write_jsonl
    from ..corpora.splitting import SHARES, split_corpus

    given = key_values(shares)
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            fail(f"cannot read --share {name}={value} as a share; expected a number, such as {name}=0.8")
    check_out(out, force=force, source=data)
    corpus = _opened(data, by)
    parted = split_corpus(
        corpus, given or SHARES, seed=seed, by=unit, keep=keep, merge_near=near if merge_near else None
    )
    write_jsonl(parted, out)
    _show_counts(counted(parted))
    merged = sum("item_before" in one.tags for one in parted)
    if merge_near:
        say(f"{merged} rows were given the item of a near-duplicate; what it was stands in their tag item_before")
    if all(one.item == one.id for one in corpus):
        say(
            "note: no row has the tag 'item', so every row counts as an item of its own; paraphrases may be on both sides"
        )
    for kind in ("split_prompts", "near_splits"):
        one = copies(parted, near=near)[kind]
        if one.count:
            say(
                f"note: {one.what}: {one.count} (first {' | '.join(one.samples[0])}); --merge-near puts them on one side"
            )
    wrote(out, then=f"neuropolis corpus check {out}")


def show(found: Hygiene) -> None:
    """The tables, then a sentence for each problem."""
    _show_counts(found.counts)
    apart = found.told_apart_by
    table(
        [apart, "rows", "prompt", "answer", "writing systems (share of letters)"],
        [
            [one.cell, one.rows, f"{one.prompt:g}", f"{one.answer:g}", _scripts(one.scripts)]
            for one in found.writing
        ],
        title=f"length (median characters) and writing by {apart}",
    )  # fmt: skip
    table(["duplicates", "number"], [[one.what, one.count] for one in found.copies.values()])
    if not all(one.complete for one in found.copies.values()):
        say(
            "so many prompts are alike at once that not every near pair was looked at: the numbers of near pairs are at least these"
        )
    _show_choices(found)
    if found.fertility:
        table(
            [apart, "per row", "per word", "per character", "per byte", "unknown %", "same items"],
            [
                [
                    one.cell, f"{one.per_row:.1f}", _number(one.per_word), f"{one.per_character:.2f}", f"{one.per_byte:.2f}",
                    percent(one.unknown), "-" if math.isnan(one.premium) else f"x {one.premium:.2f}",
                ]
                for one in found.fertility
            ],
            title=f"tokens of {found.tokenizer}",
        )  # fmt: skip
    for problem in found.problems:
        say(f"problem: {problem}")
    if not found.problems:
        say("no problem found")


def _show_counts(counts: Sequence[Count]) -> None:
    groups = list(dict.fromkeys(one.group for one in counts))
    splits = list(dict.fromkeys(one.split for one in counts))[:WIDEST]
    cells = {(one.group, one.split): f"{one.rows} ({one.items})" for one in counts}
    missing = {group: sum(one.without_control for one in counts if one.group == group) for group in groups}
    table(
        ["group", *(split or "no split" for split in splits), "without twin"],
        [[group, *(cells.get((group, split), "0") for split in splits), missing[group]] for group in groups],
        title="rows (items)",
    )


def _show_choices(found: Hygiene) -> None:
    """Places and lengths, of all groups together."""
    places = [one for one in found.positions if one.group is None]
    if places:
        table(
            ["choices", "right answers by place", "items", "p against even"],
            [[one.choices, " ".join(map(str, one.counts)), one.items, p_value(one.p)] for one in places],
        )
    leaks = [one for one in found.lengths if one.group is None]
    if leaks:
        table(
            ["pick the", "right in %", "95% interval", "chance", "p"],
            [
                [
                    one.pick, percent(one.accuracy), f"{percent(one.low)} to {percent(one.high)}", percent(one.chance),
                    p_value(one.p),
                ]
                for one in leaks
            ],
        )  # fmt: skip


def _scripts(shares: Any) -> str:
    shown = [f"{name} {percent(share)}%" for name, share in list(shares.items())[:4]]
    return ", ".join(shown) or "no letters"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _opened(data: str, by: str | None) -> Any:
    """The corpus; of a file that cannot be read, every bad line."""
    from ..corpora.examples import CorpusError
    from ..corpora.hygiene_lines import bad_lines

    try:
        return open_corpus(data, by=by)
    except CorpusError:
        if not Path(data).is_file():
            raise
        found = bad_lines(data)
        if len(found.bad) < 2:
            raise
        for _, text in found.bad[:MOST]:
            say(text)
        if len(found.bad) > MOST:
            say(f"and {len(found.bad) - MOST} more")
        fail(found.summary)


def _tokenizer(model: str) -> Any:
    """A model's tokenizer, without its weights."""
    from transformers import AutoTokenizer

    from ..neurons.subject import BUNDLED

    try:
        return AutoTokenizer.from_pretrained(str(BUNDLED.get(model, model)))
    except (OSError, ValueError, KeyError, ImportError) as error:
        fail(f"cannot load the tokenizer of {model!r}: {str(error).strip().splitlines()[0]}")
