"""Step time and peak memory of neuron-only training beside the usual ways, on one Llama shape.

Every way runs the same number of steps in a process of its own (forked, so that libraries are read once), the ways in
turn and the turns repeated; printed are medians, and ratios to the slice. Time is processor time on one thread, which
other work on the machine moves less than the clock on the wall. Peak memory is the growth of the process's
resident set above the loaded model.

    python benchmarks/slice_training.py
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from processes import in_own_process, peak, resident

WAYS = ("slice", "full", "masked full", "lora")
Step = Callable[[], None]


@dataclass(frozen=True)
class Shape:
    hidden: int = 512
    layers: int = 8
    ffn: int = 1408
    vocabulary: int = 8192
    batch: int = 8
    tokens: int = 128
    share: float = 0.05


def measure(way: str, shape: Shape, steps: int) -> dict[str, float]:
    """Processor seconds of a step (median, after one to warm up), MiB of peak above the model, trained numbers."""
    import torch
    import transformers

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=shape.hidden, intermediate_size=shape.ffn, num_hidden_layers=shape.layers, num_attention_heads=8,
        vocab_size=shape.vocabulary,
    )  # fmt: skip
    model: Any = transformers.LlamaForCausalLM(config).eval()
    ids = torch.randint(shape.vocabulary, (shape.batch, shape.tokens))
    with _opened(way, model, shape) as (trained, after_backward):
        # foreach would gather every gradient at once and count its own temporaries
        optimizer = torch.optim.AdamW(trained, lr=1e-4, foreach=False)
        ready = resident()
        seconds = []
        for _ in range(steps + 1):
            start = time.process_time()
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            after_backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(time.process_time() - start)
        count = sum(parameter.numel() for parameter in trained)
    return {"seconds": statistics.median(seconds[1:]), "mebibytes": peak() - ready, "trained": count}


@contextmanager
def _opened(way: str, model: Any, shape: Shape) -> Iterator[tuple[list[Any], Step]]:
    """The model made ready for a way of training: what its optimizer holds, and what it does after the backward."""
    import torch
    from neuropolis.finetune.trainable import trainable_slice
    from neuropolis.neurons.sets import NeuronSet
    from neuropolis.neurons.subject import load_model
    from transformers import PreTrainedTokenizerFast

    subject = load_model((model, PreTrainedTokenizerFast.__new__(PreTrainedTokenizerFast)))
    generator = torch.Generator().manual_seed(0)
    per_layer = round(shape.share * shape.ffn)
    chosen = {layer: torch.randperm(shape.ffn, generator=generator)[:per_layer] for layer in range(shape.layers)}
    neurons = NeuronSet.from_indices(subject, indices={layer: index.tolist() for layer, index in chosen.items()})
    if way == "slice":
        with trainable_slice(subject, neurons) as trainable:
            yield list(trainable.masters), lambda: None
    elif way == "full":
        yield list(model.parameters()), lambda: None
    elif way == "masked full":
        yield _masked(model, chosen)
    else:
        yield _lora(model, 3 * per_layer * shape.hidden * shape.layers, shape), lambda: None


def _masked(model: Any, chosen: dict[int, Any]) -> tuple[list[Any], Step]:
    """Whole FFN matrices in the optimizer, their gradients zeroed outside of the rows and columns."""
    import torch

    model.requires_grad_(False)
    masks = {}
    for layer, index in chosen.items():
        mlp = model.model.layers[layer].mlp
        for projection in (mlp.gate_proj, mlp.up_proj, mlp.down_proj):
            weight = projection.weight.requires_grad_(True)
            masks[weight] = torch.zeros_like(weight)
            if projection is mlp.down_proj:
                masks[weight][:, index] = 1
            else:
                masks[weight][index] = 1

    def mask() -> None:
        for weight, kept in masks.items():
            weight.grad.mul_(kept)

    return list(masks), mask


def _lora(model: Any, budget: int, shape: Shape) -> list[Any]:
    """PEFT's LoRA on the FFN's three projections, at the rank whose trained numbers come nearest to the slice's."""
    from peft import LoraConfig, get_peft_model

    of_one_rank = 3 * shape.layers * (shape.hidden + shape.ffn)
    rank = max(1, round(budget / of_one_rank))
    adapted = get_peft_model(model, LoraConfig(r=rank, target_modules=["gate_proj", "up_proj", "down_proj"]))
    return [parameter for parameter in adapted.parameters() if parameter.requires_grad]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3, help="steps that are timed in each run")
    parser.add_argument("--repeats", type=int, default=2, help="turns")
    arguments = parser.parse_args()
    shape = Shape()
    importlib.import_module("peft")
    importlib.import_module("transformer_lens.factories.architecture_adapter_factory")
    print(f"Llama shape: {asdict(shape)}, AdamW, float32, one thread, {arguments.repeats} x {arguments.steps} steps")
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(arguments.repeats):
        for way in WAYS:
            runs[way].append(in_own_process(measure, way, shape, arguments.steps))
    found = {
        way: {key: statistics.median(run[key] for run in of_way) for key in of_way[0]} for way, of_way in runs.items()
    }
    base = found["slice"]
    print(f"{'way':<12} {'trained':>11} {'cpu s/step':>10} {'ratio':>6} {'MiB above model':>16} {'ratio':>6}")
    for way, one in found.items():
        print(
            f"{way:<12} {one['trained']:>11,.0f} {one['seconds']:>10.3f} {one['seconds'] / base['seconds']:>6.2f} "
            f"{one['mebibytes']:>16.0f} {one['mebibytes'] / base['mebibytes']:>6.2f}"
        )


if __name__ == "__main__":
    main()
