"""`neuropolis corpus score` and `corpus pick`: data quality under a small and a large model, and the best share of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import (
    Device,
    Dtype,
    Force,
    Source,
    check_out,
    open_corpus,
    open_model,
    progress,
    say,
    share,
    stopped,
    table,
    wrote,
)

if TYPE_CHECKING:
    from ..corpora.examples import Corpus

COLUMNS = ("ifd_small", "ifd_large", "dual", "pi")


def add(app: typer.Typer) -> None:
    """Register on the sub-application `corpus`."""
    app.command(name="score", help="Add each row's difficulty under a small and a large model, and their dual score.")(
        score
    )
    app.command(name="pick", help="Keep the share of the rows that a score says is best.")(pick)


def score(
    data: Source,
    small: Annotated[str, typer.Option("--small", help="The small model: hub id, local folder, or bundled:polis.")],
    large: Annotated[str, typer.Option("--large", help="The large model.")],
    out: Annotated[Path, typer.Option("--out", help="JSON Lines file to write: the rows with the scores as tags.")],
    referee: Annotated[str | None, typer.Option(help="Tag with a referee's verdict: base, tie or generated.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens of a batch.")] = 4096,
    device: Device = None,
    dtype: Dtype = None,
    force: Force = False,
) -> None:
    from ..attribution.difficulty_files import DifficultyFile, with_scores
    from ..corpora.examples import CorpusError
    from ..corpora.jsonl import write_jsonl

    check_out(out, force=force, source=data)
    corpus = open_corpus(data)
    found = {}
    for role, name in (("small", small), ("large", large)):
        subject = open_model(name, dtype=dtype, device=device)
        kept = DifficultyFile(out.with_name(f".{out.name}.{role}.part"))
        try:
            with progress(f"{role}: {subject.name}") as bar:
                found[role] = kept.run(subject, corpus, max_tokens=max_tokens, progress=bar)
        except KeyboardInterrupt:
            stopped(f"what was scored stands in {kept.path}; give the same command again to go on")
        del subject
    try:
        scored = with_scores(corpus, found["small"], found["large"], referee=referee)
        told = ""
    except CorpusError as error:
        scored = with_scores(corpus, found["small"], found["large"], dual=False)
        told = f"no dual score: {error}"
    write_jsonl(scored, out)
    for role in found:
        out.with_name(f".{out.name}.{role}.part").unlink(missing_ok=True)
    _show(scored)
    for role, one in found.items():
        if one.missing:
            id, why = next(iter(one.missing.items()))
            say(f"rows without a score under the {role} model: {len(one.missing)} (first {id}: {why})")
    if told:
        say(told)
    wrote(
        out, then=f"neuropolis corpus pick {out} --by {'ifd_large' if told else 'dual'} --share 0.5 --out picked.jsonl"
    )


def pick(
    data: Source,
    out: Annotated[Path, typer.Option("--out", help="JSON Lines file to write.")],
    by: Annotated[str, typer.Option("--by", help="Tag with the score.")] = "dual",
    keep: Annotated[str, typer.Option("--share", help="Share of the rows to keep (0.5, 50%).")] = "0.5",
    per: Annotated[
        str, typer.Option("--per", help="That share of every group or item, or of all rows at once: group, item, all.")
    ] = "group",
    lowest: Annotated[bool, typer.Option("--lowest", help="Keep the lowest scores.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of which of equal rows are kept.")] = 0,
    force: Force = False,
) -> None:
    from ..corpora.jsonl import write_jsonl
    from ..corpora.picking import pick as picked

    check_out(out, force=force, source=data)
    corpus = open_corpus(data)
    found = picked(corpus, by, share=float(share(keep)), per=per, lowest=lowest, seed=seed)  # pyright: ignore[reportArgumentType]
    write_jsonl(found.corpus, out)
    table(
        ["group", "rows", "picked"],
        [[group, count, found.corpus.counts.get(group, 0)] for group, count in corpus.counts.items()],
    )
    if found.missing:
        say(f"rows without a score, left out: {len(found.missing)} (first {found.missing[0]})")
    if found.tied:
        say(f"equal scores at the cut: {found.tied} rows; which of them are in was decided by a hash of their ids")
    wrote(out, then=f"neuropolis corpus check {out}")


def _show(corpus: Corpus) -> None:
    """Quartiles of each score."""
    import torch

    from ..corpora.picking import score_of

    rows = []
    for column in COLUMNS:
        values = torch.tensor([score_of(one, column) for one in corpus], dtype=torch.float64)
        known = values[~values.isnan()]
        if len(known):
            cuts = torch.quantile(known, torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64))
            rows.append([column, len(known), *(f"{cut:.3f}" for cut in cuts.tolist())])
    table(["score", "rows", "lowest", "quarter", "median", "three quarters", "highest"], rows)
