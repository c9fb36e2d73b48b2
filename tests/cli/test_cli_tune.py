"""`neuropolis tune`: what it writes, how it stops and goes on, and one clear line for each mistake."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from neuropolis.cli import main as cli
from neuropolis.cli import tune as verb
from neuropolis.corpora.examples import Corpus, Example
from neuropolis.corpora.jsonl import write_jsonl
from neuropolis.finetune import checkpoints, delta_files
from neuropolis.finetune.delta_files import load_delta
from peft import PeftModel

Run = Callable[..., str]
TUNE = ("tune", "model", "--data", "my.jsonl", "--study", "study.h5", "--group", "north", "--out", "delta")


@pytest.fixture
def ready(run: Run, folder: Path, corpus: Corpus) -> Path:
    """A folder with a study, and rows of two splits."""
    rows = [
        Example(f"{e.id}/{split}", e.group, e.prompt, e.answer, tags={"split": split})
        for e in corpus
        for split in ("train", "dev")
    ]
    write_jsonl(Corpus(tuple(rows)), folder / "my.jsonl")
    write_jsonl(corpus.only(("south", "east")), folder / "old.jsonl")
    run("locate", "model", "--data", "my.jsonl", "--out", "study.h5")
    run("select", "study.h5", "--top", "10")
    return folder


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while a step's progress is shown."""

    @contextmanager
    def progress(_: str) -> Iterator[Any]:
        def bar(done: int, _: int) -> None:
            if done == step:
                raise KeyboardInterrupt

        yield bar

    monkeypatch.setattr(verb, "progress", progress)


