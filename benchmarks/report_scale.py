"""How long a report of a large study takes, how large the page is, and how much memory reading the atlas needs.

    python benchmarks/report_scale.py                        # 100 groups x 350,000 neurons
    python benchmarks/report_scale.py --groups 20            # the bar for the size of the page

An atlas with scores, sets, effects, overlap and similarity is written by one process from random numbers (no model), and read
by another, whose largest resident memory is taken. It has no cards, ranks, trees or curves: a report with those takes longer and
is larger. Run from an installed package (pip install -e .). Bars: page under 60 s, reading under 1 GB; under 5 MB for 20 groups.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SUBJECT = "0123456789abcdef"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=100)
    parser.add_argument("--layers", type=int, default=50)
    parser.add_argument("--width", type=int, default=7_000)
    parser.add_argument("--items", type=int, default=50, help="questions of every group")
    parser.add_argument("--controls", type=int, default=20)
    parser.add_argument("--keep", type=Path, help="folder for atlas and page; by default they are thrown away")
    parser.add_argument(
        "--step", choices=("write", "report"), help="one step, in this process (used by the script itself)"
    )
    options = parser.parse_args()
    if options.step == "write":
        write(options, options.keep)
    elif options.step == "report":
        report(options.keep)
    elif options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
        both(options.keep)
    else:
        with tempfile.TemporaryDirectory() as folder:
            both(Path(folder))


def both(folder: Path) -> None:
    """Each step in a process of its own, so that its memory is its own."""
    for step in ("write", "report"):
        command = [sys.executable, __file__, *sys.argv[1:], "--keep", str(folder), "--step", step]
        print(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip(), flush=True)


def write(options: argparse.Namespace, folder: Path) -> None:
    """An atlas of real artefacts filled with random numbers."""
    import torch
    from neuropolis.analysis.effects import Effects
    from neuropolis.analysis.overlap import overlap
    from neuropolis.analysis.similarity import Similarity
    from neuropolis.analysis.study import save
    from neuropolis.attribution.selection import select
    from neuropolis.neurons.scores import Scores

    G, L, N = options.groups, options.layers, options.width
    groups = tuple(f"group {number}" for number in range(G))
    generator = torch.Generator().manual_seed(0)
    values = torch.rand((G, L, N), generator=generator).pow_(8)
    scores = Scores("mlp", SUBJECT, groups, values, values - 0.1, values.square() * 1.2, torch.full((G,), 20))
    sets = select(scores, top=0.01)
    began = time.perf_counter()
    shared = overlap(sets)
    overlap_seconds = time.perf_counter() - began
    asked = G * options.items
    group_index = torch.arange(G).repeat_interleave(options.items)
    base = torch.rand(asked, generator=generator) < 0.9
    own = group_index[None] == torch.arange(G)[:, None]
    lost = torch.rand((G, asked), generator=generator) < torch.where(own, 0.5, 0.05)
    spared = torch.rand((G, options.controls, asked), generator=generator) > 0.03
    effects = Effects(
        "mlp", SUBJECT, "zero", "choice", groups, groups, group_index, torch.arange(asked), base, base & ~lost,
        base & spared, torch.tensor([len(sets[group]) for group in groups]),
    )  # fmt: skip
    alike = torch.rand((G, G, L), generator=generator)
    similarity = Similarity(
        "mlp", SUBJECT, groups, torch.full((G, L), N // 100), alike, alike * 0.9, alike * 0.1, alike * 0.1 - 0.1,
        alike * 0.1 + 0.1,
    )  # fmt: skip
    began = time.perf_counter()
    path = save(folder / "study.h5", scores, sets, effects, shared, similarity, subject={"fingerprint": SUBJECT})
    said = {
        "groups": G, "neurons": L * N, "overlap_seconds": round(overlap_seconds, 1),
        "save_seconds": round(time.perf_counter() - began, 1), "atlas_MB": round(path.stat().st_size / 1e6, 1),
        "peak_MB": peak(),
    }  # fmt: skip
    print("write ", json.dumps(said))


def report(folder: Path) -> None:
    """The page of that atlas."""
    from neuropolis.figures.report import report as write_page

    began = time.perf_counter()
    path = write_page(folder / "study.h5", folder / "report.html")
    said = {
        "seconds": round(time.perf_counter() - began, 1), "processor_seconds": round(time.process_time(), 1),
        "page_MB": round(path.stat().st_size / 1e6, 2), "peak_MB": peak(),
    }  # fmt: skip
    print("report", json.dumps(said))


def peak() -> int:
    """The largest resident memory of this process so far, in MB."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(kilobytes / (1e6 if sys.platform == "darwin" else 1e3))


if __name__ == "__main__":
    main()
