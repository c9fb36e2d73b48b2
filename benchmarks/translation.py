"""LANDeRMT beside other ways of tuning, on the bundled translation task: gain in one language pair, forgetting in others.

The bundled model translates the statements about its twelve cultures almost without a mistake, so what is learned are
statements about countries that it never saw, in one direction at a time; what may be forgotten are the twelve cultures'
statements in the other five. Prints the tables of docs/landermt.md; `--search` the dev figures that its rates come from.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace

import neuropolis as npl
import torch
from neuropolis.attribution.language_pairs import PairNeurons, pair_neurons
from neuropolis.attribution.layer_change import relevant_layers
from neuropolis.corpora.examples import Corpus
from neuropolis.corpora.translations import language_pairs
from neuropolis.finetune.compare_translation import TranslationTable, compare_translation

PAIRS = ["en-es", "en-zh", "es-en", "es-zh", "zh-en", "zh-es"]
CULTURES = ("ethiopia", "georgia")
GRID = {
    "landermt": (3e-4, 1e-3, 3e-3), "slice": (3e-4, 1e-3, 3e-3), "random": (1e-3, 3e-3, 1e-2), "lora": (1e-3, 3e-3, 1e-2),
    "layers": (1e-4, 3e-4, 1e-3), "full": (1e-4, 3e-4, 1e-3),
}  # fmt: skip
CHOSEN = {"landermt": 1e-3, "slice": 1e-3, "random": 3e-3, "lora": 3e-3, "layers": 3e-4, "full": 2e-4}


def thinned(corpus: Corpus, every: int) -> Corpus:
    """Every so-manieth example of each group."""
    rows = [e for group in corpus.groups for e in corpus.only(group).examples[::every]]
    return replace(corpus, examples=tuple(rows))


def located(subject: npl.Subject, known: Corpus, *, top: int, aware: float) -> tuple[tuple[int, ...], PairNeurons]:
    """Layers and neurons, from the training wordings of what the subject knows in all six pairs."""
    layers = relevant_layers(subject, thinned(known.only(split="train"), 4), top=top).layers
    scores = npl.attribute(subject, thinned(known.only(split="train"), 4))
    return layers, pair_neurons(scores, layers=layers, aware=aware)


class Comparison:
    """What all pairs share."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.subject = npl.load_model("bundled:polis", device="cpu")
        self.known = language_pairs(npl.load_corpus("bundled:polis-tasks").only(task="translate"))
        self.layers, self.neurons = located(self.subject, self.known, top=arguments.layers, aware=arguments.aware)
        sizes = {"general": len(self.neurons.general), **{p: len(s) for p, s in self.neurons.specific.items()}}
        print(f"layers {self.layers}; neurons {sizes}", flush=True)

    def __call__(self, pair: str, split: str, rates: dict[str, float], seeds: range) -> TranslationTable:
        new = npl.load_corpus("bundled:polis-new-translations", groups=pair)
        new = replace(new, examples=tuple(e for e in new if e.tags["group"] in CULTURES))
        return compare_translation(
            self.subject, new.only(split="train"), self.neurons, new=new.only(split=split),
            known=thinned(self.known.only(split=split), self.arguments.every), layers=self.layers,
            methods=tuple(rates), rates=rates, seeds=seeds, steps=self.arguments.steps,
            batch_size=self.arguments.batch_size,
            progress=lambda done, of: print(f"  {pair}: {done} of {of} runs", file=sys.stderr, flush=True),
        )  # fmt: skip


def search(compared: Comparison, pair: str) -> None:
    """Gain and forgetting of each method at three rates, on the dev wordings of one pair and one seed."""
    for place in range(3):
        rates = {method: grid[place] for method, grid in GRID.items()}
        table = compared(pair, "dev", rates, range(1))
        for row, method in enumerate(table.methods):
            gain, lost = float(table.gain()[row, 0]), float(table.forgetting()[row, 0])
            print(f"{method:9} {rates[method]:.0e}  gain {gain:6.1f}  forgotten {lost:6.1f}", flush=True)


def interval(values: torch.Tensor) -> str:
    """Mean and the half width of its 95 % t interval over runs."""
    from scipy.stats import t

    flat = values.flatten().double()
    half = float(t.ppf(0.975, len(flat) - 1)) * float(flat.std()) / math.sqrt(len(flat)) if len(flat) > 1 else math.nan
    return f"{float(flat.mean()):.1f} ± {half:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", nargs="+", default=PAIRS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--aware", type=float, default=0.2)
    parser.add_argument("--every", type=int, default=4, help="one in so many of the known sentences is asked")
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--out", default=None, help="an atlas to write the tables into")
    arguments = parser.parse_args()
    compared = Comparison(arguments)
    if arguments.search:
        return search(compared, arguments.pairs[0])
    tables = {}
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    for pair in arguments.pairs:
        tables[pair] = compared(pair, "test", CHOSEN, seeds)
        if arguments.out:
            npl.save(arguments.out, **{f"translations_{pair.replace('-', '_')}": tables[pair]})
        show(pair, tables[pair])
    print(
        "\nall pairs: gain chrF, gain BLEU, forgotten chrF, forgotten BLEU in the other pairs, and in the own pair (chrF)"
    )
    for row, method in enumerate(CHOSEN):
        cells = [
            torch.stack([call(table)[row] for table in tables.values()])
            for call in (
                TranslationTable.gain, lambda t: t.gain("bleu"), TranslationTable.forgetting,
                lambda t: t.forgetting("bleu"), lambda t: -t.change("known", own=True),
            )
        ]  # fmt: skip
        print("| " + " | ".join([method, *map(interval, cells)]) + " |")
    return None


def show(pair: str, table: TranslationTable) -> None:
    """One pair's table: every column before and after (mean over seeds), chrF / BLEU."""
    print("| " + " | ".join([f"learned {pair}", "numbers", *(f"{part} {p}" for part, p in table.columns)]) + " |")
    print("| before | | " + " | ".join(f"{c:.1f} / {b:.1f}" for c, b in table.before.t().tolist()) + " |")
    for row, method in enumerate(table.methods):
        cells = " | ".join(f"{c:.1f} / {b:.1f}" for c, b in table.after[row].mean(dim=0).t().tolist())
        print(f"| {method} | {int(table.trainable[row])} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
