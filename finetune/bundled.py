"""Training of the bundled model `polis` from nothing: `make polis-model`.

A small Llama learns the training texts of the bundled corpus and nothing else: no test or dev template, no kept-out
culture. The tokenizer is trained on the same texts.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..corpora.bundled import polis, polis_training_texts

Row = tuple[list[int], int]
SPECIAL = ("<pad>", "<s>", "</s>")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome, beside the corpus and the libraries' versions."""

    hidden_size: int = 96
    intermediate_size: int = 2048
    num_layers: int = 4
    num_heads: int = 4
    vocabulary: int = 512
    steps: int = 2000
    batch_tokens: int = 3600
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    warmup: float = 0.03
    prompt_weight: float = 0.2
    free_answer_repeats: int = 3
    sparsity: float = 8e-4
    sparsity_scale: float = 0.004
    sparsity_ramp: float = 0.3
    seed: int = 0


def train_tokenizer(texts: Sequence[tuple[str, str]], vocabulary: int) -> Any:
    """A byte-level BPE tokenizer with a beginning-of-text token, trained on prompt + answer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator((prompt + answer for prompt, answer in texts), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=256
    )


def new_model(recipe: Recipe) -> Any:
    """An untrained Llama of the recipe's shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=recipe.vocabulary, hidden_size=recipe.hidden_size, intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers, num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_heads, max_position_embeddings=256, tie_word_embeddings=True,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def tokenise(tokenizer: Any, texts: Sequence[tuple[str, str]]) -> list[Row]:
    """(token ids with an end-of-text, index of the answer's first token) of each text."""
    rows = []
    for prompt, answer in texts:
        coded = tokenizer(prompt + answer, return_offsets_mapping=True)
        start = next(i for i, (_, right) in enumerate(coded["offset_mapping"]) if right > len(prompt))
        rows.append(([*coded["input_ids"], 2], start))
    return rows


