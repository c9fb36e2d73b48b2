"""Difficulty on disk: JSON Lines that grow batch by batch, so that a stopped run goes on, and scores as tags."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..corpora.examples import Corpus, CorpusError
from ..neurons.subject import Subject
from .difficulty import Difficulty, Rows, difficulty, dual_scores, refereed

DIGITS = 8


@dataclass(frozen=True)
class DifficultyFile:
    """Where a run keeps what it has: a line that says what run it is, then a line per scored row."""

    path: Path

    def run(
        self,
        subject: Subject,
        corpus: Corpus,
        *,
        max_tokens: int = 4096,
        progress: Callable[[int, int], None] | None = None,
    ) -> Difficulty:
        """`difficulty`, going on from what stands in the file. A stopped run ends with the numbers of one that was not.

        Raises CorpusError when the file is of another run: another corpus, subject, dtype or size of batches.
        """
        facts = {
            "corpus": corpus.hash, "subject": subject.fingerprint, "dtype": str(subject.dtype), "max_tokens": max_tokens,
        }  # fmt: skip
        known = self._read(facts)
        fresh = not self.path.exists()
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            if fresh:
                file.write(json.dumps(facts) + "\n")

            def keep(rows: Rows) -> None:
                file.writelines(json.dumps(row) + "\n" for row in rows)
                file.flush()
                os.fsync(file.fileno())

            return difficulty(subject, corpus, max_tokens=max_tokens, known=known, keep=keep, progress=progress)

    def _read(self, facts: dict[str, Any]) -> dict[int, tuple[float, float]]:
        """By row what an earlier run found. A last line that was cut off is taken off the file."""
        if not self.path.exists():
            return {}
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if not whole:
            self.path.unlink()
            return {}
        if whole != data:
            os.truncate(self.path, len(whole))
        try:
            head, *lines = [json.loads(line) for line in whole.decode("utf-8").splitlines()]
            known = {int(row): (float(given), float(alone)) for row, given, alone in lines}
        except (ValueError, TypeError) as error:
            raise CorpusError(
                f"{self.path}: expected the lines of a stopped run ({error}); remove the file to start over"
            ) from None
        differing = [name for name in facts if head.get(name) != facts[name]]
        if differing:
            raise CorpusError(
                f"{self.path} is of another run: its {differing[0]} is {head.get(differing[0])}, this one's {facts[differing[0]]}; "
                "remove the file to start over"
            )
        return known


def with_scores(
    corpus: Corpus, small: Difficulty, large: Difficulty, *, referee: str | None = None, dual: bool = True
) -> Corpus:
    """The corpus with tags `ifd_small`, `ifd_large`, `dual` (Eq 5) and with a referee's tag `pi` (Eq 7).

    A row without a score has no tag.

    Raises CorpusError when the difficulties are not of this corpus's examples, where Eq 5 has no scale, and for an unknown verdict.
    """
    ids = tuple(one.id for one in corpus)
    if small.ids != ids or large.ids != ids:
        raise CorpusError("the difficulties are of other examples than the corpus's; score this corpus")
    columns = {"ifd_small": small.ifd, "ifd_large": large.ifd}
    if dual:
        columns["dual"] = dual_scores(small.ifd, large.ifd)
        if referee is not None:
            columns["pi"] = refereed(columns["dual"], [one.tags.get(referee) for one in corpus])
    added = [{} for _ in ids]
    for name, values in columns.items():
        for row, value in enumerate(values.tolist()):
            if not torch.isnan(values[row]):
                added[row][name] = f"{value:.{DIGITS}g}"
    gone = ("ifd_small", "ifd_large", "dual", "pi")
    tagged = (
        replace(one, tags={**{tag: value for tag, value in one.tags.items() if tag not in gone}, **more})
        for one, more in zip(corpus, added, strict=True)
    )
    return replace(corpus, examples=tuple(tagged))
