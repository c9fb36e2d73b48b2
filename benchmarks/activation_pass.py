"""LAPE's statistics for all languages in one pass beside a plain forward: time and peak memory.

- plain: `model(input_ids)` on the same batches, as users run it: logits of every token.
- plain, answer-only: the same with logits where the answers are, and no others.
- lape: `one_pass` with the method `lape` (P(act > 0) of every unit for every language) on the same examples.
- active, mean, max, weighted: each of these methods with `lape` in one pass.

`--short` makes most examples shorter, so that batches have padding that must not count. Every way runs in a process of its own
(forked), the ways in turn and the turns repeated; printed are medians, and ratios to both plain forwards. Time is processor
time on one thread. Peak memory is the growth of the resident set above the loaded model.

    python benchmarks/activation_pass.py [--qwen]
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from processes import in_own_process, peak, resident

PLAIN, TRIMMED = "plain", "plain, answer-only"
WAYS = (PLAIN, TRIMMED, "lape", "lape + 4 more")


@dataclass(frozen=True)
class Shape:
    """A Qwen2 shape, smaller by default than the 0.5B (`--qwen`)."""

    hidden: int = 512
    layers: int = 8
    ffn: int = 2816
    heads: int = 8
    kv_heads: int = 2
    vocabulary: int = 32000
    examples: int = 16
    batch: int = 8
    tokens: int = 96
    answer: int = 4
    languages: int = 7
    short: bool = False


QWEN = Shape(896, 24, 4864, 14, 2, 151936)


def measure(way: str, shape: Shape, repeats: int) -> dict[str, float]:
    """Processor seconds of a pass over the corpus (median, after one to warm up) and MiB of peak above the model."""
    import torch

    torch.set_num_threads(1)
    run = _ways(shape)[way]
    ready = resident()
    seconds = []
    for _ in range(repeats + 1):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return {"seconds": statistics.median(seconds[1:]), "mebibytes": peak() - ready}


def _ways(shape: Shape) -> dict[str, Callable[[], Any]]:
    import torch
    import transformers
    from neuropolis.attribution.attribute import method_named
    from neuropolis.attribution.encoding import Encoded, batches
    from neuropolis.attribution.engine import Job, Reading, one_pass
    from neuropolis.attribution.objectives import OBJECTIVES
    from neuropolis.neurons.subject import load_model

    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        hidden_size=shape.hidden, intermediate_size=shape.ffn, num_hidden_layers=shape.layers, vocab_size=shape.vocabulary,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, tie_word_embeddings=True,
    )  # fmt: skip
    model: Any = transformers.Qwen2ForCausalLM(config).eval()
    subject = load_model((model, transformers.PreTrainedTokenizerFast.__new__(transformers.PreTrainedTokenizerFast)))
    subject.tokenizer.__dict__["pad_token_id"] = 0
    ids = torch.randint(shape.vocabulary, (shape.examples, shape.tokens)).tolist()
    cut = [len(row) - (number % 8) * 4 * shape.short for number, row in enumerate(ids)]
    encoded = [Encoded(tuple(row[:end]), end - shape.answer) for row, end in zip(ids, cut, strict=True)]
    groups = torch.arange(shape.examples) % shape.languages
    units = subject.site("mlp")
    budget = shape.batch * (shape.tokens - 1)

    def plain(trim: bool) -> None:
        with torch.no_grad():
            for batch in batches(encoded, max_tokens=budget):
                keep = {"logits_to_keep": batch.keep} if trim else {}
                model(input_ids=batch.input_ids, use_cache=False, **keep)

    def read(*names: str) -> None:
        job = Job(subject, encoded, groups, shape.languages, OBJECTIVES["loss"], max_tokens=budget)
        methods = [method_named(name) for name in names]
        one_pass(job, [Reading(m, m.place(subject, units) if m.place else units) for m in methods])

    return {
        PLAIN: lambda: plain(False), TRIMMED: lambda: plain(True), "lape": lambda: read("lape"),
        "lape + 4 more": lambda: read("lape", "active", "mean", "max", "weighted"),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=3, help="passes that are timed in each run")
    parser.add_argument("--repeats", type=int, default=3, help="turns")
    parser.add_argument("--qwen", action="store_true", help="the shape of Qwen2-0.5B")
    parser.add_argument("--short", action="store_true", help="examples of many lengths")
    arguments = parser.parse_args()
    shape = replace(QWEN if arguments.qwen else Shape(), short=arguments.short)
    importlib.import_module("neuropolis.attribution.attribute")
    importlib.import_module("transformer_lens.factories.architecture_adapter_factory")
    print(f"Qwen2 shape: {asdict(shape)}, float32, one thread, {arguments.repeats} x {arguments.passes} passes")
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(arguments.repeats):
        for way in WAYS:
            runs[way].append(in_own_process(measure, way, shape, arguments.passes))
    found = {way: {key: statistics.median(r[key] for r in of_way) for key in of_way[0]} for way, of_way in runs.items()}
    print(f"{'way':<20} {'cpu s/pass':>10} {'to plain':>9} {'to answer-only':>15} {'MiB above model':>16}")
    for way, one in found.items():
        seconds = one["seconds"]
        print(
            f"{way:<20} {seconds:>10.3f} {seconds / found[PLAIN]['seconds']:>9.3f} "
            f"{seconds / found[TRIMMED]['seconds']:>15.3f} {one['mebibytes']:>16.0f}"
        )


if __name__ == "__main__":
    main()