def stopped(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The last line of a command that was stopped."""
    monkeypatch.setattr("sys.argv", ["neuropolis", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 130
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("stopped: ")
    return line


def test_everything_that_tune_writes(run: Run, ready: Path) -> None:
    printed = run(
        *TUNE, "--accumulate", "2", "--precision", "bf16", "--checkpoint", "run", "--eval-split", "dev", "--patience", "2",
        "--export", "merged", "--peft", "adapter", "--lr", "0.01", "--batch-size", "2",
    )  # fmt: skip
    assert "held-out loss" in printed
    assert all(f"wrote {name}" in printed for name in ("merged", "adapter", "delta"))
    assert printed.strip().splitlines()[-1].startswith("next: neuropolis ")
    assert not (ready / "run").exists()
    delta = load_delta(ready / "delta")
    assert delta.origin["recipe"]["precision"] == "bf16"
    merged: Any = transformers.AutoModelForCausalLM.from_pretrained(ready / "merged").eval()
    plain: Any = transformers.AutoModelForCausalLM.from_pretrained(ready / "model").eval()
    with pytest.warns(FutureWarning):  # PEFT asks the model by a name that transformers calls old
        adapted = PeftModel.from_pretrained(plain, str(ready / "adapter"))
    ids = torch.arange(5, 12)[None]
    assert torch.allclose(adapted(ids).logits, merged(ids).logits, atol=1e-4)


def test_stopped_run_goes_on(
    run: Run, ready: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = (*TUNE, "--checkpoint", "run", "--checkpoint-every", "1", "--epochs", "5", "--batch-size", "2")
    interrupt_at(1, monkeypatch)
    assert "before the first checkpoint; run was not written" in stopped(kept, monkeypatch, capsys)
    interrupt_at(5, monkeypatch)
    line = stopped(kept, monkeypatch, capsys)
    assert line == "stopped: run holds step 4 of 10; give the same command again to go on"
    assert not (ready / "delta").exists()
    assert "nothing was written; with --checkpoint FILE" in stopped((*TUNE, "--epochs", "9"), monkeypatch, capsys)
    monkeypatch.undo()
    monkeypatch.chdir(ready)
    message = run(*kept, "--lr", "0.5", fails=True)
    assert "run is the checkpoint of another run, which had lr 0.0003 (now 0.5); " in message
    run(*kept)
    one = load_delta(ready / "delta")
    run(*TUNE, "--epochs", "5", "--batch-size", "2")
    other = load_delta(ready / "delta")
    assert one.history == other.history
    assert all(torch.equal(one.values[key], other.values[key]) for key in one.values)


@pytest.mark.parametrize(
    "arguments", [("info", "study.h5"), ("select", "study.h5"), ("report", "study.h5", "--out", "p.html")]
)
def test_ctrl_c_is_one_line_in_every_verb(
    arguments: tuple[str, ...], ready: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("h5py.File", interrupted)
    assert "whole; give it again" in stopped(arguments, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--old", "missing.jsonl"), "missing.jsonl"),
        (("--old", "my.jsonl"), "group 'north' is in my.jsonl too"),
        (("--export", "model"), "model is there and not empty; give a new folder for the checkpoint"),
        (("--peft", "model"), "model is there and not empty; give a new folder for the adapter"),
        (("--out", "nowhere/delta"), "there is no folder nowhere; make it first"),
        (("--checkpoint", "model"), "model is a folder; a checkpoint is one file"),
        (("--checkpoint", "nowhere/run"), "there is no folder nowhere; make it first"),
        (("--checkpoint", "my.jsonl"), "my.jsonl is damaged or no checkpoint"),
        (("--resume", "changed"), "name it with --checkpoint FILE"),
        (("--resume", "maybe", "--checkpoint", "run"), "unknown resume 'maybe'; expected same, changed or never"),
        (("--precision", "fp8"), "unknown precision 'fp8'"),
        (("--accumulate", "0"), "accumulate must be above 0, got 0"),
        (("--patience", "2"), "patience needs held-out examples"),
        (("--eval-split", "test"), "no example with split='test'; values are dev, train"),
        (("--eval-split", "train"), "share 4 examples"),
        (("--split", "nowhere"), "no example with split='nowhere'"),
        (("--lr", "1e30", "--epochs", "20"), "diverged: the loss is nan at step 2 of 20 (lr 1e+30)"),
        (("--lr", "1e40"), "lr must lie between 0 and 1e+30, got 1e+40"),
        (("--figure", "loss.gif"), "unknown suffix '.gif'; known are .svg, .png, .pdf"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_clear_line_and_nothing_is_written(
    run: Run, ready: Path, arguments: tuple[str, ...], line: str
) -> None:
    before = {path: path.read_bytes() for path in ready.rglob("*") if path.is_file()}
    message = run(*TUNE, *arguments, fails=True)
    assert message.startswith("error: ")
    assert line in message
    assert {path: path.read_bytes() for path in ready.rglob("*") if path.is_file()} == before


def test_divergence_with_checkpoints_says_how_to_go_on(run: Run, ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = ("--checkpoint", "run", "--checkpoint-every", "1", "--epochs", "20")
    interrupt_at(4, monkeypatch)
    monkeypatch.setattr("sys.argv", ["neuropolis", *TUNE, *kept])
    with pytest.raises(SystemExit):
        cli.main()
    monkeypatch.undo()
    monkeypatch.chdir(ready)
    message = run(*TUNE, *kept, "--lr", "1e30", "--resume", "changed", fails=True)
    assert "diverged: the loss is nan at step 5 of 20" in message
    assert "run holds step 3, the last good one that was kept" in message
    assert "wrote delta" in run(*TUNE, *kept, "--lr", "1e-4", "--resume", "changed")


@pytest.mark.parametrize("place", ["checkpoint", "delta"])
def test_full_disk_is_one_clear_line(run: Run, ready: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = ("--checkpoint", "run", "--checkpoint-every", "1")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*((checkpoints, "_save") if place == "checkpoint" else (delta_files, "_sha256")), full)
        message = run(*TUNE, *kept, fails=True)
    assert "No space left on device" in message
    assert not (ready / "delta").exists()
    assert (ready / "run").exists() == (place == "delta")
    assert "wrote delta" in run(*TUNE, *kept)


def test_units_of_experts_are_located_tuned_and_exported(run: Run, folder: Path, corpus: Corpus) -> None:
    shape: dict[str, Any] = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64,
        "intermediate_size": 16, "num_local_experts": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(0)
    transformers.MixtralForCausalLM(transformers.MixtralConfig(**shape)).save_pretrained(folder / "model")
    run("locate", "model", "--data", "my.jsonl", "--out", "study.h5", "--site", "expert")
    assert "expert neurons by layer" in run("select", "study.h5", "--top", "10")
    before = {path for path in folder.rglob("*") if path.is_file()}
    message = run(*TUNE, "--peft", "adapter", fails=True)
    assert message == (
        "error: PEFT has no form for single units of experts; leave --peft out, --export writes a plain checkpoint"
    )
    assert {path for path in folder.rglob("*") if path.is_file()} == before
    printed = run(*TUNE, "--export", "merged", "--lr", "0.01")
    assert f"{10 * 3 * 32} of " in printed
    delta = load_delta(folder / "delta")
    assert delta.neurons is not None
    assert (delta.neurons.site, len(delta.neurons)) == ("expert", 10)
    loaded = [
        transformers.AutoModelForCausalLM.from_pretrained(folder / name).state_dict() for name in ("model", "merged")
    ]
    changed = [name for name in loaded[0] if not torch.equal(loaded[0][name], loaded[1][name])]
    assert changed
    assert all(".experts." in name for name in changed)


def test_the_curve_is_drawn(run: Run, ready: Path) -> None:
    printed = run(
        *TUNE, "--eval-split", "dev", "--figure", "loss.svg", "--lr", "1", "--epochs", "2", "--no-stop-diverged"
    )
    assert "wrote loss.svg" in printed
    assert "</svg>" in (ready / "loss.svg").read_text()
    assert load_delta("delta").origin["recipe"]["stop_diverged"] is False
