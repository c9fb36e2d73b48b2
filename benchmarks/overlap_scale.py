"""All-pairs overlap with chance levels: 100 groups of 350,000 neurons on one thread.

Sets are the top shares of random scores whose spread over layers differs from group to group, as that of real ones does,
so that no two pairs of sets have the same chance level. Prints wall and processor time of the fastest of some runs; the
bar is 2 s for the top 1 %.
"""

from __future__ import annotations

import argparse
import time

import torch
from neuropolis.analysis.overlap import overlap
from neuropolis.neurons.sets import NeuronSet

LAYERS, WIDTH = 32, 10_938


def make_sets(groups: int, share: float) -> dict[str, NeuronSet]:
    """Random sets of one size, each with a profile over layers of its own."""
    generator = torch.Generator().manual_seed(0)
    count = round(share * LAYERS * WIDTH)
    sets = {}
    for group in range(groups):
        lean = 1 / (0.5 + torch.rand((LAYERS, 1), generator=generator))
        scores = torch.rand((LAYERS, WIDTH), generator=generator) ** lean
        mask = torch.zeros(LAYERS * WIDTH, dtype=torch.bool)
        mask[scores.flatten().topk(count).indices] = True
        sets[f"group {group}"] = NeuronSet("mlp", "benchmark", mask.view(LAYERS, WIDTH))
    return sets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, default=100)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.01, 0.1])
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for share in asked.shares:
        sets = make_sets(asked.groups, share)
        times = []
        for _ in range(asked.runs):
            wall, busy = time.perf_counter(), time.process_time()
            found = overlap(sets)
            times.append((time.perf_counter() - wall, time.process_time() - busy))
        wall, busy = min(times)
        pairs = asked.groups * (asked.groups - 1) // 2
        size = int(found.sizes[0])
        print(f"{pairs} pairs of sets of {size} of {LAYERS * WIDTH} neurons: {wall:.2f} s, processor {busy:.2f} s")


if __name__ == "__main__":
    main()
