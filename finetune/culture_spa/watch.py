"""Stopping a stage whose generator says nothing of use."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...attribution.generators import GeneratorError

SHOWN = 3


@dataclass(frozen=True)
class Patience:
    """How much may be useless: a share of the replies, once there are so many of them."""

    share: float = 0.8
    replies: int = 64

    def __post_init__(self) -> None:
        if not (0 <= self.share < 1 and self.replies >= 1):
            raise GeneratorError(f"expected a share from 0 to below 1 and 1 reply or more, got {self}")


@dataclass
class Watch:
    """Counts what came of this run's replies and keeps samples of those that were useless."""

    patience: Patience
    what: str
    useful: int = 0
    useless: int = 0
    samples: list[str] = field(default_factory=list)

    def count(self, failed: str, said: str | None) -> None:
        """Take note of a reply; `failed` says why it is of no use, and is empty where it is."""
        if not failed:
            self.useful += 1
            return
        self.useless += 1
        sample = f"{failed}: {said[:200]!r}" if said else failed
        if len(self.samples) < SHOWN and sample not in self.samples:
            self.samples.append(sample)

    def check(self) -> None:
        """Raise GeneratorError with samples when too many replies were useless."""
        total = self.useful + self.useless
        if total >= self.patience.replies and self.useless > self.patience.share * total:
            raise GeneratorError(
                f"{self.what}: {self.useless} of {total} replies are of no use, more than {self.patience.share:.0%}; stopped. "
                f"Such as: {' | '.join(self.samples)}. What was useful is kept; try another model, prompt or temperature"
            )
