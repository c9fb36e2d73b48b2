"""`neuropolis corpus FORMAT PATH`: a reader's options on the command line, what it says, and when it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

TABLE = (
    "ID,Country,Axis,Subaxis,Value,Rule-of-Thumb,Story,Gold Label\n1,japan,a,b,v,r,s,neutral\n2,japan,a,b,v,r,t,{}\n"
)


def test_a_benchmark_becomes_a_corpus_with_what_was_left_out(run: Callable[..., str], folder: Path) -> None:
    (folder / "normad_etiquette_final_data.csv").write_text(TABLE.format("maybe"))
    said = run("corpus", "normad", ".", "--twin", "value", "--out", "n.jsonl")
    assert "normad: 2 rows read, 1 examples in 1 groups" in said
    assert (
        "left out 1 rows: the label is none of yes, no, neutral (first: normad_etiquette_final_data.csv, line 3)"
        in said
    )
    assert '"control": "Value: v' in (folder / "n.jsonl").read_text()
    assert "the file exists already" in run("corpus", "normad", ".", "--out", "n.jsonl", fails=True)


def test_a_switch_that_is_on_can_be_turned_off(run: Callable[..., str], folder: Path) -> None:
    (folder / "normad_etiquette_final_data.csv").write_text(TABLE.format("yes"))
    run("corpus", "normad", ".", "--no-neutral", "--out", "n.jsonl")
    assert len((folder / "n.jsonl").read_text().splitlines()) == 1


def test_another_benchmark_is_told_by_its_name(run: Callable[..., str], folder: Path) -> None:
    (folder / "normad_etiquette_final_data.csv").write_text(TABLE.format("yes"))
    said = run("corpus", "fork", "normad_etiquette_final_data.csv", "--out", "n.jsonl", fails=True)
    assert "it looks like the format 'normad'" in said
    assert not (folder / "n.jsonl").exists()


def test_a_benchmarks_own_file_is_never_written_to(run: Callable[..., str], folder: Path) -> None:
    file = folder / "normad_etiquette_final_data.csv"
    file.write_text(TABLE.format("yes"))
    said = run("corpus", "normad", file.name, "--out", file.name, "--force", fails=True)
    assert "it is the file that is read; give another name" in said
    assert file.read_text() == TABLE.format("yes")
