"""`neuropolis neuron`: what single neurons say, what drives them, what they resemble and how they score."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .console import (
    By,
    Device,
    Memory,
    Offload,
    Split,
    StudyFile,
    chosen_split,
    fail,
    open_corpus,
    open_model,
    say,
    table,
    wrote,
)

if TYPE_CHECKING:
    from ..analysis.cards import Cards
    from ..analysis.study import Study
    from ..neurons.scores import Scores


def add(app: typer.Typer) -> None:
    app.command(name="neuron", help="What a neuron says: tokens it writes, texts that drive it, neighbours, scores.")(
        neuron
    )


def neuron(
    study: StudyFile,
    name: Annotated[
        str | None, typer.Argument(help="The neuron, such as mlp:3:17; or give --group.", metavar="SITE:LAYER:INDEX")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Corpus of the texts; by default the bundled one that was scored.")
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option("--group", help="Store cards of the top neurons of this group's set; all: of every set."),
    ] = None,
    count: Annotated[int, typer.Option(help="With --group: neurons of each set, those of the highest score.")] = 10,
    model: Annotated[str | None, typer.Option(help="Where the model is, when not where the study says.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens to show at both ends of the vocabulary.")] = 10,
    examples: Annotated[int, typer.Option(help="Texts to show for each group.")] = 3,
    neighbours: Annotated[int, typer.Option(help="Neighbours to show.")] = 10,
    by: By = None,
    split: Split = "auto",
    device: Device = None,
    offload: Offload = None,
    memory: Memory = None,
) -> None:
    from ..analysis.cards import neuron_cards, parse_neuron
    from ..analysis.study import load, save

    if (name is None) == (not group):
        fail("give one neuron, such as mlp:3:17, or the sets to make cards of (--group japan, --group all)")
    opened = load(study)
    chosen = [parse_neuron(name)] if name is not None else _top(opened, list(group or ()), count)
    source, tag = (data, by) if data else _scored_corpus(opened)
    subject = open_model(model or str(opened.subject.get("name", "")), device=device, offload=offload, memory=memory)
    opened.check(subject)
    cards = neuron_cards(
        subject, open_corpus(source, by=by or tag), chosen, scores=_scores(opened, chosen[0][0]), tokens=tokens, examples=examples,
        neighbours=neighbours, split=chosen_split(split),
    )  # fmt: skip
    for card in range(len(cards) if name is not None else 0):
        show(cards, card)
    if name is None:
        say(f"{len(cards)} cards of site {cards.site}, texts of {len(cards.groups)} groups")
    save(study, **{name or "cards": cards}, subject=subject)
    wrote(study, then=f"neuropolis report {study} --out report.html")


def _scored_corpus(study: Study) -> tuple[str, str | None]:
    """The bundled corpus that was scored, told by its name, and the tag that it was grouped by."""
    from ..corpora.loading import BUNDLED, PREFIX

    for name in study.names("scores"):
        source, _, tag = str(study.get("scores", name).origin.get("corpus", "")).partition(" by ")
        if source in BUNDLED:
            return PREFIX + source, tag or None
    return fail("the study does not name a bundled corpus; say with --data which texts to look at")


def _scores(study: Study, site: str) -> dict[str, Scores]:
    """The study's scores of a site by name."""
    named = {name: study.get("scores", name) for name in study.names("scores")}
    found = {name: scores for name, scores in named.items() if scores.site == site}
    return {scores.method if name == "scores" else name: scores for name, scores in found.items()}


def _top(study: Study, groups: list[str], count: int) -> list[tuple[str, int, int]]:
    """The members of the sets with the highest scores of their group, each once; by index where there are no scores."""
    sets = study.sets
    wanted = list(sets) if groups == ["all"] else groups
    missing = [group for group in wanted if group not in sets]
    if missing:
        fail(f"the study has no set {missing[0]!r}; it has {', '.join(sets)}")
    found: dict[tuple[str, int, int], None] = {}
    for group in wanted:
        neurons = sets[group]
        scores = next((one for one in _scores(study, neurons.site).values() if group in one.groups), None)
        members = list(neurons)
        if scores is not None:
            values = scores.of(group)
            members.sort(key=lambda place: -float(values[place]))
        found |= {(neurons.site, layer, index): None for layer, index in members[:count]}
    if not found:
        fail(f"the sets of {', '.join(wanted)} are empty")
    return list(found)


def _scored(cards: Cards, card: int, group: int) -> list[str]:
    """Score and rank under each method."""
    both = zip(cards.scores[card, :, group].tolist(), cards.ranks[card, :, group].tolist(), strict=True)
    return [f"{value:.3g} ({rank})" if rank else "-" for value, rank in both]


def show(cards: Cards, card: int) -> None:
    """One card."""
    say(f"neuron {cards.neurons[card]}")
    for what, suppressed in (("promotes", False), ("suppresses", True)):
        written = cards.tokens(card, suppressed=suppressed)
        listed = ", ".join(f"{text!r} {value:+.2f}" for text, value in written)
        say(f"{what}: {listed or f'neurons of site {cards.site} write nothing directly'}")
    rows = [
        [group, f"{float(cards.mean[card, g]):+.2g}", f"{float(cards.active[card, g]):.0%}", f"{float(cards.lowest[card, g]):+.2g}",
         f"{float(cards.highest[card, g]):+.2g}",
         *_scored(cards, card, g)]
        for g, group in enumerate(cards.groups)
    ]  # fmt: skip
    table(["group", "mean", "positive", "lowest", "highest", *(f"{m} (rank)" for m in cards.methods)], rows)
    for group in cards.groups:
        for text, values in cards.examples(card, group)[:1]:
            peak = max(range(len(values)), key=lambda place: abs(values[place]))
            marked = "".join(f">>{token}<<" if place == peak else token for place, token in enumerate(text["tokens"]))
            say(f"{group}: {values[peak]:+.2g} at {text['tokens'][peak]!r} in {' '.join(marked.split())}")
    near = zip(
        cards.neighbour_layers[card].tolist(), cards.neighbour_indices[card].tolist(), cards.neighbour_cosines[card].tolist(),
        strict=True,
    )  # fmt: skip
    say(
        "nearest by weights: "
        + ", ".join(f"{cards.site}:{layer}:{index} {cosine:.2f}" for layer, index, cosine in near if layer >= 0)
    )
