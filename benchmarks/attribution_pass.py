"""One scoring pass beside its floor and its peers, on one shape with random weights: time and peak memory.

- floor: forward and backward to the embeddings with frozen parameters and answer-only logits, nothing scored, with torch's
  own products; and with the products that scoring uses ("floor, our products").
- neuropolis: what `npl.attribute` runs, all layers; with one group, and with sixteen.
- captum: `LayerGradientXActivation` with the list of all layers (one backward) on the model as it is loaded, full logits, and a
  softmax at the answers' positions only.
- captum, answer-only: the same with frozen parameters, its forward trimmed to the answers' logits by hand.
- captum, by layer: a call for each layer; four layers, evenly spread, are measured and multiplied.
- script: `model(labels=...)`, full backward with parameter gradients, retained activation gradients.
- mixed lengths: those of the paragraphs of this project's pages; in batches of similar lengths, and in the fixed batches of
  eight, in the order of the texts, that a loader with a padding collator makes.

Every way runs in a process of its own (forked), the ways in turn and the turns repeated; memory is the growth of the resident
set above the loaded model at its highest. What is close together is also timed in one process, pass by pass in turn. Printed
are medians, by processor time and by the clock, and their ratios beside the bars.

    python benchmarks/attribution_pass.py                  # a small Llama, a minute
    python benchmarks/attribution_pass.py --shape qwen     # Qwen2-0.5B
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from processes import in_own_process, peak, resident

WAYS = ("floor", "neuropolis", "captum", "captum, answer-only", "captum, by layer", "script")
CLOSE = (
    ("neuropolis", "floor"),
    ("neuropolis", "floor, our products"),
    ("16 groups", "neuropolis"),
    ("fixed batches", "mixed lengths"),
)
SAMPLED = 4  # layers that stand for all where captum is called layer by layer


@dataclass(frozen=True)
class Shape:
    family: str = "Llama"
    hidden: int = 512
    layers: int = 8
    ffn: int = 1408
    heads: int = 8
    kv_heads: int = 8
    vocabulary: int = 32000
    examples: int = 8
    tokens: int = 96
    answer: int = 4


SHAPES = {"small": Shape(), "qwen": Shape("Qwen2", 896, 24, 4864, 14, 2, 151_936)}
Run = Callable[[], Any]


def measure(way: str, shape: Shape, repeats: int, threads: int) -> dict[str, float]:
    """Processor and wall seconds of a pass (medians, after one to warm up), and MiB of peak above the model."""
    import torch

    torch.set_num_threads(threads)
    run = _ways(shape)[way]
    ready = resident()
    cpu, wall = zip(*[_timed(run) for _ in range(repeats + 1)], strict=True)
    times = shape.layers / SAMPLED if way == "captum, by layer" else 1.0
    return {
        "cpu": times * statistics.median(cpu[1:]), "wall": times * statistics.median(wall[1:]), "mebibytes": peak() - ready,
    }  # fmt: skip


def compare(pair: tuple[str, str], shape: Shape, repeats: int, threads: int) -> dict[str, float]:
    """The ratio of two ways that take turns in one process: the median over turns, by processor and by wall time."""
    import torch

    torch.set_num_threads(threads)
    ways = _ways(shape)
    first, second = (ways[way] for way in pair)
    _timed(first), _timed(second)
    turns = [(_timed(first), _timed(second)) for _ in range(repeats)]
    return {
        "cpu": statistics.median(a[0] / b[0] for a, b in turns),
        "wall": statistics.median(a[1] / b[1] for a, b in turns),
    }


def _timed(run: Run) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall


def _lengths() -> list[int]:
    """Tokens of 64 real texts, at four characters to the token: paragraphs of the README and of docs/."""
    root = Path(__file__).parent.parent
    pages = "\n\n".join(page.read_text() for page in [root / "README.md", *sorted((root / "docs").glob("*.md"))])
    lengths = [len(paragraph) // 4 for paragraph in pages.split("\n\n") if 40 < len(paragraph) < 2000]
    return lengths[:: max(1, len(lengths) // 64)][:64]


def _ways(shape: Shape) -> dict[str, Run]:
    import torch
    import transformers
    from neuropolis.attribution import engine
    from neuropolis.attribution.encoding import Encoded, answer_log_probs, batches
    from neuropolis.attribution.engine import Job, Reading, one_pass
    from neuropolis.attribution.methods import METHODS
    from neuropolis.attribution.objectives import OBJECTIVES
    from neuropolis.neurons.subject import load_model

    torch.manual_seed(0)
    config = getattr(transformers, f"{shape.family}Config")(
        hidden_size=shape.hidden, intermediate_size=shape.ffn, num_hidden_layers=shape.layers, vocab_size=shape.vocabulary,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, tie_word_embeddings=shape.family == "Qwen2",
    )  # fmt: skip
    model: Any = getattr(transformers, f"{shape.family}ForCausalLM")(config).eval()
    subject = load_model((model, transformers.PreTrainedTokenizerFast.__new__(transformers.PreTrainedTokenizerFast)))
    subject.tokenizer.__dict__["pad_token_id"] = 0
    site = subject.site("mlp")

    def texts(lengths: list[int]) -> list[Encoded]:
        return [Encoded(tuple(torch.randint(shape.vocabulary, (n,)).tolist()), n - shape.answer) for n in lengths]

    encoded, mixed = texts([shape.tokens] * shape.examples), texts(_lengths())
    budget = shape.examples * (shape.tokens - 1)

    def job(of: list[Encoded], groups: int) -> Job:
        return Job(subject, of, torch.arange(len(of)) % groups, groups, OBJECTIVES["loss"], max_tokens=budget)

    def floor(within: Any) -> None:
        with within():
            for batch in batches(encoded, max_tokens=budget):
                hidden = model.get_input_embeddings()(batch.input_ids).requires_grad_()
                logits = model(inputs_embeds=hidden, use_cache=False, logits_to_keep=batch.keep).logits
                (-answer_log_probs(logits, batch.targets).sum()).backward()

    def fixed() -> None:
        readings = [Reading(METHODS["taylor"], site)]
        one = job(mixed, 1)
        for first in range(0, len(mixed), shape.examples):
            engine.run_batch(one, readings, list(range(len(mixed)))[first : first + shape.examples])

    def ours(of: list[Encoded], groups: int) -> Run:
        return lambda: one_pass(job(of, groups), [Reading(METHODS["taylor"], site)])

    def peer(way: str) -> Run:
        return lambda: _peers(subject, shape, encoded, budget)[way]()

    return {
        "floor": lambda: floor(subject.quiet), "floor, our products": lambda: floor(subject.scoring),
        "neuropolis": ours(encoded, 1), "16 groups": ours(encoded, 16), "mixed lengths": ours(mixed, 1),
        "fixed batches": fixed, **{way: peer(way) for way in WAYS[2:]},
    }  # fmt: skip


def _peers(subject: Any, shape: Shape, encoded: list[Any], budget: int) -> dict[str, Run]:
    import torch
    from captum.attr import LayerGradientXActivation
    from neuropolis.attribution.encoding import answer_log_probs, batches

    model = subject.model
    layers = [tap.module for tap in subject.site("mlp").taps]

    def captum(modules: list[Any], *, trim: bool) -> None:
        with subject.quiet() if trim else nullcontext():
            for batch in batches(encoded, max_tokens=budget):
                keep = {"logits_to_keep": batch.keep} if trim else {}

                def of(ids: torch.Tensor, batch: Any = batch, keep: Any = keep) -> torch.Tensor:
                    logits = model(input_ids=ids, use_cache=False, **keep).logits
                    return -answer_log_probs(logits[:, -batch.targets.shape[1] :], batch.targets).sum(dim=1)

                if trim:  # captum differentiates by the layers' inputs, so something below them must require a gradient
                    model.get_input_embeddings().weight.requires_grad_(True)
                method = LayerGradientXActivation(of, modules, multiply_by_inputs=True)
                for part in method.attribute(batch.input_ids, attribute_to_layer_input=True):
                    (part[0] if isinstance(part, tuple) else part).sum(dim=1).abs().sum(dim=0)
                if trim:
                    model.get_input_embeddings().weight.requires_grad_(False)

    def by_layer() -> None:
        for number in range(SAMPLED):
            captum([layers[round((number + 0.5) * len(layers) / SAMPLED)]], trim=False)

    def script() -> None:
        model.requires_grad_(True)
        for batch in batches(encoded, max_tokens=budget):
            kept: list[torch.Tensor] = []

            def keep(_module: Any, args: Any, kept: list[torch.Tensor] = kept) -> None:
                args[0].retain_grad()
                kept.append(args[0])

            handles = [module.register_forward_pre_hook(keep) for module in layers]
            labels = torch.full_like(batch.input_ids, -100)
            labels[:, -shape.answer :] = batch.input_ids[:, -shape.answer :]
            model(input_ids=batch.input_ids, labels=labels, use_cache=False).loss.backward()
            for x in kept:
                assert x.grad is not None
                (x.grad * x).sum(dim=1).abs().sum(dim=0)
            for handle in handles:
                handle.remove()
            model.zero_grad()

    return {
        "captum": lambda: captum(layers, trim=False), "captum, answer-only": lambda: captum(layers, trim=True),
        "captum, by layer": by_layer, "script": script,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--passes", type=int, default=3, help="passes that are timed in each run")
    parser.add_argument("--repeats", type=int, default=2, help="turns")
    parser.add_argument("--only", choices=("ways", "close"), default=None, help="one of the two tables")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="some of the ways")
    arguments = parser.parse_args()
    shape = SHAPES[arguments.shape]
    importlib.import_module("captum.attr")
    importlib.import_module("transformer_lens.factories.architecture_adapter_factory")
    print(f"{asdict(shape)}, float32, {arguments.threads} threads, {arguments.repeats} x {arguments.passes} passes")
    how = shape, arguments.passes, arguments.threads
    if arguments.only != "close":
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in arguments.ways}
        for _ in range(arguments.repeats):
            for way in arguments.ways:
                runs[way].append(in_own_process(measure, way, *how))
        _print_ways(
            {way: {k: statistics.median(r[k] for r in of_way) for k in of_way[0]} for way, of_way in runs.items()}
        )
    if arguments.only != "ways":
        _print_close({pair: in_own_process(compare, pair, *how) for pair in CLOSE})


def _print_ways(found: dict[str, dict[str, float]]) -> None:
    print(f"\n{'way':<22} {'cpu s':>8} {'wall s':>8} {'MiB above model':>16}")
    for way, one in found.items():
        print(f"{way:<22} {one['cpu']:>8.2f} {one['wall']:>8.2f} {one['mebibytes']:>16.0f}")
    if "neuropolis" not in found:
        return
    ours = found["neuropolis"]
    print(f"\n{'neuropolis to':<46} {'cpu':>6} {'wall':>6} {'bar':>8}")
    bars = {"captum": "<= 0.70", "captum, answer-only": "-", "script": "<= 0.45", "captum, by layer": "<= 0.10"}
    for way, bar in ((way, bar) for way, bar in bars.items() if way in found):
        print(f"{way:<46} {ours['cpu'] / found[way]['cpu']:>6.2f} {ours['wall'] / found[way]['wall']:>6.2f} {bar:>8}")
    print(
        f"{'captum, peak memory':<46} {ours['mebibytes'] / found['captum']['mebibytes']:>6.2f} {'':>6} {'<= 0.70':>8}"
    )


def _print_close(found: dict[tuple[str, str], dict[str, float]]) -> None:
    print(f"\n{'pass by pass in one process':<46} {'cpu':>6} {'wall':>6} {'bar':>8}")
    for (first, second), bar in zip(CLOSE, ("<= 1.08", "-", "<= 1.05", ">= 1.50"), strict=True):
        ratio = found[first, second]
        print(f"{f'{first} to {second}':<46} {ratio['cpu']:>6.2f} {ratio['wall']:>6.2f} {bar:>8}")


if __name__ == "__main__":
    main()
