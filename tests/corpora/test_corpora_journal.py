from __future__ import annotations

from pathlib import Path

import pytest
from neuropolis.corpora.examples import CorpusError
from neuropolis.corpora.journal import Journal, open_journal, read_journal, write_journal

ROWS = [{"id": 1}, {"id": 2, "text": "två\u2028"}, {"id": 3}]


def opened(path: Path, **settings: object) -> Journal:
    return open_journal(path, stage="answer", settings=settings)


def test_rows_come_back_and_more_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    opened(path, seed=1).append(ROWS[:2])
    again = opened(path, seed=1)
    assert (again.rows, again.note) == (ROWS[:2], "")
    again.append(ROWS[2:])
    again.append([])
    assert read_journal(path, stage="answer") == ROWS == again.rows
    assert path.read_text("utf-8").splitlines()[0] == '{"stage": "answer", "settings": {"seed": 1}}'


@pytest.mark.parametrize("lost", range(1, 12))
def test_half_a_last_line_is_taken_away_with_a_note(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "a.jsonl"
    opened(path).append(ROWS)
    path.write_bytes(path.read_bytes()[:-lost])
    kept = ROWS[:2] if lost <= 10 else ROWS[:1]
    assert read_journal(path, stage="answer") == kept
    again = opened(path)
    assert again.rows == kept
    assert bool(again.note) == (lost != 10)
    assert "the last line was cut off" in again.note or lost == 10
    again.append(ROWS[len(kept) :])
    assert opened(path).rows == ROWS
    assert opened(path).note == ""


def test_a_file_that_ends_in_its_first_line_is_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    opened(path)
    path.write_bytes(path.read_bytes()[:-3])
    assert opened(path).note
    assert opened(path).note == ""


@pytest.mark.parametrize(
    "kept",
    [
        '{"my": "precious single line json"}', '{"stage": "answer", "settings": {"seed": 1}', "A thesis.", "ж",
        '{"a": 1}\n{"b": 2}\n{"c": 3}', '{"stage": "answer", "settings": {"seed": 1}}\n{"id": 1}\n{"id',
        '{"stage": "filter", "settings": {}}\n{"id": 1}\n{"id": 2}',
    ],
)  # fmt: skip
def test_a_file_that_is_not_this_journal_is_left_as_it_is(tmp_path: Path, kept: str) -> None:
    path = tmp_path / "precious.json"
    path.write_text(kept, "utf-8")
    with pytest.raises(CorpusError, match="give another file"):
        opened(path, seed=2)
    assert path.read_text("utf-8") == kept


def test_an_empty_file_is_begun(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.touch()
    opened(path).append(ROWS)
    assert opened(path).rows == ROWS


def test_rows_of_an_unfinished_batch_can_be_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    journal = opened(path)
    journal.append(ROWS)
    journal.cut(1)
    journal.append([{"id": 9}])
    assert opened(path).rows == journal.rows == [{"id": 1}, {"id": 9}]


def test_other_settings_another_stage_and_broken_lines_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    opened(path, seed=1, top_p=0.9)
    with pytest.raises(CorpusError, match=r"a.jsonl was begun with seed 1, now it is 2; go on with the same"):
        opened(path, seed=2, top_p=0.9)
    with pytest.raises(CorpusError, match="expected a file of the stage 'filter', found"):
        open_journal(path, stage="filter", settings={})
    with pytest.raises(CorpusError, match="expected a file of the stage 'filter', found one of 'answer'"):
        read_journal(path, stage="filter")
    with pytest.raises(CorpusError, match="no such file; expected what the stage 'filter' wrote"):
        read_journal(tmp_path / "b.jsonl", stage="filter")
    path.write_text("{}\nnonsense\n{}\n")
    with pytest.raises(CorpusError, match=r"line 2: not JSON .*found b'nonsense"):
        opened(path)
    with pytest.raises(CorpusError, match=r"the folder .* does not exist"):
        opened(tmp_path / "no" / "a.jsonl")


def test_a_whole_journal_is_written_at_once(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    write_journal(path, iter(ROWS), stage="filter", settings={"of": "x"})
    assert read_journal(path, stage="filter") == ROWS

    def failing() -> object:
        yield {"id": 1}
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_journal(path, failing(), stage="filter", settings={})  # pyright: ignore[reportArgumentType]
    assert read_journal(path, stage="filter") == ROWS
    assert list(tmp_path.iterdir()) == [path]
