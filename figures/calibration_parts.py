"""The part of the report about a calibration: which method finds neurons whose role is known."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from .calibration import false_finds_by_layer, precision_recall, recall_by_count
from .parts import Part, Picture
from .tables import Table, numbers
from .tables import words as column

if TYPE_CHECKING:
    from ..finetune.calibration_result import Calibration

METRICS = (("recall", "recall@K"), ("precision", "average precision"), ("auroc", "AUROC"))


def calibration(found: Calibration) -> Part:
    """What was found of the planted neurons."""
    tables = [_plants(found)]
    pictures: tuple[Picture, ...] = ()
    if found.first is not None:
        tables += [_methods(found), _layers(found)]
        tables += [_false(found)] * bool(found.origin.get("checks"))
        pictures = _pictures(found)
    return Part((found.verdict(), *_agreement(found)), _headline(found), pictures, tuple(tables), _notes(found))


def _headline(found: Calibration) -> tuple[str, str] | None:
    if found.best is None:
        return None
    row = next(row for row in found.summary() if row["method"] != "random")
    sure = "one seed" if row["recall"] != row["recall"] or row["seeds"] < 2 else f"{row['seeds']} seeds"
    return f"{row['recall']:.0%}", f"of planted neurons found by {row['method']} ({row['ranking']}), {sure}"


def _pictures(found: Calibration) -> tuple[Picture, ...]:
    about = "Each method with the ranking that finds most; means over groups and seeds."
    return (
        Picture(_figure(precision_recall(found)), "Precision and recall of methods on planted neurons",
                f"From the first neuron (left) to all of them. The dot: as many taken as were planted. {about}"),
        Picture(_figure(recall_by_count(found)), "Planted neurons found as more are taken",
                f"Dotted: as many taken as were planted. {about}"),
        Picture(_figure(false_finds_by_layer(found)), "Where false finds lie, by layer",
                f"Of the first K neurons of a group, how many are not among its K planted ones. {about}"),
    )  # fmt: skip


def _figure(axes: Any) -> Figure:
    return axes.figure


def _plants(found: Calibration) -> Table:
    rows = [(plant, plant["proof"], g) for plant in found.plants for g in range(len(plant["proof"]["groups"]))]
    columns = (
        column("variant", [plant["variant"] for plant, _, _ in rows], filtered=True),
        numbers("seed", [plant["seed"] for plant, _, _ in rows]),
        column("group", [proof["groups"][g] for _, proof, g in rows]),
        numbers("before", [proof["before"][g] for _, proof, g in rows], ".2f"),
        numbers("planted", [proof["planted"][g] for _, proof, g in rows], ".2f"),
        numbers("put back", [proof["without"][g][g] for _, proof, g in rows], ".2f"),
        numbers("lowest of the others meanwhile", [_others(proof, g) for _, proof, g in rows], ".2f"),
        numbers("in a wording not trained", [proof["reworded"][g] for _, proof, g in rows], ".2f"),
        numbers("other text: perplexity %", [_moved(proof) for _, proof, _ in rows], "+.1f"),
        column("proof", ["holds" if plant["holds"] else "fails" for plant, _, _ in rows]),
    )
    return Table(
        "calibration-plants",
        "Share of each group's facts that are answered, and how the plant stood its proof",
        columns,
    )


def _others(proof: dict[str, Any], group: int) -> float:
    """The lowest recall of the other groups with this one's neurons put back."""
    return min((share for place, share in enumerate(proof["without"][group]) if place != group), default=math.nan)


def _moved(proof: dict[str, Any]) -> float:
    return 100 * (proof["perplexity"][1] / proof["perplexity"][0] - 1)


def _methods(found: Calibration) -> Table:
    rows = [row | {"variant": v} for v in found.variants for row in found.summary(v, every=True)]
    best = {(v, row["method"], row["ranking"]) for v in found.variants for row in found.summary(v)}
    columns = [
        column("variant", [row["variant"] for row in rows], filtered=True),
        column("method", [row["method"] for row in rows], filtered=True),
        column("ranked by", [row["ranking"] for row in rows], filtered=True),
        column("", ["best of its method" if (row["variant"], row["method"], row["ranking"]) in best else "" for row in rows]),
    ]  # fmt: skip
    for key, name in METRICS:
        value, low, high = ([row[key + end] for row in rows] for end in ("", "_low", "_high"))
        columns += [numbers(name, value, ".3f"), numbers(f"{name}: 95 % interval", low, ".3f", high=high)]
    columns.append(numbers("forwards", [row["forwards"] for row in rows]))
    return Table(
        "calibration",
        "Every method and ranking, mean over groups and seeds; forwards count a backward as two",
        tuple(columns),
    )


def _layers(found: Calibration) -> Table:
    mean = found.layers("recall")[0]
    rows = [
        (v, row, layer) for v in found.variants for row in found.summary(v) for layer in range(mean.shape[-1])
    ]  # fmt: skip
    values = [
        float(mean[found.variants.index(v), found.methods.index(row["method"]), found.rankings.index(row["ranking"]), layer])
        for v, row, layer in rows
    ]  # fmt: skip
    columns = (
        column("variant", [v for v, _, _ in rows], filtered=True),
        column("method", [row["method"] for _, row, _ in rows], filtered=True),
        numbers("layer", [layer for _, _, layer in rows]), numbers("recall@K in it", values, ".3f"),
    )  # fmt: skip
    return Table("calibration-layers", "Recall with each layer ranked alone, every method at its best ranking", columns)


def _false(found: Calibration) -> Table:
    mean = 100 * found.false_positives.nanmean(dim=2)
    columns = (
        column("method", found.methods),
        numbers("shuffled labels", mean[0, 0], ".3g"), numbers("shuffled labels, each neuron alone", mean[0, 1], ".3g"),
        numbers("random weights", mean[1, 0], ".3g"), numbers("random weights, each neuron alone", mean[1, 1], ".3g"),
    )  # fmt: skip
    return Table("calibration-false", "% of neurons called specific at the 5 % level where nothing is", columns)


def _agreement(found: Calibration) -> tuple[str, ...]:
    agreed, count = found.agreement()
    if agreed != agreed:
        return ()
    return (
        f"Over {count} methods, recall on plants and deletion curves on {found.origin.get('natural')} rank alike by a Spearman "
        f"correlation of {agreed:.2f}.",
    )


def _notes(found: Calibration) -> tuple[str, ...]:
    failed = [
        f"not scored: {plant['variant']}, seed {plant['seed']}: {'; '.join(plant['failures'])}"
        for plant in found.plants
        if not plant["holds"]
    ]
    return (
        "Planted neurons were trained by gradient: a method that finds them is shown to find what such training puts there.",
        *failed,
    )
