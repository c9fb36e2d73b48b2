"""Parts of the report about how far scores and sets can be trusted, and where the scores lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from . import words
from .cells import as_array
from .fidelity import fidelity_curves
from .parts import Block, Part, Picture
from .tables import Table, numbers
from .tables import words as column
from .trust import importance_map, stability_dots

if TYPE_CHECKING:
    from ..attribution.fidelity_result import Fidelity
    from ..attribution.importance import Importance
    from ..attribution.stability import Stability


def fidelity(found: Fidelity) -> Part:
    """How well methods order neurons."""
    rows = found.summary()
    caption = (
        "How much worse held-out examples become, in units of the objective, when the first neurons in a method's order are "
        "silenced (left) and when all but the first are (right); means over groups. Dashed: random orders, with their range."
    )
    picture = Picture(fidelity_curves(found), "Deletion and insertion curves, by method", caption)

    def of(key: str) -> list[float]:
        return [row[key] for row in rows]

    columns = (
        column("method", [row["method"] for row in rows]), numbers("correlation with exact", of("correlation"), ".3f"),
        numbers("95 % interval", of("low"), ".3f", high=of("high")), numbers("deletion", of("deletion"), ".3f"),
        numbers("better than random", of("deletion_better"), "+.3f"),
        numbers("95 % interval of it", of("deletion_low"), "+.3f", high=of("deletion_high")),
        numbers("insertion", of("insertion"), ".3f"),
        numbers("insertion: better than random", of("insertion_better"), "+.3f"),
        numbers("95 % interval of that", of("insertion_low"), "+.3f", high=of("insertion_high")),
    )  # fmt: skip
    blocks = {
        (found.site, int(layer), int(index)): [
            Block(
                "Silenced alone, exactly",
                pairs=[
                    (group, f"{float(found.exact[g, place]):+.3g}".replace("-", "\u2212"))
                    for g, group in enumerate(found.groups)
                ],
            )
        ]
        for place, (layer, index) in enumerate(found.neurons.tolist())
    }
    table = Table("fidelity", "Every method, means over groups; areas over the logarithm of the share", columns)
    return Part(words.fidelity_words(found, rows), None, (picture,), (table,), (), blocks)


def stability(found: Stability) -> Part:
    """How far a selection moves."""
    caption = (
        "Each row selects again with one thing changed. Dots: the Jaccard index of a group's set with the one of the "
        "settings given; diamonds: means over groups; dotted: random sets of these sizes."
    )
    jaccard, chance = as_array(found.jaccard), as_array(found.chance)
    columns = (
        column("changed", found.axes, filtered=True), column("to", found.variants),
        numbers("mean Jaccard", jaccard.mean(axis=1), ".3f"), numbers("lowest", jaccard.min(axis=1), ".3f"),
        column("lowest group", [found.groups[place] for place in np.argmin(jaccard, axis=1)]),
        numbers("by chance", chance.mean(axis=1), ".3f"),
    )  # fmt: skip
    table = Table("stability", "Every change, over groups", columns)
    picture = Picture(stability_dots(found), "How far the sets move when one thing is changed", caption)
    return Part((words.stability_words(found),), None, (picture,), (table,))


def importance(found: Importance) -> Part:
    """Where the scores lie, by layer and component."""
    caption = "Scores summed over the neurons of a component of a layer, as a share of all scores, mean over groups."
    picture = Picture(importance_map(found), "Importance of layers and components", caption)
    values = as_array(found.values.double())
    layers = values.shape[1]
    columns = (
        column("group", np.repeat(found.groups, layers), form="set", filtered=True),
        numbers("layer", np.tile(np.arange(layers), len(found.groups))),
        *(numbers(name, values[:, :, place].ravel(), ".3g") for place, name in enumerate(found.components)),
    )  # fmt: skip
    table = Table("importance", "Summed scores by group, layer and component", columns)
    return Part((words.importance_words(found),), None, (picture,), (table,))
