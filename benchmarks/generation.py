"""Rows a second that a local generator says in batches, beside one `generate` call for each row, in one run.

Both draw from the same model with the same temperature and top_p, with a key-value cache, the same prompts and as many
new tokens (the end-of-text token is turned off). One at a time is what Hugging Face's `generate(do_sample=True)` does for
one prompt after another. The two take turns; printed are medians over the rounds and the median of the ratios within a
round, in wall seconds.

- qwen: the shape of Qwen2-0.5B with random weights, the last norm's times PEAK / sqrt(width), so that next tokens are about as
  uncertain as a trained model's and not all alike
- tiny: the same with 2 layers of width 256
- a folder: a model with its tokenizer

    python benchmarks/generation.py --model qwen --threads 2
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

PEAK = 280.0
TEXT = "Given a #Question and #Options, choose the option that best aligns with your own value system. #Question: {} "


def subject_of(name: str) -> Any:
    """The model, with a tokenizer whose end-of-text token is turned off."""
    import torch
    import transformers
    from neuropolis.neurons.subject import load_model

    if name in ("qwen", "tiny"):
        shape = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}
        small = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 2, "num_attention_heads": 4}
        torch.manual_seed(0)
        config = transformers.Qwen2Config(
            **(shape if name == "qwen" else small), num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True,
            bos_token_id=None, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        tokenizer = load_model("bundled:polis").tokenizer
        model = transformers.Qwen2ForCausalLM(config).eval()
        with torch.no_grad():
            model.model.norm.weight.mul_(PEAK / config.hidden_size**0.5)
        subject = load_model((model, tokenizer))
    else:
        subject = load_model(name)
    subject.tokenizer.eos_token = None
    subject.model.generation_config.eos_token_id = None
    return subject


def one_at_a_time(subject: Any, ids: list[list[int]], tokens: int) -> None:
    import torch

    for row in ids:
        with torch.no_grad():
            subject.model.generate(
                input_ids=torch.tensor([row]), attention_mask=torch.ones(1, len(row), dtype=torch.long), do_sample=True,
                temperature=0.9, top_p=0.95, top_k=0, max_new_tokens=tokens, pad_token_id=0,
            )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="qwen, tiny or a folder")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, default=32, help="rows of a batch")
    parser.add_argument("--single", type=int, default=4, help="rows that are said one at a time in a round")
    parser.add_argument("--tokens", type=int, default=32, help="new tokens of a row")
    parser.add_argument("--words", type=int, default=1, help="times the prompt's text is repeated")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    import torch
    from neuropolis.attribution.generators import LocalGenerator, Sampling

    torch.set_num_threads(arguments.threads)
    subject = subject_of(arguments.model)
    prompts = [({"role": "user", "content": TEXT.format(row) * arguments.words},) for row in range(arguments.rows)]
    generator = LocalGenerator(subject, arguments.rows)
    ids = [generator._ids(prompt) for prompt in prompts]
    sampling = Sampling(0.9, 0.95, arguments.tokens)
    one_at_a_time(subject, ids[:1], 2)
    found: list[tuple[float, float]] = []
    for _ in range(arguments.rounds):
        start = time.perf_counter()
        one_at_a_time(subject, ids[: arguments.single], arguments.tokens)
        between = time.perf_counter()
        generator(prompts, sampling=sampling, seeds=range(arguments.rows))
        end = time.perf_counter()
        found.append((arguments.single / (between - start), arguments.rows / (end - between)))
    single, batched = (statistics.median(side) for side in zip(*found, strict=True))
    ratio = statistics.median(two / one for one, two in found)
    print(
        f"{arguments.model}: {subject.num_parameters / 1e6:.1f} million parameters, prompts of {len(ids[0])} tokens, "
        f"{arguments.tokens} new ones, {arguments.threads} thread(s)\n"
        f"one at a time {single:.3f} rows/s, batches of {arguments.rows} {batched:.3f} rows/s, ratio {ratio:.2f} "
        f"({', '.join(f'{two / one:.2f}' for one, two in found)})"
    )


if __name__ == "__main__":
    main()
