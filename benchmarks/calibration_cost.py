"""What a calibration costs in forward-equivalents, and what one of these takes beside a plain forward.

A forward-equivalent is one example through the model; one with a backward counts as three. A plain forward is Hugging
Face's, of the same facts in batches of the same size, without gradients. Planting is run for a few steps only, with its two
proofs, and nothing is trimmed, since no plant stands after so few: what a whole plant costs is what `neuropolis calibrate` says
of one that stood (the number of forwards depends on the recipe, not on the model). Wall seconds, medians over the rounds.

- qwen: the shape of Qwen2-0.5B with random weights
- a folder, or bundled:polis: that model

    python benchmarks/calibration_cost.py --model qwen --threads 2
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any


def subject_of(name: str, device: str) -> Any:
    import torch
    import transformers
    from neuropolis.neurons.subject import load_model

    if name != "qwen":
        return load_model(name, device=device)
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
        vocab_size=151936, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    tokenizer = load_model("bundled:polis").tokenizer
    return load_model((transformers.Qwen2ForCausalLM(config).eval().to(device), tokenizer))


def timed(subject: Any, run: Callable[[], Any]) -> tuple[float, float]:
    """Wall seconds and forward-equivalents of one run."""
    import torch
    from neuropolis.finetune.cost import counted

    with counted(subject) as forwards:
        start = time.perf_counter()
        run()
        if subject.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start, forwards[0]


def plain(subject: Any, encoded: Any, size: int) -> None:
    """Hugging Face's forward of all rows, `size` at a time, padded on the right."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    for first in range(0, len(encoded), size):
        rows = [torch.tensor(one.ids) for one in encoded[first : first + size]]
        ids = pad_sequence(rows, batch_first=True)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        with torch.no_grad():
            subject.model(input_ids=ids.to(subject.device), attention_mask=mask.to(subject.device))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="qwen")
    parser.add_argument("--steps", type=int, default=2, help="steps of planting")
    parser.add_argument("--texts", type=int, default=60, help="of other text; a fifth of it is read by each proof")
    parser.add_argument("--rounds", type=int, default=2, help="of every method")
    parser.add_argument("--methods", default="taylor,relp,ig,coalition")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    import torch
    from neuropolis.attribution.encoding import encode_corpus
    from neuropolis.corpora.examples import Corpus
    from neuropolis.corpora.invented import invented
    from neuropolis.corpora.loading import load_corpus
    from neuropolis.finetune.calibration_scores import scored
    from neuropolis.finetune.planting import PlantRecipe
    from neuropolis.finetune.plants import plant

    torch.set_num_threads(asked.threads)
    subject = subject_of(asked.model, asked.device)
    facts = invented(4, facts=8).only(split="train")
    encoded = encode_corpus(subject, facts)
    plain(subject, encoded[:2], 2)
    alone = statistics.median(
        timed(subject, lambda: plain(subject, encoded, 64))[0] / len(encoded) for _ in range(asked.rounds)
    )
    tokens = sum(len(one.ids) for one in encoded) / len(encoded)
    say("plain forward", seconds=alone, tokens=tokens, parameters=sum(p.numel() for p in subject.model.parameters()))
    recipe, polis = PlantRecipe(steps=asked.steps), load_corpus("bundled:polis", split="train")
    keep = Corpus(polis.examples[:: max(1, len(polis) // asked.texts)], name="part of polis")
    seconds, forwards = timed(subject, lambda: plant(subject, 4, keep=keep, recipe=recipe))
    say("planting", steps=asked.steps, forwards=forwards, seconds=seconds, seconds_a_forward=seconds / forwards,
        beside_plain=seconds / forwards / alone)  # fmt: skip
    for method in asked.methods.split(","):
        runs = [
            timed(subject, lambda method=method: scored(subject, facts, method, site="mlp", options={}))
            for _ in range(asked.rounds)
        ]
        seconds, forwards = statistics.median(run[0] for run in runs), runs[0][1]
        say(method, forwards=forwards, seconds=seconds, seconds_a_forward=seconds / forwards,
            beside_plain=seconds / forwards / alone)  # fmt: skip


def say(what: str, **figures: float) -> None:
    print(json.dumps({"what": what} | {key: float(f"{value:.4g}") for key, value in figures.items()}), flush=True)


if __name__ == "__main__":
    main()
