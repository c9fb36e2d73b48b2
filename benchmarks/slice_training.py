"""Step time and peak memory of neuron-only training beside the usual ways, on a Llama of 110 million parameters.

With `--torch-products` oneDNN is off and every product is the one that torch calls (MKL for float32).

Every way lives in a process of its own (forked, so that libraries are read once) and the ways take one step each in
turn, so that other work on the machine falls on all of them. All compute the same loss of the same logits,
`model(input_ids=, labels=)`, in float32, with AdamW. Printed are medians over the rounds of the processor's and the
wall's seconds, medians of the ratios within a round, and memory: the peak of the resident set of the
whole process and its growth above the loaded model. `state` is what the optimizer holds.

- slice: `trainable_slice`, 5 % of the FFN neurons, rows of gate and up and columns of down
- lora: PEFT's LoRA on gate, up and down, at the rank whose trained numbers come nearest to the slice's
- masked full: the FFN's whole matrices in the optimizer, their gradients zeroed outside of the slice
- full: every parameter
- floor: nothing is trained, the backward goes through frozen weights down to the embeddings

    python benchmarks/slice_training.py --threads 2
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from processes import Turns, peak, resident, taking_turns

WAYS = ("slice", "lora", "masked full", "full", "floor")
Step = Callable[[], None]


@dataclass(frozen=True)
class Shape:
    hidden: int = 768
    layers: int = 12
    heads: int = 12
    ffn: int = 2048
    vocabulary: int = 32000
    tied: bool = True
    batch: int = 8
    tokens: int = 128
    share: float = 0.05


@dataclass(frozen=True)
class Way:
    """What a way's optimizer holds and what it does between the backward and the optimizer's step."""

    trained: list[Any]
    after_backward: Step = lambda: None


def steps(way: str, shape: Shape, threads: int, torch_products: bool) -> Iterator[dict[str, float]]:
    """One training step for every figure that is asked for."""
    import torch
    import transformers

    torch.set_num_threads(threads)
    torch.backends.mkldnn.enabled = not torch_products
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=shape.hidden, intermediate_size=shape.ffn, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, vocab_size=shape.vocabulary, tie_word_embeddings=shape.tied,
    )  # fmt: skip
    model: Any = transformers.LlamaForCausalLM(config).eval()
    size = sum(parameter.numel() for parameter in model.parameters())
    ids = torch.randint(shape.vocabulary, (shape.batch, shape.tokens))
    before = resident()
    with _opened(way, model, shape) as opened:
        # foreach would gather every gradient at once and count its own temporaries
        optimizer = torch.optim.AdamW(opened.trained, lr=1e-4, foreach=False) if opened.trained else None
        while True:
            cpu, wall = time.process_time(), time.perf_counter()
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            opened.after_backward()
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            held = optimizer.state.values() if optimizer is not None else ()
            state = sum(tensor.nbytes for of_one in held for tensor in of_one.values()) / 2**20
            trained = sum(parameter.numel() for parameter in opened.trained)
            yield {
                "cpu": cpu, "wall": wall, "peak": peak(), "growth": peak() - before, "state": state,
                "trained": trained, "size": size,
            }  # fmt: skip


@contextmanager
def _opened(way: str, model: Any, shape: Shape) -> Iterator[Way]:
    """The model made ready for a way of training."""
    import torch
    from neuropolis.finetune.trainable import trainable_slice
    from neuropolis.neurons.sets import NeuronSet
    from neuropolis.neurons.subject import load_model
    from transformers import PreTrainedTokenizerFast

    generator = torch.Generator().manual_seed(0)
    per_layer = round(shape.share * shape.ffn)
    chosen = {layer: torch.randperm(shape.ffn, generator=generator)[:per_layer] for layer in range(shape.layers)}
    with ExitStack() as stack:
        if way == "slice":
            subject = load_model((model, PreTrainedTokenizerFast.__new__(PreTrainedTokenizerFast)))
            indices = {layer: index.tolist() for layer, index in chosen.items()}
            neurons = NeuronSet.from_indices(subject, indices=indices)
            yield Way(list(stack.enter_context(trainable_slice(subject, neurons)).masters))
        elif way == "lora":
            yield Way(_lora(model, 3 * per_layer * shape.hidden * shape.layers, shape))
        elif way == "masked full":
            yield _masked(model, chosen)
        elif way == "full":
            yield Way(list(model.parameters()))
        else:
            model.requires_grad_(False)
            model.enable_input_require_grads()
            yield Way([])


def _masked(model: Any, chosen: dict[int, Any]) -> Way:
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

    return Way(list(masks), mask)


def _lora(model: Any, budget: int, shape: Shape) -> list[Any]:
    from peft import LoraConfig, get_peft_model

    of_one_rank = 3 * shape.layers * (shape.hidden + shape.ffn)
    rank = max(1, round(budget / of_one_rank))
    adapted = get_peft_model(model, LoraConfig(r=rank, target_modules=["gate_proj", "up_proj", "down_proj"]))
    return [parameter for parameter in adapted.parameters() if parameter.requires_grad]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, help="rounds that are timed, after one to warm up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--torch-products", action="store_true", help="without oneDNN")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    arguments = parser.parse_args()
    shape = Shape()
    importlib.import_module("peft")
    importlib.import_module("transformer_lens.factories.architecture_adapter_factory")
    setting = (shape, arguments.threads, arguments.torch_products)
    with taking_turns({way: lambda way=way: steps(way, *setting) for way in arguments.ways}) as turns:
        rounds = _rounds(turns, arguments.rounds)
    size = rounds[0][arguments.ways[0]]["size"]
    print(f"Llama shape, {size / 1e6:.1f} M parameters: {asdict(shape)}")
    products = "torch's products" if arguments.torch_products else "products of the slice by oneDNN"
    print(f"AdamW, float32, {arguments.threads} thread(s), {arguments.rounds} rounds, {products}")
    _table(rounds)


def _rounds(turns: Turns, count: int) -> list[dict[str, dict[str, float]]]:
    turns()
    return [turns() for _ in range(count)]


def _table(rounds: list[dict[str, dict[str, float]]]) -> None:
    head = ("trained", "cpu s", "slice/it", "wall s", "slice/it", "peak MiB", "slice/it", "above", "slice/it", "state")
    print(f"{'way':<12}" + "".join(f"{name:>12}" for name in head))
    base = next(iter(rounds[0]))
    for way in rounds[0]:

        def median(key: str, way: str = way) -> float:
            return statistics.median(one[way][key] for one in rounds)

        def ratio(key: str, way: str = way) -> float:
            return statistics.median(one[base][key] / one[way][key] for one in rounds)

        cells = [f"{median('trained'):>12,.0f}"]
        for key, digits in (("cpu", 3), ("wall", 3), ("peak", 0), ("growth", 0)):
            cells += [f"{median(key):>12.{digits}f}", f"{ratio(key):>12.2f}"]
        print(f"{way:<12}" + "".join(cells) + f"{median('state'):>12.1f}")


if __name__ == "__main__":
    main()
