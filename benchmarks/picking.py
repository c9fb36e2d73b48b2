"""Does it matter which half of a corpus neurons are located on? The half that a dual-model score picks, beside random halves.

Large is the bundled model; small is another one (`--small`), or the same with a share of its neurons silenced, drawn at random in
every layer. English training wordings of the twelve cultures are scored; each half locates its sets (1 % of the neurons,
contrast with the other cultures); these are held against each other by stability and by effect. Prints the tables of
docs/corpora.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import neuropolis as npl
import torch
from neuropolis.attribution.difficulty import Difficulty, difficulty, dual_scores
from neuropolis.attribution.difficulty_files import with_scores
from neuropolis.corpora.examples import Corpus
from neuropolis.corpora.facts import stable_hash
from neuropolis.corpora.picking import pick
from torch import Tensor

Sets = Mapping[str, npl.NeuronSet]
TOP = 0.01


def drawn_share(subject: npl.Subject, share: float, seed: int) -> npl.NeuronSet:
    """Such a share of the neurons of every layer."""
    place = subject.site("mlp")
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        layer: torch.randperm(place.width, generator=generator)[: round(share * place.width)].tolist()
        for layer in range(place.num_layers)
    }
    return npl.NeuronSet.from_indices(subject, site="mlp", indices=drawn)


def small_difficulty(subject: npl.Subject, corpus: Corpus, arguments: argparse.Namespace) -> Difficulty:
    if arguments.small is not None:
        return difficulty(npl.load_model(arguments.small, device="cpu"), corpus)
    with npl.intervene(subject, drawn_share(subject, arguments.silenced, arguments.seed), kind="zero"):
        return difficulty(subject, corpus)


def random_half(corpus: Corpus, seed: int, per: Literal["group", "item"] = "group") -> Corpus:
    """A random half of every group, or of every item."""
    drawn = (replace(e, tags={**e.tags, "draw": str(stable_hash("half", str(seed), e.id))}) for e in corpus)
    return pick(replace(corpus, examples=tuple(drawn)), "draw", per=per).corpus


def halves(corpus: Corpus, number: int) -> dict[str, Corpus]:
    """What neurons are located on."""
    found = {
        "all": corpus, "highest dual": pick(corpus, "dual").corpus, "lowest dual": pick(corpus, "dual", lowest=True).corpus,
        "highest IFD of the large": pick(corpus, "ifd_large").corpus,
    }  # fmt: skip
    found["highest dual of each item"] = pick(corpus, "dual", per="item").corpus
    found |= {f"random {seed}": random_half(corpus, seed) for seed in range(number)}
    return found | {f"of each item, random {seed}": random_half(corpus, seed, "item") for seed in range(number)}


def of_rows(scores: npl.Scores, chosen: Tensor) -> npl.Scores:
    """The scores over some of the rows."""
    assert scores.rows is not None
    assert scores.row_groups is not None
    assert scores.row_items is not None
    rows, groups = scores.rows[chosen], scores.row_groups[chosen]
    means = [
        torch.stack([change(rows[groups == g]).mean(dim=0) for g in range(len(scores.groups))])
        for change in (torch.abs, lambda x: x, torch.square)
    ]
    return replace(
        scores, values=means[0], signed=means[1], squares=means[2], counts=groups.bincount(), rows=rows, row_groups=groups,
        row_items=scores.row_items[chosen],
    )  # fmt: skip


def selected(scores: npl.Scores) -> Sets:
    return npl.select(scores, top=TOP, contrast="others")


def jaccards(a: Sets, b: Sets) -> Tensor:
    """By group."""
    return torch.tensor([len(a[group] & b[group]) / len(a[group] | b[group]) for group in a])


def measured(
    subject: npl.Subject, parts: Mapping[str, Corpus], test: Corpus, unseen: Corpus, resamples: int
) -> dict[str, Tensor]:
    """By part [measure, group]: stability over items, agreement with the sets of unseen wordings, own effect, own less other.

    One pass scores every row; a part's scores are the means over its rows. Stability is how often a set's neurons are selected
    again on random halves of the part's items.
    """
    whole = npl.attribute(subject, parts["all"], split=None, keep_rows=True)
    ids = [e.id for e in parts["all"]]
    kept = {name: {e.id for e in part} for name, part in parts.items()}
    scores = {name: of_rows(whole, torch.tensor([id in own for id in ids])) for name, own in kept.items()}
    sets = {name: selected(one) for name, one in scores.items()}
    other = selected(npl.attribute(subject, unseen, split=None))
    again = {}
    for name, one in scores.items():
        often = npl.stable(one, top=TOP, contrast="others", resamples=resamples).frequency
        steady = torch.stack([often[g][sets[name][group].mask].mean() for g, group in enumerate(one.groups)])
        again[name] = [steady, jaccards(sets[name], other)]
        print(f"{name}: stability {steady.mean():.3f}, agreement {again[name][1].mean():.3f}", flush=True)
    tried = {f"{name}@{group}": s for name, own in sets.items() for group, s in own.items()}
    owners = {f"{name}@{group}": group for name, own in sets.items() for group in own}
    effects = npl.ablate(subject, test, tried, metric="loss", controls=0, owners=owners, split=None)
    change, away = effects.own(effects.effect), effects.others(effects.effect)
    groups = len(whole.groups)
    return {
        name: torch.stack(
            [*again[name], change[place : place + groups].float(), (change - away)[place : place + groups].float()]
        )
        for name, place in zip(parts, range(0, len(tried), groups), strict=True)
    }


def told(found: Mapping[str, Tensor], parts: Mapping[str, Corpus]) -> None:
    """Means over groups; for the random halves their mean and range; and how far each part is from the mean random half."""
    rows = {name: values.mean(dim=1) for name, values in found.items() if "random" not in name}
    drawn = {}
    for kind in ("random", "of each item, random"):
        drawn[kind] = torch.stack(
            [values for name, values in found.items() if name.startswith(kind)]
        )  # [half, measure, group]
        rows[f"{kind}: mean"] = drawn[kind].mean(dim=(0, 2))
        for end in ("amin", "amax"):
            rows[f"{kind}: {end[1:]}"] = getattr(drawn[kind].mean(dim=2), end)(dim=0)
    print("| located on | items | stability | agreement | own loss | own less others |\n|---|---|---|---|---|---|")
    for name, values in rows.items():
        items = len({e.item for e in parts[name]}) if name in parts else ""
        print(f"| {name} | {items} | " + " | ".join(f"{value:.3f}" for value in values.tolist()) + " |")
    for name in ("highest dual", "lowest dual", "highest dual of each item"):
        beside = drawn["of each item, random" if "item" in name else "random"]
        difference = found[name] - beside.mean(dim=0)  # [measure, group]
        error = difference.std(dim=1) / difference.shape[1] ** 0.5
        ends = zip(difference.mean(dim=1).tolist(), error.tolist(), strict=True)
        cells = [f"{m:+.3f} ({m - 2.2 * e:+.3f} to {m + 2.2 * e:+.3f})" for m, e in ends]
        print(f"{name} less the mean random one, with a 95 % t interval over the groups: {'; '.join(cells)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", help="a model to stand for the small one")
    parser.add_argument(
        "--silenced", type=float, default=0.2, help="without --small: share of the neurons that it lacks"
    )
    parser.add_argument("--halves", type=int, default=10, help="random halves")
    parser.add_argument("--resamples", type=int, default=10, help="resamples of a half's items")
    parser.add_argument("--every", type=int, default=1, help="of the test questions, every so-manieth of a group")
    parser.add_argument("--seed", type=int, default=0, help="of which neurons it lacks")
    arguments = parser.parse_args()
    started = time.monotonic()
    subject = npl.load_model("bundled:polis", device="cpu")
    english = npl.load_corpus("bundled:polis").only(language="en")
    train = english.only(split="train")
    large, small = difficulty(subject, train), small_difficulty(subject, train, arguments)
    rank = torch.stack([dual_scores(small.ifd, large.ifd), large.ifd]).argsort(dim=1).argsort(dim=1).double()
    print(f"loss of the answers in nats a token: small {small.given.mean():.3f}, large {large.given.mean():.3f}")
    print(f"IFD: small {small.ifd.median():.3f}, large {large.ifd.median():.3f} (medians)")
    print(
        f"Spearman's correlation of the dual score and the large model's IFD {torch.corrcoef(rank)[0, 1]:.2f}",
        flush=True,
    )
    parts = halves(with_scores(train, small, large), arguments.halves)
    test = english.only(split="test")
    test = replace(test, examples=tuple(e for g in test.groups for e in test.only(g).examples[:: arguments.every]))
    told(measured(subject, parts, test, english.only(split="dev"), arguments.resamples), parts)
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
