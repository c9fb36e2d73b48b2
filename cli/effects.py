"""What the verbs that ablate share: their options, the sets of a study, references, how numbers are shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import fail, open_corpus, say

if TYPE_CHECKING:
    from ..analysis.effects import Effects
    from ..analysis.study import Study
    from ..corpora.examples import Corpus
    from ..neurons.interventions import Reference
    from ..neurons.scores import Scores
    from ..neurons.sets import NeuronSet
    from ..neurons.subject import Subject

Metric = Annotated[
    str,
    typer.Option(
        "--metric",
        help="accuracy, accuracy_normalised, choice_share, probability, loss, loss_all, perplexity, exact_match, rouge_l or chrf.",
    ),
]
KindName = Annotated[
    str, typer.Option("--kind", help="zero, mean, scale, resample, noise, or keep (everything else off).")
]
Factor = Annotated[float, typer.Option("--factor", help="For scale (above 1 amplifies) and noise.")]
ReferenceData = Annotated[
    str | None, typer.Option("--reference", help="Corpus that mean, resample and noise draw from; --data by default.")
]
ReferenceGroup = Annotated[
    str | None,
    typer.Option("--reference-group", help="Of the reference only this group: another culture's activations."),
]
OnWhat = Annotated[str, typer.Option("--on", help="Where: both, prompt (its tokens) or answer.")]
MatchBy = Annotated[
    str,
    typer.Option("--match", help="Controls: layer (random), activation, score (of like size), groups (others' sets)."),
]
Twins = Annotated[
    bool, typer.Option("--twins/--no-twins", help="Ask the knowledge-free control twins too, as a negative control.")
]
Groups = Annotated[list[str] | None, typer.Option("--group", help="Only the sets of these groups (repeat the option).")]


def references(
    subject: Subject,
    corpus: Corpus | None,
    kind: str,
    *,
    source: str | None,
    group: str | None,
    sites: Sequence[str],
    option: str = "--data",
    matched: bool = False,
) -> Any:
    """What mean, resample, noise and keep draw from, by site; None where nothing needs one.

    `source` is the corpus that was named for it, else it is a group of the corpus that is asked, which `option` names.
    `matched` says that controls are matched by it too.
    """
    from ..attribution.activations import reference
    from ..neurons.interventions import REFERRING, check_words

    check_words(kind)
    needed, named = kind in REFERRING or matched, source is not None or group is not None
    if not needed and not named:
        return None
    if kind in ("zero", "scale") and not matched:
        fail(
            f"--kind {kind} draws from no reference; leave --reference out, or give --kind mean, resample, noise or keep"
        )
    if not named:
        what = f"--kind {kind}" if kind in REFERRING else "--match activation"
        fail(f"{what} needs a reference: --reference FILE.jsonl, or --reference-group NAME of {option}")
    if source is None and corpus is None:
        fail(f"--reference-group names a group of --reference or of {option}; give one of these")
    chosen = corpus if source is None else open_corpus(source)
    assert chosen is not None
    chosen = chosen if group is None else chosen.only(group)
    found: dict[str, Reference] = {site: reference(subject, chosen, site=site) for site in sites}
    return found


def chosen_sets(opened: Study, groups: list[str] | None) -> dict[str, list[NeuronSet]]:
    """The sets of a study by group, those of several sites together; of these groups alone where some are named."""
    from ..analysis.ablate import joined

    names = opened.names("set")
    if not names:
        opened.get("set")
    wanted = names
    if groups:
        wanted = tuple(n for g in groups for n in ([g] if g in names else [n for n in names if n.startswith(f"{g}/")]))
        for group in groups:
            if not any(n == group or n.startswith(f"{group}/") for n in wanted):
                fail(f"{opened.path} has no set {group!r}; it has {', '.join(names)}")
    found = joined({name: opened.get("set", name) for name in wanted})
    sites = {one.site for parts in found.values() for one in parts}
    if len(sites) > 1:
        say(f"the sets are of sites {', '.join(sorted(sites))}; those of one group are silenced together")
    return found


def sets_to_match(opened: Study, match: str) -> dict[str, list[NeuronSet]] | None:
    """The sets that `--match groups` draws controls from: all of the study's, whichever are ablated."""
    from ..analysis.ablate import joined

    return joined(dict(opened.sets)) if match == "groups" else None


def sites_of(sets: dict[str, list[NeuronSet]]) -> list[str]:
    """The sites of sets in order of appearance."""
    return list(dict.fromkeys(one.site for parts in sets.values() for one in parts))


def scores_to_match(opened: Study, match: str, sites: Sequence[str]) -> list[Scores] | None:
    """The scores that `--match score` goes by: the study's only ones of each site."""
    if match != "score":
        return None
    found = [opened.get("scores", name) for name in opened.names("scores")]
    return [one for one in found if one.site in sites]


def number(value: float, effects: Effects, *, sign: bool = False) -> str:
    """A value of a metric: shares in per cent with one decimal, others with three."""
    if value != value:
        return "-"
    if value in (float("inf"), -float("inf")):
        return "none"
    digits, scaled = (1 if effects.unit == "share" else 3), effects.scale * value
    return f"{scaled:{'+' if sign else ''}.{digits}f}"


def unit(effects: Effects) -> str:
    """How the metric and its numbers are called."""
    return f"{effects.metric} in %" if effects.unit == "share" else f"{effects.metric} ({effects.unit})"


def power(effects: Effects) -> None:
    """How many questions and items there are, and what could have been seen with them."""
    questions, items = effects.num_questions.tolist(), effects.num_items.tolist()

    def span(values: list[int]) -> str:
        return str(values[0]) if len(set(values)) == 1 else f"{min(values)} to {max(values)}"

    own = effects.smallest_detectable
    known = own[own.isfinite()]
    text = f"each group has {span(questions)} questions about {span(items)} items; {effects.controls.shape[-2]} controls a set"
    if len(known):
        text += (
            f"; smallest change beyond the controls' that would be found 4 times in 5: "
            f"{number(float(known.min()), effects)} to {number(float(known.max()), effects)}"
        )
    if bool(own.isinf().any()):
        text += f"; of {int(own.isinf().sum())} sets none could be shown, for want of items"
    say(text)
