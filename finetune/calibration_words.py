"""What a calibration lets one say, in a sentence or two that claim no more than its figures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .calibration_result import Calibration

GOOD, HALF = 0.9, 0.5
LIMIT = "That a method finds planted neurons does not prove that it finds natural ones."


def verdict(found: Calibration) -> str:
    """Which method and selection to trust on this model and how far; that there is none, where there is none."""
    if found.first is None:
        return (
            f"No plant stood its proof ({len(found.plants)} tried), so nothing can be said about any method on this model: "
            f"{_remedy(found)}."
        )
    rows = [row for row in found.summary() if row["method"] != "random"]
    if not rows:
        return "Only random orders were measured; name a method to calibrate."
    return f"{_trust(found, rows[0])} {_evidence(found, rows[0])}{_weakest(found, rows[0])} {LIMIT}"


def _remedy(found: Calibration) -> str:
    """What to try where no plant stood."""
    failures = [line for plant in found.plants for line in plant["failures"]]
    tries = []
    if any("recall of" in line and "planted" in line for line in failures):
        tries.append("train longer, or plant fewer facts in more neurons")
        if found.origin.get("form", "question") == "question":
            tries.append("put facts as statements with known answers")
    if any("perplexity" in line for line in failures):
        tries.append("weigh other text more (keep), or plant in fewer neurons")
    return "; ".join(tries or ["train longer"])


def _trust(found: Calibration, best: dict[str, Any]) -> str:
    named, recall = f"{best['method']} ranked by {best['ranking']}", best["recall"]
    chance = next((row for row in found.summary() if row["method"] == "random"), None)
    if chance is not None and not _above(best, chance):
        return f"Trust no method on this model: the best, {named}, is not told from random orders."
    if recall >= GOOD:
        return f"On this model trust {named} to name single planted neurons."
    if recall >= HALF:
        return (
            f"On this model {named} is the best, and where it names as many neurons as were planted about {1 - recall:.0%} of them "
            "are others."
        )
    return f"Trust no method to name single planted neurons of this model: with the best, {named}, most of those named are others."


def _above(best: dict[str, Any], chance: dict[str, Any]) -> bool:
    """Whether the best one's interval lies above the mean of random orders; with one seed, whether it finds twice as many."""
    if math.isnan(best["recall_low"]):
        return best["recall"] > 2 * chance["recall"]
    return best["recall_low"] > chance["recall"]


def _evidence(found: Calibration, best: dict[str, Any]) -> str:
    sizes = found.planted[found.variants.index(str(found.first))]
    sizes = sizes[sizes > 0]
    least, most = int(sizes.min()), int(sizes.max())
    size = f"{least}" if least == most else f"{least} to {most}"
    seeds = f"{best['seeds']} plant" + ("" if best["seeds"] == 1 else "s")
    return (
        f"Of the {size} neurons planted for a group, {best['recall']:.0%} are among as many ranked first "
        f"({_span(best, 'recall', seeds)}; average precision {best['precision']:.2f}, AUROC {best['auroc']:.3f})"
    )


def _span(row: dict[str, Any], name: str, seeds: str) -> str:
    if math.isnan(row[f"{name}_low"]):
        return f"{seeds}, no interval"
    # a t interval knows nothing of the metric's bounds
    low, high = max(0.0, row[f"{name}_low"]), min(1.0, row[f"{name}_high"])
    return f"95 % interval over {seeds} {low:.0%} to {high:.0%}"


def _weakest(found: Calibration, best: dict[str, Any]) -> str:
    """The layer and the variant in which the best one finds the least."""
    m, r = found.methods.index(best["method"]), found.rankings.index(best["ranking"])
    said = []
    layers = found.layers("recall")[0][found.variants.index(str(found.first)), m, r]
    if int(layers.isfinite().sum()) > 1:
        worst = min((float(value), place) for place, value in enumerate(layers) if bool(value.isfinite()))
        said.append(f"in layer {worst[1]} ({worst[0]:.0%})")
    others = found.interval("recall")[0][:, m, r]
    measured = [(float(value), name) for name, value in zip(found.variants, others, strict=True) if value == value]
    if len(measured) > 1 and min(measured)[1] != found.first:
        said.append(f"on the variant {min(measured)[1]} ({min(measured)[0]:.0%})")
    failed = [name for name in found.variants if not found.held(name)]
    untold = f" Nothing is known of {', '.join(failed)}: no plant of it stood its proof." if failed else ""
    return (f"; it is weakest {' and '.join(said)}." if said else ".") + untold
