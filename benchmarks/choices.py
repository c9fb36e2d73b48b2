"""Four-choice questions beside lm-evaluation-harness's HFLM, and many sets beside one pass for each.

Random Llama weights, random words, the same items, one process; the ways take one turn each, in turn, so that other work
on the machine falls on all of them, and every ratio is within a round. Printed are the median seconds of a way and the
median of the ratios, with the least and the greatest. Both ways get batches of about as many tokens: HFLM
`--batch` sequences, ours as many tokens as those have. Answers (which choice has the lowest loss) must be the same, and the
losses equal to 1e-3.

- harness: HFLM.loglikelihood as its multiple choice calls it, its cache of one-token continuations on
- ours: choice_losses, with the plan made anew in each round (tokenising and the trial of sharing included)
- ours, planned: choice_losses on a plan made before, as for the second set and all that follow
- sets one by one / together: choice_losses under every set / choice_losses_off, for sets of one layer each

    pip install -e '.[harness]'
    OMP_NUM_THREADS=2 python benchmarks/choices.py --threads 2
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Shape:
    hidden: int = 512
    layers: int = 8
    heads: int = 8
    ffn: int = 1376
    vocabulary: int = 32000


def subject_of(shape: Shape) -> Any:
    """A random Llama with a tokenizer of one token per word."""
    import neuropolis as npl
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=shape.hidden, num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads, intermediate_size=shape.ffn, vocab_size=shape.vocabulary,
            tie_word_embeddings=True, max_position_embeddings=512,
        )
    ).eval()  # fmt: skip
    words = {f"w{i}": i for i in range(shape.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="w0", bos_token="w1", eos_token="w2", unk_token="w0"
    )
    return npl.load_model((model, fast))


def questions(count: int, *, prompt: int, answer: int, vocabulary: int) -> Any:
    """Four-choice questions of random words: prompts of about `prompt` tokens, choices of 1 to `answer`."""
    import neuropolis as npl

    draw = random.Random(0)

    def text(length: int) -> str:
        return " ".join(f"w{draw.randrange(3, vocabulary)}" for _ in range(length))

    examples = []
    for i in range(count):
        choices = tuple(" " + text(draw.randint(1, answer)) for _ in range(4))
        examples.append(
            npl.Example(
                id=str(i), group="g", prompt=text(prompt + draw.randint(-5, 5)), answer=choices[i % 4], choices=choices,
                answer_index=i % 4,
            )
        )  # fmt: skip
    return npl.Corpus(tuple(examples), name="random words")


def harness(subject: Any, corpus: Any, batch: int) -> Callable[[], torch.Tensor]:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=subject.model, tokenizer=subject.tokenizer, batch_size=batch)

    def losses() -> torch.Tensor:
        requests = [
            Instance("loglikelihood", {}, (example.prompt, choice), i)
            for i, example in enumerate(corpus)
            for choice in example.choices
        ]
        return -torch.tensor([value for value, _ in lm.loglikelihood(requests, disable_tqdm=True)]).view(-1, 4)

    return losses


def turns(ways: dict[str, Callable[[], torch.Tensor]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every way in every round, after one round that does not count and whose losses are compared."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    first = None
    for number in range(rounds + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            losses = way()
            if number:
                seconds[name].append(time.perf_counter() - began)
                continue
            first = losses if first is None else first
            torch.testing.assert_close(losses.double(), first.double(), rtol=1e-3, atol=1e-3)
            assert torch.equal(losses.argmin(dim=-1), first.argmin(dim=-1)), f"{name} answers otherwise"
    return seconds


def tell(title: str, seconds: dict[str, list[float]]) -> None:
    reference, *_ = seconds
    print(title)
    for name, own in seconds.items():
        ratios = [a / b for a, b in zip(seconds[reference], own, strict=True)]
        print(
            f"  {name:22} {statistics.median(own):8.2f} s   {reference} / this: {statistics.median(ratios):5.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


def main() -> None:
    import neuropolis as npl
    from neuropolis.analysis.choices import encode_choices

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--items", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=200)
    parser.add_argument("--answers", type=int, nargs="+", default=[1, 4], help="most tokens of a choice, a table each")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    for name, default in vars(Shape()).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    shape = Shape(**{name: getattr(given, name) for name in vars(Shape())})
    subject = subject_of(shape)
    print(f"{shape}, {given.threads} threads, torch {torch.__version__}, batches of {given.batch} sequences")
    for answer in given.answers:
        corpus = questions(given.items, prompt=given.prompt, answer=answer, vocabulary=shape.vocabulary)
        tokens = given.batch * (given.prompt + answer)
        plan = encode_choices(subject, corpus, max_tokens=tokens)
        ways = {
            "harness": harness(subject, corpus, given.batch),
            "ours": lambda corpus=corpus, tokens=tokens: npl.choice_losses(subject, corpus, max_tokens=tokens),
            "ours, planned": lambda plan=plan: npl.choice_losses(subject, plan),
        }
        title = f"{given.items} questions of 4 choices, prompts of {given.prompt} tokens, choices of 1 to {answer}"
        tell(title, turns(ways, given.rounds))
        sets = [
            npl.NeuronSet.from_indices(subject, site="mlp", indices={layer: range(20)}) for layer in range(shape.layers)
        ]

        def one_by_one(plan: Any = plan, sets: Any = sets) -> torch.Tensor:
            found = []
            for neurons in sets:
                with npl.intervene(subject, neurons):
                    found.append(npl.choice_losses(subject, plan))
            return torch.stack(found)

        ways = {
            "one by one": one_by_one,
            "together": lambda plan=plan, sets=sets: npl.choice_losses_off(subject, plan, sets=sets),
        }
        tell(f"{len(sets)} sets of one layer each, one for every layer", turns(ways, max(1, given.rounds // 2)))


if __name__ == "__main__":
    main()
