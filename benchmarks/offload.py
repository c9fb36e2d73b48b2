"""Score a model that memory does not hold, and say how much memory that took.

Random weights of a Llama shape are written to a temporary folder shard by shard, so that they never are all in memory. A
process of its own then loads the model with its weights left on disk, and scores a few short examples. Shapes that fit
are scored in memory too, and the two must be equal bit for bit.

    python benchmarks/offload.py                 # a small twin
    python benchmarks/offload.py --shape 7b --limit 8GB --folder /large/disk    # 13.5 GB there
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from processes import in_own_process, peak


@dataclass(frozen=True)
class Shape:
    hidden: int
    layers: int
    ffn: int
    heads: int
    vocabulary: int


SHAPES = {
    "small": Shape(256, 8, 688, 4, 4000),
    "1b": Shape(2048, 16, 5632, 16, 32000),
    "7b": Shape(4096, 32, 11008, 32, 32000),
}
QUESTIONS = ("the capital of the north is", "in the east people eat")


def write_model(folder: Path, shape: Shape) -> int:
    """A checkpoint with random bf16 weights, one shard per block; returns its bytes."""
    import torch
    import transformers
    from safetensors.torch import save_file

    config = transformers.LlamaConfig(
        hidden_size=shape.hidden, intermediate_size=shape.ffn, num_hidden_layers=shape.layers, dtype=torch.bfloat16,
        num_attention_heads=shape.heads, vocab_size=shape.vocabulary, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(folder)
    with torch.device("meta"):
        parameters = {n: p.shape for n, p in transformers.LlamaForCausalLM(config).named_parameters()}
    shards: dict[str, list[str]] = {}
    for name in parameters:
        part = name.split(".")[2] if ".layers." in name else name.split(".")[-2]
        shards.setdefault(f"model-{part}.safetensors", []).append(name)
    total = 0
    pool = (
        torch.randn(2**22 - 3, generator=torch.Generator().manual_seed(0)).mul(0.02).bfloat16()
    )  # drawing all takes long
    for file, names in shards.items():
        tensors = {}
        for name in names:
            size, count = parameters[name], parameters[name].numel()
            start = total % 65521
            many = pool.repeat((start + count) // len(pool) + 1)[start : start + count].clone()
            tensors[name] = torch.ones(size).bfloat16() if len(size) == 1 else many.view(size)
            total += 2 * count
        save_file(tensors, folder / file, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": total},
        "weight_map": {n: file for file, names in shards.items() for n in names},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    write_tokenizer(folder)
    return total


def write_tokenizer(folder: Path) -> None:
    """One token per character."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {c: i + 3 for i, c in enumerate("abcdefghijklmnopqrstuvwxyz .")}
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2} | letters, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="</s>", unk_token="<unk>").save_pretrained(folder)


def score(folder: str, memory: str | None, out: str, limit: str | None) -> dict[str, float]:
    """Seconds of loading and of scoring, and MiB in memory at most. `memory` None loads the model in memory."""
    import torch
    from accelerate.utils import convert_file_size_to_int
    from neuropolis.attribution.attribute import attribute
    from neuropolis.corpora.examples import Corpus, Example
    from neuropolis.neurons.subject import load_model

    watched = {"own": 0.0}
    most = None if limit is None else int(convert_file_size_to_int(limit)) / 2**20
    threading.Thread(target=watch, args=(watched, most), daemon=True).start()
    examples = [
        Example(id=f"{g}/{i}", group=g, prompt=question, answer=f" {'rice' if g == 'north' else 'tea'}.")
        for g in ("north", "south")
        for i, question in enumerate(QUESTIONS)
    ]
    began = time.monotonic()
    how = {} if memory is None else {"offload": "disk", "memory": memory}
    subject = load_model(folder, device="cpu", **how)  # pyright: ignore[reportArgumentType]
    subject.site("mlp")
    loaded = time.monotonic()
    cpu = time.process_time()
    scores = attribute(subject, Corpus(tuple(examples)))
    done = time.monotonic()
    torch.save({"signed": scores.signed, "values": scores.values, "fingerprint": subject.fingerprint}, out)
    return {
        "loading": loaded - began, "scoring": done - loaded, "processor": time.process_time() - cpu,
        "most": peak(), "own": watched["own"],
    }  # fmt: skip


def watch(watched: dict[str, float], most: float | None) -> None:
    """Keep the highest of the memory that is the process's own; end the process when all of its memory goes beyond `most`."""
    page = resource.getpagesize() / 2**20
    while True:
        _, every, shared = Path("/proc/self/statm").read_text().split()[:3]
        watched["own"] = max(watched["own"], (int(every) - int(shared)) * page)
        if most is not None and int(every) * page > most:
            print(f"{int(every) * page:,.0f} MiB are in memory, beyond the limit of {most:,.0f}", flush=True)
            os._exit(1)
        time.sleep(0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--memory", default="0GB", help="what of the weights may stay in memory")
    parser.add_argument(
        "--limit", default=None, help="stop when the scoring process has more than this in memory, such as 8GB"
    )
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the weights are written, and removed afterwards"
    )
    parser.add_argument("--compare", action=argparse.BooleanOptionalAction, default=None, help="score in memory too")
    arguments = parser.parse_args()
    shape = SHAPES[arguments.shape]
    compare = arguments.shape != "7b" if arguments.compare is None else arguments.compare
    folder = Path(tempfile.mkdtemp(prefix="offload-", dir=arguments.folder))
    try:
        began = time.monotonic()
        total = in_own_process(lambda: {"bytes": write_model(folder, shape)})["bytes"]
        print(
            f"Llama shape {asdict(shape)}, bf16: {total / 2**20:,.0f} MiB written in {time.monotonic() - began:.0f} s"
        )
        ways = {"offloaded": (arguments.memory, arguments.limit)} | ({"in memory": (None, None)} if compare else {})
        print(f"{'way':<12} {'load s':>8} {'score s':>8} {'cpu s':>8} {'peak MiB':>9} {'without mapped files':>21}")
        for way, (memory, limit) in ways.items():
            found = in_own_process(score, str(folder), memory, str(folder / way), limit)
            print(
                f"{way:<12} {found['loading']:>8.1f} {found['scoring']:>8.1f} {found['processor']:>8.1f} "
                f"{found['most']:>9,.0f} {found['own']:>21,.0f}"
            )
        if compare:
            import torch

            a, b = (torch.load(folder / way) for way in ways)
            same = (
                all(torch.equal(a[key], b[key]) for key in ("signed", "values"))
                and a["fingerprint"] == b["fingerprint"]
            )
            print(f"scores and fingerprint equal bit for bit: {same}")
            if not same:
                raise SystemExit(1)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