def epochs(rows: Sequence[Row], recipe: Recipe) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless shuffled batches: (input ids, targets, weight of each target).

    Lengths are rounded up to a multiple of eight and a length's batches are all of one size (rows that do not fill one
    wait for the next epoch's order), so that there are few shapes to compile kernels for.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    by_length: dict[int, list[Row]] = {}
    for row in rows:
        by_length.setdefault(-(-len(row[0]) // 8) * 8, []).append(row)
    while True:
        batches: list[tuple[int, list[Row]]] = []
        for length, members in by_length.items():
            size = min(len(members), max(1, recipe.batch_tokens // length))
            order = torch.randperm(len(members), generator=generator).tolist()
            batches += [
                (length, [members[i] for i in order[first : first + size]])
                for first in range(0, len(order) - size + 1, size)
            ]
        for number in torch.randperm(len(batches), generator=generator).tolist():
            yield _padded(*batches[number], prompt_weight=recipe.prompt_weight)


def _padded(length: int, rows: Sequence[Row], *, prompt_weight: float) -> tuple[Tensor, Tensor, Tensor]:
    ids = torch.zeros((len(rows), length + 1), dtype=torch.long)
    weight = torch.zeros((len(rows), length + 1))
    for row, (tokens, start) in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        weight[row, 1:start] = prompt_weight
        weight[row, start : len(tokens)] = 1.0
    return ids[:, :-1], ids[:, 1:], weight[:, 1:]


def train(recipe: Recipe, *, minutes: float, log: Any = None) -> tuple[Any, Any, dict[str, Any]]:
    """Train by the recipe. Returns (model, tokenizer, what happened). Stops with an error when time runs out."""
    texts = polis_training_texts()
    tokenizer = train_tokenizer(texts, recipe.vocabulary)
    rows = tokenise(tokenizer, texts)
    free = {(e.prompt, e.answer) for e in polis().only(split="train")}
    rows += [row for row, text in zip(rows, texts, strict=True) if text in free] * (recipe.free_answer_repeats - 1)
    model = new_model(recipe)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=recipe.learning_rate, betas=(0.9, 0.98),
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, recipe))
    penalty = _Penalty(model, recipe.sparsity_scale) if recipe.sparsity else None
    model.train()
    began, recent, size = time.monotonic(), [], torch.zeros(())
    for step, (ids, targets, weight) in zip(range(recipe.steps), epochs(rows, recipe), strict=False):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False).logits.float()
        losses = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none") * weight.flatten()
        loss = losses.sum() / weight.sum()
        recent = [*recent[-99:], float(loss.detach())]
        if penalty is not None:
            size = penalty(ids != 0)
            loss = loss + recipe.sparsity * min(1.0, step / (recipe.sparsity_ramp * recipe.steps)) * size
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if log and (step + 1) % 100 == 0:
            log(
                f"step {step + 1}/{recipe.steps}  loss {sum(recent) / len(recent):.4f}  penalty {float(size.detach()):.1f}"
                f"  {time.monotonic() - began:.0f} s"
            )
        if time.monotonic() - began > minutes * 60:
            raise TimeoutError(
                f"{minutes} minutes were over at step {step + 1} of {recipe.steps}; raise --minutes or lower --steps"
            )
    if penalty is not None:
        penalty.remove()
    model.eval()
    facts = {"texts": len(texts), "loss": sum(recent) / len(recent), "seconds": round(time.monotonic() - began)}
    return model, tokenizer, facts


class _Penalty:
    """Mean over tokens and layers of sum_j log(1 + c_j / scale), c_j = |activation_j| * |output column of unit j|.

    c_j is the length of what unit j writes. The logarithm makes one unit that writes a lot cheaper than many that write
    a little, so that what the FFN knows comes to live in few units.
    """

    def __init__(self, model: Any, scale: float) -> None:
        self._scale = scale
        self._seen: list[tuple[Tensor, Tensor]] = []
        modules = [layer.mlp.down_proj for layer in model.model.layers]
        self._handles = [module.register_forward_pre_hook(self._note) for module in modules]

    def _note(self, module: Any, args: tuple[Tensor, ...]) -> None:
        self._seen.append((args[0], module.weight))

    def __call__(self, real: Tensor) -> Tensor:
        """The penalty of the last forward pass, over the tokens that are real ([batch, token])."""
        sizes = []
        for activation, weight in self._seen:
            written = activation[real].abs().float() * weight.norm(dim=0)
            sizes.append((written / self._scale).log1p().sum(dim=1).mean())
        self._seen.clear()
        return torch.stack(sizes).mean()

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def _rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then half a cosine down to a hundredth."""
    first = max(1, int(recipe.warmup * recipe.steps))
    if step < first:
        return (step + 1) / first
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - first) / max(1, recipe.steps - first)))


def save(model: Any, tokenizer: Any, recipe: Recipe, facts: dict[str, Any], folder: Path) -> None:
    """Write the checkpoint beside its place, then move it there file by file."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        model.save_pretrained(work)
        tokenizer.save_pretrained(work)
        Path(work, "recipe.json").write_text(json.dumps({"recipe": asdict(recipe), **facts}, indent=2) + "\n")
        for file in Path(work).iterdir():
            os.replace(file, folder / file.name)


def main() -> None:
    """Train the bundled model and write it where `bundled:polis` is read from."""
    from ..neurons.subject import BUNDLED

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=BUNDLED["bundled:polis"])
    parser.add_argument("--minutes", type=float, default=60.0)
    for key, value in asdict(Recipe()).items():
        parser.add_argument(f"--{key.replace('_', '-')}", type=type(value), default=value)
    chosen = vars(parser.parse_args())
    out, minutes = chosen.pop("out"), chosen.pop("minutes")
    recipe = Recipe(**chosen)
    model, tokenizer, facts = train(recipe, minutes=minutes, log=lambda text: print(text, flush=True))
    save(model, tokenizer, recipe, facts, out)
    print(f"wrote {out} ({sum(p.numel() for p in model.parameters()):,} parameters, loss {facts['loss']:.4f})")


if __name__ == "__main__":
    main()
