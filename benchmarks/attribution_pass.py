"""One scoring pass beside its floor and its peers, on one Llama shape: time and peak memory.

- floor: forward and backward with frozen parameters and answer-only logits, nothing scored.
- neuropolis: `npl.attribute`, all layers, all groups.
- captum: `LayerGradientXActivation` with the list of all layers (one backward), full logits as a user would write it.
- captum, answer-only: the same, its forward trimmed to the answers' logits by hand.
- script: `model(labels=...)`, full backward with parameter gradients, retained activation gradients.

Every way runs in a process of its own (forked), the ways in turn and the turns repeated; printed are medians, and ratios to
the floor. Time is processor time on one thread. Peak memory is the growth of the resident set above the loaded model.

    python benchmarks/attribution_pass.py
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from processes import in_own_process, peak, resident

WAYS = ("floor", "neuropolis", "captum", "captum, answer-only", "script")


@dataclass(frozen=True)
class Shape:
    hidden: int = 512
    layers: int = 8
    ffn: int = 1408
    vocabulary: int = 32000
    examples: int = 16
    batch: int = 8
    tokens: int = 96
    answer: int = 4


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
    from captum.attr import LayerGradientXActivation
    from neuropolis.attribution.encoding import Encoded, answer_log_probs, batches
    from neuropolis.attribution.engine import Job, Reading, one_pass
    from neuropolis.attribution.methods import METHODS
    from neuropolis.attribution.objectives import OBJECTIVES
    from neuropolis.neurons.subject import load_model

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=shape.hidden, intermediate_size=shape.ffn, num_hidden_layers=shape.layers, num_attention_heads=8,
        vocab_size=shape.vocabulary,
    )  # fmt: skip
    model: Any = transformers.LlamaForCausalLM(config).eval()
    subject = load_model((model, transformers.PreTrainedTokenizerFast.__new__(transformers.PreTrainedTokenizerFast)))
    subject.tokenizer.__dict__["pad_token_id"] = 0
    ids = torch.randint(shape.vocabulary, (shape.examples, shape.tokens)).tolist()
    encoded = [Encoded(tuple(row), shape.tokens - shape.answer) for row in ids]
    groups = torch.arange(shape.examples) % 4
    site = subject.site("mlp")
    budget = shape.batch * (shape.tokens - 1)
    layers = [tap.module for tap in site.taps]

    def loss(batch: Any, **keep: Any) -> torch.Tensor:
        logits = model(input_ids=batch.input_ids, use_cache=False, **keep).logits
        return -answer_log_probs(logits[:, -batch.targets.shape[1] :], batch.targets).sum(dim=1)

    def floor() -> None:
        with subject.quiet():
            for batch in batches(encoded, max_tokens=budget):
                hidden = model.get_input_embeddings()(batch.input_ids).requires_grad_()
                logits = model(inputs_embeds=hidden, use_cache=False, logits_to_keep=batch.keep).logits
                (-answer_log_probs(logits, batch.targets).sum()).backward()

    def neuropolis() -> None:
        job = Job(subject, encoded, groups, 4, OBJECTIVES["loss"], max_tokens=budget)
        one_pass(job, [Reading(METHODS["taylor"], site)])

    def captum(trim: bool) -> None:
        with subject.quiet():
            for batch in batches(encoded, max_tokens=budget):
                keep = {"logits_to_keep": batch.keep} if trim else {}

                def of(_ids: Any, batch: Any = batch, keep: Any = keep) -> torch.Tensor:
                    return loss(batch, **keep)

                # captum differentiates by the layers' inputs, so something below them must require a gradient
                model.get_input_embeddings().weight.requires_grad_(True)
                oracle = LayerGradientXActivation(of, layers, multiply_by_inputs=True)
                parts = oracle.attribute(batch.input_ids, attribute_to_layer_input=True)
                for part in parts:
                    (part[0] if isinstance(part, tuple) else part).sum(dim=1).abs().sum(dim=0)
                model.get_input_embeddings().weight.requires_grad_(False)

    def script() -> None:
        model.requires_grad_(True)
        for batch in batches(encoded, max_tokens=budget):
            kept: list[torch.Tensor] = []
            handles = [m.register_forward_pre_hook(lambda _m, a, kept=kept: (a[0].retain_grad(), kept.append(a[0]))[2:] or None)
                       for m in layers]  # fmt: skip
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
        "floor": floor, "neuropolis": neuropolis, "captum": lambda: captum(False),
        "captum, answer-only": lambda: captum(True), "script": script,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=2, help="passes that are timed in each run")
    parser.add_argument("--repeats", type=int, default=3, help="turns")
    arguments = parser.parse_args()
    shape = Shape()
    importlib.import_module("captum.attr")
    importlib.import_module("transformer_lens.factories.architecture_adapter_factory")
    print(f"Llama shape: {asdict(shape)}, float32, one thread, {arguments.repeats} x {arguments.passes} passes")
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(arguments.repeats):
        for way in WAYS:
            runs[way].append(in_own_process(measure, way, shape, arguments.passes))
    found = {way: {key: statistics.median(r[key] for r in of_way) for key in of_way[0]} for way, of_way in runs.items()}
    base = found["floor"]
    print(f"{'way':<22} {'cpu s/pass':>10} {'ratio':>6} {'MiB above model':>16} {'ratio':>6}")
    for way, one in found.items():
        print(
            f"{way:<22} {one['seconds']:>10.3f} {one['seconds'] / base['seconds']:>6.2f} "
            f"{one['mebibytes']:>16.0f} {one['mebibytes'] / base['mebibytes']:>6.2f}"
        )


if __name__ == "__main__":
    main()
